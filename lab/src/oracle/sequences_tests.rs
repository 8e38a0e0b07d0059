//! What the judge of sequences must find, planted, and what it must let pass.

use plugpull_protocol::{
    Promise,
    workload::sequences::{CELL, Cell, GIVEN_CELLS, ROOT, Step},
};

use super::*;

/// Steps, how many of them were begun, and whether syncs were acknowledged.
fn model(steps: &[Step], begun: usize) -> Model {
    let sequence = Sequence {
        number: 0,
        steps: steps.to_vec(),
    };
    Model::of(&sequence, begun, |_| true)
}

fn file(inode: u64, cells: &[Cell]) -> Entry {
    Entry::File {
        inode,
        size: cells.len() as u64 * CELL,
        cells: cells.to_vec(),
    }
}

fn of(step: usize, count: usize) -> Vec<Cell> {
    vec![Cell::Step(step); count]
}

/// What every sequence starts from.
fn given() -> BTreeMap<&'static str, Entry> {
    let cells = of(0, GIVEN_CELLS as usize);
    BTreeMap::from([
        ("", Entry::Dir),
        ("d", Entry::Dir),
        ("a", file(1, &cells)),
        ("b", file(2, &cells)),
        ("d/c", file(3, &cells)),
    ])
}

/// What is said of the given files with these entries in place of others.
fn judged(steps: &[Step], begun: usize, changes: &[(&'static str, Option<Entry>)]) -> Vec<String> {
    let mut found = given();
    for (name, entry) in changes {
        match entry {
            Some(entry) => drop(found.insert(name, entry.clone())),
            None => drop(found.remove(name)),
        }
    }
    one(&model(steps, begun), &found)
}

fn fine(steps: &[Step], begun: usize, changes: &[(&'static str, Option<Entry>)]) {
    assert_eq!(judged(steps, begun, changes), [""; 0], "{steps:?}");
}

fn wrong(steps: &[Step], begun: usize, changes: &[(&'static str, Option<Entry>)], told: &str) {
    let said = judged(steps, begun, changes).join("; ");
    assert!(said.contains(told), "{steps:?}: {said}");
}

#[test]
fn what_was_given_stays_as_it_is() {
    fine(&[], 0, &[]);
    wrong(&[], 0, &[("a", None)], "a is absent");
    wrong(&[], 0, &[("d", None)], "d is absent");
    wrong(&[], 0, &[("", None)], "directory is gone");
    let stranger = Some(file(9, &[]));
    wrong(&[], 0, &[("x", stranger)], "instead of nothing");
    let zeros = [of(0, 3), vec![Cell::Zero; 2]].concat();
    wrong(
        &[],
        0,
        &[("a", Some(file(1, &zeros)))],
        "holds Zero in cell 3",
    );
    let other = [of(0, 4), vec![Cell::Other("s9/0/4".into())]].concat();
    wrong(&[], 0, &[("a", Some(file(1, &other)))], "holds Other");
    let odd = Some(Entry::Odd("Input/output error".into()));
    wrong(&[], 0, &[("a", odd)], "Input/output error");
}

#[test]
fn a_new_file_needs_two_syncs_to_be_promised() {
    let steps = [
        Step::Create("f", 3),
        Step::SyncFile("f"),
        Step::SyncDir(ROOT),
    ];
    let [absent, empty, whole] = [None, Some(file(9, &[])), Some(file(9, &of(1, 3)))];
    let grown = Some(file(9, &[of(1, 1), vec![Cell::Zero; 2]].concat()));
    for (begun, left) in [(1, &absent), (1, &empty), (1, &grown), (1, &whole)] {
        fine(&steps, begun, &[("f", left.clone())]);
    }
    // Its content is promised, its name is not.
    fine(&steps, 2, &[("f", absent.clone())]);
    wrong(&steps, 2, &[("f", empty.clone())], "has 0 bytes");
    wrong(&steps, 2, &[("f", grown)], "holds Zero in cell 1");
    wrong(&steps, 3, &[("f", absent.clone())], "f is absent");
    fine(&steps, 3, &[("f", whole)]);
    // The other way round: the name, and of the content nothing.
    let steps = [Step::Create("f", 3), Step::SyncDir(ROOT)];
    fine(&steps, 2, &[("f", empty)]);
    wrong(&steps, 2, &[("f", absent)], "f is absent");
}

#[test]
fn an_append_keeps_the_prefix_and_shows_nothing_foreign() {
    let steps = [Step::Append("a", 2), Step::SyncFile("a")];
    let a = |tail: Vec<Cell>| [("a", Some(file(1, &[of(0, 5), tail].concat())))];
    for tail in [of(1, 0), of(1, 1), of(1, 2), vec![Cell::Zero]] {
        fine(&steps, 1, &a(tail));
    }
    fine(&steps, 2, &a(of(1, 2)));
    wrong(&steps, 2, &a(of(1, 1)), "has 3072 bytes");
    wrong(&steps, 2, &a(vec![Cell::Step(1), Cell::Zero]), "holds Zero");
    wrong(&steps, 1, &a(vec![Cell::Other("x".into())]), "holds Other");
    let eaten = [of(0, 4), vec![Cell::Zero], of(1, 2)].concat();
    wrong(
        &steps,
        1,
        &[("a", Some(file(1, &eaten)))],
        "holds Zero in cell 4",
    );
}

#[test]
fn a_size_is_one_that_the_file_had() {
    let steps = [
        Step::Truncate("a", 2),
        Step::Fallocate("a", 6),
        Step::SyncFile("a"),
    ];
    let a = |cells: Vec<Cell>| [("a", Some(file(1, &cells)))];
    for size in [2, 5] {
        fine(&steps, 1, &a(of(0, size)));
    }
    wrong(&steps, 1, &a(of(0, 3)), "has 1536 bytes");
    let last = [of(0, 2), vec![Cell::Zero; 6]].concat();
    fine(&steps, 3, &a(last));
    wrong(&steps, 3, &a(of(0, 5)), "has 2560 bytes");
    wrong(&steps, 3, &a(of(0, 8)), "holds Step(0) in cell 2");
    let steps = [Step::Punch("a", 1, 2), Step::SyncFile("a")];
    let punched = [of(0, 1), vec![Cell::Zero; 2], of(0, 2)].concat();
    fine(&steps, 1, &a(of(0, 5)));
    fine(&steps, 2, &a(punched));
    wrong(&steps, 2, &a(of(0, 5)), "holds Step(0) in cell 1");
}

#[test]
fn a_rename_over_leaves_the_old_or_the_new_and_never_nothing() {
    let steps = [
        Step::Overwrite("a", 0, 5),
        Step::SyncFile("a"),
        Step::Rename("a", "b"),
        Step::SyncDir(ROOT),
    ];
    let (old, new) = (of(0, 5), of(1, 5));
    let left = |a: Option<&[Cell]>, b: Option<(u64, &[Cell])>| {
        let a = a.map(|cells| file(1, cells));
        [("a", a), ("b", b.map(|(inode, cells)| file(inode, cells)))]
    };
    fine(&steps, 3, &left(Some(&new), Some((2, &old))));
    fine(&steps, 3, &left(None, Some((1, &new))));
    fine(&steps, 3, &left(Some(&new), Some((1, &new))));
    wrong(&steps, 3, &left(Some(&new), None), "b is absent");
    wrong(
        &steps,
        3,
        &left(None, Some((2, &old))),
        "under none of its names",
    );
    wrong(
        &steps,
        4,
        &left(Some(&new), Some((1, &new))),
        "instead of nothing",
    );
    wrong(&steps, 4, &left(None, Some((2, &old))), "b holds Step(0)");
    let mixed = [of(1, 2), of(0, 3)].concat();
    wrong(&steps, 4, &left(None, Some((1, &mixed))), "b holds Step(0)");
    // Without the file's sync its content is not promised.
    let unsynced = [Step::Overwrite("a", 0, 5), Step::Rename("a", "b")];
    fine(&unsynced, 2, &left(None, Some((1, &mixed))));
}

#[test]
fn a_file_that_moves_to_another_directory_is_in_one_of_them() {
    let steps = [Step::Rename("b", "d/n"), Step::SyncDir("d")];
    let moved = || Some(file(2, &of(0, 5)));
    fine(&steps, 1, &[]);
    fine(&steps, 1, &[("b", None), ("d/n", moved())]);
    fine(&steps, 1, &[("d/n", moved())]);
    wrong(&steps, 1, &[("b", None)], "under none of its names");
    wrong(&steps, 2, &[], "d/n is absent");
    // Once it is unlinked it may be gone.
    let steps = [Step::Rename("b", "d/n"), Step::Unlink("d/n")];
    fine(&steps, 2, &[("b", None)]);
}

#[test]
fn links_are_one_file() {
    let steps = [Step::Link("b", "l"), Step::SyncDir(ROOT)];
    let b = || of(0, 5);
    fine(&steps, 1, &[]);
    fine(&steps, 2, &[("l", Some(file(2, &b())))]);
    wrong(&steps, 2, &[], "l is absent");
    wrong(&steps, 2, &[("l", Some(file(2, &[])))], "l has 0 bytes");
    let apart = [("a", Some(file(2, &b())))];
    wrong(&[], 0, &apart, "never were");
}

#[test]
fn what_is_in_a_new_directory_needs_that_directory() {
    let steps = [
        Step::Mkdir("e"),
        Step::Create("e/f", 2),
        Step::SyncFile("e/f"),
        Step::SyncDir("e"),
        Step::SyncDir(ROOT),
    ];
    let whole = Some(file(9, &of(2, 2)));
    fine(&steps, 4, &[]);
    wrong(&steps, 4, &[("e", Some(Entry::Dir))], "e/f is absent");
    wrong(&steps, 5, &[], "e is absent");
    fine(&steps, 5, &[("e", Some(Entry::Dir)), ("e/f", whole)]);
}

#[test]
fn a_ledger_says_what_was_begun_and_promised() {
    let seed = 1;
    let begin = |step| Promise::Begin {
        conn: 1,
        key: step_key(0, step),
        value: Some("x".into()),
    };
    let ack = |step| Promise::Ack {
        conn: 1,
        key: step_key(0, step),
    };
    let seen = StoreSeen::default();
    let told = |promises: &[Promise]| {
        let ledger = Ledger::at((1..).zip(promises), 99).expect("a ledger");
        let told = judge(&ledger, seed, 1, &seen).len();
        (told, begun(&ledger, seed, 1))
    };
    assert_eq!(told(&[begin(0)]), (0, 0));
    assert_eq!(told(&[begin(0), ack(0)]), (1, 0));
    assert_eq!(told(&[begin(0), ack(0), begin(1)]), (1, 1));
    let stranger = StoreSeen {
        rows: vec![("s7".into(), "d".into())],
        ..StoreSeen::default()
    };
    let found = judge(&Ledger::default(), seed, 1, &stranger);
    assert!(found[0].detail.contains("nobody made that"));
}
