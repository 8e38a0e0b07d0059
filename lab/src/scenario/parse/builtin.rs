//! The built-in workloads by name, with the keys that each of them knows.

use crate::scenario::{Named, names::named};

named! {
    /// The workloads that come with the testbed.
    pub(super) enum Builtin, "workload" {
        /// initdb twice, compared.
        PostgresInitdb = "postgres-initdb",
        /// Load, update, vacuum, ask.
        PostgresLoad = "postgres-load",
        /// Transactions and their acknowledgements.
        PostgresLedger = "postgres-ledger",
        /// PostgreSQL above dm-flakey.
        PostgresFlakey = "postgres-flakey",
        /// Many writers.
        Writers = "writers",
        /// git makes a repository and clones it.
        GitClone = "git-clone",
        /// tar packs a tree and unpacks it.
        TarRoundTrip = "tar-round-trip",
        /// Concurrent sqlite3 processes.
        Sqlite = "sqlite",
        /// The same calls on the mount and on a plain directory.
        Conformance = "conformance",
        /// The named checks of the same program.
        NamedChecks = "named-checks",
        /// One page, one fsync.
        PageFsync = "page-fsync",
        /// An append-only store that replays its log.
        LogStore = "log-store",
        /// Operations on files, with fsync at every place.
        Files = "files",
        /// Transactions in SQLite.
        SqliteLedger = "sqlite-ledger",
        /// Transactions in redb.
        RedbLedger = "redb-ledger",
    }
}

impl Builtin {
    /// The sizes it knows; any other would be ignored, so it is refused.
    pub(super) fn sizes(self) -> &'static [&'static str] {
        match self {
            Self::PostgresInitdb | Self::NamedChecks | Self::PageFsync => &[],
            Self::PostgresLoad => &["connections", "rows", "rows_per_commit"],
            Self::PostgresLedger | Self::PostgresFlakey => &["connections"],
            Self::Writers => &["writers", "rounds", "files_per_round"],
            Self::GitClone => &["entries", "commits"],
            Self::TarRoundTrip => &["entries"],
            Self::Sqlite => &["writers", "transactions"],
            Self::Conformance => &["sequences", "operations"],
            Self::LogStore => &["rounds"],
            Self::Files => &["sequences"],
            Self::SqliteLedger | Self::RedbLedger => &["transactions"],
        }
    }

    /// The settings it knows.
    pub(super) fn settings(self) -> &'static [&'static str] {
        match self {
            Self::PostgresLedger => &["wal_sync_method", "full_page_writes"],
            Self::LogStore => &["fsync", "fsync_on_open"],
            Self::Files => &["fsync"],
            Self::SqliteLedger => &["journal", "synchronous"],
            Self::RedbLedger => &["durability"],
            _ => &[],
        }
    }
}
