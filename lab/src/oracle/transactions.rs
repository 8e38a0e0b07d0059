//! Judges the rows that a recovered server holds against the ledger of its
//! transactions.
//!
//! Every transaction has several effects in several tables (see
//! [`plan::transaction`]). Each effect is evidence that the transaction is
//! there or that it is missing. A promised one must have no evidence of being
//! missing; one that was begun may be there or missing but not both; one that
//! was never begun must have no evidence of being there.

use std::collections::BTreeMap;

use plugpull_protocol::workload::plan::{self, Transaction};
use plugpull_protocol::workload::{ConnRows, Recovered};

use super::{Finding, Findings, Ledger};
use crate::scenario::OracleName;

/// Judge by the oracles `ledger` and `atomicity`.
pub fn judge(ledger: &Ledger, seed: u64, connections: u32, recovered: &Recovered) -> Vec<Finding> {
    let mut findings = Findings::default();
    served_values(ledger, &mut findings);
    match &recovered.tables {
        None => unreadable(ledger, recovered, &mut findings),
        Some(tables) => {
            let nothing = ConnRows::default();
            for conn in 0..connections {
                let rows = tables.iter().find(|rows| rows.conn == conn);
                let rows = rows.unwrap_or(&nothing);
                Connection::new(ledger, seed, conn, rows).judge(&mut findings);
            }
            for rows in tables.iter().filter(|rows| rows.conn >= connections) {
                let told = format!("rows of connection {}, which there never was", rows.conn);
                findings.add(OracleName::Ledger, told);
            }
        }
    }
    findings.told()
}

/// A reader must only have been served what somebody began to write.
fn served_values(ledger: &Ledger, findings: &mut Findings) {
    for (name, key) in ledger.keys() {
        for (seq, value) in &key.served {
            let begun = |a: &super::ledger::Attempt| a.value.as_ref() == Some(value);
            if !key.attempts.iter().any(begun) {
                let told =
                    format!("{name}: a reader was served {value} at seq {seq}, which nobody wrote");
                findings.add(OracleName::Ledger, told);
            }
        }
    }
}

/// Promises that cannot be looked for are not kept.
fn unreadable(ledger: &Ledger, recovered: &Recovered, findings: &mut Findings) {
    let keys = ledger.keys();
    let promised: Vec<_> = keys
        .filter_map(|(name, key)| Some((key.promised()?, name)))
        .collect();
    let Some(((seq, how), key)) = promised.iter().max() else {
        return;
    };
    let why = match &recovered.read_error {
        Some(error) => error.as_str(),
        None => "the server did not start",
    };
    let count = promised.len();
    findings.add(
        OracleName::Ledger,
        format!("{count} promised transactions cannot be read, the latest {key} ({how} at seq {seq}): {why}"),
    );
}

/// How far a transaction had come at the cut.
#[derive(Clone, Copy)]
enum Standing {
    Promised(u64, &'static str),
    Begun(u64),
}

/// What the tables say about a transaction.
#[derive(Default)]
struct Evidence {
    there: Vec<String>,
    missing: Vec<String>,
}

struct Connection<'a> {
    conn: u32,
    seed: u64,
    rows: &'a ConnRows,
    standing: BTreeMap<u64, Standing>,
    evidence: BTreeMap<u64, Evidence>,
}

impl<'a> Connection<'a> {
    fn new(ledger: &Ledger, seed: u64, conn: u32, rows: &'a ConnRows) -> Self {
        let own = ledger.keys().filter_map(|(name, key)| {
            let (of, n) = plan::parse_key(name)?;
            let begun = key.attempts.first().map(|a| Standing::Begun(a.begun));
            let promised = key
                .promised()
                .map(|(seq, how)| Standing::Promised(seq, how));
            (of == conn).then_some((n, promised.or(begun)?))
        });
        Self {
            conn,
            seed,
            rows,
            standing: own.collect(),
            evidence: BTreeMap::new(),
        }
    }

    fn judge(mut self, findings: &mut Findings) {
        self.state(findings);
        self.own_rows();
        self.strangers();
        self.bad_rows(findings);
        for (n, evidence) in &self.evidence {
            let told = || {
                let missing = evidence.missing.join(", ");
                let there = evidence.there.join(", ");
                format!("{}: missing [{missing}], there [{there}]", self.name(*n))
            };
            match self.standing.get(n) {
                Some(Standing::Promised(..)) if !evidence.missing.is_empty() => {
                    findings.add(OracleName::Ledger, told());
                }
                Some(Standing::Begun(_))
                    if !evidence.missing.is_empty() && !evidence.there.is_empty() =>
                {
                    findings.add(OracleName::Atomicity, told());
                }
                None if !evidence.there.is_empty() => findings.add(OracleName::Ledger, told()),
                _ => {}
            }
        }
    }

    /// The transaction in words.
    fn name(&self, n: u64) -> String {
        let standing = match self.standing.get(&n) {
            Some(Standing::Promised(seq, how)) => format!("{how} at seq {seq}"),
            Some(Standing::Begun(seq)) => format!("begun at seq {seq}, not acknowledged"),
            None => "never begun".into(),
        };
        let conn = self.conn;
        format!("tx/{conn}/{n} (connection {conn}, transaction {n}, {standing})")
    }

    fn there(&mut self, n: u64, what: impl Into<String>) {
        self.evidence.entry(n).or_default().there.push(what.into());
    }

    fn missing(&mut self, n: u64, what: impl Into<String>) {
        let evidence = self.evidence.entry(n).or_default();
        evidence.missing.push(what.into());
    }

    fn transaction(&self, n: u64) -> Transaction {
        plan::transaction(self.seed, self.conn, n)
    }

    /// The last transaction that `conn_state` knows of.
    fn last(&self) -> u64 {
        self.rows.state.map_or(0, |(last, _)| last)
    }

    /// `conn_state` says which transactions are there, and has their sum.
    fn state(&mut self, findings: &mut Findings) {
        let last = self.last();
        for n in self.standing.keys().copied().collect::<Vec<_>>() {
            if n <= last {
                self.there(n, "in conn_state");
            } else {
                self.missing(n, format!("conn_state stands at {last}"));
            }
        }
        let Some((_, total)) = self.rows.state else {
            // The frozen base had it.
            let told = format!("connection {}: its row of conn_state is gone", self.conn);
            return findings.add(OracleName::Ledger, told);
        };
        if last > 0 && !self.standing.contains_key(&last) {
            // The sum of what never was is anybody's guess.
            return self.there(last, "in conn_state");
        }
        let sum: i64 = (1..=last).map(|n| self.transaction(n).amount).sum();
        if sum != total {
            let told = format!(
                "{}: conn_state adds up to {total} instead of {sum}",
                self.name(last)
            );
            findings.add(self.oracle_for(last), told);
        }
    }

    /// The rows that each begun transaction wrote, rewrote or deleted.
    fn own_rows(&mut self) {
        let begun: Vec<u64> = self.standing.keys().copied().collect();
        let mut deleters: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for n in &begun {
            if let Some(m) = self.transaction(*n).deletes {
                deleters.entry(m).or_default().push(*n);
            }
        }
        for n in begun {
            let transaction = self.transaction(n);
            match self.version(n) {
                Some(_) => self.there(n, "row in ledger_a"),
                None => self.missing(n, "row in ledger_a"),
            }
            if let Some(m) = transaction.rewrites
                && let Some(version) = self.version(m)
            {
                // A later version says nothing about this one.
                match version.cmp(&n) {
                    std::cmp::Ordering::Less => {
                        let told = format!("rewriting row {m} of ledger_a (has version {version})");
                        self.missing(n, told);
                    }
                    std::cmp::Ordering::Equal => self.there(n, format!("rewrote row {m}")),
                    std::cmp::Ordering::Greater => {}
                }
            }
            let deleters = deleters.get(&n).map_or(&[][..], Vec::as_slice);
            self.parts(n, transaction.parts, deleters);
        }
    }

    /// The rows of `ledger_b`, which a later transaction may have deleted.
    fn parts(&mut self, n: u64, parts: u32, deleters: &[u64]) {
        let partial = self.rows.b_partial.iter().find(|(of, _)| *of == n);
        match (partial.map(|(_, present)| *present), deleters.first()) {
            (Some(present), first) => {
                let of = first.copied().unwrap_or(n);
                let told = format!("{present} of {parts} rows of {n} in ledger_b");
                self.there(of, told.clone());
                self.missing(of, told);
            }
            (None, _) if contains(&self.rows.b_whole, n) => {
                self.there(n, "rows in ledger_b");
                for deleter in deleters {
                    self.missing(*deleter, format!("deleting rows of {n} in ledger_b"));
                }
            }
            (None, None) => self.missing(n, "rows in ledger_b"),
            // Gone before its first deleter is otherwise known to be there:
            // that one's only trace, or a loss; either way it has to be whole.
            (None, Some(first)) if *first > self.last() => {
                self.there(*first, format!("deleted rows of {n} in ledger_b"));
            }
            (None, Some(_)) => {}
        }
    }

    /// Rows of transactions that never began.
    fn strangers(&mut self) {
        let rows = self.rows;
        for (table, ranges) in [("ledger_a", &rows.a_own), ("ledger_b", &rows.b_whole)] {
            for (first, last) in ranges {
                // The ends are enough to say that there is something.
                for n in [first, last] {
                    if !self.standing.contains_key(n) {
                        self.there(*n, format!("row in {table}"));
                    }
                }
            }
        }
        for (n, version) in &rows.a_updated {
            for of in [n, version] {
                if !self.standing.contains_key(of) {
                    self.there(*of, format!("row {n} of ledger_a has version {version}"));
                }
            }
        }
        for (n, present) in &rows.b_partial {
            if !self.standing.contains_key(n) {
                self.there(*n, format!("{present} rows in ledger_b"));
            }
        }
    }

    /// Rows with other content than their transaction wrote.
    fn bad_rows(&self, findings: &mut Findings) {
        for bad in &self.rows.bad {
            let told = format!(
                "{}: row {} of {}, version {}: {}",
                self.name(bad.version),
                bad.n,
                bad.table,
                bad.version,
                bad.detail
            );
            findings.add(self.oracle_for(bad.version), told);
        }
    }

    /// Who complains about a wrong value: nobody promised that an
    /// unacknowledged transaction is there, only that it is not damaged.
    fn oracle_for(&self, n: u64) -> OracleName {
        match self.standing.get(&n) {
            Some(Standing::Begun(_)) => OracleName::Atomicity,
            _ => OracleName::Ledger,
        }
    }

    /// The version of a row in `ledger_a`.
    fn version(&self, n: u64) -> Option<u64> {
        if contains(&self.rows.a_own, n) {
            return Some(n);
        }
        let updated = &self.rows.a_updated;
        let at = updated.binary_search_by_key(&n, |(of, _)| *of).ok()?;
        Some(updated[at].1)
    }
}

/// True if one of the sorted inclusive ranges holds `n`.
fn contains(ranges: &[(u64, u64)], n: u64) -> bool {
    let at = ranges.partition_point(|(_, last)| *last < n);
    ranges.get(at).is_some_and(|(first, _)| *first <= n)
}

#[cfg(test)]
#[path = "transactions_tests.rs"]
mod tests;
