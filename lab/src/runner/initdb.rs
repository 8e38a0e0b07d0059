//! initdb on the mount makes what initdb makes on the lower filesystem: the
//! same files, of the same sizes, with the same ones empty; and what it made
//! starts.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use plugpull_protocol::{Observation, WorkloadRequest};

use super::Stage;
use crate::{
    base::{self, INITDB_TIMEOUT, Kind, PLAIN_CLUSTER, cluster_dir},
    oracle::{
        exit,
        files::{Contents, tree_equal},
        postgres,
    },
    scenario::{Count, OracleName},
    session::{LOWER, Session},
};

const CHECKSUMS_TIMEOUT: Duration = Duration::from_secs(120);
const START_TIMEOUT: Duration = Duration::from_secs(120);

pub(super) fn run(stage: &mut Stage<'_>) -> Result<()> {
    let reference = stage.base(PLAIN_CLUSTER)?.reference_tree()?;
    let empty = stage.base(Kind::Empty)?;
    let mut session = stage.session("initdb", empty.view()?, false)?;
    session.mount_lower(&stage.case.lower)?;
    let at = session.mount(&stage.case.mount)?;

    let start = Instant::now();
    let timeout_ms = session.timeout_ms(INITDB_TIMEOUT);
    let request = WorkloadRequest::PostgresInitdb {
        dir: cluster_dir(at),
        args: base::initdb_args(),
        timeout_ms,
    };
    let Observation::Tool(exited) = session.workload(request, INITDB_TIMEOUT * 2)? else {
        bail!("the guest answered initdb with something else");
    };
    stage.spent("initdb", start);
    stage.judged(&[OracleName::Exit], exit("initdb", &exited), None);
    if !exited.success() {
        return Ok(());
    }

    let through = base::tree(&session, &cluster_dir(at), true)?;
    stage.judged(
        &[OracleName::Tree],
        tree_equal(&reference, &through, Contents::Ignored),
        None,
    );
    checksums(stage, &session, at)?;
    session.unmount()?;
    let below = base::tree(&session, &cluster_dir(LOWER), true)?;
    stage.judged(
        &[OracleName::Tree],
        tree_equal(&reference, &below, Contents::Ignored),
        None,
    );
    // What was read through the mount must be what lies below it, to the byte.
    stage.judged(
        &[OracleName::Tree],
        tree_equal(&below, &through, Contents::Except(&[])),
        None,
    );
    stage.count(Count::FilesVerified, below.len() as u64);
    checksums(stage, &session, LOWER)?;

    let start = Instant::now();
    let at = session.mount(&stage.case.mount)?;
    let timeout_ms = session.timeout_ms(START_TIMEOUT);
    let request = WorkloadRequest::PgFirstStart {
        dir: cluster_dir(at),
        timeout_ms,
    };
    let Observation::FirstStart(run) = session.workload(request, START_TIMEOUT * 3)? else {
        bail!("the guest answered a first start with something else");
    };
    stage.judged(&[OracleName::Log], postgres::server(&run), None);
    session.unmount()?;
    checksums(stage, &session, LOWER)?;
    stage.spent("first start", start);
    stage.outcome.warnings = session.guest().warnings();
    session.power_off()?;
    Ok(())
}

fn checksums(stage: &mut Stage<'_>, session: &Session<'_>, at: &str) -> Result<()> {
    let start = Instant::now();
    let timeout_ms = session.timeout_ms(CHECKSUMS_TIMEOUT);
    let request = WorkloadRequest::PgChecksums {
        dir: cluster_dir(at),
        timeout_ms,
    };
    let Observation::Checksums(checksums) = session.workload(request, CHECKSUMS_TIMEOUT * 2)?
    else {
        bail!("the guest answered pg_checksums with something else");
    };
    stage.judged(
        &[OracleName::Checksums],
        postgres::checksums(&checksums),
        None,
    );
    stage.spent("pg_checksums", start);
    Ok(())
}
