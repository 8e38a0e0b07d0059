//! Cuts everywhere in one recorded run: the states that a power cut at any
//! moment could have left, as many as the budget allows, each looked at once
//! and judged under every promise that it can meet.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, anyhow, ensure};
use plugpull_disk::{
    CrashState, CutPoint, Cutter, Keep, PowerCut, Seed, Seq,
    explore::{self, Budget, Coverage, PlannedState, Span},
};
use plugpull_vm::lock::Slot;

use super::{
    Failure, Outcome as Came, Stage, blame, capsules,
    chart::{self, Drawing},
    cuts::Timeline,
    explore::{By, Checker, Plan, judge},
    fewer::{Reruns, Shown},
    nested::{Deep, Dive, Recovery, Share},
    pace::Pace,
    smallest::{self, Found},
    user::Question,
    worth::Worth,
};
use crate::{
    oracle::Ledger,
    report::Outcome,
    scenario::{self, Count, Cuttable, OracleName},
    select::Shard,
};

/// What is left of it as an artefact.
const COVERAGE: &str = "coverage.json";

pub(super) fn run(
    stage: &mut Stage<'_>,
    workload: &Cuttable,
    plan: &Plan<'_>,
    cut: &scenario::PowerCut,
) -> Result<()> {
    let share = Share::of(plan.states, cut.nested);
    let budget = Budget {
        states: share.own as usize,
        // Before a program of the user's begins, its directory need not be there.
        from: CutPoint(Seq(plan.timeline.start().unwrap_or(0))),
        seed: Seed(stage.seed),
        classes: cut.kinds,
    };
    let planned = explore::plan(plan.recording, plan.base, budget)?;
    note_coverage(stage, &planned.coverage)?;
    let work = Work {
        workload,
        plan,
        share: (share, cut.nested),
        part: stage.part(),
        states: &planned.states,
        next: AtomicUsize::new(0),
        ends: AtomicBool::new(false),
    };
    let mut checker = Checker::of(cut);
    let found = work.share(stage, &mut checker);
    work.draw(stage, &planned, found.as_ref().ok())?;
    let found = found?;
    let ids: Vec<&str> = found.iter().map(|guilty| guilty.id.as_str()).collect();
    stage.outcome.failures = condensed(&stage.outcome.failures, &ids);
    // One story for each oracle: the next failure is most often the same again.
    let mut told = BTreeSet::new();
    let mut reruns = Reruns::of(stage, workload, cut, plan);
    for found in found {
        if !told.insert(found.oracle) {
            continue;
        }
        work.tell(stage, &mut checker, &found)?;
        if let Some(reruns) = reruns.as_mut().filter(|_| found.deep.is_none()) {
            let shown = Shown {
                oracle: found.oracle,
                class: planned.states[found.state].class,
                at: found.at,
            };
            let detail = reruns.tell(stage, &mut checker, &shown)?;
            stage.outcome.failures.push(Failure {
                oracle: found.oracle,
                detail,
                state: Some(found.id),
                laid: None,
            });
        }
    }
    Ok(())
}

/// A state that an oracle objected to.
struct Guilty {
    /// Which of the plan.
    state: usize,
    id: String,
    /// The cut of the ledger.
    at: u64,
    oracle: OracleName,
    /// Where the power went again, if it did.
    deep: Option<Deep>,
}

/// The states of a plan, to be looked at by one guest or by several.
struct Work<'w> {
    workload: &'w Cuttable,
    plan: &'w Plan<'w>,
    /// What of it is for cuts of recoveries, and how many of these in a row.
    share: (Share, u32),
    /// Which part of them is looked at here.
    part: Shard,
    states: &'w [PlannedState],
    /// The first that nobody has taken.
    next: AtomicUsize,
    /// No more are wanted.
    ends: AtomicBool,
}

/// So many of the other guilty states are named.
const NAMED: usize = 3;

impl Work<'_> {
    /// Look at all of them: in the guest of `checker`, and in as many more as
    /// there are free slots for. What was found, in the order of the plan.
    fn share<'a>(&self, stage: &mut Stage<'a>, checker: &mut Checker<'a>) -> Result<Vec<Guilty>> {
        let (bed, case, dir, seed) = (stage.bed, stage.case, stage.dir, stage.seed);
        let helped = checker.helped();
        thread::scope(|scope| {
            let help = |number: usize, slot: Slot| {
                let mut outcome = Came::default();
                let mut stage = Stage {
                    bed,
                    case,
                    dir,
                    seed,
                    outcome: &mut outcome,
                };
                let mut checker = Checker::helper(number, slot, &helped);
                let found = self.look(&mut stage, &mut checker, || Ok(()));
                self.ends.fetch_or(found.is_err(), Ordering::Relaxed);
                found.map(|found| (found, outcome))
            };
            let mut helpers = Vec::new();
            let mut worth = Worth::of(self.states.len());
            let own = self.look(stage, checker, || {
                let most = bed.guests_at_once() - 1;
                if helpers.len() < most
                    && worth.is_another(self.next.load(Ordering::Relaxed), helpers.len())
                    && let Some(slot) = bed.free_slot()?
                {
                    let number = helpers.len() + 2;
                    helpers.push(scope.spawn(move || help(number, slot)));
                }
                Ok(())
            });
            self.ends.fetch_or(own.is_err(), Ordering::Relaxed);
            let mut all = own?;
            for helper in helpers {
                let helped = helper
                    .join()
                    .map_err(|_| anyhow!("a guest's thread panicked"))?;
                let (found, outcome) = helped?;
                all.extend(found);
                stage.outcome.merge(outcome);
            }
            all.sort_by_key(|guilty| guilty.state);
            Ok(all)
        })
    }

    /// Take one state after the other until there are no more.
    fn look<'a>(
        &self,
        stage: &mut Stage<'a>,
        checker: &mut Checker<'a>,
        mut before_each: impl FnMut() -> Result<()>,
    ) -> Result<Vec<Guilty>> {
        let pace = Pace::begin(stage);
        let mut cutter = Cutter::new(self.plan.base, self.plan.recording)?;
        let mut all = Vec::new();
        while !self.ends.load(Ordering::Relaxed) {
            before_each()?;
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(planned) = self.states.get(number) else {
                break;
            };
            if !self.is_ours(planned) {
                continue;
            }
            let state = cutter.at(planned.cut)?.crash_state(&planned.keep)?;
            let lossy = u64::from(planned.drops_completed);
            stage.count(Count::DroppedCompletedCuts, lossy);
            stage.count(Count::CrashStates, 1);
            let timeline = self.plan.timeline;
            let ledgers = timeline.ledgers(&planned.spans);
            let before = stage.outcome.failures.len();
            let judged = judge_all(stage, self.workload, checker, &state, (timeline, &ledgers))?;
            if let Some((at, _)) = judged {
                capsules::note(stage, before, &state, &planned.keep, at)?;
            }
            match (judged, ledgers.last()) {
                (Some((at, oracle)), _) => all.push(Guilty {
                    state: number,
                    id: state.id.clone(),
                    at,
                    oracle,
                    deep: None,
                }),
                (None, Some(at)) if self.share.0.takes(number, self.states.len()) => {
                    all.extend(self.dive(stage, checker, (number, &state), *at)?);
                }
                (None, _) => {}
            }
            if stage.control_is_caught() {
                self.ends.store(true, Ordering::Relaxed);
            }
        }
        pace.end(stage);
        Ok(all)
    }

    /// Cut the recovery of this state, which was just looked at.
    fn dive<'a>(
        &self,
        stage: &mut Stage<'a>,
        checker: &mut Checker<'a>,
        (number, state): (usize, &CrashState),
        at: u64,
    ) -> Result<Vec<Guilty>> {
        let dive = Dive {
            workload: self.workload,
            timeline: self.plan.timeline,
            at,
        };
        let found = dive.cut_again(stage, checker, state, self.share)?;
        let guilty = |deep: Deep| Guilty {
            state: number,
            id: deep.id.clone(),
            at,
            oracle: deep.oracle,
            deep: Some(deep),
        };
        Ok(found.into_iter().map(guilty).collect())
    }

    /// Whether it belongs to the part that is looked at here.
    fn is_ours(&self, state: &PlannedState) -> bool {
        self.part.holds(&state.sum.0.to_be_bytes())
    }

    /// Leave a picture of it among the artefacts. Where the machinery failed, nothing is known of
    /// any state.
    fn draw(
        &self,
        stage: &Stage<'_>,
        planned: &explore::Plan,
        found: Option<&Vec<Guilty>>,
    ) -> Result<()> {
        let taken = found.map_or(0, |_| self.next.load(Ordering::Relaxed));
        let guilty: HashMap<_, _> = (found.into_iter().flatten())
            .map(|guilty| (guilty.state, guilty))
            .collect();
        let shown = planned.states.iter().enumerate().map(|(number, state)| {
            let guilty = guilty.get(&number);
            let looked_at = number < taken && self.is_ours(state);
            chart::Shown {
                sum: format!("{:032x}", state.sum.0),
                class: state.class.name(),
                cut: guilty.map_or(state.spans[0].first.0.0, |guilty| guilty.at),
                outcome: match (guilty, looked_at) {
                    (Some(_), _) => Outcome::Broken,
                    (None, true) => Outcome::Kept,
                    (None, false) => Outcome::Unseen,
                },
                guilty: guilty.map(|guilty| (guilty.id.clone(), guilty.oracle.to_string())),
            }
        });
        let drawing = Drawing {
            recording: self.plan.recording,
            timeline: self.plan.timeline,
            from: self.plan.timeline.start().unwrap_or(0),
            states: &shown.collect::<Vec<_>>(),
            coverage: Some(&planned.coverage),
            unseen: match (stage.part().is_all(), found) {
                (_, None) => "were planned, and the machinery failed before all were looked at",
                (true, _) => "were planned and not looked at, since the control was caught before",
                (false, _) => "were planned and belong to other shards",
            },
        };
        chart::write(stage, &drawing)
    }

    /// Add how few writes a failure takes.
    fn tell<'a>(
        &self,
        stage: &mut Stage<'a>,
        checker: &mut Checker<'a>,
        guilty: &Guilty,
    ) -> Result<()> {
        let start = Instant::now();
        if let Some(deep) = &guilty.deep {
            return self.tell_deep(stage, checker, guilty, deep);
        }
        let planned = &self.states[guilty.state];
        let cut = cut_of(planned, guilty.at);
        let cut = PowerCut::new(self.plan.base, self.plan.recording, cut)?;
        let found = Found {
            cut: &cut,
            keep: &planned.keep,
            ledger: &Ledger::at(self.plan.timeline.records(), guilty.at)?,
            question: &Question::of(self.workload, self.plan.timeline, guilty.at),
            oracle: guilty.oracle,
        };
        let story = smallest::story(stage, self.workload, self.plan, checker, &found)?;
        stage.spent("minimise", start);
        let laid = blame::lay(stage, self.plan, &found, &story);
        blame::note(stage, guilty.oracle, &guilty.id, laid.as_ref());
        stage.outcome.failures.push(Failure {
            oracle: guilty.oracle,
            detail: story.detail,
            state: Some(guilty.id.clone()),
            laid,
        });
        Ok(())
    }

    /// The same, of the last of several cuts.
    fn tell_deep<'a>(
        &self,
        stage: &mut Stage<'a>,
        checker: &mut Checker<'a>,
        guilty: &Guilty,
        deep: &Deep,
    ) -> Result<()> {
        let start = Instant::now();
        let Recovery { state, recording } = &*deep.of;
        let cut = PowerCut::new(&state.view, recording, deep.cut)?;
        let found = Found {
            cut: &cut,
            keep: &deep.keep,
            ledger: &Ledger::at(self.plan.timeline.records(), guilty.at)?,
            question: &Question::of(self.workload, self.plan.timeline, guilty.at),
            oracle: guilty.oracle,
        };
        let plan = Plan {
            base: &state.view,
            recording,
            ..*self.plan
        };
        let story = smallest::story(stage, self.workload, &plan, checker, &found)?;
        stage.spent("minimise", start);
        stage.outcome.failures.push(Failure {
            oracle: guilty.oracle,
            detail: format!(
                "while {} recovered the power went again: {}",
                state.id, story.detail
            ),
            state: Some(guilty.id.clone()),
            // Who asked for what while it recovered is not recorded.
            laid: None,
        });
        Ok(())
    }
}

/// Where a state of this kind broke the promise of this cut, if the choice of survivors says the
/// same there.
pub(super) fn cut_of(planned: &PlannedState, at: u64) -> CutPoint {
    let at = CutPoint(Seq(at));
    let within = |span: &Span| span.first <= at && at <= span.last;
    match &planned.keep {
        Keep::DurableOnly | Keep::Exactly(_) if planned.spans.first().is_some_and(within) => at,
        _ => planned.cut,
    }
}

/// Judge a state under the ledgers of these cuts, until one shows that it is
/// wrong: that cut, and the oracle that said so first.
pub(super) fn judge_all<'a>(
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
        let (seen, by) = checker.see_or_infer(stage, workload, state, &question)?;
        let before = stage.outcome.failures.len();
        judge(stage, workload, state, &seen, &ledger)?;
        if by == By::Likeness && stage.outcome.failures.len() > before {
            // What is told was seen.
            stage.outcome.failures.truncate(before);
            let seen = checker.see(stage, workload, state, &question)?;
            judge(stage, workload, state, &seen, &ledger)?;
            ensure!(
                stage.outcome.failures.len() > before,
                "{} differs from a state that broke a promise only where nobody looked, and breaks \
                 none: what is seen of a state depends on more than the disk here; explore it with \
                 `prune = false`",
                state.id
            );
        } else if by == By::Likeness {
            stage.outcome.counts.add_named("pruned_looks", 1);
        }
        if let Some(failure) = stage.outcome.failures.get(before) {
            return Ok(Some((cut, failure.oracle)));
        }
    }
    Ok(None)
}

/// Of each oracle what it said of the first guilty state, in the order of
/// `ids`, and how many more there are: a program that is wrong is wrong in
/// hundreds of states, and one of them is enough to see why.
fn condensed(failures: &[Failure], ids: &[&str]) -> Vec<Failure> {
    let place = |failure: &Failure| {
        ids.iter()
            .position(|id| failure.state.as_deref() == Some(*id))
    };
    let mut states: BTreeMap<OracleName, BTreeSet<usize>> = BTreeMap::new();
    for failure in failures {
        states
            .entry(failure.oracle)
            .or_default()
            .extend(place(failure));
    }
    let is_first = |failure: &&Failure| {
        let first = states[&failure.oracle].first().copied();
        failure.state.is_none() || first == place(failure)
    };
    let mut told: Vec<Failure> = failures.iter().filter(is_first).cloned().collect();
    for (oracle, states) in &states {
        let more: Vec<&str> = states.iter().skip(1).map(|place| ids[*place]).collect();
        if !more.is_empty() {
            let such = more[..more.len().min(NAMED)].join(", ");
            told.push(Failure {
                oracle: *oracle,
                detail: format!("and of {} more states, such as {such}", more.len()),
                state: None,
                laid: None,
            });
        }
    }
    told
}

/// What was planned out of what, for the report and as an artefact.
fn note_coverage(stage: &mut Stage<'_>, coverage: &Coverage) -> Result<()> {
    let path = stage.dir.join(COVERAGE);
    fs::write(&path, serde_json::to_vec_pretty(coverage)?)
        .with_context(|| format!("write {}", path.display()))?;
    if !stage.counts_the_whole() {
        return Ok(());
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(oracle: OracleName, state: &str, detail: &str) -> Failure {
        Failure {
            oracle,
            detail: detail.to_owned(),
            state: Some(state.to_owned()),
            laid: None,
        }
    }

    #[test]
    fn the_first_guilty_state_of_each_oracle_is_told_and_the_others_counted() {
        let (ledger, check) = (OracleName::Ledger, OracleName::Check);
        let failures = [
            failure(ledger, "e3", "third"),
            failure(ledger, "e2", "second"),
            failure(ledger, "e2", "second again"),
            failure(check, "e3", "only"),
            failure(ledger, "e5", "fifth"),
        ];
        let told = condensed(&failures, &["e1", "e2", "e3", "e4", "e5"]);
        let details: Vec<&str> = told.iter().map(|failure| failure.detail.as_str()).collect();
        let expected = [
            "second",
            "second again",
            "only",
            "and of 2 more states, such as e3, e5",
        ];
        assert_eq!(details, expected);
        assert_eq!(condensed(&[], &[]), []);
    }
}
