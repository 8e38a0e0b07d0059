//! Judges what a built-in store held after a power cut.
//!
//! What was acknowledged must be there, and so must be what a reader was
//! served, unless something begun later took its place. A transaction is there
//! wholly or not at all, and what was never begun is not there.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use plugpull_protocol::workload::{
    stores::{SLOTS, StoreSeen, StoreTransaction, part_key, slot_key},
    user::Ended,
};

use super::{
    Finding, Findings, Ledger,
    ledger::Key,
    sequences,
    user::{History, end_of},
};
use crate::scenario::{Count, OracleName, Store, StoreKind};

/// What a look came to.
#[derive(Debug)]
pub struct Judged {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// How many of which things were compared.
    pub looked_at: u64,
    /// What these things are.
    pub counts: Count,
}

/// Judge what a store's own reader said.
///
/// # Errors
/// When it said nothing that can be judged, which says nothing of the store.
pub fn judge(store: &Store, seed: u64, ledger: &Ledger, ended: &Ended) -> Result<Judged> {
    let exited = match ended {
        Ended::Exited(exited) if exited.success() => exited,
        Ended::Exited(exited) => {
            let said = end_of(&exited.stderr);
            return Ok(unusable(store, ledger, format!("cannot be opened: {said}")));
        }
        Ended::Hung { after_ms, said } => {
            let said = end_of(said);
            let why = format!("was not read within {after_ms} ms: {said}");
            return Ok(unusable(store, ledger, why));
        }
        Ended::NotStarted { why } => anyhow::bail!("a store's reader did not start: {why}"),
    };
    let seen: StoreSeen =
        serde_json::from_str(&exited.stdout).context("read what a store's reader said")?;
    let rows = seen.rows.len() as u64;
    let (findings, counts, looked_at) = match store.kind {
        StoreKind::Records => (records(ledger, &seen), Count::RowsVerified, rows),
        StoreKind::Transactions => (transactions(ledger, &seen), Count::RowsVerified, rows),
        StoreKind::Sequences(count) => {
            let count = count.get().into();
            let found = sequences::judge(ledger, seed, count, &seen);
            let begun = sequences::begun(ledger, seed, count);
            (found, Count::Sequences, begun)
        }
    };
    Ok(Judged {
        findings,
        looked_at,
        counts,
    })
}

/// A store that is no store any more has lost all that was promised.
fn unusable(store: &Store, ledger: &Ledger, why: String) -> Judged {
    let mut findings = Findings::default();
    findings.add(OracleName::Recovery, format!("the store {why}"));
    if let acked @ 1.. = ledger.acked() {
        findings.add(
            store.keeps(),
            format!("{acked} acknowledged operations cannot be read at all"),
        );
    }
    Judged {
        findings: findings.told(),
        looked_at: 0,
        counts: Count::RowsVerified,
    }
}

/// Every key must have a value that it may have.
fn records(ledger: &Ledger, seen: &StoreSeen) -> Vec<Finding> {
    let mut findings = Findings::default();
    note_damage(seen, &mut findings);
    let found: BTreeMap<&str, &str> = rows(seen).collect();
    for (name, key) in ledger.keys() {
        compare(name, key, found.get(name).copied(), &mut findings);
    }
    for (key, value) in found {
        if ledger.key(key).is_none() {
            let told = format!("{key} holds {value}, and nobody had begun to write it");
            findings.add(OracleName::Ledger, told);
        }
    }
    findings.told()
}

/// Every transaction must be there or not, as it was promised, and wholly.
fn transactions(ledger: &Ledger, seen: &StoreSeen) -> Vec<Finding> {
    let mut findings = Findings::default();
    note_damage(seen, &mut findings);
    let mut rows: BTreeMap<&str, &str> = rows(seen).collect();
    let slots: BTreeMap<u64, &str> = (0..SLOTS)
        .filter_map(|slot| Some((slot, rows.remove(slot_key(slot).as_str())?)))
        .collect();
    let mut found = Vec::new();
    for (name, key) in ledger.keys() {
        let value = key.attempts.first().and_then(|a| a.value.as_deref());
        let Some(begun) = value.and_then(|text| StoreTransaction::from_ledger(name, text)) else {
            findings.add(OracleName::Ledger, format!("{name} is no transaction"));
            continue;
        };
        let parts =
            (0..begun.parts.len()).map(|part| rows.remove(part_key(begun.number, part).as_str()));
        let parts: Vec<Option<&str>> = parts.collect();
        let there = parts.iter().flatten().count();
        let right = parts.iter().flatten().eq(begun.parts.iter());
        match there {
            0 => compare(name, key, None, &mut findings),
            _ if right => {
                compare(name, key, value, &mut findings);
                found.push(begun);
            }
            _ => findings.add(
                OracleName::Atomicity,
                format!("{name} has the rows {parts:?} of {:?}", begun.parts),
            ),
        }
    }
    for (key, value) in rows {
        let told = format!(
            "{key} holds {value}, of a transaction that nobody had begun, or that was rolled back"
        );
        findings.add(OracleName::Ledger, told);
    }
    found.sort_by_key(|transaction| transaction.number);
    judge_slots(&found, &slots, &mut findings);
    findings.told()
}

/// Transactions commit in the order of their numbers, so a slot names the last
/// of those found that set it.
fn judge_slots(found: &[StoreTransaction], slots: &BTreeMap<u64, &str>, findings: &mut Findings) {
    for slot in 0..SLOTS {
        let setters = found.iter().filter(|t| t.slots.contains(&slot));
        let last = setters.map(|t| t.number).next_back();
        let holds = slots.get(&slot).and_then(|number| number.parse().ok());
        if holds.unwrap_or(0) != last.unwrap_or(0) {
            let told = format!(
                "{} names transaction {holds:?}, and of those that are there {last:?} set it last",
                slot_key(slot)
            );
            findings.add(OracleName::Atomicity, told);
        }
    }
}

fn compare(name: &str, key: &Key, found: Option<&str>, findings: &mut Findings) {
    let history = History::of(key);
    for stray in history.strays() {
        findings.add(OracleName::Served, format!("{name}: {stray}"));
    }
    if history.allows(found) {
        return;
    }
    let holds = found.map_or("is absent".to_owned(), |value| format!("holds {value}"));
    let Some((value, seq, how)) = history.kept() else {
        let told = format!("{name} {holds}, and nobody had begun to write that");
        findings.add(OracleName::Ledger, told);
        return;
    };
    let wanted = value.unwrap_or("nothing");
    let told = format!("{name} {holds} instead of {wanted}, {how} at seq {seq}");
    // One promise may have been given in both ways, and is then broken in both.
    let served = key
        .served
        .iter()
        .any(|(_, served)| Some(served.as_str()) == value);
    let mut attempts = key.attempts.iter().filter(|a| a.value.as_deref() == value);
    if attempts.any(|attempt| attempt.acked.is_some()) {
        findings.add(OracleName::Ledger, told.as_str());
    }
    if served {
        findings.add(OracleName::Served, told);
    }
}

fn rows(seen: &StoreSeen) -> impl Iterator<Item = (&str, &str)> {
    let rows = seen.rows.iter();
    rows.map(|(key, value)| (key.as_str(), value.as_str()))
}

fn note_damage(seen: &StoreSeen, findings: &mut Findings) {
    for told in seen.damage.iter().collect::<BTreeSet<_>>() {
        findings.add(OracleName::Database, told.as_str());
    }
}

#[cfg(test)]
#[path = "stores_tests.rs"]
mod tests;
