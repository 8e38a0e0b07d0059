//! Runs a program of the user's, and has what it left judged by the user's own
//! check or by the files oracle.
//!
//! What the program does wrong with the rules (an exit code, a bad line, no
//! word at all) is no verdict on its promises: it is said in those words, and
//! is Infra.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use plugpull_disk::{CutTrigger, Recording, View};
use plugpull_protocol::{
    Observation, Promise, Reply, WorkloadRequest,
    workload::user::{Call, Ended, Keys, SocketRules, UserFile, UserRan, UserRequest, UserSeen},
};
use sha2::{Digest, Sha256};

use super::{Stage, cuts::Timeline, power_cut};
use crate::{
    base::Kind,
    oracle::{self, Finding, Ledger, ledger_file, user as judges},
    programs,
    scenario::{Count, Cuts, Cuttable, Judge, OracleName, PowerCut, Program},
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
/// The check of one state.
const CHECK: Duration = Duration::from_secs(60);
/// Looking at a message full of files.
const LOOK: Duration = Duration::from_secs(120);
/// What a run may promise: each promise is a message, and all are kept.
const PROMISES_MAX: u64 = 500_000;
const PROMISES_BYTES_MAX: u64 = 64 << 20;
/// How much of a ledger, and how many bytes of keys, one message carries.
const PART: usize = 256 << 10;

/// Where the check finds the ledger, in memory.
const LEDGER: &str = "/run/plugpull-ledger.jsonl";

/// What is asked of a state beside its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Question {
    /// What every state of the workload is asked.
    Usual,
    /// A check reads this ledger.
    Check(String),
    /// These files are looked at, whatever has been promised by then.
    Files(Vec<String>),
}

impl Question {
    /// A name for it: the ledger of a check may be long, and there are many.
    pub(super) fn digest(&self) -> [u8; 32] {
        match self {
            Self::Check(ledger) => Sha256::digest(ledger).into(),
            // The same for all states of a run.
            Self::Usual | Self::Files(_) => [0; 32],
        }
    }

    /// What is asked of a state of this cut.
    pub(super) fn of(workload: &Cuttable, timeline: &Timeline, cut: u64) -> Self {
        match workload {
            Cuttable::Program(program) => Self::about(program, timeline, cut),
            _ => Self::Usual,
        }
    }

    fn about(program: &Program, timeline: &Timeline, cut: u64) -> Self {
        match program.judge {
            Judge::Check { .. } => Self::Check(ledger_file::json_lines(timeline.records(), cut)),
            Judge::Files { .. } => {
                let keys = timeline.records().filter_map(|(_, promise)| match promise {
                    Promise::Begin { key, .. } | Promise::Served { key, .. } => Some(key),
                    _ => None,
                });
                let keys: BTreeSet<&String> = keys.collect();
                Self::Files(keys.into_iter().cloned().collect())
            }
        }
    }
}

/// Run the program until its power is cut, or it ends, and keep the recording.
pub(super) fn record(
    stage: &mut Stage<'_>,
    program: &Program,
    cut: &PowerCut,
    base: View,
) -> Result<Recording> {
    let mut session = stage.session("load", base, true)?;
    session.mount_lower(&stage.case.lower)?;
    let at = session.mount(&stage.case.mount)?;
    let start = Instant::now();
    if let Cuts::At(at) = &cut.cuts {
        session.disk().arm(power_cut::trigger(at)?)?;
    }
    let pending = session.begin(workload(stage, &session, program, at, FOREVER))?;
    let disk = session.disk().clone();
    let mut moment = Moment::new(stage, &session, &cut.cuts);
    let mut answer = None;
    let deadline = match cut.cuts {
        Cuts::At(_) => NAMED_CUT,
        _ => 2 * (RIPE_AT_MOST + CUT_AT_MOST),
    };
    let mut failed = None;
    session
        .guest()
        .wait_until("the power cut", stage.bed.scale(deadline), || {
            if disk.end().is_some() {
                return true;
            }
            answer = session.guest().answered(pending).transpose();
            if answer.is_some() {
                return true;
            }
            failed = moment.look(&session).err();
            failed.is_some()
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
    Recording::open(&stage.log("load"))
}

/// When the power of a program goes that does not end by itself.
struct Moment {
    seed: u64,
    started: Instant,
    ripe_at_most: Duration,
    cut_at_most: Duration,
    /// Since when it is ripe, and how much had been promised then; never where
    /// the scenario names the cut.
    ripe: Option<(Instant, u64)>,
    named: bool,
}

impl Moment {
    fn new(stage: &Stage<'_>, session: &Session<'_>, cuts: &Cuts) -> Self {
        Self {
            seed: stage.seed,
            started: Instant::now(),
            ripe_at_most: session.scale(RIPE_AT_MOST),
            cut_at_most: session.scale(CUT_AT_MOST),
            ripe: None,
            named: matches!(cuts, Cuts::At(_)),
        }
    }

    /// Once a cut is worth while, have the power go within the next requests;
    /// where these do not come, now.
    fn look(&mut self, session: &Session<'_>) -> Result<()> {
        if self.named {
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
    let request = workload(stage, &session, program, at, TO_ITS_END);
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
    match look(&mut session, stage, program, &question, at)? {
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
    program: &Program,
    at: &str,
    timeout: Duration,
) -> WorkloadRequest {
    let dir = own_dir(at);
    let values = [("dir", dir.as_str()), ("seed", &seed(stage))];
    WorkloadRequest::User(UserRequest::Run {
        program: Call {
            cwd: programs::guest_dir(&stage.case.scenario.name, program),
            argv: program.run.filled(&values),
            timeout_ms: session.timeout_ms(timeout),
        },
        socket: SocketRules {
            keys: match program.judge {
                Judge::Check { .. } => Keys::Text,
                Judge::Files { .. } => Keys::Files,
            },
            promises_max: PROMISES_MAX,
            bytes_max: PROMISES_BYTES_MAX,
        },
        dir,
    })
}

/// `{dir}`: made by the guest, durable before the program starts.
fn own_dir(at: &str) -> String {
    format!("{at}/work")
}

/// `{seed}`: it fits wherever a program may put it, a C `int` included.
fn seed(stage: &Stage<'_>) -> String {
    (stage.seed >> 33).to_string()
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
        Judge::Files { .. } if !spoken => {
            bail!("{}", silent("promised nothing on the promise socket"))
        }
        _ => Ok(()),
    }
}

/// Have the check run, or the files looked at, on what is mounted at `at`.
pub(super) fn look(
    session: &mut Session<'_>,
    stage: &Stage<'_>,
    program: &Program,
    question: &Question,
    at: &str,
) -> Result<Observation> {
    let dir = own_dir(at);
    match (&program.judge, question) {
        (Judge::Check { run, .. }, Question::Check(ledger)) => {
            send_ledger(session, ledger)?;
            let seed = seed(stage);
            let values = [("dir", dir.as_str()), ("ledger", LEDGER), ("seed", &seed)];
            let request = UserRequest::Check {
                program: Call {
                    cwd: programs::guest_dir(&stage.case.scenario.name, program),
                    argv: run.filled(&values),
                    timeout_ms: session.timeout_ms(CHECK),
                },
            };
            session.workload(WorkloadRequest::User(request), CHECK * 2)
        }
        (Judge::Files { .. }, Question::Files(keys)) => {
            let mut files = BTreeMap::new();
            for keys in parts(keys) {
                let request = UserRequest::Files {
                    dir: dir.clone(),
                    keys: keys.to_vec(),
                };
                match session.workload(WorkloadRequest::User(request), LOOK)? {
                    Observation::User(UserSeen::Files { files: some }) => files.extend(some),
                    other => bail!("the guest looked at files and saw {other:?}"),
                }
            }
            ensure!(
                files.len() == keys.len(),
                "the guest looked at {} of {} files",
                files.len(),
                keys.len()
            );
            Ok(Observation::User(UserSeen::Files { files }))
        }
        (_, other) => bail!("a program's state cannot be asked {other:?}"),
    }
}

fn send_ledger(session: &Session<'_>, ledger: &str) -> Result<()> {
    let mut rest = ledger;
    let mut first = true;
    while first || !rest.is_empty() {
        // Whole lines; one is far shorter than a part.
        let end = match rest.get(PART..) {
            None => rest.len(),
            Some(_) => rest.as_bytes()[..PART]
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(rest.len(), |at| at + 1),
        };
        let (text, more) = rest.split_at(end);
        let request = UserRequest::Ledger {
            path: LEDGER.to_owned(),
            text: text.to_owned(),
            first,
        };
        session.workload(WorkloadRequest::User(request), LOOK)?;
        (rest, first) = (more, false);
    }
    Ok(())
}

/// Keys in as many messages as they need.
fn parts(keys: &[String]) -> Vec<&[String]> {
    let mut parts = Vec::new();
    let mut from = 0;
    let mut bytes = 0;
    for (at, key) in keys.iter().enumerate() {
        // The answer has a hash and a size for each key, and may have an error.
        bytes += key.len() + 200;
        if bytes >= PART {
            parts.push(&keys[from..=at]);
            (from, bytes) = (at + 1, 0);
        }
    }
    if from < keys.len() {
        parts.push(&keys[from..]);
    }
    parts
}

/// Judge what was seen of a state.
pub(super) fn judge(
    stage: &mut Stage<'_>,
    program: &Program,
    ledger: &Ledger,
    seen: &UserSeen,
    state: Option<&str>,
) -> Result<()> {
    match (seen, &program.judge) {
        (UserSeen::Checked { ended }, Judge::Check { .. }) => {
            let findings = judges::check(ended).map_err(|why| {
                anyhow::anyhow!(
                    "the check could not be started: {why}; it is run beside the `files` of \
                     `[workload]` and `[check]`"
                )
            })?;
            stage.count(Count::CheckRuns, 1);
            stage.judged(&[OracleName::Check], findings, state);
        }
        (UserSeen::Files { files }, Judge::Files { atomic }) => {
            let found = |key: &str| -> Option<&UserFile> { files.get(key) };
            let findings = judges::files(ledger, *atomic, found);
            stage.count(Count::FilesVerified, judges::promised(ledger));
            stage.judged(&[OracleName::Files], findings, state);
        }
        (other, _) => bail!("the check answered with something else: {other:?}"),
    }
    Ok(())
}

/// Judge a state that could not be mounted, or brought the guest down.
pub(super) fn unusable(
    stage: &mut Stage<'_>,
    program: &Program,
    mut findings: Vec<Finding>,
    ledger: &Ledger,
    state: Option<&str>,
) {
    let mut judges = vec![OracleName::Recovery];
    // A check that never ran has found nothing.
    if let Judge::Files { .. } = program.judge {
        judges.push(OracleName::Files);
        if let acked @ 1.. = ledger.acked() {
            findings.push(Finding {
                oracle: OracleName::Files,
                detail: format!("{acked} acknowledged operations cannot be read at all"),
            });
        }
    }
    stage.judged(&judges, findings, state);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_in_messages_of_bounded_size_and_none_is_lost() {
        let keys: Vec<String> = (0..5000).map(|n| format!("{n:0>100}")).collect();
        let parts = parts(&keys);
        assert!(parts.len() > 1);
        assert_eq!(parts.concat(), keys);
        let longest = parts
            .iter()
            .map(|p| p.iter().map(|k| k.len() + 200).sum::<usize>());
        assert!(longest.max().is_some_and(|bytes| bytes < 2 * PART));
        assert!(super::parts(&[]).is_empty());
    }
}
