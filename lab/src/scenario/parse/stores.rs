//! The built-in workloads that are programs on the payload disk: their command
//! lines from their parameters.

use std::num::NonZeroU32;

use super::complaints::Complaints;
use crate::{
    programs::STORES,
    scenario::{
        Argv, Judge, Named, Program, RedbDurability, SqliteJournal, SqliteSynchronous, Store,
        StoreKind,
        raw::{Flag, RawWorkload, Text},
    },
};

/// What one look tells has to fit into a message of 64 KiB.
const MAX_ROUNDS: u32 = 500;
const MAX_TRANSACTIONS: u32 = 400;
const MAX_SEQUENCES: u32 = 200;

/// `files`: what the sequences are follows from the seed, for the look as well.
pub(super) fn files(raw: &RawWorkload, complaints: &mut Complaints) -> Option<Program> {
    let count = complaints.number("sequences", &raw.sequences, 60, MAX_SEQUENCES)?;
    let common = ["--seed", "{seed}", "--sequences"].map(str::to_owned);
    let common = [&common[..], &[count.to_string()]].concat();
    let mut run = common.clone();
    if !is_on(&raw.fsync) {
        run.push("--no-fsync".to_owned());
    }
    let kind = StoreKind::Sequences(count);
    Some(program("files", count, (run, common), kind))
}

/// `log-store`: both kinds of fsync are on unless the file says otherwise.
pub(super) fn log_store(raw: &RawWorkload, complaints: &mut Complaints) -> Option<Program> {
    let rounds = complaints.number("rounds", &raw.rounds, 12, MAX_ROUNDS)?;
    let words = ["--seed", "{seed}", "--rounds"].map(str::to_owned);
    let mut words = [&words[..], &[rounds.to_string()]].concat();
    if !is_on(&raw.fsync) {
        words.push("--no-fsync".to_owned());
    }
    if !is_on(&raw.fsync_on_open) {
        words.push("--no-fsync-on-open".to_owned());
    }
    let words = (words, Vec::new());
    Some(program("log", rounds, words, StoreKind::Records))
}

/// `sqlite-ledger`: with what SQLite's documentation calls durable in this
/// journal mode, unless the file asks for less.
pub(super) fn sqlite_ledger(raw: &RawWorkload, complaints: &mut Complaints) -> Option<Program> {
    let transactions = transactions(raw, complaints);
    let journal = one_of(&raw.journal, SqliteJournal::Wal, complaints);
    let durable = match journal {
        Some(SqliteJournal::Delete) => SqliteSynchronous::Extra,
        _ => SqliteSynchronous::Full,
    };
    let synchronous = one_of(&raw.synchronous, durable, complaints);
    let words = [
        named("journal", journal?),
        named("synchronous", synchronous?),
    ];
    Some(transactional("sqlite", transactions?, &words))
}

/// `redb-ledger`.
pub(super) fn redb_ledger(raw: &RawWorkload, complaints: &mut Complaints) -> Option<Program> {
    let transactions = transactions(raw, complaints);
    let durability = one_of(&raw.durability, RedbDurability::Immediate, complaints);
    let words = [named("durability", durability?)];
    Some(transactional("redb", transactions?, &words))
}

fn transactions(raw: &RawWorkload, complaints: &mut Complaints) -> Option<NonZeroU32> {
    complaints.number("transactions", &raw.transactions, 60, MAX_TRANSACTIONS)
}

fn named(name: &str, value: impl Named) -> Vec<String> {
    vec![format!("--{name}"), value.name().to_owned()]
}

fn one_of<T: Named>(written: &Text, default: T, complaints: &mut Complaints) -> Option<T> {
    match written {
        Some(written) => complaints.one_of(written),
        None => Some(default),
    }
}

fn is_on(flag: &Flag) -> bool {
    flag.as_ref().is_none_or(|flag| *flag.get_ref())
}

fn transactional(name: &str, count: NonZeroU32, more: &[Vec<String>]) -> Program {
    let words = ["--seed", "{seed}", "--transactions"].map(str::to_owned);
    let run = [&words[..], &[count.to_string()], &more.concat()].concat();
    program(name, count, (run, Vec::new()), StoreKind::Transactions)
}

fn program(
    name: &str,
    operations: NonZeroU32,
    (mut run, look): (Vec<String>, Vec<String>),
    kind: StoreKind,
) -> Program {
    run.extend(["--only", "{operations}"].map(str::to_owned));
    let argv = |act: &str, more: Vec<String>| {
        let words = [STORES, name, act, "{dir}"].map(str::to_owned);
        Argv::new([&words[..], &more].concat())
    };
    Program {
        files: Vec::new(),
        run: argv("run", run),
        operations: Some(operations),
        judge: Judge::Store(Store {
            kind,
            look: argv("look", look),
        }),
    }
}
