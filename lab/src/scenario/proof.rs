//! Proof of effect: what a run must have done before its verdict counts.
//!
//! A run that fired no fault, dropped no write and checked no state passes
//! every oracle. Thresholds turn such a run into Infra; they follow from the
//! scenario and are never lowered by hand.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::names::{Named, named};

named! {
    /// Something a run counts.
    pub enum Count, "count" {
        /// Crash states looked at, those equal to another included.
        CrashStates = "crash_states",
        /// Crash states left when equal ones are taken together.
        UniqueStates = "unique_states",
        /// Crash states of a recovery that was itself cut.
        NestedStates = "nested_states",
        /// Runs of the lower filesystem's own checker.
        FsckRuns = "fsck_runs",
        /// Errors that the fault injection made.
        FaultsFired = "faults_fired",
        /// Judgements that an oracle gave.
        OracleChecks = "oracle_checks",
        /// Power cuts.
        Cuts = "cuts",
        /// Cuts that took at least one completed write away.
        DroppedCompletedCuts = "dropped_completed_cuts",
        /// Cuts inside a checkpoint.
        CheckpointCuts = "checkpoint_cuts",
        /// Checkpoints that PostgreSQL completed.
        Checkpoints = "checkpoints",
        /// WAL segments that PostgreSQL recycled.
        WalRecycled = "wal_segments_recycled",
        /// Acknowledgements in the ledger.
        Acks = "acks",
        /// Values that readers were served.
        Served = "served",
        /// Write requests that reached the disk.
        Writes = "writes",
        /// Rows loaded.
        Rows = "rows",
        /// Rows changed by concurrent connections.
        Updates = "updates",
        /// Rows compared with what was committed.
        RowsVerified = "rows_verified",
        /// Commits found in histories and databases.
        Commits = "commits",
        /// Sequences of calls made on a mount and on a plain directory.
        Sequences = "sequences",
        /// Calls whose answers were compared.
        Calls = "calls",
        /// Named checks, each made on a mount and on a plain directory.
        NamedChecks = "named_checks",
        /// Operations of fsx.
        FsxOperations = "fsx_operations",
        /// Files written by the workload.
        FilesWritten = "files_written",
        /// Files whose content was compared.
        FilesVerified = "files_verified",
        /// Runs of the scenario's own check.
        CheckRuns = "check_runs",
        /// Writes and acknowledgements together; never stored.
        Activity = "activity",
    }
}

impl Count {
    /// Whether it is about what a workload did, and not about the states looked at after it.
    pub fn is_of_the_recording(self) -> bool {
        matches!(
            self,
            Self::Acks
                | Self::Served
                | Self::Writes
                | Self::Activity
                | Self::Checkpoints
                | Self::WalRecycled
        )
    }

    /// What it counts, as a report says it.
    pub fn label(self) -> &'static str {
        match self {
            Self::CrashStates => "crash states",
            Self::UniqueStates => "distinct crash states",
            Self::NestedStates => "crash states of a recovery",
            Self::FsckRuns => "runs of fsck",
            Self::FaultsFired => "faults fired",
            Self::OracleChecks => "oracle checks",
            Self::Cuts => "power cuts",
            Self::DroppedCompletedCuts => "cuts that dropped a completed write",
            Self::CheckpointCuts => "cuts inside a checkpoint",
            Self::Checkpoints => "checkpoints",
            Self::WalRecycled => "recycled WAL segments",
            Self::Acks => "acknowledgements",
            Self::Served => "values served to readers",
            Self::Writes => "writes that reached the disk",
            Self::Rows => "rows loaded",
            Self::Updates => "concurrent updates",
            Self::RowsVerified => "rows verified",
            Self::Commits => "commits found",
            Self::Sequences => "sequences of calls",
            Self::Calls => "calls compared",
            Self::NamedChecks => "named checks",
            Self::FsxOperations => "operations of fsx",
            Self::FilesWritten => "files written",
            Self::FilesVerified => "files verified",
            Self::CheckRuns => "runs of the check",
            Self::Activity => "writes or acknowledgements",
        }
    }
}

/// What a run counted, by name: the names of [`Count`] and any other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// Count `n` more.
    pub fn add(&mut self, what: Count, n: u64) {
        self.add_named(what.name(), n);
    }

    /// Count `n` more of something that no threshold asks for.
    pub fn add_named(&mut self, what: &str, n: u64) {
        let count = self.0.entry(what.to_owned()).or_default();
        *count = count.saturating_add(n);
    }

    /// Add everything that another part of the run counted.
    pub fn merge(&mut self, other: &Self) {
        for (what, n) in &other.0 {
            self.add_named(what, *n);
        }
    }

    /// How many; zero when never counted.
    pub fn get(&self, what: Count) -> u64 {
        match what {
            Count::Activity => self
                .get(Count::Writes)
                .saturating_add(self.get(Count::Acks)),
            stored => self.0.get(stored.name()).copied().unwrap_or(0),
        }
    }

    /// How many of something that no threshold asks for.
    pub fn named(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// Every count, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, n)| (name.as_str(), *n))
    }
}

/// What must have been counted at least.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Threshold {
    /// What.
    pub count: Count,
    /// How many in this profile.
    pub at_least: u64,
    /// How many in the scenario's smallest profile. It is what snapshots show:
    /// a run that meets `at_least` meets it too, in every profile.
    pub floor: u64,
}

impl Threshold {
    /// A threshold that is the same in every profile.
    pub(crate) fn new(count: Count, at_least: u64) -> Self {
        Self {
            count,
            at_least,
            floor: at_least,
        }
    }

    /// Whether a run met it.
    pub fn met(&self, counts: &Counts) -> bool {
        counts.get(self.count) >= self.at_least
    }
}

impl std::fmt::Display for Threshold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ≥ {}", self.count.label(), self.at_least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_threshold_fails_one_below() {
        for count in Count::ALL.iter().copied().filter(|c| *c != Count::Activity) {
            let threshold = Threshold::new(count, 3);
            let mut counts = Counts::default();
            counts.add(count, 2);
            assert!(!threshold.met(&counts), "{count}");
            counts.add(count, 1);
            assert!(threshold.met(&counts), "{count}");
        }
    }

    #[test]
    fn a_write_or_an_acknowledgement_is_activity_and_a_read_is_not() {
        let threshold = Threshold::new(Count::Activity, 1);
        let mut counts = Counts::default();
        counts.add(Count::Served, 9);
        assert!(!threshold.met(&counts));
        counts.add(Count::Writes, 1);
        assert!(threshold.met(&counts));
        let mut other = Counts::default();
        other.add(Count::Acks, 1);
        assert!(threshold.met(&other));
        counts.merge(&other);
        assert_eq!(counts.get(Count::Activity), 2);
    }
}
