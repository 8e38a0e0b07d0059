//! Runs a program of the user's, and has what it left judged by the user's own
//! check or by the files oracle.
//!
//! What the program does wrong with the rules (an exit code, a bad line, no
//! word at all) is no verdict on its promises: it is said in those words, and
//! is Infra.

mod states;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use plugpull_disk::{CutTrigger, Recording, View};
use plugpull_protocol::{
    Observation, Promise, Reply, WorkloadRequest,
    workload::operations::Operations,
    workload::user::{Call, Ended, Keys, SocketRules, UserRan, UserRequest, UserSeen},
};

pub(super) use self::states::{LEDGER, Question, answer, judge, looks, send_ledger, unusable};
use super::{Stage, cuts::Timeline, power_cut};
use crate::{
    base::Kind,
    oracle::{self, Ledger, user as judges},
    programs,
    scenario::{Cuts, Judge, OracleName, PowerCut, Program},
    session::Session,
};

/// Acknowledgements that make a cut worth while, and how long they are waited
/// for: a program that promises little, or nothing, is cut all the same.
const RIPE_ACKS: u64 = 150;
const RIPE_AT_MOST: Duration = Duration::from_secs(30);
/// How many further requests the seed may choose the cut among; and after how
/// many promises, or how long, the power goes although they did not come, as
/// when the program never syncs.
const CUT_WINDOW: u64 = 400;
const CUT_PROMISES: u64 = 1000;
const CUT_AT_MOST: Duration = Duration::from_secs(10);
/// Until the one cut that a scenario names.
const NAMED_CUT: Duration = Duration::from_secs(300);
/// A program whose power is cut may run for ever.
const FOREVER: Duration = Duration::from_secs(24 * 3600);
/// One whose power stays on must come to its end.
const TO_ITS_END: Duration = Duration::from_secs(600);
/// What a run may promise: each promise is a message, and all are kept.
const PROMISES_MAX: u64 = 500_000;
const PROMISES_BYTES_MAX: u64 = 64 << 20;
/// Run the program until its power is cut, or it ends, and keep the recording.
pub(super) fn record(
    stage: &mut Stage<'_>,
    (name, operations): (&str, &Operations),
    program: &Program,
    cut: &PowerCut,
    base: View,
) -> Result<Recording> {
    let mut session = stage.session(name, base, true)?;
    session.mount_lower(&stage.case.lower)?;
    let at = session.mount(&stage.case.mount)?;
    session.watch_syncs()?;
    let start = Instant::now();
    if let Cuts::At(at) = &cut.cuts {
        session.disk().arm(power_cut::trigger(at)?)?;
    }
    let request = workload(stage, &session, (program, operations), at, FOREVER);
    let pending = session.begin(request)?;
    let disk = session.disk().clone();
    let mut moment = Moment::new(stage, &session, program, &cut.cuts);
    let mut answer = None;
    let deadline = match cut.cuts {
        Cuts::At(_) => NAMED_CUT,
        _ if program.is_built_in() => TO_ITS_END,
        _ => 2 * (RIPE_AT_MOST + CUT_AT_MOST),
    };
    let mut failed = None;
    session
        .guest()
        .wait_until(
            "the power cut",
            stage.bed.scale(deadline) + cut.cuts.named_time(),
            || {
                if disk.end().is_some() {
                    return true;
                }
                answer = session.guest().answered(pending).transpose();
                if answer.is_some() {
                    return true;
                }
                failed = moment.look(&session).err();
                failed.is_some()
            },
        )
        .context(match cut.cuts {
            Cuts::At(_) => "wait for the power cut that `cut` names; name an earlier one",
            _ => "run the workload until its power is cut",
        })?;
    if let Some(error) = failed {
        return Err(error);
    }
    stage.spent("load", start);
    stage.outcome.warnings = session.guest().warnings();
    if let Some(answer) = answer {
        well_ended(program, &ran(answer?)?)?;
        ensure!(
            !matches!(cut.cuts, Cuts::At(_)),
            "the workload ended by itself before the power cut that `cut` names; name an earlier \
             one, or let the workload run on"
        );
        disk.cut_now()?;
    }
    session.pull_the_plug()?;
    Recording::open(&stage.log(name))
}

/// When the power of a program goes that does not end by itself.
struct Moment {
    seed: u64,
    started: Instant,
    ripe_at_most: Duration,
    cut_at_most: Duration,
    /// Since when it is ripe, and how much had been promised then; never where
    /// the scenario names the cut, or the program has its own end.
    ripe: Option<(Instant, u64)>,
    never: bool,
}

impl Moment {
    fn new(stage: &Stage<'_>, session: &Session<'_>, program: &Program, cuts: &Cuts) -> Self {
        Self {
            seed: stage.seed,
            started: Instant::now(),
            ripe_at_most: session.scale(RIPE_AT_MOST),
            cut_at_most: session.scale(CUT_AT_MOST),
            ripe: None,
            never: program.is_built_in() || matches!(cuts, Cuts::At(_)),
        }
    }

    /// Once a cut is worth while, have the power go within the next requests;
    /// where these do not come, now.
    fn look(&mut self, session: &Session<'_>) -> Result<()> {
        if self.never {
            return Ok(());
        }
        let (progress, disk) = (session.progress(), session.disk());
        match self.ripe {
            None if progress.acks() >= RIPE_ACKS || self.started.elapsed() >= self.ripe_at_most => {
                let further = 1 + fastrand::Rng::with_seed(self.seed).u64(0..CUT_WINDOW);
                let now = disk.counts().recorded_requests();
                disk.arm(CutTrigger::Request(now + further))?;
                self.ripe = Some((Instant::now(), progress.promises()));
            }
            Some((since, promises))
                if progress.promises() - promises >= CUT_PROMISES
                    || since.elapsed() >= self.cut_at_most =>
            {
                // A request may have cut it meanwhile, which is as good.
                drop(disk.cut_now());
            }
            _ => {}
        }
        Ok(())
    }
}

/// Run the program to its end with the power on, and judge what is there after
/// a clean unmount.
pub(super) fn run_to_its_end(stage: &mut Stage<'_>, program: &Program) -> Result<()> {
    let base = stage.base(Kind::Empty)?.view()?;
    let mut session = stage.session("load", base, true)?;
    session.mount_lower(&stage.case.lower)?;
    let at = session.mount(&stage.case.mount)?;
    let start = Instant::now();
    let all = program.all_operations();
    let request = workload(stage, &session, (program, &all), at, TO_ITS_END);
    let Observation::User(UserSeen::Ran(ran)) = session.workload(request, TO_ITS_END * 2)? else {
        bail!("the guest answered a program with something else");
    };
    stage.spent("load", start);
    stage.outcome.warnings = session.guest().warnings();
    let disk = session.power_off()?;
    let view = disk.view();
    let recording = disk.finish()?;
    if let Ended::Exited(exited) = &ran.ended
        && ran.refused.is_none()
    {
        let findings = oracle::exit("the workload", exited);
        let well = findings.is_empty();
        stage.judged(&[OracleName::Exit], findings, None);
        if !well {
            return Ok(());
        }
    }
    well_ended(program, &ran)?;
    let timeline = Timeline::of(&recording);
    power_cut::count_timeline(stage, &timeline);
    let end = recording.last_seq().0;
    let ledger = Ledger::at(timeline.records(), end)?;
    has_spoken(program, &timeline)?;
    let mut session = stage.session("check", view, false)?;
    session.mount_lower(&stage.case.lower)?;
    let at = session.mount(&stage.case.mount)?;
    let start = Instant::now();
    let question = Question::about(program, &timeline, end);
    let mut seen = Vec::new();
    for (request, timeout) in looks(&session, stage, program, &question, at)? {
        seen.push(session.workload(request, timeout)?);
    }
    match answer(&question, seen)? {
        Observation::User(seen) => judge(stage, program, &ledger, &seen, None)?,
        other => bail!("the guest answered a check with something else: {other:?}"),
    }
    stage.spent("check", start);
    session.power_off()?;
    Ok(())
}

fn workload(
    stage: &Stage<'_>,
    session: &Session<'_>,
    (program, operations): (&Program, &Operations),
    at: &str,
    timeout: Duration,
) -> WorkloadRequest {
    let dir = own_dir(at);
    let values = [
        ("dir", dir.as_str()),
        ("seed", &seed(stage)),
        ("operations", &operations.to_string()),
    ];
    WorkloadRequest::User(UserRequest::Run {
        program: Call {
            cwd: programs::guest_dir(&stage.case.scenario.name, program),
            argv: program.run.filled(&values),
            timeout_ms: session.timeout_ms(timeout),
        },
        socket: SocketRules {
            keys: match program.judge {
                Judge::Check { .. } | Judge::Store(_) => Keys::Text,
                Judge::Files { .. } => Keys::Files,
            },
            promises_max: PROMISES_MAX,
            bytes_max: PROMISES_BYTES_MAX,
        },
        dir,
    })
}

/// `{dir}`: made by the guest, durable before the program starts.
pub(super) fn own_dir(at: &str) -> String {
    format!("{at}/work")
}

/// `{seed}`: it fits wherever a program may put it, a C `int` included.
fn seed(stage: &Stage<'_>) -> String {
    seed_number(stage).to_string()
}

fn seed_number(stage: &Stage<'_>) -> u64 {
    stage.seed >> 33
}

fn ran(reply: Reply) -> Result<UserRan> {
    match reply {
        Reply::Observed(Observation::User(UserSeen::Ran(ran))) => Ok(*ran),
        other => bail!("the guest answered a program with something else: {other:?}"),
    }
}

/// A workload that kept to the rules; whether it kept its promises is another
/// question.
fn well_ended(program: &Program, ran: &UserRan) -> Result<()> {
    let said = |exited: &plugpull_protocol::Exited| {
        judges::end_of(&format!("{}{}", exited.stdout, exited.stderr))
    };
    if let Some(why) = &ran.refused {
        let output = match &ran.ended {
            Ended::Exited(exited) => said(exited),
            Ended::Hung { said, .. } => judges::end_of(said),
            Ended::NotStarted { why } => why.clone(),
        };
        bail!("the promise socket refused the workload: {why}; the workload said: {output}");
    }
    match &ran.ended {
        Ended::Exited(exited) if exited.success() => {}
        Ended::Exited(exited) => bail!(
            "the workload ended with {} before its power was cut, so there is nothing to judge; \
             its output: {}",
            exited.code,
            said(exited)
        ),
        Ended::Hung { after_ms, said } => bail!(
            "the workload did not end within {after_ms} ms; its output: {}",
            judges::end_of(said)
        ),
        Ended::NotStarted { why } => bail!(
            "the workload could not be started: {why}; it is run in the guest beside its `files`, \
             so `run` begins with `./NAME` of one of them or a program of the image, and a \
             binary is for x86-64 Linux, static or with libraries that the image has"
        ),
    }
    if ran.connections == 0 && matches!(program.judge, Judge::Files { .. }) {
        bail!("{}", silent("never connected to the promise socket"));
    }
    Ok(())
}

fn silent(how: &str) -> String {
    format!(
        "the workload {how}, whose path is in the environment as PLUGPULL, so the files oracle \
         has no promise to judge; use a client of `clients/`, or bring a `[check]`"
    )
}

/// The files oracle judges promises and nothing else.
pub(super) fn has_spoken(program: &Program, timeline: &Timeline) -> Result<()> {
    let promise = |said: &Promise| matches!(said, Promise::Begin { .. } | Promise::Served { .. });
    let spoken = timeline.records().any(|(_, said)| promise(said));
    match program.judge {
        Judge::Files { .. } | Judge::Store(_) if !spoken => {
            bail!("{}", silent("promised nothing on the promise socket"))
        }
        _ => Ok(()),
    }
}
