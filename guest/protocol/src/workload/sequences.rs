//! Short sequences of operations on files, with fsync at every place: what
//! `files` does, as a function of its seed.
//!
//! Each sequence works in a directory of its own, on three small files that
//! were made durable before. The sequences of two operations are those of ACE
//! (Mohan et al., "Finding Crash-Consistency Bugs with Bounded Black-Box
//! Crash Testing", OSDI 2018) with its bounds: few files, one directory below,
//! what an operation touched synced or not after each. There are
//! [`PAIRS`] of them before the impossible ones are left out. Those of three
//! are a seeded choice. Of what ACE has, renaming directories, symbolic links,
//! extended attributes, direct I/O and mappings are left out.

mod entry;

pub use entry::{Cell, Entry};

use super::plan::mix;

/// Files consist of cells of so many bytes: no disk tears one.
pub const CELL: u64 = 512;
/// The files of every sequence, made durable before it begins, and their size.
pub const GIVEN: [&str; 3] = ["a", "b", "d/c"];
/// Cells of each of these files.
pub const GIVEN_CELLS: u64 = 5;
/// The directory of every sequence.
pub const GIVEN_DIR: &str = "d";

/// The sequences of two operations, the impossible ones included.
pub const PAIRS: u64 = OPS * AFTER_FIRST * OPS * AFTER_LAST;
const OPS: u64 = 16;
const AFTER_FIRST: u64 = 3;
const AFTER_LAST: u64 = 4;
/// Has no factor in common with [`PAIRS`], so that its multiples meet all.
const STRIDE: u64 = 1229;

/// One step of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Make a file and write cells.
    Create(&'static str, u64),
    /// Write cells at a file's end.
    Append(&'static str, u64),
    /// Write so many cells from this one on.
    Overwrite(&'static str, u64, u64),
    /// Empty a file by opening it, and write cells.
    Replace(&'static str, u64),
    /// ftruncate(2) to so many cells.
    Truncate(&'static str, u64),
    /// fallocate(2) so many cells more.
    Fallocate(&'static str, u64),
    /// Punch a hole of so many cells from this one on.
    Punch(&'static str, u64, u64),
    /// rename(2).
    Rename(&'static str, &'static str),
    /// link(2).
    Link(&'static str, &'static str),
    /// unlink(2).
    Unlink(&'static str),
    /// mkdir(2).
    Mkdir(&'static str),
    /// fsync(2) of a file.
    SyncFile(&'static str),
    /// fsync(2) of a directory.
    SyncDir(&'static str),
}

/// The sequence's own directory.
pub const ROOT: &str = ".";

/// One sequence. Its steps are numbered from 1; step 0 is what was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// From 0.
    pub number: u64,
    /// In order.
    pub steps: Vec<Step>,
}

/// The sequences of a seed: two of three have two operations.
pub fn sequences(seed: u64, count: u64) -> Vec<Sequence> {
    let mut pairs = (0..PAIRS).map(|n| pair((mix(&[seed]) % PAIRS + n * STRIDE) % PAIRS));
    let mut pairs = std::iter::from_fn(move || pairs.find_map(|steps| steps));
    let mut triples = (0..).filter_map(|n| triple(mix(&[seed, n])));
    let mut next = |number: u64| match number % 3 {
        2 => triples.next(),
        _ => pairs.next().or_else(|| triples.next()),
    };
    let made = (0..count).map(|number| {
        let steps = next(number).unwrap_or_default();
        Sequence { number, steps }
    });
    made.collect()
}

fn pair(index: u64) -> Option<Vec<Step>> {
    let (first, index) = (index % OPS, index / OPS);
    let (after_first, index) = (index % AFTER_FIRST, index / AFTER_FIRST);
    let (last, after_last) = (index % OPS, index / OPS);
    build(&[(first, after_first), (last, after_last)])
}

fn triple(index: u64) -> Option<Vec<Step>> {
    let parts = [OPS, AFTER_FIRST, OPS, AFTER_FIRST, OPS, AFTER_LAST];
    let mut rest = index;
    let [a, after_a, b, after_b, c, after_c] = parts.map(|most| {
        let part = rest % most;
        rest /= most;
        part
    });
    build(&[(a, after_a), (b, after_b), (c, after_c)])
}

/// Operations with what is synced after each; `None` where one needs what
/// another took away, or makes what is there.
fn build(ops: &[(u64, u64)]) -> Option<Vec<Step>> {
    let mut there: Vec<&str> = GIVEN.into();
    let mut steps = Vec::new();
    for &(op, after) in ops {
        for step in operation(op) {
            apply(step, &mut there)?;
            steps.push(step);
        }
        let (file, dirs) = touched(operation(op).last().copied()?);
        let file = file.map(Step::SyncFile);
        let dirs = dirs.iter().map(|dir| Step::SyncDir(dir));
        match after {
            0 => {}
            1 => steps.extend(file),
            2 => steps.extend(dirs),
            _ => steps.extend(file.into_iter().chain(dirs)),
        }
    }
    Some(steps)
}

/// The operations that are combined.
fn operation(number: u64) -> Vec<Step> {
    use Step as S;
    match number {
        0 => vec![S::Create("f", 3)],
        1 => vec![S::Create("d/f", 9)],
        2 => vec![S::Append("a", 7)],
        3 => vec![S::Append("d/c", 1)],
        4 => vec![S::Overwrite("a", 1, 3)],
        5 => vec![S::Replace("a", 4)],
        6 => vec![S::Truncate("a", 2)],
        7 => vec![S::Fallocate("a", 6)],
        8 => vec![S::Punch("a", 1, 2)],
        9 => vec![S::Rename("a", "b")],
        10 => vec![S::Rename("a", "n")],
        11 => vec![S::Rename("b", "d/n")],
        12 => vec![S::Rename("d/c", "a")],
        13 => vec![S::Link("b", "l")],
        14 => vec![S::Unlink("b")],
        _ => vec![S::Mkdir("e"), S::Create("e/f", 2)],
    }
}

/// The file and the directories that an operation changed, by their names
/// after it. What was made in a new directory needs all of them.
fn touched(step: Step) -> (Option<&'static str>, Vec<&'static str>) {
    use Step as S;
    match step {
        S::Create(name, _) if name.starts_with("e/") => (Some(name), vec!["e", ROOT]),
        S::Create(name, _) | S::Link(_, name) => (Some(name), vec![parent(name)]),
        S::Append(name, _)
        | S::Overwrite(name, ..)
        | S::Replace(name, _)
        | S::Truncate(name, _)
        | S::Fallocate(name, _)
        | S::Punch(name, ..) => (Some(name), vec![parent(name)]),
        S::Rename(from, to) => {
            let mut dirs = vec![parent(from), parent(to)];
            dirs.dedup();
            (Some(to), dirs)
        }
        S::Unlink(name) | S::Mkdir(name) | S::SyncFile(name) => (None, vec![parent(name)]),
        S::SyncDir(name) => (None, vec![name]),
    }
}

/// The directory that a name stands in.
pub fn parent(name: &'static str) -> &'static str {
    name.split_once('/').map_or(ROOT, |(dir, _)| dir)
}

/// Which names are there after a step; `None` where it would fail.
fn apply(step: Step, there: &mut Vec<&'static str>) -> Option<()> {
    use Step as S;
    let has = |name: &str| there.contains(&name);
    match step {
        S::Create(name, _) | S::Mkdir(name) => {
            if has(name) {
                return None;
            }
            there.push(name);
        }
        S::Link(from, to) => {
            if !has(from) || has(to) {
                return None;
            }
            there.push(to);
        }
        S::Rename(from, to) => {
            if !has(from) {
                return None;
            }
            there.retain(|name| *name != from && *name != to);
            there.push(to);
        }
        S::Unlink(name) => {
            if !has(name) {
                return None;
            }
            there.retain(|other| *other != name);
        }
        S::Append(name, _)
        | S::Overwrite(name, ..)
        | S::Replace(name, _)
        | S::Truncate(name, _)
        | S::Fallocate(name, _)
        | S::Punch(name, ..)
        | S::SyncFile(name)
        | S::SyncDir(name) => {
            if !has(name) {
                return None;
            }
        }
    }
    Some(())
}

/// A sequence's directory.
pub fn dir(number: u64) -> String {
    format!("s{number}")
}

/// A step's key in the ledger.
pub fn step_key(number: u64, step: usize) -> String {
    format!("s{number}/{step}")
}

/// The bytes of a cell that was written by a step of a sequence.
pub fn cell_bytes(number: u64, step: usize, cell: u64) -> Vec<u8> {
    let tag = format!("s{number}/{step}/{cell} ");
    tag.bytes().cycle().take(CELL as usize).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_pair_comes_once_whatever_the_seed() {
        let whole = |seed: u64| -> BTreeSet<u64> {
            let start = mix(&[seed]) % PAIRS;
            (0..PAIRS).map(|n| (start + n * STRIDE) % PAIRS).collect()
        };
        assert_eq!(whole(1).len() as u64, PAIRS);
        let possible = (0..PAIRS).filter(|index| pair(*index).is_some()).count();
        assert!(possible > 2000, "{possible}");
    }

    #[test]
    fn a_seed_says_all_and_another_says_otherwise() {
        let made = sequences(1, 90);
        assert_eq!(made, sequences(1, 90));
        assert_ne!(made, sequences(2, 90));
        assert!(made.iter().all(|sequence| sequence.steps.len() >= 2));
        let syncs = |s: &Sequence| {
            let mut steps = s.steps.iter();
            steps.any(|step| matches!(step, Step::SyncFile(_) | Step::SyncDir(_)))
        };
        assert!(made.iter().filter(|s| syncs(s)).count() > 60);
    }

    #[test]
    fn what_another_step_took_away_is_not_asked_for() {
        // Rename a to b, then append to a.
        assert_eq!(build(&[(9, 0), (2, 0)]), None);
        // Create f twice.
        assert_eq!(build(&[(0, 0), (0, 0)]), None);
        let two = build(&[(15, 2), (13, 3)]).expect("possible");
        use Step as S;
        let expected = [
            S::Mkdir("e"),
            S::Create("e/f", 2),
            S::SyncDir("e"),
            S::SyncDir(ROOT),
            S::Link("b", "l"),
            S::SyncFile("l"),
            S::SyncDir(ROOT),
        ];
        assert_eq!(two, expected);
    }
}
