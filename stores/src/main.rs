//! `plugpull-stores`: the built-in workloads that are programs of their own,
//! linked statically for guests. Each has `run`, which works and says on the
//! promise socket what it promises, and `look`, which opens what a power cut
//! left as the program itself would and prints all of it as JSON.
//!
//! Nothing is judged here: oracles on the host compare promise and remains.

mod dirs;
mod files;
mod log;
#[path = "../../clients/plugpull.rs"]
mod plugpull;
mod redb_ledger;
mod sqlite_ledger;
mod transactions;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};
use plugpull_protocol::workload::operations::{self, Operations};

#[derive(Parser)]
#[command(about = "Workloads that keep promises, for plugpull's guests")]
struct Options {
    #[command(subcommand)]
    program: Program,
}

#[derive(Subcommand)]
enum Program {
    /// Short sequences of operations on files.
    #[command(subcommand)]
    Files(files::Command),
    /// An append-only store that replays its log when it is opened.
    #[command(subcommand)]
    Log(log::Command),
    /// Transactions in SQLite.
    #[command(subcommand)]
    Sqlite(sqlite_ledger::Command),
    /// Transactions in redb.
    #[command(subcommand)]
    Redb(redb_ledger::Command),
}

/// Where a program works, and on what.
#[derive(clap::Args)]
struct Place {
    /// Its own directory.
    dir: PathBuf,
    /// Where all that it writes comes from.
    #[arg(long)]
    seed: u64,
}

/// Which of its operations it carries out.
#[derive(clap::Args)]
struct Chosen {
    /// Only these, such as `1-3,7`; all without it.
    #[arg(long)]
    only: Option<Operations>,
}

impl Chosen {
    fn contains(&self, number: u64) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(number))
    }
}

/// Say that this operation begins.
fn begins(promises: &mut plugpull::Promises, number: u64, what: &str) -> std::io::Result<()> {
    promises.mark(&operations::mark(number, what))
}

fn main() -> ExitCode {
    let done = match Options::parse().program {
        Program::Files(command) => files::run(command),
        Program::Log(command) => log::run(command),
        Program::Sqlite(command) => sqlite_ledger::run(command),
        Program::Redb(command) => redb_ledger::run(command),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plugpull-stores: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Print what a store holds, for the host.
fn tell(seen: &plugpull_protocol::workload::stores::StoreSeen) -> Result<()> {
    println!("{}", serde_json::to_string(seen)?);
    Ok(())
}
