//! Follows a recording and knows at every moment what the disk would hold, whatever survived.
//!
//! A **situation** is a stretch of cuts over which the durable writes stay the same and pending
//! ones only come. So a choice of survivors that is possible at one cut of a situation is possible
//! at all later ones of it, and is one state, however many cuts there are.

use std::ops::Range;

use crate::explore::index::{ContentSum, Index, Write};
use crate::log::{Entry, Recording};
use crate::model::Tracker;
use crate::survivors::{Part, Piece, Survivors};
use crate::units::{CutPoint, RequestId, Seq};

/// What lies under the pending writes of one granule.
#[derive(Clone, Copy, Default)]
struct Below {
    sum: ContentSum,
    /// The last durable write; none where it is the base.
    by: Option<RequestId>,
}

/// A moment of a situation from which on more is pending.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stage {
    pub(super) cut: CutPoint,
    /// The disk that holds all that is.
    pub(super) all: ContentSum,
}

/// A situation at its end.
pub(super) struct Walker<'a> {
    pub(super) recording: &'a Recording,
    pub(super) index: &'a Index,
    below: Vec<Below>,
    /// By granule: the pending writes on it, in order of submission.
    above: Vec<Vec<RequestId>>,
    /// Every pending write in order of submission.
    pub(super) pending: Vec<RequestId>,
    /// The answered ones of them in order of completion.
    pub(super) answered: Vec<RequestId>,
    /// By request: the event that answered it.
    answers: Vec<Option<Seq>>,
    /// The first cut of the situation, and the last.
    pub(super) first: CutPoint,
    pub(super) last: CutPoint,
    pub(super) stages: Vec<Stage>,
    /// The disk without and with everything that is pending.
    pub(super) none: ContentSum,
    all: ContentSum,
    /// Which granules the sum under way has been told of.
    seen: Vec<u64>,
    sums: u64,
}

impl<'a> Walker<'a> {
    /// Calls `visit` at the end of every situation, in order.
    pub(super) fn walk(
        recording: &'a Recording,
        index: &'a Index,
        mut visit: impl FnMut(&mut Walker<'a>),
    ) {
        let mut walker = Walker {
            recording,
            index,
            below: vec![Below::default(); index.touched],
            above: vec![Vec::new(); index.touched],
            pending: Vec::new(),
            answered: Vec::new(),
            answers: Vec::new(),
            first: CutPoint::default(),
            last: CutPoint::default(),
            stages: Vec::new(),
            none: ContentSum::default(),
            all: ContentSum::default(),
            seen: vec![0; index.touched],
            sums: 0,
        };
        let mut tracker = Tracker::new(recording.honesty(), recording.seed());
        for entry in recording.entries() {
            let durable = tracker.observe(entry);
            let failed = match entry {
                Entry::Complete(complete) if complete.errno != 0 => Some(complete.id),
                _ => None,
            };
            let failed = failed.filter(|id| index.write(*id).is_some());
            let ends = !durable.is_empty() || failed.is_some();
            if ends {
                visit(&mut walker);
            }
            walker.take(entry);
            for id in durable {
                walker.settle(*id);
            }
            if let Some(id) = failed {
                walker.lose(id);
            }
            walker.last = CutPoint(entry.seq());
            if ends {
                walker.begin(entry.seq());
            }
        }
        visit(&mut walker);
    }

    fn begin(&mut self, seq: Seq) {
        let index = self.index;
        let is_pending = &self.above;
        self.pending.retain(|id| {
            let write = index.write(*id);
            write.is_some_and(|write| is_pending[write.first as usize].contains(id))
        });
        let pending = &self.pending;
        self.answered.retain(|id| pending.binary_search(id).is_ok());
        self.first = CutPoint(seq);
        self.stages.clear();
        if !self.pending.is_empty() {
            self.stage(seq);
        }
    }

    fn stage(&mut self, seq: Seq) {
        self.stages.push(Stage {
            cut: CutPoint(seq),
            all: self.all,
        });
    }

    fn take(&mut self, entry: &Entry) {
        match entry {
            Entry::Submit(submit) => {
                self.answers.push(None);
                if let Some(write) = self.index.write(submit.id).copied() {
                    self.submit(&write);
                    self.stage(submit.seq);
                }
            }
            Entry::Complete(complete) => {
                self.answers[complete.id.0 as usize] = Some(complete.seq);
                if complete.errno == 0 && self.index.write(complete.id).is_some() {
                    self.answered.push(complete.id);
                }
            }
            Entry::Mark(_) | Entry::Cut(_) => {}
        }
    }

    fn submit(&mut self, write: &Write) {
        for granule in granules(write) {
            let old = self.top(granule);
            self.all = self.all.replace(old, self.index.sum(write, granule));
            self.above[granule as usize].push(write.id);
        }
        self.pending.push(write.id);
    }

    /// A write has become durable.
    fn settle(&mut self, id: RequestId) {
        let Some(write) = self.index.write(id).copied() else {
            return;
        };
        for granule in granules(&write) {
            self.above[granule as usize].retain(|other| *other != id);
            let below = &mut self.below[granule as usize];
            if below.by.is_none_or(|by| by < id) {
                let sum = self.index.sum(&write, granule);
                self.none = self.none.replace(below.sum, sum);
                *below = Below { sum, by: Some(id) };
            }
        }
    }

    /// A write has failed.
    fn lose(&mut self, id: RequestId) {
        let Some(write) = self.index.write(id).copied() else {
            return;
        };
        for granule in granules(&write) {
            let old = self.top(granule);
            self.above[granule as usize].retain(|other| *other != id);
            let new = self.top(granule);
            self.all = self.all.replace(old, new);
        }
    }

    /// What a granule holds when everything pending survives.
    fn top(&self, granule: u32) -> ContentSum {
        self.visible(granule, self.above[granule as usize].len())
    }

    /// What it holds when of those on it the first so many survive.
    fn visible(&self, granule: u32, count: usize) -> ContentSum {
        let below = self.below[granule as usize];
        let top = count
            .checked_sub(1)
            .map(|last| self.above[granule as usize][last]);
        match top.filter(|top| below.by.is_none_or(|by| by < *top)) {
            Some(top) => self.sum_on(top, granule),
            None => below.sum,
        }
    }

    fn sum_on(&self, id: RequestId, granule: u32) -> ContentSum {
        let write = self.index.write(id);
        write.map_or_else(ContentSum::default, |write| self.index.sum(write, granule))
    }

    /// The event that answers a write, if it is answered within the situation or before.
    pub(super) fn answer(&self, id: RequestId) -> Option<Seq> {
        self.answers[id.0 as usize]
    }

    /// When a write was submitted.
    pub(super) fn submitted(&self, id: RequestId) -> Seq {
        let submit = self.recording.submit(id);
        submit.map_or(Seq(0), |submit| submit.seq)
    }

    /// The disk with everything pending but this write, or but what of it is not in `left`.
    pub(super) fn all_but(&self, id: RequestId, left: Option<&Part>) -> ContentSum {
        let mut sum = self.all;
        let Some(write) = self.index.write(id) else {
            return sum;
        };
        let lost = |granule: &u32| {
            left.is_none_or(|part| {
                let kept = self.parts(write, part);
                !kept.iter().any(|range| range.contains(granule))
            })
        };
        for granule in granules(write).filter(lost) {
            let above = &self.above[granule as usize];
            if above.last() == Some(&id) {
                let new = self.visible(granule, above.len() - 1);
                sum = sum.replace(self.top(granule), new);
            }
        }
        sum
    }

    /// The disk with these on it.
    pub(super) fn sum(&mut self, survivors: &Survivors) -> ContentSum {
        self.sums += 1;
        let mut sum = self.none;
        for piece in survivors.late().iter().rev() {
            self.lay(piece, true, &mut sum);
        }
        for piece in survivors.pieces().iter().rev() {
            self.lay(piece, false, &mut sum);
        }
        sum
    }

    /// Lays a piece under all that has been laid, and on or among what is durable.
    fn lay(&mut self, piece: &Piece, late: bool, sum: &mut ContentSum) {
        let Some(write) = self.index.write(piece.id).copied() else {
            return;
        };
        for range in self.parts(&write, &piece.part) {
            for granule in range {
                let at = granule as usize;
                if std::mem::replace(&mut self.seen[at], self.sums) == self.sums {
                    continue;
                }
                let below = self.below[at];
                if late || below.by.is_none_or(|by| by < piece.id) {
                    *sum = sum.replace(below.sum, self.index.sum(&write, granule));
                }
            }
        }
    }

    /// The granules of a part of a write.
    fn parts(&self, write: &Write, part: &Part) -> Vec<Range<u32>> {
        let units = match part {
            Part::Whole => return vec![granules(write)],
            Part::Units(units) => units,
        };
        let per_unit = u64::from(self.recording.unit().bytes()) / self.index.granule;
        let end = write.place + u64::from(write.count);
        let number = |place: u64| write.first + (place - write.place) as u32;
        units
            .iter()
            .map(|units| {
                let from = (units.start * per_unit).clamp(write.place, end);
                let to = (units.end * per_unit).clamp(write.place, end);
                number(from)..number(to)
            })
            .collect()
    }

    /// Whether another pending write than this, or a durable one, was submitted after it onto
    /// one of its granules; and the pending ones.
    pub(super) fn later_on(&self, id: RequestId) -> (bool, Vec<RequestId>) {
        let (mut durable, mut pending) = (false, Vec::new());
        let Some(write) = self.index.write(id) else {
            return (durable, pending);
        };
        for granule in granules(write) {
            durable |= self.below[granule as usize].by.is_some_and(|by| by > id);
            let above = &self.above[granule as usize];
            pending.extend(above.iter().copied().filter(|other| *other > id));
        }
        pending.sort_unstable();
        pending.dedup();
        (durable, pending)
    }
}

fn granules(write: &Write) -> Range<u32> {
    write.first..write.first + write.count
}
