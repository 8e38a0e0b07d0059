//! The oracles: pure functions from what was promised and what was observed
//! to what is wrong with it.
//!
//! None of them looks at a guest, a clock or a file. An empty answer means
//! that nothing was found, not that something was tested: the runner counts
//! the promises and observations that went in.

pub mod conformance;
pub mod distribution;
pub mod files;
pub mod ledger;
pub mod ledger_file;
pub mod postgres;
pub mod sequences;
pub mod stores;
pub mod transactions;
pub mod user;

pub use ledger::Ledger;

use plugpull_protocol::Exited;

use crate::scenario::{Named, OracleName};

/// Something that should not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which oracle found it.
    pub oracle: OracleName,
    /// What it is, with all that is needed to look for it.
    pub detail: String,
}

/// How many findings of one oracle are told one by one.
const TOLD: usize = 20;

/// Findings as they are collected; a flood is counted instead of told.
#[derive(Default)]
struct Findings {
    all: Vec<Finding>,
}

impl Findings {
    fn add(&mut self, oracle: OracleName, detail: impl Into<String>) {
        let detail = detail.into();
        self.all.push(Finding { oracle, detail });
    }

    /// The first of each oracle, and how many more there are.
    fn told(self) -> Vec<Finding> {
        let mut out = Vec::new();
        for oracle in OracleName::ALL.iter().copied() {
            let mut of: Vec<_> = self.all.iter().filter(|f| f.oracle == oracle).collect();
            let more = of.len().saturating_sub(TOLD);
            of.truncate(TOLD);
            out.extend(of.into_iter().cloned());
            if more > 0 {
                let detail = format!("and {more} more");
                out.push(Finding { oracle, detail });
            }
        }
        out
    }
}

/// A program must have ended with 0.
pub fn exit(program: &str, exited: &Exited) -> Vec<Finding> {
    exit_as(OracleName::Exit, program, exited)
}

/// As [`exit`], on behalf of another oracle.
pub fn exit_as(oracle: OracleName, program: &str, exited: &Exited) -> Vec<Finding> {
    let mut findings = Findings::default();
    if !exited.success() {
        let said = format!("{}{}", exited.stdout, exited.stderr);
        let told = first_lines(&said, EXIT_LINES);
        findings.add(
            oracle,
            format!("{program} ended with {}: {told}", exited.code),
        );
    }
    findings.told()
}

/// How many lines of a failed program's output are told.
const EXIT_LINES: usize = 12;

/// The start of a program's output, for a detail.
fn first_lines(text: &str, lines: usize) -> String {
    let total = text.lines().count();
    let mut out: Vec<_> = text.lines().take(lines).map(str::to_owned).collect();
    if total > lines {
        out.push(format!("({} more lines)", total - lines));
    }
    out.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_oracle_does_not_hide_another() {
        let mut findings = Findings::default();
        for i in 0..500 {
            findings.add(OracleName::Ledger, format!("lost {i}"));
        }
        findings.add(OracleName::Log, "panicked");
        let told = findings.told();
        assert_eq!(told.len(), TOLD + 2);
        let of = |oracle| told.iter().filter(move |f| f.oracle == oracle);
        assert_eq!(of(OracleName::Log).count(), 1);
        let last = of(OracleName::Ledger).next_back();
        assert_eq!(last.map(|f| f.detail.as_str()), Some("and 480 more"));
    }
}
