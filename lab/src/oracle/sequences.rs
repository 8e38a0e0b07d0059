//! Judges what sequences of operations on files left after a power cut: what
//! was promised is there, what may be there is one of few things, and nothing
//! else is.
//!
//! Promised is what fsync(2) promises and no more: of a file its content and
//! size, of a directory the names in it. A file's fsync promises no name
//! ("an explicit fsync() on a file descriptor for the directory is also
//! needed"). ext4, XFS and Btrfs do more than that, each in its own way, and
//! nothing of it is counted on.
//!
//! What was not synced may be there or not, each part by itself: of a name
//! every binding since the directory's last sync, of a cell every content since
//! the file's last sync, of a size the sizes between. Zeros may show where a
//! file has grown since, or was shorter for a while, and nowhere else. The
//! content of another file, or what nobody wrote, may never show.
//!
//! rename(2) is atomic: a name that is replaced is never missing, which the
//! bindings say, and a file that was only ever moved is not lost, whichever of
//! its names are found. Both names may be ("there will probably be a window in
//! which both oldpath and newpath refer to the file"). Links of one inode are
//! one file.

mod model;

use std::collections::{BTreeMap, BTreeSet};

use plugpull_protocol::workload::{
    sequences::{Entry, Sequence, dir, sequences, step_key},
    stores::StoreSeen,
};

use self::model::{Bound, Model};
use super::{Finding, Findings, Ledger};
use crate::scenario::OracleName;

/// Judge all sequences of a seed.
pub fn judge(ledger: &Ledger, seed: u64, count: u64, seen: &StoreSeen) -> Vec<Finding> {
    let mut findings = Findings::default();
    let mut found: BTreeMap<&str, BTreeMap<&str, Entry>> = BTreeMap::new();
    for (path, line) in &seen.rows {
        let (own, below) = path.split_once('/').unwrap_or((path, ""));
        let entry = Entry::parse(line).unwrap_or_else(|| Entry::Odd(line.clone()));
        found.entry(own).or_default().insert(below, entry);
    }
    for sequence in sequences(seed, count) {
        let own = dir(sequence.number);
        let found = found.remove(own.as_str()).unwrap_or_default();
        let acked = |step| {
            let key = ledger.key(&step_key(sequence.number, step));
            key.is_some_and(|key| key.attempts.iter().any(|a| a.acked.is_some()))
        };
        // Before it had what it starts from, nothing is known of it.
        if !acked(0) {
            continue;
        }
        let begun = (1..=sequence.steps.len())
            .take_while(|step| ledger.key(&step_key(sequence.number, *step)).is_some());
        let model = Model::of(&sequence, begun.count(), acked);
        for told in one(&model, &found) {
            let steps = &sequence.steps;
            findings.add(OracleName::Files, format!("{own}, {steps:?}: {told}"));
        }
    }
    for own in found.keys() {
        let told = format!("{own}: nobody made that");
        findings.add(OracleName::Files, told);
    }
    findings.told()
}

/// What is wrong with the remains of one sequence.
fn one(model: &Model, found: &BTreeMap<&str, Entry>) -> Vec<String> {
    if found.get("") != Some(&Entry::Dir) {
        return vec!["its durable directory is gone".into()];
    }
    let mut told = Vec::new();
    // Which files of the model each found name may be.
    let mut may_be: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    let mut names: BTreeSet<&str> = found.keys().copied().collect();
    for name in model.names() {
        names.insert(name);
    }
    for name in names.into_iter().filter(|name| !name.is_empty()) {
        let parent = name.split_once('/').map(|(parent, _)| parent);
        // What is in a directory that is not there is not there.
        if parent.is_some_and(|parent| found.get(parent) != Some(&Entry::Dir)) {
            continue;
        }
        match judge_name(model, name, found.get(name)) {
            Ok(files) => drop(may_be.insert(name, files)),
            Err(why) => told.push(format!("{name} {why}")),
        }
    }
    for file in model.never_unlinked() {
        let names = model.names_of(file);
        let kept = |name: &&str| may_be.get(*name).is_some_and(|files| files.contains(&file));
        if !names.iter().any(kept) && told.is_empty() {
            told.push(format!(
                "a durable file that was only moved is under none of its names {names:?}"
            ));
        }
    }
    told.extend(linked_apart(found, &may_be));
    told
}

/// Which files this name may be; none where it is rightly no file.
fn judge_name(model: &Model, name: &str, found: Option<&Entry>) -> Result<BTreeSet<usize>, String> {
    let bindings = model.bindings(name);
    let none = BTreeSet::new();
    let wanted = || match &bindings[..] {
        [] => "nothing".to_owned(),
        some => some
            .iter()
            .map(|bound| model.tell(*bound))
            .collect::<Vec<_>>()
            .join(" or "),
    };
    match found {
        None if bindings.is_empty() || bindings.contains(&Bound::Nothing) => Ok(none),
        None => Err(format!("is absent instead of {}", wanted())),
        Some(Entry::Dir) if bindings.contains(&Bound::Dir) => Ok(none),
        Some(Entry::File { size, cells, .. }) => {
            let files = bindings.iter().filter_map(|bound| match bound {
                Bound::File(file) => Some(*file),
                _ => None,
            });
            let (mut may_be, mut why) = (none, None);
            for file in files {
                match model.accepts(file, *size, cells) {
                    Ok(()) => drop(may_be.insert(file)),
                    Err(told) => why = Some(told),
                }
            }
            match (may_be.is_empty(), why) {
                (false, _) => Ok(may_be),
                (true, Some(why)) => Err(format!("{why}, as {}", wanted())),
                (true, None) => Err(format!("is a file of {size} bytes instead of {}", wanted())),
            }
        }
        Some(other) => Err(format!("is {other:?} instead of {}", wanted())),
    }
}

/// Names of one inode must be able to be one file.
fn linked_apart(
    found: &BTreeMap<&str, Entry>,
    may_be: &BTreeMap<&str, BTreeSet<usize>>,
) -> Option<String> {
    let mut by_inode: BTreeMap<u64, (Vec<&str>, BTreeSet<usize>)> = BTreeMap::new();
    for (name, files) in may_be {
        let Some(Entry::File { inode, .. }) = found.get(name) else {
            continue;
        };
        let (names, all) = by_inode
            .entry(*inode)
            .or_insert_with(|| (Vec::new(), files.clone()));
        names.push(name);
        all.retain(|file| files.contains(file));
    }
    let apart = by_inode.into_values().find(|(_, all)| all.is_empty());
    apart.map(|(names, _)| format!("{names:?} are one file and never were"))
}

/// How many sequences had begun by a cut.
pub fn begun(ledger: &Ledger, seed: u64, count: u64) -> u64 {
    let began = |sequence: &Sequence| ledger.key(&step_key(sequence.number, 1)).is_some();
    sequences(seed, count).iter().filter(|s| began(s)).count() as u64
}

#[cfg(test)]
#[path = "sequences_tests.rs"]
mod tests;
