//! The store itself: a file of records and an index in memory.
//!
//! A record is its length, a checksum of what follows, and a key and a value
//! with a blank between. Replay takes records until one is not whole, and cuts
//! the file there: what comes after it was being written when the end came.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::FileExt,
    path::Path,
};

use anyhow::{Context, Result};

/// Bytes before a record's text: length and checksum, little-endian.
const HEAD: usize = 8;

/// What is done with a log that was replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnOpen {
    /// It is synced before anything of it is told.
    Sync,
    /// It is taken for durable because it could be read: wrong.
    Trust,
}

/// An open store.
#[derive(Debug)]
pub(super) struct LogFile {
    file: File,
    end: u64,
    index: BTreeMap<String, String>,
}

impl LogFile {
    /// Open a store, or make one; replay its log.
    pub(super) fn open(path: &Path, on_open: OnOpen) -> Result<Self> {
        let doing = || format!("open the log {}", path.display());
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(path).with_context(doing)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(doing)?;
        let (index, end) = replay(&bytes);
        if end < bytes.len() as u64 {
            file.set_len(end).with_context(doing)?;
        }
        if on_open == OnOpen::Sync {
            file.sync_all().with_context(doing)?;
        }
        Ok(Self { file, end, index })
    }

    /// Write a record; it is durable after the next [`LogFile::sync`].
    pub(super) fn append(&mut self, key: &str, value: &str) -> Result<()> {
        let record = record(key, value);
        self.file.write_all_at(&record, self.end)?;
        self.end += record.len() as u64;
        self.index.insert(key.to_owned(), value.to_owned());
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<()> {
        Ok(self.file.sync_data()?)
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.index.get(key).map(String::as_str)
    }

    /// All keys with their values.
    pub(super) fn rows(&self) -> Vec<(String, String)> {
        let rows = self.index.iter();
        rows.map(|(k, v)| (k.clone(), v.clone())).collect()
    }
}

fn record(key: &str, value: &str) -> Vec<u8> {
    let text = format!("{key} {value}");
    let mut record = (text.len() as u32).to_le_bytes().to_vec();
    record.extend(crc32fast::hash(text.as_bytes()).to_le_bytes());
    record.extend(text.as_bytes());
    record
}

/// What a log says, and where its last whole record ends.
fn replay(bytes: &[u8]) -> (BTreeMap<String, String>, u64) {
    let mut index = BTreeMap::new();
    let mut at = 0;
    while let Some((key, value, len)) = first(&bytes[at..]) {
        index.insert(key.to_owned(), value.to_owned());
        at += len;
    }
    (index, at as u64)
}

/// The record at the start of these bytes, if it is whole, and its length.
fn first(bytes: &[u8]) -> Option<(&str, &str, usize)> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let len = word(0)? as usize;
    let text = bytes.get(HEAD..HEAD.checked_add(len)?)?;
    if crc32fast::hash(text) != word(4)? {
        return None;
    }
    // A run of zeros has the right checksum for no text at all.
    let (key, value) = std::str::from_utf8(text).ok()?.split_once(' ')?;
    Some((key, value, HEAD + len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_tail_is_cut_off_and_what_is_before_it_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let mut store = LogFile::open(&path, OnOpen::Sync).expect("made");
        for (key, value) in [("a", "1"), ("b", "2"), ("a", "3")] {
            store.append(key, value).expect("appended");
        }
        let whole = std::fs::read(&path).expect("read");
        let rows = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("written");
            LogFile::open(&path, OnOpen::Sync).expect("opened").rows()
        };
        let row = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(rows(&whole), [row("a", "3"), row("b", "2")]);
        let two = record("a", "1").len() + record("b", "2").len();
        for torn in two..whole.len() {
            assert_eq!(rows(&whole[..torn]), [row("a", "1"), row("b", "2")]);
            assert_eq!(std::fs::metadata(&path).expect("there").len(), two as u64);
        }
        let mut wrong = whole.clone();
        wrong[two + HEAD] ^= 1;
        assert_eq!(rows(&wrong), [row("a", "1"), row("b", "2")]);
        let zeros = [&whole[..], &[0; 4096]].concat();
        assert_eq!(rows(&zeros), [row("a", "3"), row("b", "2")]);
    }
}
