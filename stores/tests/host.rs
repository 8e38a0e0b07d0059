//! The programs on the host, with no power cut: what they leave is what their
//! judges say of a run in which everything was done.

use std::path::Path;

use plugpull_lab::oracle::{Ledger, sequences};
use plugpull_protocol::{
    Promise,
    workload::{
        sequences::{Step, sequences as plan, step_key},
        stores::{StoreSeen, StoreTransaction, part_key},
    },
};

/// Run a program to its end, and give what it printed.
fn ran(dir: &Path, words: &[&str]) -> String {
    #[expect(clippy::disallowed_methods, reason = "nextest has the deadline")]
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_plugpull-stores"));
    command.args(&words[..2]).arg(dir).args(&words[2..]);
    let output = command.output().expect("started");
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

fn looked(dir: &Path, words: &[&str]) -> StoreSeen {
    serde_json::from_str(&ran(dir, words)).expect("what it holds")
}

/// Everything was begun, and what was promised is acknowledged.
fn whole_ledger(seed: u64, count: u64) -> Ledger {
    let mut promises = Vec::new();
    for sequence in plan(seed, count) {
        let given = [Step::SyncDir(".")];
        let steps = given.iter().chain(&sequence.steps);
        for (at, step) in steps.enumerate() {
            let key = step_key(sequence.number, at);
            promises.push(Promise::Begin {
                conn: 1,
                key: key.clone(),
                value: Some(format!("{step:?}")),
            });
            if matches!(step, Step::SyncFile(_) | Step::SyncDir(_)) {
                promises.push(Promise::Ack { conn: 1, key });
            }
        }
    }
    Ledger::at((1..).zip(&promises), u64::MAX).expect("a ledger")
}

#[test]
fn files_that_nothing_happened_to_are_what_the_oracle_says() {
    for seed in [1_u64, 2] {
        let dir = tempfile::tempdir().expect("a directory");
        let text = seed.to_string();
        let common = ["--seed", &text, "--sequences", "200"];
        let words = |act| [&["files", act][..], &common].concat();
        // A page cache forgets nothing, and syncs would take a minute.
        ran(dir.path(), &[&words("run")[..], &["--no-fsync"]].concat());
        let seen = looked(dir.path(), &words("look"));
        let ledger = whole_ledger(seed, 200);
        assert_eq!(sequences::judge(&ledger, seed, 200, &seen), []);
        // What is not there any more is missed.
        let mut less = seen.clone();
        less.rows.retain(|(path, _)| path != "s0/d/c");
        let missed = sequences::judge(&ledger, seed, 200, &less);
        assert_eq!(missed.is_empty(), less == seen, "{missed:?}");
    }
}

#[test]
fn a_log_has_the_latest_value_of_every_key() {
    let dir = tempfile::tempdir().expect("a directory");
    ran(dir.path(), &["log", "run", "--seed", "3", "--rounds", "9"]);
    let seen = looked(dir.path(), &["log", "look"]);
    use plugpull_protocol::workload::stores::{log_key, log_value};
    let latest: std::collections::BTreeMap<_, _> = (0..9 * 7)
        .map(|write| (log_key(3, write), log_value(3, write)))
        .collect();
    assert_eq!(seen.rows, latest.into_iter().collect::<Vec<_>>());
}

#[test]
fn a_database_has_every_transaction_that_was_not_rolled_back() {
    for words in [
        &["sqlite", "run", "--journal", "wal", "--synchronous", "full"][..],
        &[
            "sqlite",
            "run",
            "--journal",
            "delete",
            "--synchronous",
            "extra",
        ],
        &["redb", "run", "--durability", "immediate"],
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let more = ["--seed", "3", "--transactions", "30"];
        ran(dir.path(), &[words, &more].concat());
        let seen = looked(dir.path(), &[words[0], "look"]);
        assert_eq!(seen.damage, [""; 0]);
        for number in 1..=30 {
            let transaction = StoreTransaction::of(3, number);
            for (part, value) in transaction.parts.iter().enumerate() {
                let row = (part_key(number, part), value.clone());
                let expected = !transaction.is_rolled_back();
                assert_eq!(seen.rows.contains(&row), expected, "{row:?}");
            }
        }
    }
}
