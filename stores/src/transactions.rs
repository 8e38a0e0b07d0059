//! What the transactional stores have in common: transactions one after the
//! other, and a reader who tells what it was served.
//!
//! The reader is told of each transaction before it begins, and looks until it
//! sees it: it may be served a commit before the writer knows that it is done.

use std::{
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};

use anyhow::{Context, Result};
use plugpull_protocol::workload::stores::{StoreTransaction, transaction_key};

use crate::{Chosen, begins, plugpull::Promises};

/// A transactional store, as its writer has it.
pub(crate) trait Writer {
    /// Carry out a transaction; when this returns, it is promised, unless it
    /// was rolled back.
    fn carry_out(&mut self, transaction: &StoreTransaction) -> Result<()>;
}

/// And as a reader has it, on a thread of its own.
pub(crate) trait Reader: Send {
    /// Whether the rows of this transaction can be read.
    fn sees(&mut self, transaction: &StoreTransaction) -> Result<bool>;
}

/// Make those that are chosen of so many transactions, and say what is promised and what was served.
pub(crate) fn work(
    writer: &mut dyn Writer,
    reader: impl Reader,
    seed: u64,
    count: (u64, &Chosen),
) -> Result<()> {
    let mut promises = Promises::connect()?;
    let (announce, announced) = channel();
    thread::scope(|scope| {
        let reading = scope.spawn(move || read(reader, &announced));
        let wrote = write(writer, &mut promises, announce, seed, count);
        let read = reading.join();
        let read = read.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        wrote.and(read.context("read beside the writer"))
    })
}

fn write(
    writer: &mut dyn Writer,
    promises: &mut Promises,
    announce: Sender<StoreTransaction>,
    seed: u64,
    (count, chosen): (u64, &Chosen),
) -> Result<()> {
    for number in (1..=count).filter(|number| chosen.contains(*number)) {
        let transaction = StoreTransaction::of(seed, number);
        begins(promises, number, "")?;
        let doing = || format!("carry out transaction {number}");
        if transaction.is_rolled_back() {
            writer.carry_out(&transaction).with_context(doing)?;
            continue;
        }
        let key = transaction_key(number);
        promises.begin(&key, Some(&transaction.text()))?;
        // A reader that is gone has its own error, which is told.
        let _ = announce.send(transaction.clone());
        writer.carry_out(&transaction).with_context(doing)?;
        promises.ack(&key)?;
    }
    Ok(())
}

fn read(mut reader: impl Reader, announced: &Receiver<StoreTransaction>) -> Result<()> {
    let mut promises = Promises::connect()?;
    while let Ok(mut transaction) = announced.recv() {
        // Of several that came meanwhile the latest is looked for.
        while let Ok(later) = announced.try_recv() {
            transaction = later;
        }
        while !reader.sees(&transaction)? {
            thread::yield_now();
        }
        promises.served(transaction_key(transaction.number), transaction.text())?;
    }
    Ok(())
}
