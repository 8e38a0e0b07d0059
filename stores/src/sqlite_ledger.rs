//! `sqlite-ledger`: transactions in SQLite, with a rollback journal or a
//! write-ahead log.
//!
//! What SQLite promises depends on `PRAGMA synchronous`. A commit survives a
//! power cut in WAL mode with FULL, and in DELETE mode with EXTRA: FULL does
//! not sync the directory after the journal is deleted, so that the journal
//! may come back and roll the commit back
//! (<https://www.sqlite.org/pragma.html#pragma_synchronous>).

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use plugpull_protocol::workload::stores::{SLOTS, StoreSeen, StoreTransaction, part_key, slot_key};
use rusqlite::Connection;

use crate::{
    Chosen, Place, dirs, tell,
    transactions::{self, Reader, Writer},
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make transactions.
    Run {
        #[command(flatten)]
        place: Place,
        /// How many.
        #[arg(long)]
        transactions: u64,
        #[command(flatten)]
        chosen: Chosen,
        /// `delete` or `wal`.
        #[arg(long)]
        journal: String,
        /// `off`, `normal`, `full` or `extra`.
        #[arg(long)]
        synchronous: String,
    },
    /// Recover the database, have it check itself, and print its rows.
    Look { dir: PathBuf },
}

/// How long one connection waits for another's lock.
const LOCKED_AT_MOST: Duration = Duration::from_secs(60);
/// Pages of a write-ahead log after which it is checkpointed: a run shall have
/// many checkpoints.
const CHECKPOINT_PAGES: u32 = 12;

pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Run {
            place,
            transactions,
            chosen,
            journal,
            synchronous,
        } => {
            let path = path(&place.dir);
            make(&place.dir, &journal)?;
            let mut writer = SqliteWriter(open(&path)?);
            let settings = format!(
                "PRAGMA synchronous={synchronous}; PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES};"
            );
            writer.0.execute_batch(&settings)?;
            let reader = SqliteReader(open(&path)?);
            transactions::work(&mut writer, reader, place.seed, (transactions, &chosen))
        }
        Command::Look { dir } => tell(&look(&dir)?),
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("store.sqlite")
}

fn open(path: &Path) -> Result<Connection> {
    let db = Connection::open(path).with_context(|| format!("open {}", path.display()))?;
    db.busy_timeout(LOCKED_AT_MOST)?;
    Ok(db)
}

/// Make a database with its slots, whole or not at all: written beside its
/// place, closed, renamed.
fn make(dir: &Path, journal: &str) -> Result<()> {
    let beside = dir.join("new.sqlite");
    let db = open(&beside)?;
    let mode: String = db.query_row(&format!("PRAGMA journal_mode={journal}"), [], |row| {
        row.get(0)
    })?;
    ensure!(mode == journal, "SQLite took the journal mode {mode}");
    // One sync at the end is enough for what nobody has been promised, and
    // leaves the cuts to the transactions.
    db.execute_batch(
        "PRAGMA synchronous=OFF;
         BEGIN;
         CREATE TABLE slots(slot INTEGER PRIMARY KEY, number INTEGER NOT NULL);
         CREATE TABLE parts(number INTEGER, part INTEGER, value TEXT NOT NULL,
                            PRIMARY KEY(number, part));
         CREATE INDEX by_value ON parts(value);",
    )?;
    for slot in 0..SLOTS {
        db.execute("INSERT INTO slots VALUES(?1, 0)", [slot as i64])?;
    }
    db.execute_batch("COMMIT")?;
    db.close().map_err(|(_, error)| error)?;
    fs::File::open(&beside)?.sync_all()?;
    fs::rename(&beside, path(dir))?;
    dirs::sync(dir)
}

struct SqliteWriter(Connection);

impl Writer for SqliteWriter {
    fn carry_out(&mut self, transaction: &StoreTransaction) -> Result<()> {
        let number = transaction.number as i64;
        let tx = self
            .0
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        for slot in &transaction.slots {
            let set = "UPDATE slots SET number=?1 WHERE slot=?2";
            tx.execute(set, (number, *slot as i64))?;
        }
        for (part, value) in (0_i64..).zip(&transaction.parts) {
            let add = "INSERT INTO parts VALUES(?1, ?2, ?3)";
            tx.execute(add, (number, part, value))?;
        }
        match transaction.is_rolled_back() {
            true => Ok(tx.rollback()?),
            false => Ok(tx.commit()?),
        }
    }
}

struct SqliteReader(Connection);

impl Reader for SqliteReader {
    fn sees(&mut self, transaction: &StoreTransaction) -> Result<bool> {
        let count = "SELECT count(*) FROM parts WHERE number=?1";
        let mut count = self.0.prepare(count)?;
        let found: i64 = count.query_row([transaction.number as i64], |row| row.get(0))?;
        Ok(found as usize == transaction.parts.len())
    }
}

fn look(dir: &Path) -> Result<StoreSeen> {
    let mut seen = StoreSeen::default();
    let path = path(dir);
    // Before the store was made, there is none.
    if !path.exists() {
        return Ok(seen);
    }
    let db = open(&path)?;
    let mut check = db.prepare("PRAGMA integrity_check")?;
    let told = check.query_map([], |row| row.get::<_, String>(0))?;
    seen.damage = told.collect::<Result<_, _>>()?;
    seen.damage.retain(|line| line != "ok");
    let mut slots = db.prepare("SELECT slot, number FROM slots ORDER BY slot")?;
    let slots = slots.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
    for row in slots {
        let (slot, number) = row?;
        seen.rows.push((slot_key(slot as u64), number.to_string()));
    }
    let mut parts = db.prepare("SELECT number, part, value FROM parts ORDER BY number, part")?;
    let parts = parts.query_map([], |row| {
        let (number, part): (i64, i64) = (row.get(0)?, row.get(1)?);
        Ok((part_key(number as u64, part as usize), row.get(2)?))
    })?;
    for row in parts {
        seen.rows.push(row?);
    }
    Ok(seen)
}
