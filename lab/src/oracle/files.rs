//! Judges trees, writers' files and single pages.

use std::collections::BTreeMap;

use plugpull_protocol::workload::plan::{Writers, page_key};
use plugpull_protocol::workload::{EntryKind, Page, TreeEntry, WritersSeen};

use super::{Finding, Findings, Ledger};
use crate::scenario::OracleName;

/// Which contents of two trees must be equal.
#[derive(Debug, Clone, Copy)]
pub enum Contents<'a> {
    /// None: names, kinds, modes and sizes only.
    Ignored,
    /// All but those of paths that start with one of these.
    Except(&'a [&'a str]),
}

/// Where two runs of initdb differ in content: the system identifier, which is
/// also in the WAL, and the statistics' time stamps. All else is the same.
pub const INITDB_RANDOM: &[&str] = &["global/pg_control", "pg_wal/", "pg_stat/pgstat.stat"];

/// Two trees must have the same entries, with the same sizes; what is empty in
/// one is empty in the other. `expected` is the one to trust.
pub fn tree_equal(expected: &[TreeEntry], found: &[TreeEntry], contents: Contents) -> Vec<Finding> {
    let mut findings = Findings::default();
    let by_path = |tree: &[TreeEntry]| -> BTreeMap<String, TreeEntry> {
        let entries = tree.iter().map(|entry| (entry.path.clone(), entry.clone()));
        entries.collect()
    };
    let (expected, found) = (by_path(expected), by_path(found));
    for (path, entry) in &expected {
        match found.get(path) {
            None => findings.add(OracleName::Tree, format!("{path} is missing")),
            Some(other) => {
                if let Some(told) = difference(entry, other, contents) {
                    findings.add(OracleName::Tree, format!("{path}: {told}"));
                }
            }
        }
    }
    for path in found.keys().filter(|path| !expected.contains_key(*path)) {
        findings.add(OracleName::Tree, format!("{path} should not be there"));
    }
    findings.told()
}

fn difference(expected: &TreeEntry, found: &TreeEntry, contents: Contents) -> Option<String> {
    let empty = |entry: &TreeEntry| match (entry.kind, entry.size) {
        (EntryKind::File, 0) => "empty".to_owned(),
        (_, size) => format!("{size} bytes"),
    };
    if expected.kind != found.kind {
        return Some(format!(
            "a {:?} instead of a {:?}",
            found.kind, expected.kind
        ));
    }
    if expected.size != found.size {
        return Some(format!("{} instead of {}", empty(found), empty(expected)));
    }
    if expected.mode != found.mode {
        return Some(format!(
            "mode {:o} instead of {:o}",
            found.mode, expected.mode
        ));
    }
    let compared = match contents {
        Contents::Ignored => false,
        Contents::Except(paths) => !paths.iter().any(|start| expected.path.starts_with(start)),
    };
    (compared && expected.sha256 != found.sha256).then(|| "another content".to_owned())
}

/// Every file of the writers must be there with its own bytes, and no other.
pub fn foreign_bytes(files: &Writers, seen: &WritersSeen) -> Vec<Finding> {
    let mut findings = Findings::default();
    for told in &seen.first {
        findings.add(OracleName::Writers, told.as_str());
    }
    let wrong = seen.mismatches + seen.errors + seen.strangers;
    if wrong > 0 || seen.files != files.count() {
        findings.add(
            OracleName::Writers,
            format!(
                "{} of {} files are right, {} have other content, {} operations failed, {} files are nobody's",
                seen.files,
                files.count(),
                seen.mismatches,
                seen.errors,
                seen.strangers
            ),
        );
    }
    findings.told()
}

/// Pages whose fsync returned must hold what was written, or what was begun
/// after it.
pub fn pages(ledger: &Ledger, found: &[Page]) -> Vec<Finding> {
    let mut findings = Findings::default();
    for (page, holds) in (0..).zip(found) {
        if let Some(told) = page_problem(ledger, page, *holds) {
            findings.add(OracleName::Ledger, format!("{}: {told}", page_key(page)));
        }
    }
    let pages = found.len() as u32;
    let number = |key: &str| key.strip_prefix("page/")?.parse::<u32>().ok();
    for (key, _) in ledger.keys() {
        if number(key).is_none_or(|page| page >= pages) {
            findings.add(
                OracleName::Ledger,
                format!("{key} was promised and not looked at"),
            );
        }
    }
    findings.told()
}

fn page_problem(ledger: &Ledger, page: u32, holds: Page) -> Option<String> {
    let attempts = ledger.key(&page_key(page));
    let attempts = attempts.map_or(&[][..], |key| &key.attempts);
    let value = |write: u32| Some(write.to_string());
    let acked = attempts.iter().rposition(|a| a.acked.is_some());
    let pending = acked.map_or(0, |at| at + 1) < attempts.len();
    let promised = acked.map(|at| &attempts[at]);
    let wanted = match promised {
        Some(a) => format!(
            "write {} (connection {}, acknowledged at seq {})",
            a.value.as_deref().unwrap_or("?"),
            a.conn,
            a.acked.unwrap_or(0)
        ),
        None => "anything begun, or nothing".to_owned(),
    };
    let allowed = match holds {
        Page::Write(write) => {
            let from = acked.unwrap_or(0);
            attempts[from..].iter().any(|a| a.value == value(write))
        }
        // Half of a write that was under way.
        Page::Other => pending,
        Page::Absent | Page::Zero => acked.is_none(),
        Page::Unreadable => false,
    };
    (!allowed).then(|| format!("holds {holds:?} instead of {wanted}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugpull_protocol::Promise;

    fn file(path: &str, size: u64, sha256: &str) -> TreeEntry {
        TreeEntry {
            path: path.into(),
            kind: EntryKind::File,
            mode: 0o600,
            size,
            sha256: Some(sha256.into()),
        }
    }

    #[test]
    fn every_difference_between_trees_is_told() {
        let native = [
            file("a", 8, "1"),
            file("b", 0, "2"),
            file("pg_wal/c", 4, "3"),
        ];
        let all = Contents::Except(&["pg_wal/"]);
        assert_eq!(tree_equal(&native, &native, all), []);
        let mut wal = native.clone();
        wal[2].sha256 = Some("other".into());
        assert_eq!(tree_equal(&native, &wal, all), []);
        let told = |found: &[TreeEntry]| -> Vec<String> {
            let found = tree_equal(&native, found, all);
            found.into_iter().map(|f| f.detail).collect()
        };
        let mut emptied = native.clone();
        emptied[0].size = 0;
        assert_eq!(told(&emptied), ["a: empty instead of 8 bytes"]);
        let mut changed = native.clone();
        changed[0].sha256 = None;
        changed[1].mode = 0o644;
        assert_eq!(
            told(&changed),
            ["a: another content", "b: mode 644 instead of 600"]
        );
        assert_eq!(told(&native[1..]), ["a is missing"]);
        let more = tree_equal(&native[1..], &native, Contents::Ignored);
        assert_eq!(more[0].detail, "a should not be there");
    }

    #[test]
    fn wrong_missing_and_unwritten_files_are_found() {
        let files = Writers {
            writers: 5,
            rounds: 2,
            files: 2,
            max_bytes: 100,
            seed: 1,
        };
        let right = WritersSeen {
            files: 20,
            ..WritersSeen::default()
        };
        assert_eq!(foreign_bytes(&files, &right), []);
        let few = WritersSeen::default();
        assert!(foreign_bytes(&files, &few)[0].detail.starts_with("0 of 20"));
        let mixed = WritersSeen {
            mismatches: 1,
            first: vec!["round-0/w1-f0: at 0 \"W0002\"".into()],
            ..right
        };
        let found = foreign_bytes(&files, &mixed);
        assert!(found[0].detail.contains("W0002") && found.len() == 2);
    }

    /// Writes 0, 2 and 4 go to page 0: two are acknowledged; write 1 to page
    /// 1 is not; page 2 is untouched.
    fn ledger() -> Ledger {
        let begin = |page: u32, write: u32| Promise::Begin {
            conn: 0,
            key: page_key(page),
            value: Some(write.to_string()),
        };
        let ack = |page| Promise::Ack {
            conn: 0,
            key: page_key(page),
        };
        let all = [
            begin(0, 0),
            ack(0),
            begin(1, 1),
            begin(0, 2),
            ack(0),
            begin(0, 4),
        ];
        Ledger::at((1..).zip(&all), 99).expect("a ledger")
    }

    #[test]
    fn pages_keep_what_fsync_promised() {
        let judged = |first, second, third| -> Vec<String> {
            let found = pages(&ledger(), &[first, second, third]);
            found.into_iter().map(|f| f.detail).collect()
        };
        let fine: [String; 0] = [];
        assert_eq!(judged(Page::Write(2), Page::Zero, Page::Absent), fine);
        assert_eq!(judged(Page::Write(4), Page::Write(1), Page::Zero), fine);
        assert_eq!(judged(Page::Other, Page::Other, Page::Zero), fine);
        let lost = judged(Page::Write(0), Page::Zero, Page::Zero);
        let told =
            "page/0: holds Write(0) instead of write 2 (connection 0, acknowledged at seq 5)";
        assert_eq!(lost, [told]);
        for first in [Page::Zero, Page::Absent, Page::Unreadable, Page::Write(6)] {
            assert_eq!(judged(first, Page::Zero, Page::Zero).len(), 1, "{first:?}");
        }
        assert_eq!(judged(Page::Write(2), Page::Zero, Page::Write(9)).len(), 1);
        assert_eq!(judged(Page::Write(2), Page::Zero, Page::Other).len(), 1);
        let unseen = pages(&ledger(), &[Page::Write(2)]);
        assert!(unseen[0].detail.starts_with("page/1 was promised and not"));
    }
}
