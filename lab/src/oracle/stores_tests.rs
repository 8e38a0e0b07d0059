//! What the judge of stores must find, planted, and what it must let pass.

use std::num::NonZeroU32;

use plugpull_protocol::{Exited, Promise, workload::stores::transaction_key};

use super::*;
use crate::scenario::Argv;

const SEED: u64 = 5;

fn begin(key: &str, value: &str) -> Promise {
    Promise::Begin {
        conn: 1,
        key: key.into(),
        value: Some(value.into()),
    }
}

fn ack(key: &str) -> Promise {
    Promise::Ack {
        conn: 1,
        key: key.into(),
    }
}

fn served(key: &str, value: &str) -> Promise {
    Promise::Served {
        key: key.into(),
        value: value.into(),
    }
}

fn ledger(promises: &[Promise]) -> Ledger {
    Ledger::at((1..).zip(promises), 999).expect("a ledger")
}

fn holding(rows: &[(&str, &str)]) -> StoreSeen {
    let rows = rows.iter().map(|(k, v)| ((*k).into(), (*v).into()));
    StoreSeen {
        rows: rows.collect(),
        damage: Vec::new(),
    }
}

fn told(findings: &[Finding]) -> Vec<(OracleName, &str)> {
    let told = findings.iter().map(|f| (f.oracle, f.detail.as_str()));
    told.collect()
}

fn oracles(findings: &[Finding]) -> Vec<OracleName> {
    findings.iter().map(|finding| finding.oracle).collect()
}

#[test]
fn a_record_is_what_was_acknowledged_or_begun_later() {
    let promises = [
        begin("k", "1"),
        ack("k"),
        begin("k", "2"),
        begin("new", "3"),
    ];
    let ledger = ledger(&promises);
    let judged = |rows: &[(&str, &str)]| records(&ledger, &holding(rows));
    for fine in [
        &[("k", "1")][..],
        &[("k", "2")],
        &[("k", "2"), ("new", "3")],
    ] {
        assert_eq!(judged(fine), [], "{fine:?}");
    }
    let lost = judged(&[]);
    let expected = "k is absent instead of 1, acknowledged at seq 2";
    assert_eq!(told(&lost), [(OracleName::Ledger, expected)]);
    let garbage = judged(&[("k", "9"), ("new", "9"), ("x", "1")]);
    assert_eq!(oracles(&garbage), [OracleName::Ledger; 3]);
    let damaged = StoreSeen {
        damage: vec!["row 3 missing from index".into()],
        ..holding(&[("k", "1")])
    };
    assert_eq!(oracles(&records(&ledger, &damaged)), [OracleName::Database]);
}

#[test]
fn what_a_reader_was_served_is_there() {
    let promises = [begin("k", "1"), ack("k"), begin("k", "2"), served("k", "2")];
    let before = ledger(&promises[..3]);
    let after = ledger(&promises);
    let old = holding(&[("k", "1")]);
    assert_eq!(records(&before, &old), []);
    let lost = records(&after, &old);
    let expected = "k holds 1 instead of 2, served at seq 4";
    assert_eq!(told(&lost), [(OracleName::Served, expected)]);
    // Promised in both ways, it is lost in both.
    let both = ledger(&[&promises[..], &[ack("k")]].concat());
    assert_eq!(
        oracles(&records(&both, &old)),
        [OracleName::Ledger, OracleName::Served]
    );
    let stray = ledger(&[served("k", "7")]);
    let found = records(&stray, &holding(&[]));
    assert_eq!(oracles(&found), [OracleName::Served]);
}

/// Transactions that are there, as rows, with the slots that they set.
fn database(numbers: &[u64]) -> Vec<(String, String)> {
    let mut slots = BTreeMap::new();
    let mut rows = Vec::new();
    for number in numbers {
        let transaction = StoreTransaction::of(SEED, *number);
        slots.extend(transaction.slots.iter().map(|slot| (*slot, *number)));
        let parts = transaction.parts.iter().enumerate();
        rows.extend(parts.map(|(part, value)| (part_key(*number, part), value.clone())));
    }
    let number = |slot: u64| slots.get(&slot).copied().unwrap_or(0).to_string();
    rows.extend((0..SLOTS).map(|slot| (slot_key(slot), number(slot))));
    rows
}

#[test]
fn a_transaction_is_there_wholly_as_promised_or_not_at_all() {
    let text = |number| StoreTransaction::of(SEED, number).text();
    let key = transaction_key;
    let mut promises = Vec::new();
    for number in 1..=3 {
        promises.extend([begin(&key(number), &text(number)), ack(&key(number))]);
    }
    promises.push(begin(&key(4), &text(4)));
    let ledger = ledger(&promises);
    let judged = |rows: Vec<(String, String)>| {
        let seen = StoreSeen {
            rows,
            damage: Vec::new(),
        };
        oracles(&transactions(&ledger, &seen))
    };
    assert_eq!(judged(database(&[1, 2, 3])), []);
    assert_eq!(judged(database(&[1, 2, 3, 4])), []);
    assert_eq!(judged(database(&[1, 2])), [OracleName::Ledger]);
    assert_eq!(judged(database(&[1, 2, 3, 7])), {
        let parts = StoreTransaction::of(SEED, 7).parts.len();
        let slots = StoreTransaction::of(SEED, 7).slots.len();
        [
            vec![OracleName::Ledger; parts],
            vec![OracleName::Atomicity; slots],
        ]
        .concat()
    });
    let many = (1..).find(|n| StoreTransaction::of(SEED, *n).parts.len() > 1);
    let many = many.expect("one of them");
    assert!(many <= 3, "choose another seed");
    let without = |gone: String| {
        let mut rows = database(&[1, 2, 3]);
        rows.retain(|(key, _)| *key != gone);
        judged(rows)
    };
    assert!(without(part_key(many, 0)).contains(&OracleName::Atomicity));
    let changed = |key: String, value: &str| {
        let mut rows = database(&[1, 2, 3]);
        let row = rows.iter_mut().find(|(found, _)| *found == key);
        row.expect("there").1 = value.into();
        judged(rows)
    };
    assert!(changed(part_key(many, 0), "x").contains(&OracleName::Atomicity));
    let set = StoreTransaction::of(SEED, 3).slots[0];
    assert_eq!(changed(slot_key(set), "0"), [OracleName::Atomicity]);
    assert_eq!(changed(slot_key(set), "4"), [OracleName::Atomicity]);
}

#[test]
fn a_store_that_cannot_be_opened_has_lost_what_was_acknowledged() {
    let store = |kind| Store {
        kind,
        look: Argv::new(Vec::new()),
    };
    let exited = |code, stdout: &str, stderr: &str| {
        Ended::Exited(Exited {
            code,
            stdout: stdout.into(),
            stderr: stderr.into(),
            elapsed_ms: 1,
        })
    };
    let ledger = ledger(&[begin("k", "1"), ack("k")]);
    let judged = |kind, ended: &Ended| judge(&store(kind), SEED, &ledger, ended);
    let failed = exited(1, "", "malformed");
    let found = judged(StoreKind::Transactions, &failed).expect("judged");
    assert_eq!(
        oracles(&found.findings),
        [OracleName::Recovery, OracleName::Ledger]
    );
    let files = StoreKind::Sequences(NonZeroU32::MIN);
    let found = judged(files, &failed).expect("judged").findings;
    assert_eq!(oracles(&found), [OracleName::Recovery, OracleName::Files]);
    let hung = Ended::Hung {
        after_ms: 1,
        said: "…".into(),
    };
    let found = judged(StoreKind::Records, &hung).expect("judged");
    assert!(found.findings[0].detail.contains("within 1 ms"));
    // What says nothing is no verdict.
    assert!(judged(StoreKind::Records, &exited(0, "{\"ro", "")).is_err());
    let right = exited(0, r#"{"rows":[["k","1"]],"damage":[]}"#, "");
    let found = judged(StoreKind::Records, &right).expect("judged");
    assert_eq!((found.findings, found.looked_at), (Vec::new(), 1));
}
