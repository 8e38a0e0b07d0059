//! A table is loaded with concurrent updates, vacuumed and asked questions with
//! known answers, before and after a clean restart.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use plugpull_protocol::{Observation, WorkloadRequest, workload::plan};

use super::Stage;
use crate::{
    base::{PLAIN_CLUSTER, cluster_dir},
    oracle::postgres,
    scenario::{Count, Load, OracleName},
};

/// 15,000 commits one by one take minutes on an emulated processor.
const TIMEOUT: Duration = Duration::from_secs(1500);

pub(super) fn run(stage: &mut Stage<'_>, load: &Load) -> Result<()> {
    let base = stage.base(PLAIN_CLUSTER)?;
    let mut session = stage.session("load", base.view()?, false)?;
    session.mount_lower(&stage.case.lower)?;
    let at = session.mount(&stage.case.mount)?;
    let wanted = plan::Load {
        rows: load.rows.get(),
        connections: load.connections.0.get(),
        seed: stage.seed,
    };
    let start = Instant::now();
    let request = WorkloadRequest::PostgresLoad {
        dir: cluster_dir(at),
        load: wanted,
        batch: Some(load.rows_per_commit.get()),
        conf: Vec::new(),
        timeout_ms: session.timeout_ms(TIMEOUT),
    };
    let Observation::Load(run) = session.workload(request, TIMEOUT * 2)? else {
        bail!("the guest answered a load with something else");
    };
    stage.spent("load", start);
    stage.count(Count::Rows, wanted.rows.into());
    stage.count(Count::Updates, wanted.updates().into());
    stage.judged(
        &[OracleName::Answers],
        postgres::known_answers(&wanted, &run),
        None,
    );
    if let Some(amcheck) = &run.amcheck {
        stage.judged(&[OracleName::Amcheck], postgres::amcheck(amcheck), None);
    }
    for server in std::iter::once(&run.first).chain(&run.second) {
        stage.judged(&[OracleName::Log], postgres::server(server), None);
    }
    stage.outcome.warnings = session.guest().warnings();
    session.power_off()?;
    Ok(())
}
