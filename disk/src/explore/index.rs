//! What every recorded write does to the content of the disk, as numbers that add up.
//!
//! The content of a disk is told apart by a sum, modulo 2^128, over its granules: of a granule
//! that holds what the base holds nothing, of any other the first 16 bytes of SHA-256 over its
//! place and bytes. A change of one granule is one subtraction and one addition, whatever the size
//! of the disk, and equal contents have equal sums however they came about. The sum is no
//! protection against somebody who chooses the contents in order to make two of them collide.

use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::log::{Entry, Operation, Recording, Submit};
use crate::units::{RequestId, SECTOR_BYTES, Sector};
use crate::view::View;

/// What tells contents apart: 0 is the base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentSum(pub u128);

impl ContentSum {
    /// One granule holds something else now.
    #[must_use]
    pub(super) fn replace(self, old: ContentSum, new: ContentSum) -> ContentSum {
        ContentSum(self.0.wrapping_sub(old.0).wrapping_add(new.0))
    }
}

/// One recorded write, in granules that some write touches, numbered in order of place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    pub(super) id: RequestId,
    /// The first granule, by number among those touched.
    pub(super) first: u32,
    /// How many there are.
    pub(super) count: u32,
    /// The first granule, by place on the disk.
    pub(super) place: u64,
    /// Where its sums begin.
    sums: usize,
}

/// Every write of a recording.
pub(super) struct Index {
    /// Bytes of a granule: the largest of which all requests and the atomic unit are multiples.
    pub(super) granule: u64,
    /// How many granules are touched at all.
    pub(super) touched: usize,
    /// By request number; flushes have none.
    writes: Vec<Option<Write>>,
    sums: Vec<ContentSum>,
}

impl Index {
    /// Reads every recorded byte and what the base holds there.
    pub(super) fn new(recording: &Recording, base: &View) -> Result<Index> {
        ensure!(
            base.size() == recording.size(),
            "the base has {} bytes and the recorded disk {}",
            base.size(),
            recording.size()
        );
        let submits = || {
            recording.entries().iter().filter_map(|entry| match entry {
                Entry::Submit(submit) => Some(submit),
                _ => None,
            })
        };
        let granule = submits()
            .filter(|submit| submit.is_write())
            .flat_map(|submit| [submit.at.byte_offset(), submit.length.0])
            .fold(u64::from(recording.unit().bytes()), common_divisor);
        let touched = Touched::new(submits().filter(|submit| submit.is_write()), granule);
        let mut index = Index {
            granule,
            touched: touched.count as usize,
            writes: Vec::new(),
            sums: Vec::new(),
        };
        let mut reader = Reader {
            recording,
            base,
            granule,
            data: Vec::new(),
            old: Vec::new(),
        };
        for submit in submits() {
            let write = match submit.is_write() && submit.length.0 > 0 {
                false => None,
                true => {
                    let place = submit.at.byte_offset() / granule;
                    let sums = index.sums.len();
                    reader.sums(submit, &mut index.sums)?;
                    Some(Write {
                        id: submit.id,
                        first: touched.number(place),
                        count: u32::try_from(submit.length.0 / granule)?,
                        place,
                        sums,
                    })
                }
            };
            index.writes.push(write);
        }
        Ok(index)
    }

    /// One write; `None` for a flush, and for a write of nothing.
    pub(super) fn write(&self, id: RequestId) -> Option<&Write> {
        self.writes.get(id.0 as usize)?.as_ref()
    }

    /// What one granule holds once this write has landed on it.
    pub(super) fn sum(&self, write: &Write, granule: u32) -> ContentSum {
        self.sums[write.sums + (granule - write.first) as usize]
    }
}

fn common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// The granules that are touched at all, as ranges of places.
struct Touched {
    /// First place, end, and the number of the first place.
    ranges: Vec<(u64, u64, u32)>,
    count: u32,
}

impl Touched {
    fn new<'a>(writes: impl Iterator<Item = &'a Submit>, granule: u64) -> Touched {
        let mut places: Vec<(u64, u64)> = writes
            .map(|write| {
                let start = write.at.byte_offset();
                (start / granule, (start + write.length.0) / granule)
            })
            .filter(|(start, end)| start < end)
            .collect();
        places.sort_unstable();
        let mut touched = Touched {
            ranges: Vec::new(),
            count: 0,
        };
        for (start, end) in places {
            match touched.ranges.last_mut() {
                Some((_, last, _)) if start <= *last => {
                    let more = end.saturating_sub(*last);
                    *last += more;
                    touched.count += more as u32;
                }
                _ => {
                    touched.ranges.push((start, end, touched.count));
                    touched.count += (end - start) as u32;
                }
            }
        }
        touched
    }

    fn number(&self, place: u64) -> u32 {
        let after = self.ranges.partition_point(|(start, ..)| *start <= place);
        match after.checked_sub(1).map(|at| self.ranges[at]) {
            Some((start, _, number)) => number + (place - start) as u32,
            None => 0,
        }
    }
}

struct Reader<'a> {
    recording: &'a Recording,
    base: &'a View,
    granule: u64,
    data: Vec<u8>,
    old: Vec<u8>,
}

/// How much is read at once.
const STEP: u64 = 1 << 20;

impl Reader<'_> {
    fn sums(&mut self, write: &Submit, sums: &mut Vec<ContentSum>) -> Result<()> {
        let mut done = 0;
        while done < write.length.0 {
            let length = STEP.min(write.length.0 - done) as usize;
            self.data.clear();
            self.data.resize(length, 0);
            self.old.resize(length, 0);
            if write.operation == Operation::Write {
                let at = write.data_offset + done;
                self.recording
                    .file()
                    .read_exact_at(&mut self.data, at)
                    .with_context(|| format!("read the recorded data of request {}", write.id))?;
            }
            let start = write.at.byte_offset() + done;
            self.base.read_at(start, &mut self.old)?;
            let granule = self.granule as usize;
            let pieces = self.data.chunks(granule).zip(self.old.chunks(granule));
            for (number, (new, old)) in (start / self.granule..).zip(pieces) {
                sums.push(sum_of(
                    Sector(number * self.granule / SECTOR_BYTES),
                    new,
                    old,
                ));
            }
            done += length as u64;
        }
        Ok(())
    }
}

fn sum_of(at: Sector, new: &[u8], base: &[u8]) -> ContentSum {
    if new == base {
        return ContentSum(0);
    }
    let mut hasher = Sha256::new();
    hasher.update(at.0.to_le_bytes());
    hasher.update(new);
    let hash: [u8; 32] = hasher.finalize().into();
    let mut half = [0; 16];
    half.copy_from_slice(&hash[..16]);
    ContentSum(u128::from_le_bytes(half))
}
