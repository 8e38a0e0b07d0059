//! Real programs that keep their files on the mount: git, tar and SQLite, as
//! the guest's distribution has them.
//!
//! A program's workload has three acts. It runs, on the mount; what it left is
//! checked, on the mount and again below it; and for controls one bit of it is
//! damaged in between.

use serde::{Deserialize, Serialize};

use super::plan::{Archive, Database, Repository};
use crate::Exited;

/// Which programs run, and on what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "program", rename_all = "kebab-case")]
pub enum Program {
    /// A repository with history is made, cloned object by object, and packed.
    GitClone(Repository),
    /// A tree of every kind of file is packed and unpacked beside itself.
    TarRoundTrip(Archive),
    /// Concurrent writers commit to databases with a write-ahead log and with
    /// a rollback journal.
    Sqlite(Database),
}

/// What is done with a program's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Act {
    /// Make them, in a directory that is not there yet.
    Run,
    /// Have the program check them, and compare them with the plan.
    Check,
    /// Flip one bit of what the program wrote; for controls.
    Damage,
}

/// What an act came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgramRun {
    /// Each program that ran, in order. One that failed is the last.
    pub steps: Vec<Step>,
    /// Files, links and directories found as planned.
    pub files: u64,
    /// Commits that a history or a counter tells of.
    pub commits: u64,
    /// Rows found as planned.
    pub rows: u64,
    /// What is not as planned: missing, different, or nobody's.
    pub differences: u64,
    /// The first few of them, described.
    pub first: Vec<String>,
}

/// A program that ran to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// What it did, as a person would name it.
    pub what: String,
    /// Its standard output, without the last line's end, if all is well;
    /// anything when absent.
    pub expected: Option<String>,
    /// Its end and the last of its output.
    pub exited: Exited,
}
