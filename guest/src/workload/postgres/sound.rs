//! Tables that `pg_amcheck` has found sound, by their bytes. What it says of a table depends on
//! that table, its indexes and its TOAST, and nearly all of a cluster, the catalogs, is the same
//! in every state that a power cut may leave: it is looked through once by each guest.

use std::collections::HashSet;
use std::fs::File;
use std::hash::Hasher as _;
use std::io::{ErrorKind, Read as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use postgres::Client;
use twox_hash::XxHash64;

/// Above so many tables naming them is no gain.
const NAMED: usize = 40;

/// Each table with the files of everything that is looked through together with it. Temporary
/// tables are nobody else's.
const GROUPS: &str = "
    SELECT n.nspname, c.relname, array_agg(pg_relation_filepath(p.oid) ORDER BY p.oid)
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    CROSS JOIN LATERAL (
        SELECT c.oid
        UNION SELECT c.reltoastrelid WHERE c.reltoastrelid <> 0
        UNION SELECT indexrelid FROM pg_index WHERE indrelid IN (c.oid, c.reltoastrelid)
    ) p(oid)
    WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't'
    GROUP BY n.nspname, c.relname";

/// The tables that were found sound, by the hash of their bytes.
#[derive(Debug, Default)]
pub(crate) struct Sound(Mutex<HashSet<u64>>);

/// A table, with the hash of all that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    schema: String,
    name: String,
    hash: u64,
}

impl Table {
    /// As a pattern that matches it and no other (psql's rules: what is quoted is taken as it is).
    pub(super) fn pattern(&self) -> String {
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }
}

/// All tables of the database, hashed as they are on disk. Nothing may have been changed since the
/// server came up: what it recovered it has written by then (the checkpoint at the end of recovery).
pub(super) fn tables(mut client: Client, dir: &Path) -> anyhow::Result<Vec<Table>> {
    let rows = client.query(GROUPS, &[]).context("list the tables")?;
    rows.iter()
        .map(|row| {
            let (schema, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            let mut hasher = XxHash64::with_seed(0);
            let files: Vec<Option<String>> = row.try_get(2)?;
            for file in files.into_iter().flatten() {
                hasher.write(file.as_bytes());
                hash(&dir.join(file), &mut hasher)?;
            }
            Ok(Table {
                schema,
                name,
                hash: hasher.finish(),
            })
        })
        .collect()
}

/// Hash a relation's main fork, all segments of it.
fn hash(first: &Path, hasher: &mut XxHash64) -> anyhow::Result<()> {
    let mut block = vec![0; 256 << 10];
    for segment in 0.. {
        let mut path = first.as_os_str().to_owned();
        if segment > 0 {
            path.push(format!(".{segment}"));
        }
        let mut file = match File::open(&path) {
            Err(error) if segment > 0 && error.kind() == ErrorKind::NotFound => return Ok(()),
            opened => opened.with_context(|| format!("open {}", path.display()))?,
        };
        loop {
            match file.read(&mut block) {
                Ok(0) => break,
                Ok(read) => hasher.write(&block[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context(format!("read {}", path.display())),
            }
        }
    }
    Ok(())
}

impl Sound {
    /// Those of the tables that are not known to be sound; `None` where that is nearly all.
    pub(super) fn unknown(&self, tables: &[Table]) -> Option<Vec<Table>> {
        let sound = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let unknown = tables.iter().filter(|table| !sound.contains(&table.hash));
        let unknown: Vec<Table> = unknown.cloned().collect();
        (unknown.len() <= NAMED).then_some(unknown)
    }

    /// Nothing was found wrong with these.
    pub(super) fn found(&self, tables: &[Table]) {
        let mut sound = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sound.extend(tables.iter().map(|table| table.hash));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_segment_counts_and_a_missing_relation_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = dir.path().join("16384");
        let hashed = || {
            let mut hasher = XxHash64::with_seed(0);
            hash(&first, &mut hasher).map(|()| hasher.finish())
        };
        assert!(hashed().is_err());
        std::fs::write(&first, [1; 600_000]).expect("written");
        let one = hashed().expect("hashed");
        assert_eq!(hashed().expect("again"), one);
        std::fs::write(dir.path().join("16384.1"), [1; 5]).expect("written");
        let two = hashed().expect("hashed");
        assert_ne!(one, two);
        std::fs::write(dir.path().join("16384.1"), [2; 5]).expect("written");
        assert_ne!(hashed().expect("hashed"), two);
    }

    #[test]
    fn what_was_found_sound_is_known_by_its_bytes() {
        let table = |name: &str, hash| Table {
            schema: "public".into(),
            name: name.into(),
            hash,
        };
        let sound = Sound::default();
        let all: Vec<Table> = (0..100).map(|n| table("t", n)).collect();
        assert_eq!(sound.unknown(&all), None);
        sound.found(&all);
        assert_eq!(sound.unknown(&all), Some(Vec::new()));
        let changed = [table("t", 5), table("a\"b", 200)];
        let unknown = sound.unknown(&changed).expect("few");
        assert_eq!(unknown[0].pattern(), "\"public\".\"a\"\"b\"");
        assert_eq!(unknown.len(), 1);
    }
}
