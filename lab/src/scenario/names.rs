//! The names a scenario is made of: closed sets as enums, the rest as newtypes.

use serde::{Deserialize, Serialize};

/// A closed set of names that users write in TOML.
pub trait Named: Copy + 'static {
    /// Every member, in the order in which messages list them.
    const ALL: &'static [Self];
    /// What a member of this set is called in messages.
    const WHAT: &'static str;
    /// The name as it is written.
    fn name(self) -> &'static str;

    /// The member with this name.
    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|m| m.name() == name)
    }
}

impl Named for plugpull_disk::explore::Class {
    const ALL: &'static [Self] = &plugpull_disk::explore::Class::ALL;
    const WHAT: &'static str = "kind of states";
    fn name(self) -> &'static str {
        Self::name(self)
    }
}

/// Define an enum whose members have names, once for TOML, JSON and messages.
macro_rules! named {
    ($(#[$doc:meta])* $vis:vis enum $Name:ident, $what:literal { $($(#[$vdoc:meta])* $Variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ::serde::Serialize, ::serde::Deserialize)]
        $vis enum $Name {
            $($(#[$vdoc])* #[serde(rename = $text)] $Variant,)+
        }

        impl Named for $Name {
            const ALL: &'static [Self] = &[$(Self::$Variant),+];
            const WHAT: &'static str = $what;
            fn name(self) -> &'static str {
                match self { $(Self::$Variant => $text),+ }
            }
        }

        impl std::fmt::Display for $Name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }
    };
}
pub(crate) use named;

named! {
    /// How much of the matrix is run, and at which size.
    pub enum Profile, "profile" {
        /// Each value of the matrix once; minutes.
        Smoke = "smoke",
        /// Each pair of values; an hour.
        Full = "full",
        /// The whole product; a night.
        Nightly = "nightly",
    }
}

named! {
    /// A filesystem that the guest's own mkfs makes.
    pub enum Fs, "filesystem" {
        /// ext4.
        Ext4 = "ext4",
        /// XFS.
        Xfs = "xfs",
        /// Btrfs.
        Btrfs = "btrfs",
    }
}

impl Fs {
    /// The smallest disk its mkfs accepts, with room for a workload, in MiB.
    /// XFS refuses less than 300 MiB (`mkfs.xfs(8)`), Btrfs less than 109 MiB
    /// (`mkfs.btrfs(8)`, single device without `--mixed`).
    pub fn min_size_mib(self) -> u64 {
        match self {
            Self::Ext4 => 16,
            Self::Xfs => 300,
            Self::Btrfs => 109,
        }
    }
}

named! {
    /// The bus the disk sits on, which decides whether a write can carry FUA.
    pub enum Bus, "bus" {
        /// virtio-blk: flush, no FUA.
        Virtio = "virtio",
        /// NVMe: flush and FUA.
        Nvme = "nvme",
        /// virtio-scsi: flush and FUA.
        Scsi = "scsi",
    }
}

named! {
    /// How honest the disk is about its write cache.
    pub enum Cache, "cache" {
        /// Write-through: a completed write is durable.
        None = "none",
        /// Volatile and honest: durable after a flush or with FUA.
        Volatile = "volatile",
        /// Volatile, and a flush keeps only a seeded prefix of the writes.
        LiesOnFlush = "lies-on-flush",
    }
}

named! {
    /// What the guest's block layer takes the disk for (`queue/write_cache`), which it is told by
    /// the disk, and by nobody afterwards whether that is true.
    pub enum TakenFor, "write cache" {
        /// Volatile: it is sent flushes.
        WriteBack = "write-back",
        /// None to speak of: no flush is sent.
        WriteThrough = "write-through",
    }
}

named! {
    /// How PostgreSQL gets its log onto the disk: its `wal_sync_method`.
    pub enum WalSync, "wal_sync_method" {
        /// fdatasync(2) after the writes.
        Fdatasync = "fdatasync",
        /// fsync(2) after the writes.
        Fsync = "fsync",
        /// Writes to a file that is open with `O_DSYNC`, and no call after them.
        OpenDatasync = "open_datasync",
        /// The same with `O_SYNC`.
        OpenSync = "open_sync",
    }
}

named! {
    /// How SQLite makes a transaction atomic: its `journal_mode`.
    pub enum SqliteJournal, "journal" {
        /// A rollback journal, deleted to commit.
        Delete = "delete",
        /// A write-ahead log.
        Wal = "wal",
    }
}

named! {
    /// How hard SQLite tries to make a commit durable: its `synchronous`.
    pub enum SqliteSynchronous, "synchronous" {
        /// It leaves that to the system.
        Off = "off",
        /// It syncs at the most critical moments.
        Normal = "normal",
        /// It syncs what it writes; the deletion of a journal it does not.
        Full = "full",
        /// It syncs that too.
        Extra = "extra",
    }
}

named! {
    /// When a commit of redb is durable.
    pub enum RedbDurability, "durability" {
        /// When it returns.
        Immediate = "immediate",
        /// With a later commit.
        None = "none",
    }
}

named! {
    /// What judges a run; each failure in a report names one.
    pub enum OracleName, "oracle" {
        /// Every program of the workload ended as it should.
        Exit = "exit",
        /// The tree equals the one made on the lower filesystem directly.
        Tree = "tree",
        /// Data checksums hold.
        Checksums = "checksums",
        /// What is left can be mounted, and the server starts on it.
        Recovery = "recovery",
        /// The lower filesystem's own checker finds nothing in what was recovered.
        Fsck = "fsck",
        /// Queries give their known answers, before and after a restart.
        Answers = "answers",
        /// `pg_amcheck` finds nothing.
        Amcheck = "amcheck",
        /// The server's log holds no PANIC and no corruption.
        Log = "log",
        /// Acknowledged and served is there with its value; never begun is not.
        Ledger = "ledger",
        /// What a reader of a store was served is there.
        Served = "served",
        /// What was not acknowledged is there wholly or not at all.
        Atomicity = "atomicity",
        /// Every writer's files hold that writer's bytes and no others.
        Writers = "writers",
        /// The server stopped on an I/O error instead of going on.
        Stopped = "stopped",
        /// Keys of the ledger are paths, values the SHA-256 of the content.
        Files = "files",
        /// git's own check finds nothing, and a clone is its origin.
        Repository = "repository",
        /// What tar unpacked is what was packed, attribute by attribute.
        Archive = "archive",
        /// SQLite's own check finds nothing, and every row is as committed.
        Database = "database",
        /// The mount answers every call as the lower filesystem does.
        Conformance = "conformance",
        /// Every named check of plugpull-conformance sees the same on the mount and on
        /// the lower filesystem, and what its rule says.
        Checks = "checks",
        /// A file holds what fsx last wrote, however it was written and read.
        Fsx = "fsx",
        /// The scenario's own `[check]` exited with 0.
        Check = "check",
    }
}

named! {
    /// At whose door a failure is laid.
    pub enum Door, "door" {
        /// The disk: it lost what a flush had covered.
        Device = "device",
        /// The guest's block layer: it took the disk for one that needs no flush.
        BlockLayer = "block-layer",
        /// The filesystem on the disk: it was asked to sync and did not flush.
        LowerFilesystem = "lower-filesystem",
        /// The server of the mount: it was asked to sync and did not pass it on.
        FuseServer = "fuse-server",
        /// The program: it promised what it had not synced.
        Program = "program",
    }
}

/// Longest name of a scenario, image, lower filesystem or mount, in bytes.
const NAME_MAX: usize = 64;

/// What is wrong with a name, or nothing. Names are joined by `::`, used as
/// file names, and given to shells by people, so they stay plain.
pub(crate) fn name_problem(name: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
    if name.is_empty() {
        return Some("a name is empty".into());
    }
    if name.len() > NAME_MAX {
        return Some(format!("the name is longer than {NAME_MAX} bytes"));
    }
    if let Some(odd) = name.chars().find(|c| !plain(*c)) {
        return Some(format!("`{odd}` cannot be part of a name"));
    }
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Some("a name begins with a letter or a digit".into());
    }
    None
}

/// What names look like, for messages.
pub(crate) const NAME_RULE: &str =
    "lower-case letters, digits, `-`, `.` and `_`, beginning with a letter or a digit";

/// Define a newtype of text that orders, prints and serialises as its text.
macro_rules! text {
    ($(#[$doc:meta])* $Name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $Name(String);

        impl $Name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The name as it is; who reads it from a file checks it there.
            pub fn new(name: impl Into<String>) -> Self {
                Self(name.into())
            }
        }

        impl std::fmt::Display for $Name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

text! {
    /// The name of a scenario: its file's name without `.toml`.
    ScenarioName
}
text! {
    /// The name of a guest image: a file in `vm-images/` without `.toml`.
    ImageName
}
text! {
    /// A wrong variant of plugpull-fs, made to be caught. Which there are only
    /// plugpull-fs knows.
    Mutant
}
text! {
    /// How plugpull-fs lets reads and writes travel. Which ways there are only
    /// plugpull-fs knows.
    IoMode
}
text! {
    /// `scenario::image::lower::mount`, the same in nextest, reports and
    /// snapshots.
    CaseName
}

/// What a run of the scenario must come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Every oracle is content.
    Pass,
    /// A control: this oracle must find a failure.
    Caught(OracleName),
}
