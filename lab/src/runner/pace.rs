//! How fast crash states are looked at: by the guest, because one that helps
//! comes later than the first.

use std::time::Instant;

use super::Stage;
use crate::scenario::Count;

/// What one guest, or those that replaced it, did of an exploration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Looked {
    /// States that were mounted, read and judged.
    pub states: u64,
    /// Those, and the states of which it was known what would be seen.
    pub judged: u64,
    /// From the first state to the last, without the start of guests.
    pub seconds: f64,
}

/// A guest's part of an exploration, under way.
pub(super) struct Pace {
    start: Instant,
    before: Sums,
}

/// What has come together so far.
#[derive(Clone, Copy)]
struct Sums {
    states: u64,
    judged: u64,
    clones: f64,
}

impl Pace {
    pub(super) fn begin(stage: &Stage<'_>) -> Self {
        Self {
            start: Instant::now(),
            before: Sums::of(stage),
        }
    }

    /// Add it to the outcome, unless there was nothing left to look at.
    pub(super) fn end(self, stage: &mut Stage<'_>) {
        let seconds = self.start.elapsed().as_secs_f64();
        let looked = Sums::of(stage).since(self.before, seconds);
        stage.outcome.looked.extend(looked);
    }
}

impl Sums {
    fn of(stage: &Stage<'_>) -> Self {
        let outcome = &stage.outcome;
        Self {
            states: outcome.counts.get(Count::UniqueStates),
            judged: outcome.counts.get(Count::CrashStates),
            clones: outcome.seconds.get("clone").copied().unwrap_or(0.0),
        }
    }

    fn since(self, before: Self, seconds: f64) -> Option<Looked> {
        let judged = self.judged - before.judged;
        (judged > 0).then(|| Looked {
            states: self.states - before.states,
            judged,
            seconds: seconds - (self.clones - before.clones),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_before_and_the_start_of_guests_do_not_count() {
        let sums = |states, judged, clones| Sums {
            states,
            judged,
            clones,
        };
        let looked = sums(12, 15, 1.5).since(sums(2, 3, 0.5), 6.0);
        let expected = Looked {
            states: 10,
            judged: 12,
            seconds: 5.0,
        };
        assert_eq!(looked, Some(expected));
        // It came when all had been taken.
        assert_eq!(sums(2, 3, 1.0).since(sums(2, 3, 0.5), 0.1), None);
    }
}
