//! A built-in store and what judges it.

use std::num::NonZeroU32;

use super::{names::OracleName, proof::Count, story::Argv};

/// A built-in store: a program that the testbed brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// Which.
    pub kind: StoreKind,
    /// Opens it as it always is and prints what it holds; `{dir}` and `{seed}`
    /// stand for values.
    pub look: Argv,
}

/// What a store's rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// Each key has the value that was written last.
    Records,
    /// Rows come and change in transactions; it can check itself.
    Transactions,
    /// So many sequences of operations on files.
    Sequences(NonZeroU32),
}

impl Store {
    /// The oracles that judge it.
    pub fn oracles(&self) -> &'static [OracleName] {
        use OracleName as O;
        match self.kind {
            StoreKind::Records => &[O::Recovery, O::Ledger, O::Served],
            StoreKind::Sequences(_) => &[O::Recovery, O::Files],
            StoreKind::Transactions => {
                &[O::Recovery, O::Ledger, O::Served, O::Atomicity, O::Database]
            }
        }
    }

    /// The oracle that finds what was acknowledged and is gone.
    pub fn keeps(&self) -> OracleName {
        match self.kind {
            StoreKind::Sequences(_) => OracleName::Files,
            StoreKind::Records | StoreKind::Transactions => OracleName::Ledger,
        }
    }

    pub(super) fn prove(&self, wanted: &mut Vec<(Count, u64)>) {
        wanted.push((Count::Acks, 1));
        match self.kind {
            StoreKind::Sequences(_) => wanted.push((Count::Sequences, 1)),
            StoreKind::Records | StoreKind::Transactions => {
                wanted.extend([(Count::Served, 1), (Count::RowsVerified, 1)]);
            }
        }
    }
}
