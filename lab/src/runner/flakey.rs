//! Writes below the lower filesystem turn into errors for a while, by the
//! guest's own dm-flakey. The server must stop rather than lie; on the healed
//! device it must have every acknowledged transaction.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use plugpull_protocol::{
    Device, Observation, Reply, Request, WorkloadRequest, workload::LEDGER_CONF,
};

use super::{Stage, cuts::Timeline};
use crate::{
    base::{Kind, cluster_dir},
    oracle::{Ledger, exit_as, postgres, transactions},
    scenario::{Connections, Count, OracleName},
    session::{DATA, Session},
};

const NAME: &str = "flakey";
/// All of the disk, as it is.
const HEALTHY: &str = "0 {sectors} linear {device} 0";
/// Down for ever: every write ends with an error, reads are served
/// (Documentation/admin-guide/device-mapper/dm-flakey.rst).
const ERRORS: &str = "0 {sectors} flakey {device} 0 0 3600 1 error_writes";
/// Acknowledgements before the device breaks.
const ACKS_BEFORE: u64 = 60;
const ACKS_TIMEOUT: Duration = Duration::from_secs(180);
/// How long a server may go on after its writes began to fail: a checkpoint or
/// a commit finds out within seconds.
const STOP_TIMEOUT: Duration = Duration::from_secs(180);
const DM_TIMEOUT: Duration = Duration::from_secs(60);
const SERVER_TIMEOUT: Duration = Duration::from_secs(90);

pub(super) fn run(stage: &mut Stage<'_>, connections: Connections) -> Result<()> {
    let connections = connections.0.get();
    let base = stage.base(Kind::Cluster { connections })?;
    let mut session = stage.session("flakey", base.view()?, true)?;
    let below = Device::Serial(DATA.to_owned());
    let mapper = Device::Mapper(NAME.to_owned());
    let table = |table: &str| Request::DmTable {
        name: NAME.to_owned(),
        table: table.to_owned(),
        device: below.clone(),
    };
    session.ask(table(HEALTHY), DM_TIMEOUT)?;
    session.use_device(mapper.clone());
    session.mount_lower(&stage.case.lower)?;
    let at = session.mount(&stage.case.mount)?;

    let start = Instant::now();
    let load = session.begin(WorkloadRequest::PostgresLedger {
        dir: cluster_dir(at),
        connections,
        seed: stage.seed,
        conf: LEDGER_CONF.iter().map(|line| (*line).to_owned()).collect(),
        transactions: u64::from(u32::MAX),
        load_ms: session.timeout_ms(ACKS_TIMEOUT + STOP_TIMEOUT),
        checkpoint_every_ms: 1_000,
        reader_every_ms: 100,
        timeout_ms: session.timeout_ms(SERVER_TIMEOUT),
    })?;
    let progress = session.progress();
    session.guest().wait_until(
        "acknowledgements of the load",
        session.scale(ACKS_TIMEOUT),
        || progress.acks() >= ACKS_BEFORE,
    )?;
    session.ask(Request::CountErrors { device: mapper }, DM_TIMEOUT)?;
    session.ask(table(ERRORS), DM_TIMEOUT)?;
    let Observation::Ledger(run) =
        session.finish(load, ACKS_TIMEOUT + STOP_TIMEOUT + SERVER_TIMEOUT * 2)?
    else {
        bail!("the guest answered the load with something else");
    };
    let Reply::Errors { count } = session
        .guest()
        .request(Request::CountedErrors, DM_TIMEOUT)?
    else {
        bail!("the guest answered a count of errors with something else");
    };
    stage.count(Count::FaultsFired, count);
    stage.spent("load", start);
    stage.judged(&[OracleName::Stopped], postgres::stopped(&run), None);

    let start = Instant::now();
    session.ask(table(HEALTHY), DM_TIMEOUT)?;
    session.unmount_all()?;
    replay(&mut session, stage)?;
    fsck(stage, &session)?;
    session.mount_lower(&stage.case.lower)?;
    let at = session.mount(&stage.case.mount)?;
    let timeout_ms = session.timeout_ms(SERVER_TIMEOUT);
    let request = WorkloadRequest::PostgresRecover {
        dir: cluster_dir(at),
        seed: stage.seed,
        full: true,
        conf: LEDGER_CONF.iter().map(|line| (*line).to_owned()).collect(),
        timeout_ms,
    };
    let Observation::Recover(recovered) = session.workload(request, SERVER_TIMEOUT * 5)? else {
        bail!("the guest answered a recovery with something else");
    };
    stage.spent("recover", start);
    stage.outcome.warnings = session.guest().warnings();
    session.unmount_all()?;
    session.ask(
        Request::DmRemove {
            name: NAME.to_owned(),
        },
        DM_TIMEOUT,
    )?;
    let recording = session.pull_the_plug()?.finish()?;
    let timeline = Timeline::of(&recording);
    super::power_cut::count_timeline(stage, &timeline);
    let ledger = Ledger::at(timeline.records(), recording.last_seq().0)?;
    let lost = transactions::judge(&ledger, stage.seed, connections, &recovered);
    stage.judged(&[OracleName::Ledger, OracleName::Atomicity], lost, None);
    stage.judged(
        &[OracleName::Log],
        postgres::server(&recovered.server),
        None,
    );
    Ok(())
}

/// Mount and unmount once, so that the filesystem's own journal is replayed
/// before a checker that only reads looks at it.
fn replay(session: &mut Session<'_>, stage: &Stage<'_>) -> Result<()> {
    session.mount_lower(&stage.case.lower)?;
    session.unmount_all()?;
    Ok(())
}

/// Check the lower filesystem with its own tool, read-only.
fn fsck(stage: &mut Stage<'_>, session: &Session<'_>) -> Result<()> {
    let exited = session.fsck(&stage.case.lower)?;
    stage.judged(
        &[OracleName::Recovery],
        exit_as(OracleName::Recovery, "fsck", &exited),
        None,
    );
    Ok(())
}
