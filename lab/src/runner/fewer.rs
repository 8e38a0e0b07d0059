//! How few of its operations a workload must carry out for a failure to show: it is run again with
//! fewer of them, and what a power cut could have left of that run is looked at.
//!
//! Nothing is taken from the run before: a workload that is no function of its operations shows
//! its failure less often, and then more of them are left than it takes.

use std::time::{Duration, Instant};

use anyhow::Result;
use plugpull_disk::{
    CutPoint, Cutter, PowerCut, Recording, Seed, Seq,
    explore::{self, Budget, Class, Classes, PlannedState},
};
use plugpull_protocol::{
    Promise,
    workload::operations::{self, Operations},
};

use super::{
    Outcome, Stage,
    cuts::Timeline,
    everywhere,
    explore::{Checker, Plan},
    smallest::{self, Found},
    user::{self, Question},
};
use crate::{
    minimise::smallest,
    oracle::Ledger,
    scenario::{Cuttable, OracleName, PowerCut as PowerCutStory, Program},
};

/// So many states of a run with fewer operations are looked at.
const STATES: usize = 150;
/// All runs for the failures of a case; more on a slow host.
const AT_MOST: Duration = Duration::from_secs(150);
/// So many operations are told one by one.
const TOLD: usize = 8;

/// A failure, as it was found.
pub(super) struct Shown {
    pub(super) oracle: OracleName,
    /// The kind of the state that showed it.
    pub(super) class: Class,
    /// The cut of its ledger.
    pub(super) at: u64,
}

/// Running a workload again.
pub(super) struct Reruns<'r> {
    workload: &'r Cuttable,
    program: &'r Program,
    cut: &'r PowerCutStory,
    plan: &'r Plan<'r>,
    /// How many more there may be, and until when.
    left: u32,
    until: Instant,
    /// How many there were, and how many did not come to their end.
    made: u32,
    broken: u32,
    /// There should have been more.
    stopped: bool,
}

/// A run with fewer operations in which the failure shows.
struct Rerun {
    operations: Operations,
    recording: Recording,
    timeline: Timeline,
    state: PlannedState,
    at: u64,
}

impl<'r> Reruns<'r> {
    /// Of a workload that can be told which operations to carry out, if that is wanted.
    pub(super) fn of(
        stage: &Stage<'_>,
        workload: &'r Cuttable,
        cut: &'r PowerCutStory,
        plan: &'r Plan<'r>,
    ) -> Option<Self> {
        let Cuttable::Program(program) = workload else {
            return None;
        };
        program.operations.filter(|_| cut.reruns > 0)?;
        Some(Self {
            workload,
            program,
            cut,
            plan,
            left: cut.reruns,
            until: Instant::now() + stage.bed.scale(AT_MOST),
            made: 0,
            broken: 0,
            stopped: false,
        })
    }

    /// The failure with as few operations as were found to show it, in words.
    pub(super) fn tell<'a>(
        &mut self,
        stage: &mut Stage<'a>,
        checker: &mut Checker<'a>,
        shown: &Shown,
    ) -> Result<String> {
        let start = Instant::now();
        // Trying is no evidence: what it counts and finds is not the run's.
        let before = stage.outcome.clone();
        let told = self.try_all(stage, checker, shown);
        let seconds = std::mem::take(&mut stage.outcome.seconds);
        *stage.outcome = Outcome { seconds, ..before };
        stage.spent("fewer operations", start);
        told
    }

    fn try_all<'a>(
        &mut self,
        stage: &mut Stage<'a>,
        checker: &mut Checker<'a>,
        shown: &Shown,
    ) -> Result<String> {
        (self.made, self.broken, self.stopped) = (0, 0, false);
        let all = self.program.all_operations();
        let begun = begun(self.plan.timeline, shown.at);
        let by_then = match begun.is_empty() {
            true => all.clone(),
            false => begun.iter().copied().collect(),
        };
        // The operation that had begun last is guilty more often than not.
        let last = begun.last().map(|last| Operations::from_iter([*last]));
        let last = last.filter(|last| *last != by_then);
        let mut found = None;
        for operations in last.into_iter().chain([by_then]) {
            if found.is_none() {
                found = self.shows(stage, checker, shown, operations)?;
            }
        }
        let Some(mut found) = found else {
            let effort = self.effort();
            return Ok(format!(
                "run again with the same operations it did not show{effort}"
            ));
        };
        let items: Vec<u32> = found.operations.numbers().collect();
        if items.len() > 1 {
            smallest(&items, &mut { u32::MAX }, |some| {
                let some = some.iter().copied().collect();
                let rerun = self.shows(stage, checker, shown, some)?;
                let shows = rerun.is_some();
                if let Some(rerun) = rerun {
                    found = rerun;
                }
                Ok(shows)
            })?;
        }
        let story = self.story(stage, checker, shown.oracle, &found)?;
        Ok(format!(
            "of {} operations it takes {}: {}{}; there, {story}",
            all.len(),
            found.operations.len(),
            named(&found.operations, &found.timeline),
            self.effort()
        ))
    }

    /// Run these operations alone, and look for a state to which the oracle objects.
    fn shows<'a>(
        &mut self,
        stage: &mut Stage<'a>,
        checker: &mut Checker<'a>,
        shown: &Shown,
        operations: Operations,
    ) -> Result<Option<Rerun>> {
        if operations.is_empty() {
            return Ok(None);
        }
        if self.left == 0 || Instant::now() > self.until {
            self.stopped = true;
            return Ok(None);
        }
        self.left -= 1;
        self.made += 1;
        // A second guest might have to wait for one that waits for this one.
        checker.dismiss();
        let name = format!("fewer-{}-{}", shown.oracle, self.made);
        let base = self.plan.base.clone();
        let what = (name.as_str(), &operations);
        let Ok(recording) = user::record(stage, what, self.program, self.cut, base) else {
            // Such as a program that misses what an operation left out would have made.
            self.broken += 1;
            return Ok(None);
        };
        if !stage.bed.setup().keep {
            // Who still reads it has it open.
            let _ = std::fs::remove_file(stage.log(&name));
        }
        let timeline = Timeline::of(&recording);
        let mut checker = checker.other(&name);
        let guilty = self.guilty(stage, &mut checker, shown, (&recording, &timeline))?;
        Ok(guilty.map(|(state, at)| Rerun {
            operations,
            recording,
            timeline,
            state,
            at,
        }))
    }

    /// The first state of the same kind to which the oracle objects, and under which ledger.
    fn guilty<'a>(
        &self,
        stage: &mut Stage<'a>,
        checker: &mut Checker<'a>,
        shown: &Shown,
        (recording, timeline): (&Recording, &Timeline),
    ) -> Result<Option<(PlannedState, u64)>> {
        let budget = Budget {
            states: STATES,
            from: CutPoint(Seq(timeline.start().unwrap_or(0))),
            seed: Seed(stage.seed),
            classes: Classes::of([shown.class]),
        };
        let planned = explore::plan(recording, self.plan.base, budget)?;
        let mut cutter = Cutter::new(self.plan.base, recording)?;
        for planned in planned.states {
            let state = cutter.at(planned.cut)?.crash_state(&planned.keep)?;
            let ledgers = timeline.ledgers(&planned.spans);
            stage.outcome.failures.clear();
            let promised = (timeline, ledgers.as_slice());
            let judged = everywhere::judge_all(stage, self.workload, checker, &state, promised)?;
            let objects = |failure: &super::Failure| failure.oracle == shown.oracle;
            match judged {
                Some((at, _)) if stage.outcome.failures.iter().any(objects) => {
                    return Ok(Some((planned, at)));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// How few writes of the shortest run it takes.
    fn story<'a>(
        &self,
        stage: &mut Stage<'a>,
        checker: &mut Checker<'a>,
        oracle: OracleName,
        rerun: &Rerun,
    ) -> Result<String> {
        let plan = Plan {
            base: self.plan.base,
            recording: &rerun.recording,
            timeline: &rerun.timeline,
            states: self.plan.states,
        };
        let cut = everywhere::cut_of(&rerun.state, rerun.at);
        let cut = PowerCut::new(plan.base, plan.recording, cut)?;
        let found = Found {
            cut: &cut,
            keep: &rerun.state.keep,
            ledger: &Ledger::at(plan.timeline.records(), rerun.at)?,
            question: &Question::of(self.workload, plan.timeline, rerun.at),
            oracle,
        };
        checker.dismiss();
        let mut checker = checker.other("fewest");
        Ok(smallest::story(stage, self.workload, &plan, &mut checker, &found)?.detail)
    }

    /// What it cost, and what that leaves open.
    fn effort(&self) -> String {
        let stopped = match self.stopped {
            true => ", the most that there may be",
            false => "",
        };
        let broken = match self.broken {
            0 => String::new(),
            broken => format!(", of which {broken} did not come to their end"),
        };
        let plural = if self.made == 1 { "" } else { "s" };
        format!(" (in {} run{plural}{broken}{stopped})", self.made)
    }
}

/// The operations that had begun by this cut, in the order of beginning, if the workload says so.
fn begun(timeline: &Timeline, at: u64) -> Vec<u32> {
    let by_then = timeline.records().take_while(|(seq, _)| *seq <= at);
    let begun = by_then.filter_map(|(_, promise)| match promise {
        Promise::Mark { text } => operations::begun(text),
        _ => None,
    });
    begun.map(|(number, _)| number).collect()
}

/// Operations by their numbers, with what the workload says that they do.
fn named(operations: &Operations, timeline: &Timeline) -> String {
    let says = |number: u32| {
        timeline.records().find_map(|(_, promise)| match promise {
            Promise::Mark { text } => operations::begun(text)
                .filter(|(begun, what)| *begun == number && !what.is_empty())
                .map(|(_, what)| what),
            _ => None,
        })
    };
    if operations.len() > TOLD {
        return operations.to_string();
    }
    let words = operations.numbers().map(|number| match says(number) {
        Some(what) => format!("{number} ({what})"),
        None => number.to_string(),
    });
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(texts: &[&str]) -> Timeline {
        let mark = |text: &&str| Promise::Mark {
            text: (*text).to_owned(),
        };
        let mut timeline = Timeline::default();
        timeline
            .promises
            .extend((10..).step_by(10).zip(texts.iter().map(mark)));
        timeline
    }

    #[test]
    fn operations_are_those_that_began_by_the_cut() {
        let timeline = timeline(&["start", "operation 3: [Create]", "operation 5", "x"]);
        assert_eq!(begun(&timeline, 19), [0; 0]);
        assert_eq!(begun(&timeline, 20), [3]);
        assert_eq!(begun(&timeline, 99), [3, 5]);
    }

    #[test]
    fn operations_are_told_with_what_they_do() {
        let timeline = timeline(&["operation 3: [Create]", "operation 5"]);
        let told = |numbers: &[u32]| named(&numbers.iter().copied().collect(), &timeline);
        assert_eq!(told(&[3, 5]), "3 ([Create]), 5");
        assert_eq!(told(&(1..=9).collect::<Vec<_>>()), "1-9");
    }
}
