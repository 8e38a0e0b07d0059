//! initdb on the mount makes what initdb makes on the lower filesystem: the
//! same files, of the same sizes, with the same ones empty; and what it made
//! starts.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use plugpull_protocol::{Observation, WorkloadRequest};

use super::Stage;
use crate::{
    base::{self, INITDB_TIMEOUT, Kind, cluster_dir},
    oracle,
    scenario::{Count, OracleName},
    session::{LOWER, Session},
};

const CHECKSUMS_TIMEOUT: Duration = Duration::from_secs(120);
const START_TIMEOUT: Duration = Duration::from_secs(120);

pub(super) fn run(stage: &mut Stage<'_>) -> Result<()> {
    let reference = stage.base(Kind::Cluster)?.reference_tree()?;
    let empty = stage.base(Kind::Empty)?;
    let mut session = stage.session("initdb", empty.view()?, false)?;
    session.mount_lower(&stage.case.lower)?;
    let at = session.mount(&stage.case.mount)?;

    let start = Instant::now();
    let timeout_ms = session.timeout_ms(INITDB_TIMEOUT);
    let request = WorkloadRequest::PostgresInitdb { dir: cluster_dir(at), args: base::initdb_args(), timeout_ms };
    let Observation::Tool(exited) = session.workload(request, INITDB_TIMEOUT * 2)? else {
        bail!("the guest answered initdb with something else");
    };
    stage.spent("initdb", start);
    stage.judged(OracleName::Exit, oracle::exit("initdb", &exited), None);
    if !exited.success() {
        return Ok(());
    }

    let through = base::tree(&session, &cluster_dir(at), true)?;
    stage.judged(OracleName::Tree, oracle::same_tree(&reference, &through, "through the mount"), None);
    checksums(stage, &session, at, "through the mount")?;
    session.unmount()?;
    let below = base::tree(&session, &cluster_dir(LOWER), true)?;
    stage.judged(OracleName::Tree, oracle::same_tree(&reference, &below, "in the lower directory"), None);
    // What was read through the mount must be what lies below it, to the byte.
    stage.judged(OracleName::Tree, oracle::same_contents(&below, &through), None);
    stage.count(Count::FilesVerified, below.len() as u64);
    checksums(stage, &session, LOWER, "in the lower directory")?;

    let start = Instant::now();
    let at = session.mount(&stage.case.mount)?;
    let timeout_ms = session.timeout_ms(START_TIMEOUT);
    let request = WorkloadRequest::PgFirstStart { dir: cluster_dir(at), timeout_ms };
    let Observation::FirstStart(run) = session.workload(request, START_TIMEOUT * 3)? else {
        bail!("the guest answered a first start with something else");
    };
    stage.judged(OracleName::Log, oracle::server_run("the first start", &run), None);
    session.unmount()?;
    checksums(stage, &session, LOWER, "in the lower directory after the first start")?;
    stage.spent("first start", start);
    stage.outcome.warnings = session.guest().warnings();
    session.power_off()?;
    Ok(())
}

fn checksums(stage: &mut Stage<'_>, session: &Session<'_>, at: &str, place: &str) -> Result<()> {
    let start = Instant::now();
    let timeout_ms = session.timeout_ms(CHECKSUMS_TIMEOUT);
    let request = WorkloadRequest::PgChecksums { dir: cluster_dir(at), timeout_ms };
    let Observation::Checksums(checksums) = session.workload(request, CHECKSUMS_TIMEOUT * 2)? else {
        bail!("the guest answered pg_checksums with something else");
    };
    stage.judged(OracleName::Checksums, oracle::checksums(&checksums, place), None);
    stage.spent("pg_checksums", start);
    Ok(())
}
