//! Cuts the power again while a state recovers: the requests that mounting,
//! recovery, the check and unmounting made are a recording like any other, and
//! its crash states are looked at in their turn, over what the cut before it left.
//!
//! What was promised stays what had been promised by the first cut: nobody
//! promises anything while a state is looked at.

use std::sync::Arc;

use anyhow::Result;
use plugpull_disk::{
    CrashState, CutPoint, Cutter, Keep, Recording, Seed, Seq,
    explore::{self, Budget, Classes},
};

use super::{Stage, cuts::Timeline, everywhere::judge_all, explore::Checker};
use crate::scenario::{Count, Cuttable, OracleName};

/// So many states of one recovery are looked at, where there are so many.
const STATES_OF_ONE: u32 = 16;

/// How a number of states is shared among a recording and the recoveries of its
/// states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    /// States of the recording itself.
    pub(super) own: u32,
    /// How many of them are cut again while they recover.
    recoveries: u32,
    /// And how many states each of these recoveries gets.
    each: u32,
}

impl Share {
    /// Half of the states are for the deeper cuts, if there are any.
    pub(super) fn of(states: u32, depth: u32) -> Self {
        let own = match depth {
            0 => states,
            _ => states.div_ceil(2),
        };
        let rest = states - own;
        let recoveries = rest.div_ceil(STATES_OF_ONE).min(own);
        Self {
            own,
            recoveries,
            each: rest.checked_div(recoveries).unwrap_or(0),
        }
    }

    /// Whether the recovery of this state is one of those, if so many were planned.
    pub(super) fn takes(&self, number: usize, planned: usize) -> bool {
        let recoveries = self.recoveries as usize;
        // Spread evenly: the number of chosen ones grows at this state.
        let chosen = |states: usize| states * recoveries / planned.max(1);
        chosen(number + 1) > chosen(number)
    }
}

/// A recovery, recorded.
pub(super) struct Recovery {
    /// What it began with.
    pub(super) state: CrashState,
    pub(super) recording: Recording,
}

/// What an oracle objected to after a cut during a recovery.
pub(super) struct Deep {
    pub(super) id: String,
    pub(super) cut: CutPoint,
    pub(super) keep: Keep,
    pub(super) oracle: OracleName,
    /// The recovery that was cut.
    pub(super) of: Arc<Recovery>,
}

/// What is asked of every state of a dive.
pub(super) struct Dive<'w> {
    pub(super) workload: &'w Cuttable,
    pub(super) timeline: &'w Timeline,
    /// The cut of the ledger.
    pub(super) at: u64,
}

impl Dive<'_> {
    /// Cut the recovery of `state`, which `checker` has just looked at, in so
    /// many ways, and the recoveries of these as deep as is left.
    pub(super) fn cut_again<'a>(
        &self,
        stage: &mut Stage<'a>,
        checker: &mut Checker<'a>,
        state: &CrashState,
        (share, depth): (Share, u32),
    ) -> Result<Vec<Deep>> {
        let mut found = Vec::new();
        if depth == 0 || share.each == 0 {
            return Ok(found);
        }
        // A state that equals one before was not looked at again.
        let Some(recording) = checker.recovery(stage, state)? else {
            return Ok(found);
        };
        let recovery = Arc::new(Recovery {
            state: state.clone(),
            recording,
        });
        let share = Share::of(share.each, depth - 1);
        let budget = Budget {
            states: share.own as usize,
            from: CutPoint(Seq(0)),
            seed: Seed(stage.seed).derive(state.cut.0.0),
            classes: Classes::ALL,
        };
        let planned = explore::plan(&recovery.recording, &state.view, budget)?.states;
        let mut cutter = Cutter::new(&state.view, &recovery.recording)?;
        for (number, plan) in planned.iter().enumerate() {
            let mut inner = cutter.at(plan.cut)?.crash_state(&plan.keep)?;
            inner.id = format!("{}+{}", state.id, inner.id);
            stage.count(Count::CrashStates, 1);
            stage.count(Count::NestedStates, 1);
            let asked = (self.timeline, &[self.at][..]);
            let judged = judge_all(stage, self.workload, checker, &inner, asked)?;
            match judged {
                Some((_, oracle)) => found.push(Deep {
                    id: inner.id.clone(),
                    cut: plan.cut,
                    keep: plan.keep.clone(),
                    oracle,
                    of: Arc::clone(&recovery),
                }),
                None if share.takes(number, planned.len()) => {
                    found.extend(self.cut_again(stage, checker, &inner, (share, depth - 1))?);
                }
                None => {}
            }
            if stage.control_is_caught() {
                break;
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_shared_and_nothing_is_spent_twice() {
        for states in 3..500 {
            assert_eq!(Share::of(states, 0).own, states);
            assert_eq!(Share::of(states, 0).each, 0);
            let share = Share::of(states, 1);
            let spent = share.own + share.recoveries * share.each;
            assert!(spent <= states, "{states}: {share:?}");
            assert!(spent + share.recoveries > states, "{states}: {share:?}");
            assert!(share.each >= 1, "{states}: {share:?}");
        }
    }

    #[test]
    fn recoveries_are_spread_over_what_was_planned() {
        let share = Share::of(200, 1);
        assert_eq!((share.own, share.recoveries, share.each), (100, 7, 14));
        for planned in [7, 50, 100] {
            let taken: Vec<usize> = (0..planned).filter(|n| share.takes(*n, planned)).collect();
            assert_eq!(taken.len(), 7, "{planned}");
        }
        let few: Vec<usize> = (0..3).filter(|n| share.takes(*n, 3)).collect();
        assert_eq!(few, [0, 1, 2]);
    }
}
