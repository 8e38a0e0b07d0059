//! A git repository: which commit writes which files, and what they then hold.

use serde::{Deserialize, Serialize};

use super::{mix, text};

/// A repository with a straight history.
///
/// Every even file is there from the first commit, the others come later; a
/// commit rewrites some lines of about a quarter of the files, so that packs
/// have deltas to make; the last one removes a sixteenth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repository {
    /// Files, by number from 0.
    pub files: u32,
    /// Commits, by number from 1.
    pub commits: u32,
    /// What the files hold derives from it.
    pub seed: u64,
}

/// What a commit does to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It writes this content.
    Write(Vec<u8>),
    /// It removes the file.
    Remove,
}

impl Repository {
    /// A file's path.
    pub fn path(&self, file: u32) -> String {
        format!("part-{}/file-{file}.txt", file % 10)
    }

    /// Whether a file has its executable bits.
    pub fn executable(&self, file: u32) -> bool {
        file % 8 == 3
    }

    /// What a commit does to a file, if anything.
    pub fn change(&self, file: u32, commit: u32) -> Option<Change> {
        if self.removed_by(file, commit) {
            return Some(Change::Remove);
        }
        self.writes(file, commit)
            .then(|| Change::Write(self.lines(file, commit)))
    }

    /// What a file holds after the last commit; none where it was removed.
    pub fn content(&self, file: u32) -> Option<Vec<u8>> {
        (!self.removed_by(file, self.commits)).then(|| self.lines(file, self.commits))
    }

    /// How many files there are after the last commit.
    pub fn files_left(&self) -> u64 {
        let left = (0..self.files).filter(|file| !self.removed_by(*file, self.commits));
        left.count() as u64
    }

    fn born(&self, file: u32) -> u32 {
        match file % 2 {
            0 => 1,
            _ => 1 + file / 2 % self.commits,
        }
    }

    fn removed_by(&self, file: u32, commit: u32) -> bool {
        file % 16 == 4 && commit == self.commits && self.born(file) < commit
    }

    fn writes(&self, file: u32, commit: u32) -> bool {
        let born = self.born(file);
        let dice = || mix(&[self.seed, file.into(), commit.into(), 0x617]);
        commit == born || commit > born && dice().is_multiple_of(4)
    }

    fn lines(&self, file: u32, commit: u32) -> Vec<u8> {
        let lines = 10 + mix(&[self.seed, file.into(), 0x11e]) % 50;
        let mut out = Vec::new();
        for line in 0..lines {
            let wrote = |commit: u32| {
                let dice = || mix(&[self.seed, file.into(), commit.into(), line]);
                commit == self.born(file) || self.writes(file, commit) && dice().is_multiple_of(4)
            };
            let by = (1..=commit).rev().find(|commit| wrote(*commit));
            let parts = [self.seed, file.into(), by.unwrap_or(0).into(), line];
            out.extend_from_slice(text(&parts, 40).as_bytes());
            out.push(b'\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_change_and_go() {
        let plan = Repository {
            files: 160,
            commits: 6,
            seed: 3,
        };
        let changes = |commit| (0..plan.files).filter_map(move |file| plan.change(file, commit));
        let removed = changes(6)
            .filter(|change| *change == Change::Remove)
            .count();
        assert_eq!((plan.files_left(), removed), (150, 10));
        assert!((1..=6).all(|commit| changes(commit).count() > 20));
        assert!((1..6).all(|commit| changes(commit).all(|change| change != Change::Remove)));
        // What the last writer of a file wrote is what it holds in the end.
        for file in 0..plan.files {
            let last = (1..=6).rev().find_map(|commit| plan.change(file, commit));
            let content = match last {
                Some(Change::Write(content)) => Some(content),
                Some(Change::Remove) => None,
                None => panic!("file {file} never comes"),
            };
            assert_eq!(plan.content(file), content, "file {file}");
        }
    }
}
