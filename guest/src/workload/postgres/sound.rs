//! Tables that `pg_amcheck` and files that `pg_checksums` has found sound, by their bytes. What is
//! said of a table depends on that table, its indexes and its TOAST, and nearly all of a cluster,
//! the catalogs, is the same in every state that a power cut may leave: it is looked through once
//! by each guest.

use std::collections::HashSet;
use std::hash::Hasher as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use postgres::Client;
use twox_hash::XxHash64;

use super::files::{self, DataFile, Reader};

/// Above so many tables naming them is no gain.
const NAMED: usize = 40;

/// The files of so many tables are open at once: a table has a few.
const TOGETHER: usize = 32;

/// Each table with the files of everything that is looked through together with it. Temporary
/// tables are nobody else's.
const GROUPS: &str = "
    SELECT n.nspname, c.relname, array_agg(pg_relation_filepath(p.oid) ORDER BY p.oid)
    FROM (
        SELECT oid, oid FROM pg_class
        UNION ALL SELECT oid, reltoastrelid FROM pg_class WHERE reltoastrelid <> 0
        UNION ALL SELECT indrelid, indexrelid FROM pg_index
        UNION ALL SELECT t.oid, i.indexrelid
            FROM pg_class t JOIN pg_index i ON i.indrelid = t.reltoastrelid
    ) p(tab, oid)
    JOIN pg_class c ON c.oid = p.tab
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't'
    GROUP BY n.nspname, c.relname";

/// What was found sound, by the hash of its bytes.
#[derive(Debug, Default)]
pub(crate) struct Sound {
    tables: Hashes,
    files: Hashes,
}

#[derive(Debug, Default)]
struct Hashes(Mutex<HashSet<u64>>);

impl Hashes {
    fn lock(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
pub(super) fn tables(client: &mut Client, dir: &Path) -> anyhow::Result<Vec<Table>> {
    let mut listed = Vec::new();
    for row in client.query(GROUPS, &[]).context("list the tables")? {
        let files: Vec<Option<String>> = row.try_get(2)?;
        let files: Vec<String> = files.into_iter().flatten().collect();
        listed.push((row.try_get(0)?, row.try_get(1)?, files));
    }
    let mut reader = Reader::new();
    let mut tables = Vec::new();
    for together in listed.chunks(TOGETHER) {
        let files = together.iter().flat_map(|(_, _, files)| files);
        let opened = files.map(|file| files::ahead(&dir.join(file)));
        let mut opened = opened.collect::<anyhow::Result<Vec<_>>>()?.into_iter();
        for (schema, name, files) in together {
            let mut hasher = XxHash64::with_seed(0);
            for (file, opened) in files.iter().zip(&mut opened) {
                hasher.write(file.as_bytes());
                reader.relation(&dir.join(file), opened, &mut hasher)?;
            }
            let (schema, name) = (String::clone(schema), String::clone(name));
            let hash = hasher.finish();
            tables.push(Table { schema, name, hash });
        }
    }
    Ok(tables)
}

impl Sound {
    /// Those of the tables that are not known to be sound; `None` where that is nearly all.
    pub(super) fn unknown(&self, tables: &[Table]) -> Option<Vec<Table>> {
        let sound = self.tables.lock();
        let unknown = tables.iter().filter(|table| !sound.contains(&table.hash));
        let unknown: Vec<Table> = unknown.cloned().collect();
        (unknown.len() <= NAMED).then_some(unknown)
    }

    /// Nothing was found wrong with these.
    pub(super) fn found(&self, tables: &[Table]) {
        let hashes = tables.iter().map(|table| table.hash);
        self.tables.lock().extend(hashes);
    }

    /// Those of the files that are not known to be sound.
    pub(super) fn unknown_files(&self, files: &[DataFile]) -> Vec<DataFile> {
        let sound = self.files.lock();
        let unknown = files.iter().filter(|file| !sound.contains(&file.hash));
        unknown.cloned().collect()
    }

    /// Nothing was found wrong with these.
    pub(super) fn found_files<'a>(&self, files: impl IntoIterator<Item = &'a DataFile>) {
        let hashes = files.into_iter().map(|file| file.hash);
        self.files.lock().extend(hashes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_file_is_known_in_one_place_and_tables_are_not_files() {
        let file = |path: &str, hash| DataFile {
            path: path.into(),
            bytes: 8192,
            hash,
        };
        let sound = Sound::default();
        let all = [file("base/1/1", 1), file("base/1/2", 2)];
        assert_eq!(sound.unknown_files(&all), all);
        sound.found(&[Table {
            schema: "public".into(),
            name: "t".into(),
            hash: 1,
        }]);
        assert_eq!(sound.unknown_files(&all), all);
        sound.found_files(&all[..1]);
        assert_eq!(sound.unknown_files(&all), all[1..]);
    }
}
