//! What a place on a disk is: which byte of which file, or which part of the filesystem, as the
//! filesystem's own tools say.
//!
//! They read a filesystem that is not mounted and whose journal has been replayed: what a journal
//! still holds, they do not know of. A block may have had another owner when it was written, and a
//! tool can only say whose it is now; so a write is looked up in the state of its cut, and where
//! nobody owns it there, at the end of the run.

mod btrfs;
mod ext4;
#[cfg(test)]
mod tests;
mod xfs;

use std::{collections::BTreeMap, fmt, ops::Range};

use anyhow::Result;

use crate::scenario::Fs;

/// So many blocks are asked about at most, so that one look has an end.
const BLOCKS_MAX: usize = 2048;
/// So many files and tree blocks are looked at one by one.
const LOOKS_MAX: usize = 64;
/// So many files of an inode table's block are named.
const PATHS: usize = 8;

/// Whose a place is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Content of a file, from this byte of it on.
    File {
        /// From the filesystem's root.
        path: String,
        /// Its number.
        inode: u64,
        /// Where in the file.
        at: u64,
    },
    /// A part of the filesystem itself, in words.
    Part(String),
    /// Nobody's: free.
    Nobody,
    /// It was not asked about: there was too much.
    NotAsked,
}

/// A part of a place that has one owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    /// Bytes of the disk.
    pub(crate) bytes: Range<u64>,
    /// Whose they are.
    pub(crate) owner: Owner,
}

/// Runs a shell script, which finds the device as `$1`, to its end; the answer is what it said.
pub(crate) type Tool<'t> = dyn FnMut(&str) -> Result<String> + 't;

/// The owners of each of these ranges of bytes, in order and without gaps.
///
/// # Errors
/// When a tool fails or says what nobody understands.
pub(crate) fn owners(
    fs: Fs,
    places: &[Range<u64>],
    tool: &mut Tool<'_>,
) -> Result<Vec<Vec<Named>>> {
    let of = match fs {
        Fs::Ext4 => ext4::owners,
        Fs::Xfs => xfs::owners,
        Fs::Btrfs => btrfs::owners,
    };
    Ok(of(places, tool)?.into_iter().map(joined).collect())
}

/// Neighbours with one owner as one.
fn joined(pieces: Vec<Named>) -> Vec<Named> {
    let mut out: Vec<Named> = Vec::new();
    for piece in pieces {
        match out.last_mut() {
            Some(last) if last.bytes.end == piece.bytes.start && last.goes_on_with(&piece) => {
                last.bytes.end = piece.bytes.end;
            }
            _ => out.push(piece),
        }
    }
    out
}

impl Named {
    fn goes_on_with(&self, next: &Self) -> bool {
        match (&self.owner, &next.owner) {
            (
                Owner::File { inode, at, .. },
                Owner::File {
                    inode: other,
                    at: then,
                    ..
                },
            ) => inode == other && at + (self.bytes.end - self.bytes.start) == *then,
            (one, other) => one == other,
        }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = self.bytes.end - self.bytes.start;
        match &self.owner {
            Owner::File { path, at, .. } => write!(f, "{path}, bytes {at} to {}", at + length),
            Owner::Part(what) => f.write_str(what),
            Owner::Nobody => f.write_str("free space"),
            Owner::NotAsked => write!(f, "{length} bytes that were not looked up"),
        }
    }
}

/// The blocks of some places, each once, as many as may be asked about.
fn blocks_of(places: &[Range<u64>], block_bytes: u64) -> Vec<u64> {
    let all = places
        .iter()
        .flat_map(|place| place.start / block_bytes..place.end.div_ceil(block_bytes));
    let mut blocks: Vec<u64> = all.take(BLOCKS_MAX).collect();
    blocks.sort_unstable();
    blocks.dedup();
    blocks
}

/// Each place in pieces of one block, each with its owner. `owner` is told which bytes of the
/// block are meant.
fn in_blocks(
    places: &[Range<u64>],
    block_bytes: u64,
    mut owner: impl FnMut(u64, Range<u64>) -> Owner,
) -> Vec<Vec<Named>> {
    let pieces = |place: &Range<u64>| {
        let blocks = place.start / block_bytes..place.end.div_ceil(block_bytes);
        blocks
            .map(|block| {
                let start = (block * block_bytes).max(place.start);
                let end = ((block + 1) * block_bytes).min(place.end);
                let of = block * block_bytes;
                Named {
                    bytes: start..end,
                    owner: owner(block, start - of..end - of),
                }
            })
            .collect()
    };
    places.iter().map(pieces).collect()
}

/// Inodes of one block, with the names of those that have one.
fn inodes(range: Range<u64>, paths: &BTreeMap<u64, String>) -> String {
    let of: Vec<&str> = paths
        .range(range.clone())
        .map(|(_, path)| path.as_str())
        .collect();
    let mut named = of[..of.len().min(PATHS)].join(", ");
    if of.len() > PATHS {
        named.push_str(&format!(" and {} more", of.len() - PATHS));
    }
    let numbers = format!("{} to {}", range.start, range.end - 1);
    match named.is_empty() {
        true => format!("inodes {numbers}"),
        false => format!("inodes {numbers}: {named}"),
    }
}

/// A path from the root, as tools with other manners print it.
fn rooted(path: &str) -> String {
    let path = path.trim_start_matches('/');
    let path = path.strip_suffix("/.").unwrap_or(path);
    match path {
        "." => String::from("/"),
        _ => format!("/{path}"),
    }
}
