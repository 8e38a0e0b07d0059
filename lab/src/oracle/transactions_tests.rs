//! Planted losses, halves and strangers, and a model that must pass.

use plugpull_protocol::Promise;
use plugpull_protocol::workload::{BadRow, ServerRun};
use proptest::prelude::*;

use super::*;

const SEED: u64 = 9;

/// What the tables hold when the first `k` transactions are there: written
/// down naively, apart from the oracle's own reasoning.
fn tables_at(conn: u32, k: u64) -> ConnRows {
    let mut a = BTreeMap::new();
    let mut b = BTreeMap::new();
    let mut total = 0;
    for n in 1..=k {
        let tx = plan::transaction(SEED, conn, n);
        a.insert(n, n);
        if let Some(m) = tx.rewrites {
            a.insert(m, n);
        }
        b.insert(n, tx.parts);
        if let Some(m) = tx.deletes {
            b.remove(&m);
        }
        total += tx.amount;
    }
    ConnRows {
        conn,
        state: Some((k, total)),
        a_own: a
            .iter()
            .filter(|(n, v)| n == v)
            .map(|(n, _)| (*n, *n))
            .collect(),
        a_updated: a.into_iter().filter(|(n, v)| n != v).collect(),
        b_whole: b.keys().map(|n| (*n, *n)).collect(),
        ..ConnRows::default()
    }
}

/// Transactions 1..=acked acknowledged, and one more begun if asked. The
/// acknowledgement of n has sequence number 2n.
fn ledger(conn: u32, acked: u64, one_more: bool) -> Ledger {
    let mut all = Vec::new();
    for n in 1..=acked + u64::from(one_more) {
        let tx = plan::transaction(SEED, conn, n);
        let key = tx.key();
        let value = Some(tx.value(SEED));
        all.push((2 * n - 1, Promise::Begin { conn, key, value }));
        if n <= acked {
            all.push((
                2 * n,
                Promise::Ack {
                    conn,
                    key: tx.key(),
                },
            ));
        }
    }
    Ledger::at(all.iter().map(|(seq, p)| (*seq, p)), u64::MAX).expect("a ledger")
}

fn recovered(tables: Option<Vec<ConnRows>>) -> Recovered {
    Recovered {
        server: ServerRun::default(),
        tables,
        read_error: None,
        amcheck: None,
        checksums: None,
        took_ms: BTreeMap::new(),
    }
}

/// Judge connection 0 alone; oracles' names and details.
fn judged(ledger: &Ledger, rows: ConnRows) -> Vec<(OracleName, String)> {
    let findings = judge(ledger, SEED, 1, &recovered(Some(vec![rows])));
    findings.into_iter().map(|f| (f.oracle, f.detail)).collect()
}

fn only(oracle: OracleName, words: &str, found: &[(OracleName, String)]) {
    assert!(
        found.iter().any(|(o, d)| *o == oracle && d.contains(words)),
        "{oracle} does not say {words:?}: {found:#?}"
    );
    assert!(found.iter().all(|(o, _)| *o == oracle), "{found:#?}");
}

/// The first transaction up to 60 of connection 0 with this property.
fn first(wanted: impl Fn(&Transaction) -> bool) -> Transaction {
    let mut all = (2..60).map(|n| plan::transaction(SEED, 0, n));
    all.find(wanted).expect("there is one")
}

#[test]
fn all_of_the_promised_and_all_or_nothing_of_the_rest_is_fine() {
    assert_eq!(judged(&ledger(0, 60, true), tables_at(0, 60)), []);
    assert_eq!(judged(&ledger(0, 60, true), tables_at(0, 61)), []);
    assert_eq!(judged(&Ledger::default(), tables_at(0, 0)), []);
}

#[test]
fn the_loss_of_an_acknowledged_transaction_is_named() {
    let found = judged(&ledger(0, 60, false), tables_at(0, 59));
    only(
        OracleName::Ledger,
        "tx/0/60 (connection 0, transaction 60, acknowledged at seq 120)",
        &found,
    );
    assert_eq!(found.len(), 1);
}

#[test]
fn one_lost_row_of_any_table_is_enough() {
    let whole = tables_at(0, 60);
    let mut rows = whole.clone();
    let (n, _) = rows.a_own.remove(10);
    only(
        OracleName::Ledger,
        &format!("tx/0/{n} (connection 0"),
        &judged(&ledger(0, 60, true), rows),
    );
    let mut rows = whole.clone();
    let (n, _) = rows.b_whole.remove(10);
    only(
        OracleName::Ledger,
        &format!("tx/0/{n} (connection 0"),
        &judged(&ledger(0, 60, true), rows),
    );
    let mut rows = whole.clone();
    let (n, _) = rows.b_whole.remove(10);
    rows.b_partial.push((n, 1));
    only(
        OracleName::Ledger,
        "1 of ",
        &judged(&ledger(0, 60, true), rows),
    );
    let mut rows = whole.clone();
    rows.state = None;
    only(
        OracleName::Ledger,
        "conn_state is gone",
        &judged(&ledger(0, 60, true), rows),
    );
    let mut rows = whole;
    let (n, version) = rows.a_updated.remove(3);
    rows.a_own.push((n, n));
    rows.a_own.sort_unstable();
    only(
        OracleName::Ledger,
        &format!("tx/0/{version} (connection 0"),
        &judged(&ledger(0, 60, true), rows),
    );
}

#[test]
fn a_half_of_an_unacknowledged_transaction_is_a_matter_of_atomicity() {
    let promised = ledger(0, 60, true);
    let mut rows = tables_at(0, 60);
    rows.a_own.push((61, 61));
    only(
        OracleName::Atomicity,
        "tx/0/61 (connection 0, transaction 61, begun",
        &judged(&promised, rows),
    );
    let mut rows = tables_at(0, 61);
    rows.b_whole.retain(|(n, _)| *n != 61);
    only(
        OracleName::Atomicity,
        "missing [rows in ledger_b]",
        &judged(&promised, rows),
    );
    let mut rows = tables_at(0, 60);
    rows.state = tables_at(0, 61).state;
    only(OracleName::Atomicity, "tx/0/61", &judged(&promised, rows));
}

#[test]
fn a_half_rewrite_or_deletion_is_seen() {
    let tx = first(|t| t.rewrites.is_some());
    let before = tables_at(0, tx.n - 1);
    let after = tables_at(0, tx.n);
    let promised = ledger(0, tx.n - 1, true);
    let rows = ConnRows {
        a_own: before.a_own.iter().copied().chain([(tx.n, tx.n)]).collect(),
        a_updated: before.a_updated.clone(),
        ..after
    };
    only(
        OracleName::Atomicity,
        "rewriting row",
        &judged(&promised, rows),
    );

    let tx = first(|t| {
        t.deletes
            .is_some_and(|m| tables_at(0, t.n - 1).b_whole.contains(&(m, m)))
    });
    let gone = tx.deletes.expect("deletes");
    let promised = ledger(0, tx.n - 1, true);
    let mut rows = tables_at(0, tx.n - 1);
    rows.b_whole.retain(|(n, _)| *n != gone);
    only(
        OracleName::Atomicity,
        "deleted rows",
        &judged(&promised, rows),
    );
    let mut rows = tables_at(0, tx.n);
    rows.b_whole.push((gone, gone));
    rows.b_whole.sort_unstable();
    only(
        OracleName::Atomicity,
        "deleting rows",
        &judged(&promised, rows),
    );
}

#[test]
fn what_was_never_begun_must_not_be_there() {
    let promised = ledger(0, 60, false);
    only(
        OracleName::Ledger,
        "never begun",
        &judged(&promised, tables_at(0, 61)),
    );
    let mut rows = tables_at(0, 60);
    rows.b_whole.push((400, 410));
    only(OracleName::Ledger, "tx/0/410", &judged(&promised, rows));
    let mut rows = tables_at(0, 60);
    rows.state = Some((1 << 40, 3));
    only(OracleName::Ledger, "never begun", &judged(&promised, rows));
    let stranger = recovered(Some(vec![tables_at(0, 60), tables_at(7, 1)]));
    let found = judge(&promised, SEED, 1, &stranger);
    assert!(found[0].detail.contains("connection 7"), "{found:?}");
}

#[test]
fn wrong_values_belong_to_whoever_wrote_them() {
    let bad = |version| BadRow {
        table: "ledger_a".into(),
        n: 3,
        version,
        detail: "holds 0 characters".into(),
    };
    let promised = ledger(0, 60, true);
    let mut rows = tables_at(0, 61);
    rows.bad = vec![bad(3)];
    only(
        OracleName::Ledger,
        "tx/0/3 ",
        &judged(&promised, rows.clone()),
    );
    rows.bad = vec![bad(61)];
    only(
        OracleName::Atomicity,
        "tx/0/61 ",
        &judged(&promised, rows.clone()),
    );
    rows.bad.clear();
    rows.state = Some((61, 12));
    only(
        OracleName::Atomicity,
        "adds up to 12",
        &judged(&promised, rows),
    );
    let mut rows = tables_at(0, 60);
    rows.state = Some((60, 12));
    only(
        OracleName::Ledger,
        "adds up to 12",
        &judged(&promised, rows),
    );
}

#[test]
fn served_is_promised_and_only_what_was_written_may_be_served() {
    let tx = plan::transaction(SEED, 0, 1);
    let begin = Promise::Begin {
        conn: 0,
        key: tx.key(),
        value: Some(tx.value(SEED)),
    };
    let served = |value: &str| Promise::Served {
        key: tx.key(),
        value: value.into(),
    };
    let right = [begin.clone(), served(&tx.value(SEED))];
    let ledger = Ledger::at((1..).zip(&right), 9).expect("a ledger");
    only(
        OracleName::Ledger,
        "served at seq 2",
        &judged(&ledger, tables_at(0, 0)),
    );
    assert_eq!(judged(&ledger, tables_at(0, 1)), []);
    let wrong = [begin, served("another")];
    let ledger = Ledger::at((1..).zip(&wrong), 9).expect("a ledger");
    only(
        OracleName::Ledger,
        "served another at seq 2",
        &judged(&ledger, tables_at(0, 1)),
    );
}

#[test]
fn tables_that_cannot_be_read_break_every_promise_once() {
    let found = judge(&ledger(0, 60, true), SEED, 1, &recovered(None));
    assert_eq!(found.len(), 1);
    let told =
        "60 promised transactions cannot be read, the latest tx/0/60 (acknowledged at seq 120)";
    assert!(found[0].detail.starts_with(told), "{}", found[0].detail);
    assert_eq!(judge(&Ledger::default(), SEED, 1, &recovered(None)), []);
}

proptest! {
    /// Whatever prefix is promised: a longer one fits only if it was begun, a
    /// shorter one never.
    #[test]
    fn exactly_the_promised_prefixes_pass(acked in 0_u64..80, more: bool, there in 0_u64..82) {
        let found = judged(&ledger(0, acked, more), tables_at(0, there));
        let fits = (acked..=acked + u64::from(more)).contains(&there);
        prop_assert_eq!(found.is_empty(), fits, "{:?}", found);
    }

    /// A promised row that is gone is seen, whichever it is.
    #[test]
    fn no_row_can_be_missing(acked in 1_u64..80, more: bool, which: prop::sample::Index) {
        let mut rows = tables_at(0, acked);
        let (own, updated) = (rows.a_own.len(), rows.a_updated.len());
        match which.index(own + updated + rows.b_whole.len()) {
            i if i < own => { rows.a_own.remove(i); }
            i if i < own + updated => { rows.a_updated.remove(i - own); }
            i => { rows.b_whole.remove(i - own - updated); }
        }
        let found = judged(&ledger(0, acked, more), rows);
        prop_assert!(!found.is_empty());
    }
}
