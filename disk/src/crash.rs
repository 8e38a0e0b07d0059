//! Crash states: what the disk holds after a power cut, for one choice of what survived.
//!
//! A crash state is `(base, recording, cut, kept writes)`. It holds the durable writes and the
//! kept pending ones, **applied in order of submission**, over the untouched base; never rolled
//! forward over a newer state, which makes XFS skip recovery by its sequence numbers. Of two
//! pending writes to one sector either may be left: dropping the later leaves the earlier, and one
//! that was in flight may have landed late, on top of the other. A write survives whole or torn at
//! the atomic unit: see [`Survivors`], and [`crate::model`] for what may lie on top of what.

use std::collections::BTreeSet;
use std::ops::Range;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::log::{Operation, Recording, Submit};
use crate::model::{CutState, Tracker};
use crate::survivors::{Part, Piece, Survivors, sectors_in};
use crate::table::SourceId;
use crate::units::{CutPoint, Epoch, Honesty, RequestId, SECTOR_BYTES, Sector, Seed};
use crate::view::View;

#[cfg(test)]
mod tests;

/// Which pending writes survive a power cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// None: nothing but what the device had promised (a lying disk: its prefix).
    DurableOnly,
    /// All of them, those in flight included.
    Everything,
    /// A seeded choice, neither none nor all where there are two or more.
    ///
    /// Each write survives with a probability of 1/4, 1/2 or 3/4, itself drawn from the seed. On
    /// a `lies-on-flush` disk the choice is a longer prefix instead (completed writes, then those
    /// in flight), so that the filesystem still mounts.
    Subset(Seed),
    /// All of them but this one, of which no more is left than a part, if any.
    AllBut(RequestId, Option<Part>),
    /// These and no others; each must be pending.
    Exactly(Survivors),
}

/// What the disk holds after a power cut.
#[derive(Clone)]
pub struct CrashState {
    /// The content.
    pub view: View,
    /// A short name such as `e12-5f3a90c1`: epoch, then a hash of the cut and the kept writes.
    /// The same recording, cut and choice always give the same name.
    pub id: String,
    /// The moment.
    pub cut: CutPoint,
    /// How many flushes had succeeded.
    pub epoch: Epoch,
    /// The pending writes that survived, whole or in part.
    pub kept: Vec<RequestId>,
    /// The pending writes that were lost.
    pub dropped: Vec<RequestId>,
    /// Those of `dropped` that had been answered with success.
    pub dropped_completed: Vec<RequestId>,
}

/// The crash state of one cut and choice; for many states of one cut use [`PowerCut`].
///
/// # Errors
/// As [`PowerCut::new`] and [`PowerCut::crash_state`].
pub fn crash_state(
    base: &View,
    recording: &Recording,
    cut: CutPoint,
    keep: &Keep,
) -> Result<CrashState> {
    PowerCut::new(base, recording, cut)?.crash_state(keep)
}

/// One power cut of a recording: what its crash states have in common is computed once.
pub struct PowerCut<'a> {
    recording: &'a Recording,
    state: CutState,
    source: SourceId,
    /// The base with the durable writes that were submitted before anything pending.
    common: View,
    /// The durable writes after that, which must be applied in turn with the kept ones.
    rest: Vec<RequestId>,
}

/// Cuts the power at one moment of a recording after the other, and makes of what they have in
/// common no more than is new. Cuts in rising order cost least.
pub struct Cutter<'a> {
    base: View,
    recording: &'a Recording,
    source: SourceId,
    tracker: Tracker,
    /// How many events the tracker has seen.
    events: usize,
    /// The base with the first so many durable writes. They were submitted before everything that
    /// is pending, so none can become durable below them any more.
    common: View,
    applied: usize,
}

impl<'a> Cutter<'a> {
    /// `base` is what the disk held when the recording began.
    ///
    /// # Errors
    /// The base has another size.
    pub fn new(base: &View, recording: &'a Recording) -> Result<Cutter<'a>> {
        ensure!(
            base.size() == recording.size(),
            "the base has {} bytes and the recorded disk {}",
            base.size(),
            recording.size()
        );
        let mut base = base.clone();
        let source = base.add_source(recording.file().clone())?;
        Ok(Cutter {
            common: base.clone(),
            base,
            recording,
            source,
            tracker: Tracker::new(recording.honesty(), recording.seed()),
            events: 0,
            applied: 0,
        })
    }

    /// Cuts the power here.
    ///
    /// # Errors
    /// The cut lies beyond the recording's end.
    pub fn at(&mut self, cut: CutPoint) -> Result<PowerCut<'a>> {
        self.recording.check_cut(cut)?;
        let entries = self.recording.entries();
        let seen = entries[..self.events].last();
        if seen.is_some_and(|seen| seen.seq() > cut.0) {
            self.tracker = Tracker::new(self.recording.honesty(), self.recording.seed());
            self.events = 0;
            self.common = self.base.clone();
            self.applied = 0;
        }
        let new = entries[self.events..].iter();
        for entry in new.take_while(|entry| entry.seq() <= cut.0) {
            self.tracker.observe(entry);
            self.events += 1;
        }
        let state = self.tracker.state(cut);
        let first_pending = [&state.completed, &state.in_flight]
            .into_iter()
            .filter_map(|ids| ids.first())
            .min();
        let split = first_pending.map_or(state.durable.len(), |first| {
            state.durable.partition_point(|id| id < first)
        });
        for id in &state.durable[self.applied..split] {
            apply(&mut self.common, self.recording, *id, self.source);
        }
        self.applied = split;
        Ok(PowerCut {
            recording: self.recording,
            rest: state.durable[split..].to_vec(),
            state,
            source: self.source,
            common: self.common.clone(),
        })
    }
}

impl<'a> PowerCut<'a> {
    /// Cuts the power at `cut`; for many cuts of one recording use [`Cutter`].
    ///
    /// # Errors
    /// As [`Cutter::new`] and [`Cutter::at`].
    pub fn new(base: &View, recording: &'a Recording, cut: CutPoint) -> Result<PowerCut<'a>> {
        Cutter::new(base, recording)?.at(cut)
    }

    /// What the cut may do to whom.
    pub fn state(&self) -> &CutState {
        &self.state
    }

    /// What the disk holds if these pending writes survive.
    ///
    /// # Errors
    /// `keep` names a write that is not pending at this cut, one as late that was
    /// answered, or units that a write does not touch.
    pub fn crash_state(&self, keep: &Keep) -> Result<CrashState> {
        let survivors = self.survivors(keep)?;
        let kept = survivors.ids();
        let is_kept: BTreeSet<RequestId> = kept.iter().copied().collect();
        let lost = |ids: &[RequestId]| -> Vec<RequestId> {
            ids.iter()
                .copied()
                .filter(|id| !is_kept.contains(id))
                .collect()
        };
        let durable = self.rest.iter().copied().map(Piece::whole);
        let mut present: Vec<Piece> = durable.chain(survivors.pieces().to_vec()).collect();
        present.sort_unstable_by_key(|piece| piece.id);
        let mut view = self.common.clone();
        for piece in present.iter().chain(survivors.late()) {
            self.apply(&mut view, piece);
        }
        Ok(CrashState {
            view,
            id: name(&self.state, &survivors),
            cut: self.state.cut,
            epoch: self.state.epoch,
            dropped: lost(&self.state.pending()),
            dropped_completed: lost(&self.state.completed),
            kept,
        })
    }

    fn apply(&self, view: &mut View, piece: &Piece) {
        match &piece.part {
            Part::Whole => apply(view, self.recording, piece.id, self.source),
            Part::Units(units) => {
                let Some(write) = self.recording.submit(piece.id) else {
                    return;
                };
                for range in units {
                    let sectors = sectors_in(write, range, self.recording.unit());
                    apply_sectors(view, write, sectors, self.source);
                }
            }
        }
    }

    /// Which pending writes a choice stands for, one by one.
    ///
    /// # Errors
    /// As [`PowerCut::crash_state`].
    pub fn survivors(&self, keep: &Keep) -> Result<Survivors> {
        let pending = self.state.pending();
        Ok(match keep {
            Keep::DurableOnly => Survivors::default(),
            Keep::Everything => Survivors::whole(pending),
            Keep::Subset(seed) if self.recording.honesty() == Honesty::LiesOnFlush => {
                Survivors::whole(self.longer_prefix(*seed))
            }
            Keep::Subset(seed) => Survivors::whole(seeded_subset(pending, *seed)),
            Keep::AllBut(lost, left) => {
                let left = left.clone().map(|part| Piece { id: *lost, part });
                let rest = pending.into_iter().filter(|id| id != lost);
                let survivors = Survivors::new(rest.map(Piece::whole).chain(left).collect());
                let lost = Survivors::whole([*lost]);
                lost.check(&self.state, self.recording)?;
                survivors.check(&self.state, self.recording)?;
                survivors
            }
            Keep::Exactly(survivors) => {
                survivors.check(&self.state, self.recording)?;
                survivors.clone()
            }
        })
    }

    fn longer_prefix(&self, seed: Seed) -> Vec<RequestId> {
        let mut order = self.recording.completion_order(&self.state.completed);
        order.extend(&self.state.in_flight);
        let length = match order.len() {
            0 | 1 => seed.rng().usize(0..=order.len()),
            several => seed.rng().usize(1..several),
        };
        order.truncate(length);
        order.sort_unstable();
        order
    }
}

impl Recording {
    /// The given completed writes, in the order in which they were answered.
    fn completion_order(&self, writes: &[RequestId]) -> Vec<RequestId> {
        let wanted: BTreeSet<RequestId> = writes.iter().copied().collect();
        self.entries()
            .iter()
            .filter_map(|entry| match entry {
                crate::log::Entry::Complete(complete) => Some(complete.id),
                _ => None,
            })
            .filter(|id| wanted.contains(id))
            .collect()
    }
}

fn seeded_subset(pending: Vec<RequestId>, seed: Seed) -> Vec<RequestId> {
    let mut rng = seed.rng();
    if pending.len() < 2 {
        return if rng.bool() { pending } else { Vec::new() };
    }
    let quarters = rng.u8(1..=3);
    let mut chosen: Vec<bool> = pending.iter().map(|_| rng.u8(0..4) < quarters).collect();
    if chosen.iter().all(|is_kept| *is_kept == chosen[0]) {
        let turned = rng.usize(0..chosen.len());
        chosen[turned] = !chosen[turned];
    }
    let kept = pending.into_iter().zip(chosen);
    kept.filter(|(_, is_kept)| *is_kept)
        .map(|(id, _)| id)
        .collect()
}

/// A name that says nothing of an order or a part where there is nothing to say of it.
fn name(state: &CutState, survivors: &Survivors) -> String {
    let mut hasher = Sha256::new();
    hasher.update(state.cut.0.0.to_le_bytes());
    let mut note = |piece: &Piece| {
        hasher.update(piece.id.0.to_le_bytes());
        if let Part::Units(units) = &piece.part {
            for range in units {
                hasher.update(b"units");
                hasher.update(range.start.to_le_bytes());
                hasher.update(range.end.to_le_bytes());
            }
        }
    };
    survivors.pieces().iter().for_each(&mut note);
    survivors.late().iter().for_each(|piece| {
        note(&Piece::whole(RequestId(u64::MAX)));
        note(piece);
    });
    let hash = hasher.finalize();
    format!(
        "e{}-{:02x}{:02x}{:02x}{:02x}",
        state.epoch, hash[0], hash[1], hash[2], hash[3]
    )
}

fn apply(view: &mut View, recording: &Recording, id: RequestId, source: SourceId) {
    if let Some(write) = recording.submit(id) {
        let first = write.at.0;
        apply_sectors(view, write, first..first + write.length.sectors(), source);
    }
}

fn apply_sectors(view: &mut View, write: &Submit, sectors: Range<u64>, source: SourceId) {
    let (at, count) = (Sector(sectors.start), sectors.end - sectors.start);
    let skipped = (sectors.start - write.at.0) * SECTOR_BYTES;
    match write.operation {
        Operation::Write => view.set_data(at, count, source, write.data_offset + skipped),
        Operation::WriteZeroes | Operation::Trim => view.set_zeros(at, count),
        Operation::Flush => {}
    }
}
