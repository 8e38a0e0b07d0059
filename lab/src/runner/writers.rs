//! Many concurrent writers, each with files of its own: no foreign byte
//! anywhere, through the mount and again below it.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use plugpull_protocol::{
    Observation, WorkloadRequest,
    workload::{WritersSeen, plan},
};

use super::Stage;
use crate::{
    base::Kind,
    oracle,
    scenario::{Count, OracleName, Writers},
    session::{LOWER, Session},
};

/// 250 writers with twenty files in ten rounds, on an emulated processor.
const WRITE_TIMEOUT: Duration = Duration::from_secs(900);
/// A file of more than two pages, unaligned, at most.
const MAX_BYTES: u32 = 9_000;
const VERIFY_TIMEOUT: Duration = Duration::from_secs(600);

pub(super) fn run(stage: &mut Stage<'_>, writers: &Writers) -> Result<()> {
    let base = stage.base(Kind::Empty)?;
    let mut session = stage.session("writers", base.view()?, false)?;
    session.mount_lower(&stage.case.lower)?;
    let at = session.mount(&stage.case.mount)?;
    let files = plan::Writers {
        writers: writers.writers.get(),
        rounds: writers.rounds.get(),
        files: writers.files_per_round.get(),
        max_bytes: MAX_BYTES,
        seed: stage.seed,
    };
    let start = Instant::now();
    let write = WorkloadRequest::Writers {
        dir: format!("{at}/writers"),
        files,
    };
    let seen = ask(&session, write, WRITE_TIMEOUT)?;
    stage.spent("write", start);
    stage.count(Count::FilesWritten, seen.files);
    stage.judged(
        &[OracleName::Writers],
        oracle::files::foreign_bytes(&files, &seen),
        None,
    );
    if stage.control_is_caught() {
        return Ok(());
    }
    session.unmount()?;
    let start = Instant::now();
    let verify = WorkloadRequest::VerifyWriters {
        dir: format!("{LOWER}/writers"),
        files,
    };
    let seen = ask(&session, verify, VERIFY_TIMEOUT)?;
    stage.spent("verify", start);
    stage.count(Count::FilesVerified, seen.files);
    stage.judged(
        &[OracleName::Writers],
        oracle::files::foreign_bytes(&files, &seen),
        None,
    );
    stage.outcome.warnings = session.guest().warnings();
    session.power_off()?;
    Ok(())
}

fn ask(session: &Session<'_>, request: WorkloadRequest, timeout: Duration) -> Result<WritersSeen> {
    match session.workload(request, timeout)? {
        Observation::Writers(seen) => Ok(seen),
        other => bail!("the guest answered the writers with {other:?}"),
    }
}
