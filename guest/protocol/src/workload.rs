//! The built-in workloads and checkers: what they are asked, what they saw.
//!
//! Observations are facts, not verdicts: oracles on the host judge them. What
//! a workload writes is derived from its seed by [`plan`], so guest and host
//! agree on it without sending it.

pub mod operations;
pub mod plan;
mod programs;
pub mod sequences;
pub mod stores;
pub mod user;

pub use programs::{Act, Program, ProgramRun, Step};
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
pub use user::{UserRequest, UserSeen};

use crate::Exited;

/// The server configuration under which a power cut tests data files and not
/// only redo: tiny buffers so that pages are evicted, a tiny WAL so that its
/// segments are recycled. A cluster for it is made with `--wal-segsize=1`.
/// Autovacuum is off: runs are shorter than its nap, and what it would write
/// at an unseeded moment only adds noise.
pub const LEDGER_CONF: &[&str] = &[
    "fsync=on",
    "full_page_writes=on",
    "synchronous_commit=on",
    "wal_sync_method=fdatasync",
    "shared_buffers=1MB",
    "min_wal_size=2MB",
    "max_wal_size=2MB",
    "autovacuum=off",
    "restart_after_crash=off",
];

/// The mark of a ledger run whose connections are all up.
pub const MARK_LOAD_BEGIN: &str = "load-begin";
/// The mark of a ledger run whose connections have all ended.
pub const MARK_LOAD_END: &str = "load-end";
/// A mark that starts with this names a CHECKPOINT about to be requested.
pub const MARK_CHECKPOINT_BEGIN: &str = "checkpoint-begin";
/// A mark that starts with this names a CHECKPOINT that returned; its text is
/// `checkpoint-end N recycled R`, with the WAL segments recycled so far.
pub const MARK_CHECKPOINT_END: &str = "checkpoint-end";

/// A built-in workload or checker and its parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum WorkloadRequest {
    /// List one page of a tree that nobody changes meanwhile: paths, kinds,
    /// modes, sizes and, if asked, content hashes.
    Tree {
        /// Its root.
        dir: String,
        /// Continue after this path: `next` of the page before.
        after: Option<String>,
        /// Hash the content of regular files; emulated processors take about
        /// a second for 15 MB.
        contents: bool,
    },
    /// Run initdb as the database's user; the directory is made if missing.
    /// fsync stays on: it is under test.
    PostgresInitdb {
        /// The data directory.
        dir: String,
        /// Further arguments, such as `--wal-segsize=1`.
        args: Vec<String>,
        /// Killed after this time.
        timeout_ms: u64,
    },
    /// `pg_checksums --check` on a cluster that was stopped cleanly.
    PgChecksums {
        /// The data directory.
        dir: String,
        /// Killed after this time.
        timeout_ms: u64,
    },
    /// Start a server, ask it something, stop it cleanly.
    PgFirstStart {
        /// The data directory.
        dir: String,
        /// For the start and for the stop, each.
        timeout_ms: u64,
    },
    /// Load a table from several connections, with concurrent updates; vacuum;
    /// aggregates before and after a clean restart; `pg_amcheck`.
    PostgresLoad {
        /// The data directory.
        dir: String,
        /// What is loaded.
        load: plan::Load,
        /// Rows (and updates) per transaction; one each when absent.
        batch: Option<u32>,
        /// Server settings, `name=value`.
        conf: Vec<String>,
        /// For the whole workload.
        timeout_ms: u64,
    },
    /// Make the tables of [`WorkloadRequest::PostgresLedger`] and the amcheck
    /// extension in a cluster, checkpoint and stop: part of the frozen base.
    PostgresLedgerPrepare {
        /// The data directory.
        dir: String,
        /// How many connections the load will have.
        connections: u32,
        /// For the whole request.
        timeout_ms: u64,
    },
    /// Commit transactions from several connections, each promised to the
    /// host, with checkpoints and a reader beside them. A server that stops
    /// ends the load and is reported, not treated as an error.
    PostgresLedger {
        /// The data directory, prepared.
        dir: String,
        /// Connections that commit, as prepared.
        connections: u32,
        /// What the transactions derive from, see [`plan::transaction`].
        seed: u64,
        /// Server settings, `name=value`; [`LEDGER_CONF`] unless there is a
        /// reason.
        conf: Vec<String>,
        /// Each connection ends after this many transactions.
        transactions: u64,
        /// The load ends after this time even if transactions are left.
        load_ms: u64,
        /// Pause between the end of one CHECKPOINT and the next.
        checkpoint_every_ms: u64,
        /// Pause between two looks of the reader.
        reader_every_ms: u64,
        /// For the start and for the stop, each.
        timeout_ms: u64,
    },
    /// Start the server on what a power cut left, read the ledger's tables,
    /// run the checkers, stop.
    PostgresRecover {
        /// The data directory.
        dir: String,
        /// The seed of the load, to compare row contents.
        seed: u64,
        /// Run `pg_amcheck` and `pg_checksums` too.
        full: bool,
        /// Server settings, `name=value`.
        conf: Vec<String>,
        /// For the start, each checker and the stop, each.
        timeout_ms: u64,
    },
    /// Many threads create, write, close and verify files of their own.
    Writers {
        /// Where; made if missing.
        dir: String,
        /// The files.
        files: plan::Writers,
    },
    /// Verify what [`WorkloadRequest::Writers`] left.
    VerifyWriters {
        /// Where they wrote.
        dir: String,
        /// The files.
        files: plan::Writers,
    },
    /// Write single pages, each followed by an fsync and promised.
    PageFsync {
        /// Where; made if missing.
        dir: String,
        /// How many writes; write `i` goes to page `i % pages`.
        writes: u32,
        /// How many pages the file has.
        pages: u32,
        /// What the pages hold derives from it.
        seed: u64,
    },
    /// Read the pages of [`WorkloadRequest::PageFsync`] back.
    PageCheck {
        /// Where they were written.
        dir: String,
        /// As written.
        writes: u32,
        /// As written.
        pages: u32,
        /// As written.
        seed: u64,
    },
    /// One act of real programs that keep their files in a directory.
    Program {
        /// Their directory.
        dir: String,
        /// Which programs.
        program: Program,
        /// What is done.
        act: Act,
        /// For each program that is started.
        timeout_ms: u64,
    },
    /// Something about a program of the user's.
    User(UserRequest),
}

/// What a workload or checker saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "saw", rename_all = "kebab-case")]
pub enum Observation {
    /// One page of a tree, sorted by path.
    Tree {
        /// The entries of this page; the root itself is not one.
        entries: Vec<TreeEntry>,
        /// Ask again after this path; absent on the last page.
        next: Option<String>,
    },
    /// A program of the database ran to its end.
    Tool(Exited),
    /// `pg_checksums --check` ran.
    Checksums(Box<Checksums>),
    /// A server started, answered and stopped, or did not.
    FirstStart(Box<ServerRun>),
    /// A table was loaded.
    Load(Box<LoadRun>),
    /// The ledger's tables are there and the cluster is stopped.
    Prepared,
    /// A ledger run came to its end.
    Ledger(Box<LedgerRun>),
    /// A server started on what a power cut left, or did not.
    Recover(Box<Recovered>),
    /// Files were written, or verified.
    Writers(WritersSeen),
    /// Pages were written and promised.
    PagesWritten {
        /// How many writes were acknowledged by fsync.
        acked: u32,
        /// What failed first, if anything.
        error: Option<String>,
    },
    /// Pages were read back.
    Pages {
        /// Bytes of the file; absent when there is no file.
        size: Option<u64>,
        /// What each page holds, by number.
        pages: Vec<Page>,
    },
    /// An act of real programs came to its end.
    Program(Box<ProgramRun>),
    /// Something about a program of the user's.
    User(UserSeen),
}

/// A file, directory or other entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeEntry {
    /// Below the root, with every byte outside `[A-Za-z0-9._/-]`
    /// percent-encoded.
    pub path: String,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    /// Bytes; zero for what is not a regular file, because the size of a
    /// directory is each filesystem's own affair.
    pub size: u64,
    /// SHA-256 of a regular file's content, or of a link's target, if asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// What kind of thing a tree's entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A socket, pipe or device.
    Other,
}

/// One line of a server's log that is not ordinary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogLine {
    /// The server process that wrote it.
    pub pid: u32,
    /// Its SQLSTATE; XX001 and XX002 are corruption.
    pub sqlstate: String,
    /// `WARNING`, `ERROR`, `FATAL` or `PANIC`.
    pub severity: String,
    /// The message.
    pub message: String,
}

/// What a server's log held.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerLog {
    /// Lines of severity PANIC.
    pub panics: u64,
    /// Processes of the server that a signal killed (`was terminated by
    /// signal`), which is how a failed assertion or a crash shows.
    pub crashes: u64,
    /// Checkpoints completed.
    pub checkpoints: u64,
    /// WAL segments recycled by them.
    pub recycled: u64,
    /// True when the server replayed WAL at its start.
    pub recovered: bool,
    /// The first lines of severity WARNING and above; ordinary refusals while
    /// starting and stopping are left out.
    pub notable: Vec<LogLine>,
    /// How many more of them there were.
    pub notable_left_out: u64,
    /// The last lines, whatever they are.
    pub tail: Vec<String>,
}

/// How a server's life went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerRun {
    /// It became ready.
    pub started: bool,
    /// It answered what it was asked.
    pub answered: bool,
    /// Its exit code, or 128 + signal; absent when it had to be killed.
    pub exit: Option<i32>,
    /// Its log.
    pub log: ServerLog,
}

/// What `pg_checksums --check` said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checksums {
    /// The program's end.
    pub exited: Exited,
    /// Blocks with a wrong checksum; the first thousand.
    pub bad: Vec<BadBlock>,
    /// Other complaints, such as a file that cannot be read.
    pub complaints: Vec<String>,
}

/// A block whose checksum is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BadBlock {
    /// The file, as the program names it.
    pub file: String,
    /// The block's number in the file.
    pub block: u64,
}

/// What a load came to. A step that failed leaves what follows it empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadRun {
    /// The answers before the restart, as [`plan::Load::answers`] names them.
    pub before: Vec<plan::Answer>,
    /// The same after a clean stop and a new start.
    pub after: Vec<plan::Answer>,
    /// What clients were told instead.
    pub errors: Vec<String>,
    /// `pg_amcheck` at the end.
    pub amcheck: Option<Exited>,
    /// The server's first life.
    pub first: ServerRun,
    /// Its second.
    pub second: Option<ServerRun>,
}

/// What a ledger run came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerRun {
    /// The number of the last transaction acknowledged, by connection.
    pub acked: Vec<u64>,
    /// What the reader was served, in rows.
    pub served: u64,
    /// Checkpoints that were requested and returned.
    pub checkpoints: u64,
    /// Errors that clients were given, the first few, with what they did.
    pub errors: Vec<String>,
    /// How many errors there were.
    pub error_count: u64,
    /// The server went down by itself, before it was told to.
    pub server_stopped: bool,
    /// The server's life and log.
    pub server: ServerRun,
}

/// What a server that started on a power cut's remains holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recovered {
    /// The server's life and log.
    pub server: ServerRun,
    /// What the tables hold, by connection; absent when they could not be
    /// read.
    pub tables: Option<Vec<ConnRows>>,
    /// Why they could not be read.
    pub read_error: Option<String>,
    /// `pg_amcheck`, if asked and the server ran.
    pub amcheck: Option<Exited>,
    /// `pg_checksums`, if asked and the server stopped cleanly.
    pub checksums: Option<Checksums>,
    /// How long each part of it took, in milliseconds, by its name.
    pub took_ms: BTreeMap<String, u64>,
}

/// The rows of one connection, compactly; see [`plan::transaction`] for what
/// the tables hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnRows {
    /// The connection.
    pub conn: u32,
    /// `conn_state`: last transaction and sum of amounts; absent without row.
    pub state: Option<(u64, i64)>,
    /// `ledger_a`: inclusive ranges of rows as their own transaction wrote
    /// them.
    pub a_own: Vec<(u64, u64)>,
    /// `ledger_a`: rows rewritten since, with the transaction that did.
    pub a_updated: Vec<(u64, u64)>,
    /// `ledger_b`: inclusive ranges of transactions with all their parts.
    pub b_whole: Vec<(u64, u64)>,
    /// `ledger_b`: transactions with some parts, and how many.
    pub b_partial: Vec<(u64, u32)>,
    /// Rows that hold something else than their transaction wrote; the first
    /// hundred.
    pub bad: Vec<BadRow>,
}

/// A row that should not be as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BadRow {
    /// Its table.
    pub table: String,
    /// Its transaction.
    pub n: u64,
    /// The transaction that last wrote it, as the row says.
    pub version: u64,
    /// What is wrong.
    pub detail: String,
}

/// What became of the writers' files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WritersSeen {
    /// Files found with exactly their own content.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Files with other content or another size.
    pub mismatches: u64,
    /// Operations that failed, missing files included.
    pub errors: u64,
    /// Files that nobody wrote.
    pub strangers: u64,
    /// The first few of the last three, described.
    pub first: Vec<String>,
}

/// What a page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Page {
    /// Beyond the end of the file, wholly or in part.
    Absent,
    /// Zeros only.
    Zero,
    /// Exactly what this write put there.
    Write(u32),
    /// Something else: torn, foreign or damaged.
    Other,
    /// It could not be read.
    Unreadable,
}
