//! `redb-ledger`: transactions in redb, whose commits are durable when they
//! return with `Durability::Immediate`, which is its default
//! (<https://docs.rs/redb/4/redb/enum.Durability.html>), and are not with
//! `Durability::None`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use clap::{Subcommand, ValueEnum};
use plugpull_protocol::workload::stores::{SLOTS, StoreSeen, StoreTransaction, part_key, slot_key};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

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
        /// When a commit is durable.
        #[arg(long)]
        durability: Durability,
    },
    /// Recover the database, have it check itself, and print its rows.
    Look { dir: PathBuf },
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Durability {
    /// When it returns.
    Immediate,
    /// With a later commit.
    None,
}

impl From<Durability> for redb::Durability {
    fn from(durability: Durability) -> Self {
        match durability {
            Durability::Immediate => Self::Immediate,
            Durability::None => Self::None,
        }
    }
}

const SLOTS_TABLE: TableDefinition<'_, u64, u64> = TableDefinition::new("slots");
const PARTS_TABLE: TableDefinition<'_, (u64, u64), &str> = TableDefinition::new("parts");

pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Run {
            place,
            transactions,
            chosen,
            durability,
        } => {
            make(&place.dir)?;
            let db = Arc::new(Database::open(path(&place.dir))?);
            let mut writer = RedbWriter {
                db: Arc::clone(&db),
                durability: durability.into(),
            };
            let reader = RedbReader(db);
            transactions::work(&mut writer, reader, place.seed, (transactions, &chosen))
        }
        Command::Look { dir } => tell(&look(&dir)?),
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("store.redb")
}

/// Make a database with its slots, whole or not at all: written beside its
/// place, closed, renamed.
fn make(dir: &Path) -> Result<()> {
    let beside = dir.join("new.redb");
    let db = Database::create(&beside)?;
    let tx = db.begin_write()?;
    {
        let mut slots = tx.open_table(SLOTS_TABLE)?;
        for slot in 0..SLOTS {
            slots.insert(slot, 0)?;
        }
        tx.open_table(PARTS_TABLE)?;
    }
    tx.commit()?;
    drop(db);
    fs::File::open(&beside)?.sync_all()?;
    fs::rename(&beside, path(dir))?;
    dirs::sync(dir)
}

struct RedbWriter {
    db: Arc<Database>,
    durability: redb::Durability,
}

impl Writer for RedbWriter {
    fn carry_out(&mut self, transaction: &StoreTransaction) -> Result<()> {
        let mut tx = self.db.begin_write()?;
        tx.set_durability(self.durability)?;
        {
            let mut slots = tx.open_table(SLOTS_TABLE)?;
            for slot in &transaction.slots {
                slots.insert(slot, transaction.number)?;
            }
            let mut parts = tx.open_table(PARTS_TABLE)?;
            for (part, value) in (0_u64..).zip(&transaction.parts) {
                parts.insert((transaction.number, part), value.as_str())?;
            }
        }
        match transaction.is_rolled_back() {
            true => Ok(tx.abort()?),
            false => Ok(tx.commit()?),
        }
    }
}

struct RedbReader(Arc<Database>);

impl Reader for RedbReader {
    fn sees(&mut self, transaction: &StoreTransaction) -> Result<bool> {
        let tx = self.0.begin_read()?;
        let parts = tx.open_table(PARTS_TABLE)?;
        let found = parts.range((transaction.number, 0)..(transaction.number + 1, 0))?;
        Ok(found.count() == transaction.parts.len())
    }
}

fn look(dir: &Path) -> Result<StoreSeen> {
    let mut seen = StoreSeen::default();
    let path = path(dir);
    // Before the store was made, there is none.
    if !path.exists() {
        return Ok(seen);
    }
    let mut db = Database::open(&path).context("open the database")?;
    // Opening has repaired what a crash left; after that nothing may be wrong.
    match db.check_integrity() {
        Ok(true) => {}
        Ok(false) => seen.damage.push("check_integrity had to repair it".into()),
        Err(error) => seen.damage.push(format!("check_integrity: {error}")),
    }
    let tx = db.begin_read()?;
    for row in tx.open_table(SLOTS_TABLE)?.iter()? {
        let (slot, number) = row?;
        let row = (slot_key(slot.value()), number.value().to_string());
        seen.rows.push(row);
    }
    for row in tx.open_table(PARTS_TABLE)?.iter()? {
        let (key, value) = row?;
        let (number, part) = key.value();
        seen.rows
            .push((part_key(number, part as usize), value.value().to_owned()));
    }
    Ok(seen)
}
