//! A program of the guest's distribution works on the mount. What it left is
//! looked at through the mount, and again below it.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use plugpull_protocol::{
    Observation, WorkloadRequest,
    workload::{self, Act, ProgramRun},
};

use super::Stage;
use crate::{
    base::Kind,
    oracle::distribution::as_planned,
    scenario::{Count, DistributionProgram},
    session::{LOWER, Session},
};

/// Where the program works, below a mount.
const DIR: &str = "work";
/// What a program is given for its start on an emulated processor,
const FIXED: Duration = Duration::from_secs(180);
/// for each file that it makes or reads; by tar each is made, packed and unpacked,
const PER_FILE: Duration = Duration::from_millis(50);
/// and for each transaction that it commits, one writer after the other.
const PER_TRANSACTION: Duration = Duration::from_millis(200);
/// An act is several programs, and looks of the agent's own.
const PROGRAMS: u32 = 4;

pub(super) fn run(stage: &mut Stage<'_>, story: &DistributionProgram) -> Result<()> {
    let base = stage.base(Kind::Empty)?;
    let mut session = stage.session("work", base.view()?, false)?;
    session.mount_lower(&stage.case.lower)?;
    let at = session.mount(&stage.case.mount)?;
    let program = story.seeded(stage.seed);
    for act in [Act::Run, Act::Check] {
        let run = act_in(stage, &session, at, program, act)?;
        judge(stage, story, &run);
        // What failed to be made is not looked at, and a control that is
        // caught needs no second look.
        if !stage.outcome.failures.is_empty() {
            return Ok(());
        }
    }
    session.unmount()?;
    if story.damage {
        act_in(stage, &session, LOWER, program, Act::Damage)?;
        stage.count(Count::FaultsFired, 1);
    }
    let run = act_in(stage, &session, LOWER, program, Act::Check)?;
    judge(stage, story, &run);
    stage.outcome.warnings = session.guest().warnings();
    session.power_off()?;
    Ok(())
}

fn judge(stage: &mut Stage<'_>, story: &DistributionProgram, run: &ProgramRun) {
    stage.count(Count::FilesVerified, run.files);
    stage.count(Count::RowsVerified, run.rows);
    stage.count(Count::Commits, run.commits);
    let oracle = story.oracle();
    stage.judged(&[oracle], as_planned(oracle, run), None);
}

fn act_in(
    stage: &mut Stage<'_>,
    session: &Session<'_>,
    at: &str,
    program: workload::Program,
    act: Act,
) -> Result<ProgramRun> {
    let start = Instant::now();
    let timeout = timeout(&program);
    let request = WorkloadRequest::Program {
        dir: format!("{at}/{DIR}"),
        program,
        act,
        timeout_ms: session.timeout_ms(timeout),
    };
    let Observation::Program(run) = session.workload(request, timeout * PROGRAMS)? else {
        bail!("the guest answered a program with something else");
    };
    let phase = match (act, at) {
        (Act::Run, _) => "run",
        (Act::Damage, _) => "damage",
        (Act::Check, LOWER) => "check below the mount",
        (Act::Check, _) => "check",
    };
    stage.spent(phase, start);
    Ok(*run)
}

fn timeout(program: &workload::Program) -> Duration {
    match program {
        workload::Program::GitClone(of) => FIXED + PER_FILE * of.files,
        workload::Program::TarRoundTrip(of) => FIXED + PER_FILE * of.files.saturating_mul(3),
        workload::Program::Sqlite(of) => {
            FIXED + PER_TRANSACTION * of.writers.saturating_mul(of.transactions)
        }
    }
}
