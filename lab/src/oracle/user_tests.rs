//! Planted defects that the files oracle and the check's verdict must find.

use plugpull_protocol::{Exited, Promise};
use proptest::prelude::*;

use super::*;

fn begin(conn: u32, value: &str) -> Promise {
    Promise::Begin {
        conn,
        key: "k".into(),
        value: (!value.is_empty()).then(|| value.into()),
    }
}

fn ack(conn: u32) -> Promise {
    Promise::Ack {
        conn,
        key: "k".into(),
    }
}

fn served(value: &str) -> Promise {
    Promise::Served {
        key: "k".into(),
        value: value.into(),
    }
}

fn file(content: &str) -> UserFile {
    UserFile::File {
        size: content.len() as u64,
        sha256: content.into(),
    }
}

/// What is said of a file with this history.
fn said(history: &[Promise], atomic: bool, holds: &UserFile) -> Vec<String> {
    let ledger = Ledger::at((1..).zip(history), 99).expect("a ledger");
    let findings = files(&ledger, atomic, |_| Some(holds));
    assert!(findings.iter().all(|f| f.oracle == OracleName::Files));
    findings.into_iter().map(|f| f.detail).collect()
}

fn content(history: &[Promise], atomic: bool, holds: &UserFile) -> bool {
    said(history, atomic, holds).is_empty()
}

#[test]
fn an_acknowledged_content_is_there() {
    let history = [begin(1, "old"), ack(1), begin(1, "new"), ack(1)];
    for atomic in [false, true] {
        assert!(content(&history, atomic, &file("new")));
        let lost = said(&history, atomic, &UserFile::Absent);
        assert_eq!(
            lost,
            ["k: is absent instead of sha256:new, acknowledged at seq 4"]
        );
        let stale = said(&history, atomic, &file("old"));
        assert_eq!(
            stale,
            [
                "k: holds the older content sha256:old that was begun at seq 1 instead of \
              sha256:new, acknowledged at seq 4"
            ]
        );
        let empty = said(&history, atomic, &file(""));
        assert!(empty[0].starts_with("k: is empty instead of"), "{empty:?}");
        let foreign = said(&history, atomic, &file("torn"));
        assert!(
            foreign[0].contains("4 bytes that nobody wrote"),
            "{foreign:?}"
        );
        let kind = "a directory".into();
        assert!(!content(&history, atomic, &UserFile::Other { kind }));
        let why = "EIO".into();
        assert!(!content(&history, atomic, &UserFile::Unreadable { why }));
    }
}

#[test]
fn what_is_begun_may_be_anything_or_whole() {
    let history = [begin(1, "old"), ack(1), begin(1, "new")];
    for holds in [file("old"), file("new")] {
        assert!(content(&history, false, &holds) && content(&history, true, &holds));
    }
    for holds in [file("torn"), UserFile::Absent, file("")] {
        assert!(content(&history, false, &holds), "{holds:?}");
        assert!(!content(&history, true, &holds), "{holds:?}");
    }
    let first = [begin(1, "first")];
    assert!(content(&first, true, &UserFile::Absent));
    assert!(content(&first, true, &file("first")));
    assert!(!content(&first, true, &file("torn")));
}

#[test]
fn a_removal_is_a_promise_too() {
    let begun = [begin(1, "old"), ack(1), begin(1, "")];
    assert!(content(&begun, true, &file("old")) && content(&begun, true, &UserFile::Absent));
    assert!(!content(&begun, true, &file("half")));
    let done = [begin(1, "old"), ack(1), begin(1, ""), ack(1)];
    assert!(content(&done, false, &UserFile::Absent));
    let back = said(&done, false, &file("old"));
    assert!(
        back[0].ends_with("instead of its removal, acknowledged at seq 4"),
        "{back:?}"
    );
    let again = [begin(1, ""), ack(1), begin(1, "new"), ack(1)];
    assert!(!content(&again, false, &UserFile::Absent));
}

#[test]
fn an_abandoned_attempt_of_the_same_connection_is_superseded() {
    let history = [begin(1, "failed"), begin(1, "new"), ack(1)];
    assert!(content(&history, false, &file("new")));
    assert!(!content(&history, false, &file("failed")));
    assert!(!content(&history, false, &UserFile::Absent));
}

#[test]
fn concurrent_connections_may_come_in_any_order() {
    let history = [begin(1, "a"), begin(2, "b"), ack(1), ack(2)];
    assert!(content(&history, true, &file("a")) && content(&history, true, &file("b")));
    assert!(!content(&history, false, &UserFile::Absent));
    // One after the other they have an order.
    let history = [begin(1, "a"), ack(1), begin(2, "b"), ack(2)];
    assert!(!content(&history, true, &file("a")));
    // A write under way elsewhere may still overwrite what was promised.
    let history = [begin(2, "slow"), begin(1, "a"), ack(1)];
    assert!(content(&history, true, &file("slow")) && content(&history, true, &file("a")));
    assert!(!content(&history, true, &UserFile::Absent));
}

#[test]
fn what_a_reader_was_served_is_promised() {
    let history = [begin(1, "old"), ack(1), begin(1, "new"), served("new")];
    assert!(content(&history, true, &file("new")));
    let lost = said(&history, true, &file("old"));
    assert!(
        lost[0].ends_with("instead of sha256:new, served at seq 4"),
        "{lost:?}"
    );
    // Reading the old content while the new one is under way promises nothing new.
    let history = [begin(1, "old"), ack(1), begin(1, "new"), served("old")];
    assert!(content(&history, true, &file("old")) && content(&history, true, &file("new")));
    // The same content written twice: the reader may have seen the first.
    let history = [begin(1, "x"), begin(2, "y"), begin(3, "x"), served("x")];
    assert!(content(&history, true, &file("y")));
    let stray = said(&[begin(1, "a"), ack(1), served("b")], true, &file("a"));
    assert_eq!(stray.len(), 1);
    assert!(
        stray[0].contains("which nobody had begun to write"),
        "{stray:?}"
    );
}

#[test]
fn the_cut_counts_and_what_is_not_looked_at_is_told() {
    let history = [begin(1, "old"), ack(1), begin(1, "new"), ack(1)];
    let at = |cut| Ledger::at((1..).zip(&history), cut).expect("a ledger");
    let holds = file("old");
    assert_eq!(files(&at(3), true, |_| Some(&holds)), []);
    assert_eq!(files(&at(4), true, |_| Some(&holds)).len(), 1);
    let unseen = files(&at(4), true, |_| None);
    assert_eq!(unseen[0].detail, "k was promised and not looked at");
    assert_eq!((promised(&at(1)), promised(&at(2))), (0, 1));
}

#[test]
fn a_check_is_believed_by_its_exit() {
    let exited = |code, stdout: &str| {
        Ended::Exited(Exited {
            code,
            stdout: stdout.into(),
            stderr: "err\n".into(),
            elapsed_ms: 1,
        })
    };
    assert_eq!(check(&exited(0, "all is lost\n")), Ok(vec![]));
    let found = check(&exited(1, "k1 is lost\n")).expect("judged");
    assert_eq!(found[0].oracle, OracleName::Check);
    assert_eq!(found[0].detail, "the check ended with 1: k1 is lost\nerr");
    let hung = Ended::Hung {
        after_ms: 500,
        said: "opening\n".into(),
    };
    let found = check(&hung).expect("judged");
    assert_eq!(
        found[0].detail,
        "the check did not end within 500 ms; it had said: opening"
    );
    let why = String::from("start ./absent");
    assert_eq!(check(&Ended::NotStarted { why: why.clone() }), Err(why));
    let flood = "é".repeat(3) + &"line\n".repeat(2000);
    let told = check(&exited(1, &flood)).expect("judged").remove(0).detail;
    assert!(told.len() < 4100 && told.contains("(…)\nline\n") && told.ends_with("err"));
}

/// The rules said the slow way, version by version and word by word; the first
/// word is number 1.
fn slowly_content(history: &[Promise], atomic: bool, holds: &UserFile) -> bool {
    struct V {
        conn: u32,
        value: Option<String>,
        begun: usize,
        promised: Option<usize>,
    }
    fn superseded(all: &[V], this: &V) -> bool {
        all.iter().any(|other| {
            let after = this.promised.is_some_and(|p| p < other.begun);
            let same = this.conn == other.conn && this.begun < other.begun;
            other.promised.is_some() && (after || same)
        })
    }
    let mut all: Vec<V> = Vec::new();
    let mut stray = false;
    for (seq, word) in (1..).zip(history) {
        match word {
            Promise::Begin { conn, value, .. } => all.push(V {
                conn: *conn,
                value: value.clone(),
                begun: seq,
                promised: None,
            }),
            Promise::Ack { conn, .. } => {
                let latest = all.iter_mut().rfind(|v| v.conn == *conn);
                latest.expect("begun").promised.get_or_insert(seq);
            }
            Promise::Served { value, .. } => {
                stray |= !all.iter().any(|v| v.value.as_ref() == Some(value));
                let meant = (0..all.len()).find(|at| {
                    all[*at].value.as_ref() == Some(value) && !superseded(&all, &all[*at])
                });
                if let Some(at) = meant {
                    all[at].promised.get_or_insert(seq);
                }
            }
            other => panic!("{other:?}"),
        }
    }
    let current: Vec<_> = all.iter().filter(|v| !superseded(&all, v)).collect();
    let untouched = all.iter().all(|v| v.promised.is_none());
    let pending = current.iter().any(|v| v.promised.is_none());
    let whole = match holds {
        UserFile::Absent => untouched || current.iter().any(|v| v.value.is_none()),
        UserFile::File { sha256, .. } => current.iter().any(|v| v.value.as_ref() == Some(sha256)),
        _ => false,
    };
    !stray && (whole || pending && !atomic)
}

proptest! {
    #[test]
    fn the_fast_way_says_what_the_slow_way_says(
        words in proptest::collection::vec((0..3_u8, 0..3_u32, 0..4_usize), 1..14),
        atomic: bool,
        holds in 0..5_usize,
    ) {
        const VALUES: [&str; 4] = ["", "a", "b", "c"];
        let mut open = [false; 3];
        let mut history = Vec::new();
        for (kind, conn, value) in words {
            let value = VALUES[value];
            match kind {
                1 if open[conn as usize] => history.push(ack(conn)),
                2 if !value.is_empty() => history.push(served(value)),
                _ => {
                    open[conn as usize] = true;
                    history.push(begin(conn, value));
                }
            }
        }
        let holds = match holds {
            0 => UserFile::Absent,
            4 => file("torn"),
            at => file(VALUES[at]),
        };
        prop_assert_eq!(
            content(&history, atomic, &holds),
            slowly_content(&history, atomic, &holds),
            "{:?}", history
        );
    }
}

#[test]
fn a_file_that_is_written_all_the_time_is_judged_at_once() {
    let mut history = Vec::new();
    for n in 0..100_000 {
        history.extend([
            begin(n % 7, &n.to_string()),
            ack(n % 7),
            served(&n.to_string()),
        ]);
    }
    let ledger = Ledger::at((1..).zip(&history), u64::MAX).expect("a ledger");
    let found = |holds: UserFile| files(&ledger, true, |_| Some(&holds)).len();
    assert_eq!((found(file("99999")), found(file("99998"))), (0, 1));
}
