//! The oracles: pure functions from what was promised and what was observed
//! to what is wrong with it.
//!
//! None of them looks at a guest, a clock or a file. An empty answer means
//! that nothing was found, not that something was tested: the runner counts
//! the promises and observations that went in.

pub mod files;
pub mod ledger;
pub mod postgres;
pub mod transactions;

pub use ledger::Ledger;

/// Names of the oracles, as `caught_by` in a scenario has them.
pub mod name {
    /// Acknowledged or served is there with its value; never begun is not.
    pub const LEDGER: &str = "ledger";
    /// What was not acknowledged is there wholly or not at all.
    pub const ATOMICITY: &str = "atomicity";
    /// `pg_amcheck` finds nothing.
    pub const AMCHECK: &str = "amcheck";
    /// Data checksums hold, free-space maps aside.
    pub const CHECKSUMS: &str = "checksums";
    /// The server starts, stops, and has neither PANIC nor corruption in its
    /// log.
    pub const PANIC: &str = "panic";
    /// Two trees are the same.
    pub const TREE_EQUAL: &str = "tree-equal";
    /// Queries give the answers that are known beforehand.
    pub const KNOWN_ANSWERS: &str = "known-answers";
    /// Every writer's files hold that writer's bytes and no others.
    pub const FOREIGN_BYTES: &str = "foreign-bytes";
    /// Pages that were fsynced hold what was written.
    pub const PAGES: &str = "pages";
    /// The server stopped when its disk failed, instead of going on.
    pub const STOPPED: &str = "stopped";
}

/// All names.
pub const NAMES: &[&str] = &[
    name::LEDGER,
    name::ATOMICITY,
    name::AMCHECK,
    name::CHECKSUMS,
    name::PANIC,
    name::TREE_EQUAL,
    name::KNOWN_ANSWERS,
    name::FOREIGN_BYTES,
    name::PAGES,
    name::STOPPED,
];

/// Something that should not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which oracle found it, by its name in [`NAMES`].
    pub oracle: &'static str,
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
    fn add(&mut self, oracle: &'static str, detail: impl Into<String>) {
        let detail = detail.into();
        self.all.push(Finding { oracle, detail });
    }

    /// The first of each oracle, and how many more there are.
    fn told(self) -> Vec<Finding> {
        let mut out = Vec::new();
        for oracle in NAMES {
            let mut of: Vec<_> = self.all.iter().filter(|f| f.oracle == *oracle).collect();
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
            findings.add(name::LEDGER, format!("lost {i}"));
        }
        findings.add(name::PANIC, "panicked");
        let told = findings.told();
        assert_eq!(told.len(), TOLD + 2);
        assert_eq!(told[TOLD].detail, "and 480 more");
        assert_eq!(told[TOLD + 1].oracle, name::PANIC);
    }
}
