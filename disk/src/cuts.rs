//! The moments of a recording at which a power cut tells something, and a seeded choice of them.

use serde::{Deserialize, Serialize};

use crate::log::{Complete, Entry, Recording};
use crate::model::Tracker;
use crate::units::{CutPoint, Honesty, Seed, Seq};

/// Why a moment is worth a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CutReason {
    /// A request has just been answered.
    AfterCompletion,
    /// A flush is under way and will be answered with success next: all that it covers is at stake.
    BeforeFlushCompletes,
    /// A write is about to be answered that its answer makes durable: FUA, or write-through.
    BeforeWriteIsDurable,
    /// A write in flight, which may be stored, is about to be answered with an error.
    BeforeWriteFails,
    /// The last event: where the power was cut, or what was recorded last.
    AtEnd,
    /// A mark has just been set, with or without a request since the last one: the promises
    /// changed.
    AtMark,
}

/// A moment for a power cut, and what is at stake there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutCandidate {
    /// The moment.
    pub cut: CutPoint,
    /// Why it was chosen.
    pub reason: CutReason,
    /// How many writes that were answered with success [`Keep::DurableOnly`](crate::Keep) drops.
    pub losable_completed: u64,
    /// How many writes are without an answer.
    pub in_flight: u64,
}

impl Recording {
    /// Every moment after an answer, before one that takes a choice away (by making something
    /// durable or by failing), at a mark, and at the end; in order, each moment once. The others
    /// are moments after a submission: whatever a cut there could leave, the next of these can
    /// leave too. (A lying disk keeps more with every answer, so of it this is not true.)
    pub fn cut_candidates(&self) -> Vec<CutCandidate> {
        let mut tracker = Tracker::new(self.honesty(), self.seed());
        let mut found: Vec<CutCandidate> = Vec::new();
        for entry in self.entries() {
            if let Entry::Complete(complete) = entry
                && let Some(reason) = self.choice_taken(complete)
            {
                let before = CutPoint(Seq(complete.seq.0 - 1));
                note(&mut found, &tracker, before, reason);
            }
            tracker.observe(entry);
            let now = CutPoint(entry.seq());
            match entry {
                Entry::Complete(_) => {
                    note(&mut found, &tracker, now, CutReason::AfterCompletion);
                }
                Entry::Mark(_) => note(&mut found, &tracker, now, CutReason::AtMark),
                Entry::Submit(_) | Entry::Cut(_) => {}
            }
        }
        let end = CutPoint(self.last_seq());
        if found.last().is_some_and(|last| last.cut < end) {
            note(&mut found, &tracker, end, CutReason::AtEnd);
        }
        found
    }

    /// What makes it worthwhile to cut the power just before this answer, if anything.
    fn choice_taken(&self, complete: &Complete) -> Option<CutReason> {
        let submit = self.submit(complete.id)?;
        match (submit.is_write(), complete.errno == 0) {
            (false, true) => Some(CutReason::BeforeFlushCompletes),
            (false, false) => None,
            (true, false) => Some(CutReason::BeforeWriteFails),
            (true, true) => (submit.fua || self.honesty() == Honesty::None)
                .then_some(CutReason::BeforeWriteIsDurable),
        }
    }
}

fn note(found: &mut Vec<CutCandidate>, tracker: &Tracker, cut: CutPoint, reason: CutReason) {
    if found.last().is_some_and(|last| last.cut == cut) {
        // The moment before a flush's answer often is one after another answer: say the rarer.
        found.pop();
    }
    found.push(CutCandidate {
        cut,
        reason,
        losable_completed: tracker.losable() as u64,
        in_flight: tracker.in_flight_writes() as u64,
    });
}

/// Chooses `count` of the candidates (all, where there are fewer), spread over the whole run: one
/// at a seeded place in each of `count` equal stretches. Filter the candidates first, by range or
/// by what is at stake.
pub fn choose_cuts(candidates: &[CutCandidate], count: usize, seed: Seed) -> Vec<CutCandidate> {
    if candidates.len() <= count {
        return candidates.to_vec();
    }
    let mut rng = seed.rng();
    (0..count)
        .map(|stretch| {
            let start = candidates.len() * stretch / count;
            let end = candidates.len() * (stretch + 1) / count;
            candidates[rng.usize(start..end)]
        })
        .collect()
}
