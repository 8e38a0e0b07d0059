//! Which bytes of a disk have been read.

use std::collections::BTreeMap;
use std::ops::Range;

/// Stretches of bytes that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// By the first byte: the one after the last.
    ends: BTreeMap<u64, u64>,
}

impl Reads {
    /// Adds a stretch.
    pub fn add(&mut self, read: Range<u64>) {
        let (mut first, mut end) = (read.start, read.end);
        if first >= end {
            return;
        }
        // All that begin by its end and do not end before its beginning.
        while let Some((&start, &stop)) = self.ends.range(..=end).next_back() {
            if stop < first {
                break;
            }
            self.ends.remove(&start);
            first = first.min(start);
            end = end.max(stop);
        }
        self.ends.insert(first, end);
    }

    /// Adds all of another's.
    pub fn extend(&mut self, other: &Reads) {
        other.ranges().for_each(|read| self.add(read));
    }

    /// The stretches, in order.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ends.iter().map(|(start, end)| *start..*end)
    }

    /// How many bytes they have.
    pub fn bytes(&self) -> u64 {
        self.ranges().map(|read| read.end - read.start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_that_touch_become_one() {
        let mut reads = Reads::default();
        for read in [10..20, 40..50, 30..35, 20..22, 5..8, 34..40, 7..7, 48..49] {
            reads.add(read);
        }
        let ranges: Vec<_> = reads.ranges().collect();
        assert_eq!(ranges, [5..8, 10..22, 30..50]);
        assert_eq!(reads.bytes(), 35);
        reads.add(0..100);
        let ranges: Vec<_> = reads
            .ranges()
            .map(|range| (range.start, range.end))
            .collect();
        assert_eq!(ranges, [(0, 100)]);
    }

    #[test]
    fn they_hold_what_a_set_of_bytes_holds() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let mut reads = Reads::default();
            let mut bytes = std::collections::BTreeSet::new();
            for _ in 0..random.u32(1..12) {
                let first = random.u64(0..60);
                let read = first..first + random.u64(0..9);
                reads.add(read.clone());
                bytes.extend(read);
            }
            let held: Vec<u64> = reads.ranges().flatten().collect();
            assert_eq!(held, bytes.iter().copied().collect::<Vec<_>>());
            let ends: Vec<_> = reads.ranges().collect();
            assert!(ends.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
