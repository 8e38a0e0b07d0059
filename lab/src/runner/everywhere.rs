//! Cuts everywhere in one recorded run: the states that a power cut at any
//! moment could have left, as many as the budget allows, each looked at once
//! and judged under every promise that it can meet.

use std::{collections::BTreeSet, fs, time::Instant};

use anyhow::{Context, Result};
use plugpull_disk::{
    CrashState, Cutter, Seed,
    explore::{self, Budget, Coverage},
};

use super::{
    Failure, Stage,
    cuts::Timeline,
    explore::{Checker, Plan, judge},
    smallest::{self, Found},
    user::Question,
};
use crate::{
    oracle::Ledger,
    scenario::{Count, Cuttable, OracleName},
};

/// What is left of it as an artefact.
const COVERAGE: &str = "coverage.json";

pub(super) fn run(stage: &mut Stage<'_>, workload: &Cuttable, plan: &Plan<'_>) -> Result<()> {
    let budget = Budget {
        states: plan.states as usize,
        seed: Seed(stage.seed),
    };
    let planned = explore::plan(plan.recording, plan.base, budget)?;
    note_coverage(stage, &planned.coverage)?;
    let mut checker = Checker::default();
    let mut cutter = Cutter::new(plan.base, plan.recording)?;
    // One story for each oracle: the next failure is most often the same again.
    let mut told = BTreeSet::new();
    for planned in &planned.states {
        if stage.control_is_caught() {
            return Ok(());
        }
        let cut = cutter.at(planned.cut())?;
        let state = cut.crash_state(&planned.keep)?;
        let lossy = !state.dropped_completed.is_empty();
        stage.count(Count::DroppedCompletedCuts, u64::from(lossy));
        stage.count(Count::CrashStates, 1);
        let ledgers = plan.timeline.ledgers(&planned.spans);
        let Some((at, oracle)) = judge_all(
            stage,
            workload,
            &mut checker,
            &state,
            (plan.timeline, &ledgers),
        )?
        else {
            continue;
        };
        if told.insert(oracle) {
            let found = Found {
                cut: &cut,
                keep: &planned.keep,
                ledger: &Ledger::at(plan.timeline.records(), at)?,
                question: &Question::of(workload, plan.timeline, at),
                oracle,
            };
            let start = Instant::now();
            let story = smallest::story(stage, workload, plan, &mut checker, &found)?;
            stage.spent("minimise", start);
            stage.outcome.failures.push(Failure {
                oracle,
                detail: story,
                state: Some(state.id.clone()),
            });
        }
    }
    Ok(())
}

/// Judge a state under the ledgers of these cuts, until one shows that it is
/// wrong: that cut, and the oracle that said so first.
fn judge_all<'a>(
    stage: &mut Stage<'a>,
    workload: &Cuttable,
    checker: &mut Checker<'a>,
    state: &CrashState,
    (timeline, cuts): (&Timeline, &[u64]),
) -> Result<Option<(u64, OracleName)>> {
    for cut in cuts.iter().copied() {
        let ledger = Ledger::at(timeline.records(), cut)?;
        stage.count(Count::Cuts, 1);
        let in_checkpoint = timeline.is_in_checkpoint(cut);
        stage.count(Count::CheckpointCuts, u64::from(in_checkpoint));
        let question = Question::of(workload, timeline, cut);
        let seen = checker.see(stage, workload, state, &question)?;
        let before = stage.outcome.failures.len();
        judge(stage, workload, state, &seen, &ledger)?;
        if let Some(failure) = stage.outcome.failures.get(before) {
            return Ok(Some((cut, failure.oracle)));
        }
    }
    Ok(None)
}

/// What was planned out of what, for the report and as an artefact.
fn note_coverage(stage: &mut Stage<'_>, coverage: &Coverage) -> Result<()> {
    let path = stage.dir.join(COVERAGE);
    fs::write(&path, serde_json::to_vec_pretty(coverage)?)
        .with_context(|| format!("write {}", path.display()))?;
    let counts = &mut stage.outcome.counts;
    counts.add_named("situations", coverage.situations);
    for of in &coverage.classes {
        let class = of.class.name();
        counts.add_named(&format!("planned_{class}"), of.planned);
        counts.add_named(&format!("possible_{class}"), of.candidates);
    }
    let skipped = coverage.skipped_mandatory();
    counts.add_named("skipped_mandatory", skipped);
    Ok(())
}
