//! The built-in workloads and checkers: what they are asked, what they saw.
//!
//! Observations are facts, not verdicts: oracles on the host judge them.

use serde::{Deserialize, Serialize};

/// A built-in workload or checker and its parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum WorkloadRequest {
    /// List a tree: paths, kinds, sizes, content hashes.
    Tree {
        /// Its root.
        dir: String,
    },
}

/// What a workload or checker saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "saw", rename_all = "kebab-case")]
pub enum Observation {
    /// A tree was listed.
    Tree {
        /// How many regular files it has.
        files: u64,
        /// How many of them are empty.
        empty: u64,
        /// SHA-256 over the sorted listing.
        digest: String,
    },
}
