//! What the writers of a SQLite database commit, and what they roll back.

use serde::{Deserialize, Serialize};

use super::{mix, text};

/// Concurrent writers, each with transactions of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// Concurrent writers, by number from 0.
    pub writers: u32,
    /// Transactions of each, by number from 1.
    pub transactions: u32,
    /// What the rows hold derives from it.
    pub seed: u64,
}

/// The journal modes, each with a database of its own.
pub const JOURNAL_MODES: [&str; 2] = ["wal", "delete"];

impl Database {
    /// Whether a transaction is rolled back: none of its rows may be there.
    pub fn rolls_back(&self, n: u32) -> bool {
        n % 5 == 3
    }

    /// The rows of a transaction, by part from 0: what their text is. Some
    /// are longer than a page of the database.
    pub fn rows(&self, writer: u32, n: u32) -> Vec<String> {
        let dice = mix(&[self.seed, writer.into(), n.into(), 0x5e1]);
        let row = |part: u64| {
            let parts = [dice, part];
            let len = match n % 16 {
                7 => 9_000,
                _ => 20 + mix(&parts) as usize % 400,
            };
            text(&parts, len)
        };
        (0..1 + dice % 3).map(row).collect()
    }

    /// How many rows each database holds in the end.
    pub fn rows_left(&self) -> u64 {
        let all = (0..self.writers).flat_map(|w| self.committed().map(move |n| (w, n)));
        all.map(|(writer, n)| self.rows(writer, n).len() as u64)
            .sum()
    }

    /// The transactions of each writer that are committed.
    pub fn committed(&self) -> impl Iterator<Item = u32> {
        let plan = *self;
        (1..=self.transactions).filter(move |n| !plan.rolls_back(*n))
    }

    /// How many transactions are committed to each database.
    pub fn commits(&self) -> u64 {
        u64::from(self.writers) * self.committed().count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_transactions_are_rolled_back_and_some_rows_are_long() {
        let plan = Database {
            writers: 4,
            transactions: 20,
            seed: 2,
        };
        assert_eq!(plan.commits(), 4 * 16);
        assert!(plan.rows_left() > plan.commits());
        assert!(plan.rows(3, 7).iter().all(|row| row.len() == 9_000));
        assert_ne!(plan.rows(0, 1), plan.rows(1, 1));
    }
}
