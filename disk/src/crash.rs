//! Crash states: what the disk holds after a power cut, for one choice of what survived.
//!
//! A crash state is `(base, recording, cut, kept writes)`. It holds the durable writes and the
//! kept pending ones, **applied in order of submission**, over the untouched base; never rolled
//! forward over a newer state, which makes XFS skip recovery by its sequence numbers. Of two
//! pending writes to one sector either may be left: dropping the later leaves the earlier. Two
//! *overlapping* writes that were in flight together and both survived could also lie the other
//! way round; that, like a write torn at the atomic unit, is not simulated yet. A kept write is
//! kept whole.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::log::{Operation, Recording};
use crate::model::CutState;
use crate::table::SourceId;
use crate::units::{CutPoint, Epoch, Honesty, RequestId, Seed};
use crate::view::View;

#[cfg(test)]
mod tests;

/// Which pending writes survive a power cut.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// These and no others; each must be pending.
    Exactly(BTreeSet<RequestId>),
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
    /// The pending writes that survived.
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

impl<'a> PowerCut<'a> {
    /// Cuts the power at `cut`. `base` is what the disk held when the recording began.
    ///
    /// # Errors
    /// The base has another size, or the cut lies beyond the recording's end.
    pub fn new(base: &View, recording: &'a Recording, cut: CutPoint) -> Result<PowerCut<'a>> {
        ensure!(
            base.size() == recording.size(),
            "the base has {} bytes and the recorded disk {}",
            base.size(),
            recording.size()
        );
        let state = recording.at(cut)?;
        let first_pending = [&state.completed, &state.in_flight]
            .into_iter()
            .filter_map(|ids| ids.first())
            .min();
        let split = first_pending.map_or(state.durable.len(), |first| {
            state.durable.partition_point(|id| id < first)
        });
        let mut common = base.clone();
        let source = common.add_source(recording.file().clone())?;
        for id in &state.durable[..split] {
            apply(&mut common, recording, *id, source);
        }
        Ok(PowerCut {
            recording,
            rest: state.durable[split..].to_vec(),
            state,
            source,
            common,
        })
    }

    /// What the cut may do to whom.
    pub fn state(&self) -> &CutState {
        &self.state
    }

    /// What the disk holds if these pending writes survive.
    ///
    /// # Errors
    /// [`Keep::Exactly`] names a write that is not pending at this cut.
    pub fn crash_state(&self, keep: &Keep) -> Result<CrashState> {
        let kept = self.kept(keep)?;
        let is_kept: BTreeSet<RequestId> = kept.iter().copied().collect();
        let lost = |ids: &[RequestId]| -> Vec<RequestId> {
            ids.iter()
                .copied()
                .filter(|id| !is_kept.contains(id))
                .collect()
        };
        let mut present = [&self.rest[..], &kept[..]].concat();
        present.sort_unstable();
        let mut view = self.common.clone();
        for id in present {
            apply(&mut view, self.recording, id, self.source);
        }
        Ok(CrashState {
            view,
            id: name(&self.state, &kept),
            cut: self.state.cut,
            epoch: self.state.epoch,
            dropped: lost(&self.state.pending()),
            dropped_completed: lost(&self.state.completed),
            kept,
        })
    }

    fn kept(&self, keep: &Keep) -> Result<Vec<RequestId>> {
        let pending = self.state.pending();
        Ok(match keep {
            Keep::DurableOnly => Vec::new(),
            Keep::Everything => pending,
            Keep::Subset(seed) if self.recording.honesty() == Honesty::LiesOnFlush => {
                self.longer_prefix(*seed)
            }
            Keep::Subset(seed) => seeded_subset(pending, *seed),
            Keep::Exactly(chosen) => {
                if let Some(stranger) = chosen.iter().find(|id| pending.binary_search(id).is_err())
                {
                    bail!(
                        "request {stranger} is not a pending write at the cut {}",
                        self.state.cut
                    );
                }
                chosen.iter().copied().collect()
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

fn name(state: &CutState, kept: &[RequestId]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(state.cut.0.0.to_le_bytes());
    for id in kept {
        hasher.update(id.0.to_le_bytes());
    }
    let hash = hasher.finalize();
    format!(
        "e{}-{:02x}{:02x}{:02x}{:02x}",
        state.epoch, hash[0], hash[1], hash[2], hash[3]
    )
}

fn apply(view: &mut View, recording: &Recording, id: RequestId, source: SourceId) {
    let Some(submit) = recording.submit(id) else {
        return;
    };
    let sectors = submit.length.sectors();
    match submit.operation {
        Operation::Write => view.set_data(submit.at, sectors, source, submit.data_offset),
        Operation::WriteZeroes | Operation::Trim => view.set_zeros(submit.at, sectors),
        Operation::Flush => {}
    }
}
