//! The built-in stores: what their transactions write, and what is read out of
//! them after a power cut.
//!
//! A store is a program like any of the user's: it says on the promise socket
//! what it promises. After a cut it is opened again as it always is, and all
//! that it holds is told to the host, which judges.

use serde::{Deserialize, Serialize};

use super::plan::mix;

/// What a store holds, as its own reader says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreSeen {
    /// Keys with their values, in the order of the keys.
    pub rows: Vec<(String, String)>,
    /// What the store's own check of itself found.
    pub damage: Vec<String>,
}

/// Keys that a `log-store` has in all, so that most writes replace a value.
pub const LOG_KEYS: u64 = 24;

/// The value that a `log-store`'s write gives its key: of many lengths, so that
/// records lie across the disk's blocks.
pub fn log_value(seed: u64, write: u64) -> String {
    let len = 8 + mix(&[seed, write, 1]) % 160;
    let words = (0..len.div_ceil(16)).map(|word| format!("{:016x}", mix(&[seed, write, 2, word])));
    let mut text = format!("w{write}.{}", words.collect::<String>());
    text.truncate(len as usize);
    text
}

/// The key of a `log-store`'s write.
pub fn log_key(seed: u64, write: u64) -> String {
    format!("k{}", mix(&[seed, write, 3]) % LOG_KEYS)
}

/// Slots of a transactional store: rows that exist from the beginning and say
/// which transaction touched them last.
pub const SLOTS: u64 = 16;

/// The key of a slot's row.
pub fn slot_key(slot: u64) -> String {
    format!("slot{slot}")
}

/// The key of one of the rows that a transaction adds.
pub fn part_key(number: u64, part: usize) -> String {
    format!("t{number}/{part}")
}

/// The key of a transaction in the ledger.
pub fn transaction_key(number: u64) -> String {
    format!("t{number}")
}

/// A transaction of a store: it rewrites some slots and adds some rows, all or
/// nothing. Its text is its value in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreTransaction {
    /// From 1, in the order of the commits.
    pub number: u64,
    /// The slots that it sets to its number, in ascending order.
    pub slots: Vec<u64>,
    /// The values of the rows that it adds.
    pub parts: Vec<String>,
}

impl StoreTransaction {
    /// The transaction with this number.
    pub fn of(seed: u64, number: u64) -> Self {
        let mut slots: Vec<u64> = (0..3)
            .map(|n| mix(&[seed, number, 10, n]) % SLOTS)
            .collect();
        slots.sort_unstable();
        slots.dedup();
        let parts = 1 + mix(&[seed, number, 11]) % 4;
        let parts = (0..parts).map(|part| format!("{:016x}", mix(&[seed, number, 12, part])));
        Self {
            number,
            slots,
            parts: parts.collect(),
        }
    }

    /// Whether it is rolled back at its end instead of committed. Such a one is
    /// never begun in the ledger, so nothing of it may ever be found.
    pub fn is_rolled_back(&self) -> bool {
        self.number.is_multiple_of(7)
    }

    /// Its value in the ledger, of characters that need no encoding.
    pub fn text(&self) -> String {
        let slots: Vec<_> = self.slots.iter().map(u64::to_string).collect();
        format!("{}_{}", slots.join("."), self.parts.join("."))
    }

    /// From the key and the value of a ledger.
    pub fn from_ledger(key: &str, text: &str) -> Option<Self> {
        let (slots, parts) = text.split_once('_')?;
        let slots = slots.split('.').map(|slot| slot.parse().ok());
        Some(Self {
            number: key.strip_prefix('t')?.parse().ok()?,
            slots: slots.collect::<Option<_>>()?,
            parts: parts.split('.').map(str::to_owned).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_what_its_text_says() {
        for number in 1..50 {
            let made = StoreTransaction::of(7, number);
            let key = transaction_key(number);
            assert_eq!(
                StoreTransaction::from_ledger(&key, &made.text()),
                Some(made)
            );
        }
        for (key, text) in [("t1", ""), ("t1", "x_y"), ("1", "1_a"), ("tx", "1_a")] {
            assert_eq!(StoreTransaction::from_ledger(key, text), None);
        }
    }

    #[test]
    fn values_of_a_log_differ_and_need_no_encoding() {
        let all: std::collections::BTreeSet<_> = (0..500).map(|n| log_value(3, n)).collect();
        assert_eq!(all.len(), 500);
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '.';
        assert!(all.iter().all(|value| value.chars().all(plain)));
    }
}
