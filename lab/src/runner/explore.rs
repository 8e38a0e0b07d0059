//! Checks crash states: mount what a cut left, let the program recover, look,
//! and compare with what was promised by then. Many states are checked in one
//! guest; the disk's content is swapped between them.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use plugpull_disk::{ContentDigest, CrashState, Keep, PowerCut, Reads, Recording, Seed, View};
use plugpull_protocol::{Exited, Observation, WorkloadRequest};
use plugpull_vm::{Trouble, lock::Slot};

use super::{
    Stage,
    alike::Alike,
    blame, capsules,
    chart::{self, Drawing, Shown},
    cuts::{Chosen, Timeline},
    pace::Pace,
    power_cut::{PAGE_WRITES, PAGES},
    user::{self, Question},
};
use crate::{
    base::cluster_dir,
    oracle::{self, Finding, Ledger, files, postgres, transactions},
    scenario::{Count, Cuttable, OracleName, PowerCut as PowerCutStory, Story, TakenFor},
    session::{Session, seen_at},
};

/// Recovery, reading, amcheck, stop and pg_checksums of one state.
const RECOVER_TIMEOUT: Duration = Duration::from_secs(300);
const PAGE_TIMEOUT: Duration = Duration::from_secs(60);

/// What is explored.
pub(super) struct Plan<'a> {
    pub(super) base: &'a View,
    pub(super) recording: &'a Recording,
    pub(super) timeline: &'a Timeline,
    pub(super) states: u32,
}

/// What a state came to: seen once, judged for every ledger that it meets.
#[derive(Debug, Clone)]
pub(super) enum Seen {
    Observed(Box<Observed>),
    /// The filesystem or its server did not come up, or the guest's kernel
    /// failed: a finding about this state.
    Unusable(String),
}

/// How it is known what is seen of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// It was looked at, or one that holds the same.
    Looking,
    /// One was looked at that differs where nobody looked.
    Likeness,
}

/// What was seen of a state that could be used.
#[derive(Debug, Clone)]
pub(super) struct Observed {
    observation: Observation,
    /// What the filesystem's own checker said of the recovered disk.
    fsck: Option<Exited>,
}

/// What the checkers of one case have in common.
#[derive(Default)]
pub(super) struct Helped {
    fscked: Arc<Fscked>,
    alike: Option<Arc<Alike>>,
    records: bool,
}

/// Checks of recovered disks, by content: a disk that was recovered to the same
/// bytes gets the same answer. All guests of a case share them.
#[derive(Debug, Default)]
pub(super) struct Fscked {
    seen: Mutex<HashMap<ContentDigest, (Exited, Reads)>>,
}

/// Check the states of every cut, breadth first: what is durable at every cut
/// before anything else at any.
pub(super) fn run(
    stage: &mut Stage<'_>,
    workload: &Cuttable,
    plan: &Plan<'_>,
    chosen: &[Chosen],
) -> Result<()> {
    let mut cuts = Vec::new();
    for chosen in chosen {
        let cut = PowerCut::new(plan.base, plan.recording, chosen.cut)?;
        stage.count(Count::Cuts, 1);
        stage.count(Count::CheckpointCuts, u64::from(chosen.in_checkpoint));
        let dropped = cut.crash_state(&Keep::DurableOnly)?.dropped_completed.len();
        stage.count(Count::DroppedCompletedCuts, u64::from(dropped > 0));
        cuts.push(cut);
    }
    let pace = Pace::begin(stage);
    let mut checker = Checker::default();
    let mut budget = plan.states;
    let mut shown = Vec::new();
    'rounds: for round in 0..crate::scenario::STATES_PER_CUT {
        for cut in &cuts {
            if budget == 0 || stage.control_is_caught() {
                break 'rounds;
            }
            budget -= 1;
            let keep = match round {
                0 => Keep::DurableOnly,
                1 => Keep::Everything,
                _ => Keep::Subset(Seed(stage.seed).derive(cut.state().cut.0.0)),
            };
            let state = cut.crash_state(&keep)?;
            stage.count(Count::CrashStates, 1);
            let question = Question::of(workload, plan.timeline, state.cut.0.0);
            let seen = checker.see(stage, workload, &state, &question)?;
            let ledger = Ledger::at(plan.timeline.records(), state.cut.0.0)?;
            let before = stage.outcome.failures.len();
            judge(stage, workload, &state, &seen, &ledger)?;
            if stage.outcome.failures.len() > before {
                blame::the_first(stage, plan, before, &state, &ledger);
            }
            capsules::note(stage, before, &state, &keep, state.cut.0.0)?;
            shown.push(Shown::of_cut(
                &state,
                &keep,
                stage.outcome.failures.get(before),
            ));
        }
    }
    pace.end(stage);
    let drawing = Drawing {
        recording: plan.recording,
        timeline: plan.timeline,
        from: 0,
        states: &shown,
        coverage: None,
        unseen: "",
    };
    chart::write(stage, &drawing)
}

/// A guest that checks states, replaced when a state was too much for it.
#[derive(Default)]
pub(super) struct Checker<'a> {
    /// Distinguishes it from the others of the same case.
    name: String,
    /// For its next guest.
    slot: Option<Slot>,
    session: Option<Session<'a>>,
    /// By content, and by what is asked of it: a check reads the ledger too.
    seen: HashMap<(ContentDigest, [u8; 32]), Seen>,
    /// Looks at states that may stand for others, if they may.
    alike: Option<Arc<Alike>>,
    fscked: Arc<Fscked>,
    /// Whether recoveries are recorded, to be cut in their turn.
    records: bool,
    /// The disk of the session holds what was recovered from this state.
    recovered: Option<String>,
    /// The log of its disk.
    log: Option<PathBuf>,
    guests: u32,
    looks: u32,
}

impl<'a> Checker<'a> {
    /// One of several, whose first guest runs in this slot.
    pub(super) fn helper(number: usize, slot: Slot, of: &Helped) -> Self {
        Checker {
            name: format!("{number}-"),
            slot: Some(slot),
            fscked: Arc::clone(&of.fscked),
            alike: of.alike.clone(),
            records: of.records,
            ..Checker::default()
        }
    }

    /// One that records recoveries, if they are to be cut: then each state must have its own.
    pub(super) fn of(cut: &PowerCutStory) -> Self {
        Checker {
            alike: (cut.prune && cut.nested == 0).then(Arc::default),
            records: cut.nested > 0,
            ..Checker::default()
        }
    }

    /// End its guest; the next look starts another.
    pub(super) fn dismiss(&mut self) {
        self.session = None;
    }

    /// One for another recording, of which it knows nothing.
    pub(super) fn other(&self, name: &str) -> Self {
        Checker {
            name: format!("{name}-"),
            fscked: Arc::clone(&self.fscked),
            ..Checker::default()
        }
    }

    /// What its helpers begin with.
    pub(super) fn helped(&self) -> Helped {
        Helped {
            fscked: Arc::clone(&self.fscked),
            alike: self.alike.clone(),
            records: self.records,
        }
    }

    /// Remove the log before this one, which is now in use: it is only the store
    /// of a check, and the state can be made again. Who still reads it has it open.
    fn spent_log(&mut self, stage: &Stage<'_>, next: PathBuf) {
        if let Some(log) = self.log.replace(next)
            && !stage.bed.setup().keep
        {
            let _ = std::fs::remove_file(log);
        }
    }

    /// The recording of the recovery of this state, if that is what the guest
    /// has just done; the disk gets a new log.
    pub(super) fn recovery(
        &mut self,
        stage: &Stage<'_>,
        state: &CrashState,
    ) -> Result<Option<Recording>> {
        let Some(session) = &mut self.session else {
            return Ok(None);
        };
        if self.recovered.take().as_ref() != Some(&state.id) {
            return Ok(None);
        }
        let log = format!("check-{}{}-between.disklog", self.name, self.looks);
        let log = stage.dir.join(log);
        let recording = session.swap(state.view.clone(), &log)?;
        self.spent_log(stage, log);
        Ok(recording)
    }

    /// What is seen of this state, by a look at another one if that comes to the same.
    pub(super) fn see_or_infer(
        &mut self,
        stage: &mut Stage<'a>,
        workload: &Cuttable,
        state: &CrashState,
        question: &Question,
    ) -> Result<(Seen, By)> {
        if let Some(alike) = self.alike.clone() {
            let start = Instant::now();
            let asked = (state.view.digest()?, question.digest());
            let found = match self.seen.contains_key(&asked) {
                true => None,
                false => alike.find(&state.view, &asked.1)?,
            };
            stage.spent("check: likeness", start);
            if let Some(seen) = found {
                return Ok((seen, By::Likeness));
            }
        }
        let seen = self.see(stage, workload, state, question)?;
        Ok((seen, By::Looking))
    }

    /// What is seen of this state, each content looked at once.
    pub(super) fn see(
        &mut self,
        stage: &mut Stage<'a>,
        workload: &Cuttable,
        state: &CrashState,
        question: &Question,
    ) -> Result<Seen> {
        let start = Instant::now();
        let asked = (state.view.digest()?, question.digest());
        stage.spent("check: digest", start);
        if let Some(seen) = self.seen.get(&asked) {
            return Ok(seen.clone());
        }
        stage.count(Count::UniqueStates, 1);
        let start = Instant::now();
        let seen = self.check(stage, workload, state, question)?;
        stage.spent("check", start);
        self.seen.insert(asked, seen.clone());
        Ok(seen)
    }

    fn check(
        &mut self,
        stage: &mut Stage<'a>,
        workload: &Cuttable,
        state: &CrashState,
        question: &Question,
    ) -> Result<Seen> {
        self.looks += 1;
        self.recovered = None;
        let log = format!("check-{}{}-{}.disklog", self.name, self.looks, state.id);
        let log = stage.dir.join(log);
        let mut session = self.holding(stage, state.view.clone(), log)?;
        let seen = match look(&mut session, stage, workload, question) {
            Ok(observation) => {
                let (fsck, reads) = self.fscked.ask(stage, &session)?.unzip();
                let seen = Seen::Observed(Box::new(Observed { observation, fsck }));
                if let Some(alike) = &self.alike {
                    let mut reads = reads.unwrap_or_default();
                    reads.extend(&session.disk().reads());
                    alike.note(state.view.clone(), question.digest(), reads, seen.clone());
                }
                self.session = Some(session);
                self.recovered = self.records.then(|| state.id.clone());
                seen
            }
            // A guest whose state was unusable is not trusted with the next one.
            Err(error) => match error.downcast_ref::<Trouble>() {
                Some(Trouble::Refused(_) | Trouble::Kernel { .. } | Trouble::Hung { .. }) => {
                    Seen::Unusable(format!("{error:#}"))
                }
                _ => return Err(error),
            },
        };
        Ok(seen)
    }

    /// A guest whose disk holds this, with nothing mounted.
    fn holding(&mut self, stage: &mut Stage<'a>, view: View, log: PathBuf) -> Result<Session<'a>> {
        if let Some(mut session) = self.session.take() {
            let start = Instant::now();
            session.swap(view, &log)?;
            self.spent_log(stage, log);
            stage.spent("check: swap", start);
            return Ok(session);
        }
        self.guests += 1;
        let name = format!("check-{}{}", self.name, self.guests);
        let slot = self.slot.take();
        self.spent_log(stage, stage.log(&name));
        let session = stage.session_in(slot, &name, view, self.records)?;
        if !self.records {
            // Nobody will cut the power of this disk.
            session.take_for(TakenFor::WriteThrough)?;
        }
        Ok(session)
    }

    /// Have a guest whose disk holds this do something that leaves nothing
    /// mounted.
    pub(super) fn lend<T>(
        &mut self,
        stage: &mut Stage<'a>,
        view: View,
        work: impl FnOnce(&mut Session<'a>) -> Result<T>,
    ) -> Result<T> {
        self.looks += 1;
        self.recovered = None;
        let log = format!("lent-{}{}.disklog", self.name, self.looks);
        let log = stage.dir.join(log);
        let mut session = self.holding(stage, view, log)?;
        // A guest that could not do it is not trusted with the next state.
        let done = work(&mut session)?;
        self.session = Some(session);
        Ok(done)
    }
}

impl Fscked {
    /// What the checker says of the disk that was just unmounted, if it is asked, and what it read
    /// to say so: the reads of this disk until now, or those of the one that held the same.
    fn ask(&self, stage: &mut Stage<'_>, session: &Session<'_>) -> Result<Option<(Exited, Reads)>> {
        match &stage.case.story {
            Story::PowerCut(_, cut) if cut.fsck => {}
            _ => return Ok(None),
        }
        let start = Instant::now();
        let recovered = session.disk().view().digest()?;
        let known = || self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let said = known().get(&recovered).cloned();
        let said = match said {
            Some(said) => said,
            None => {
                stage.count(Count::FsckRuns, 1);
                let said = (session.fsck(&stage.case.lower)?, session.disk().reads());
                known().insert(recovered, said.clone());
                said
            }
        };
        stage.spent("fsck", start);
        Ok(Some(said))
    }
}

/// Mount the state, see what is to be seen, and unmount it.
fn look(
    session: &mut Session<'_>,
    stage: &mut Stage<'_>,
    workload: &Cuttable,
    question: &Question,
) -> Result<Observation> {
    let at = seen_at(&stage.case.mount);
    let looks = match workload {
        Cuttable::PostgresLedger(load) => {
            let request = WorkloadRequest::PostgresRecover {
                dir: cluster_dir(at),
                seed: stage.seed,
                full: true,
                conf: load.settings(),
                timeout_ms: session.timeout_ms(RECOVER_TIMEOUT / 4),
            };
            vec![(request, RECOVER_TIMEOUT)]
        }
        Cuttable::PageFsync => {
            let request = WorkloadRequest::PageCheck {
                dir: format!("{at}/pages"),
                writes: PAGE_WRITES,
                pages: PAGES,
                seed: stage.seed,
            };
            vec![(request, PAGE_TIMEOUT)]
        }
        Cuttable::Program(program) => user::looks(session, stage, program, question, at)?,
    };
    let visit = session.visit(&stage.case.lower, &stage.case.mount, looks)?;
    for (phase, took) in visit.took {
        stage.took(&format!("check: {phase}"), took);
    }
    for observation in &visit.observations {
        if let Observation::Recover(recovered) = observation {
            for (part, ms) in &recovered.took_ms {
                stage.took(&format!("postgres: {part}"), Duration::from_millis(*ms));
            }
        }
    }
    user::answer(question, visit.observations)
}

pub(super) fn judge(
    stage: &mut Stage<'_>,
    workload: &Cuttable,
    state: &CrashState,
    seen: &Seen,
    ledger: &Ledger,
) -> Result<()> {
    let id = Some(state.id.as_str());
    let (observation, fsck) = match seen {
        Seen::Observed(seen) => (&seen.observation, &seen.fsck),
        Seen::Unusable(why) => {
            let mut findings = vec![Finding {
                oracle: OracleName::Recovery,
                detail: why.clone(),
            }];
            if let Cuttable::Program(program) = workload {
                user::unusable(stage, program, findings, ledger, id);
                return Ok(());
            }
            // What cannot be used has lost all that was promised.
            if let acked @ 1.. = ledger.acked() {
                let detail = format!("{acked} acknowledged operations cannot be read at all");
                findings.push(Finding {
                    oracle: OracleName::Ledger,
                    detail,
                });
            }
            stage.judged(&[OracleName::Recovery, OracleName::Ledger], findings, id);
            return Ok(());
        }
    };
    stage.judged(&[OracleName::Recovery], Vec::new(), id);
    match (observation, workload) {
        (Observation::Recover(recovered), Cuttable::PostgresLedger(load)) => {
            let lost = transactions::judge(ledger, stage.seed, load.connections.0.get(), recovered);
            stage.judged(&[OracleName::Ledger, OracleName::Atomicity], lost, id);
            stage.judged(&[OracleName::Log], postgres::server(&recovered.server), id);
            if let Some(amcheck) = &recovered.amcheck {
                stage.judged(&[OracleName::Amcheck], postgres::amcheck(amcheck), id);
            }
            if let Some(checksums) = &recovered.checksums {
                stage.judged(&[OracleName::Checksums], postgres::checksums(checksums), id);
            }
        }
        (Observation::Pages { pages, .. }, Cuttable::PageFsync) => {
            stage.judged(&[OracleName::Ledger], files::pages(ledger, pages), id);
        }
        (Observation::User(seen), Cuttable::Program(program)) => {
            user::judge(stage, program, ledger, seen, id)?;
        }
        (other, _) => bail!("the check answered with something else: {other:?}"),
    }
    if let Some(exited) = fsck {
        let fsck = format!("fsck.{}", stage.case.lower.fs);
        let found = oracle::exit_as(OracleName::Fsck, &fsck, exited);
        stage.judged(&[OracleName::Fsck], found, id);
    }
    Ok(())
}
