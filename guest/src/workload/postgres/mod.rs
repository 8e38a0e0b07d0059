//! Workloads on a real PostgreSQL server, started and stopped here.

mod check;
mod checksums;
mod files;
mod initdb;
mod ledger;
mod load;
mod log;
mod recover;
mod server;
mod sound;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::Duration;

use plugpull_protocol::{Observation, WorkloadRequest};

pub(crate) use sound::Sound;

use super::Env;

/// Carry out a request that concerns PostgreSQL.
pub(super) fn run(request: WorkloadRequest, env: &Env) -> anyhow::Result<Observation> {
    match request {
        WorkloadRequest::PostgresInitdb {
            dir,
            args,
            timeout_ms,
        } => initdb::initdb(env, Path::new(&dir), &args, ms(timeout_ms)).map(Observation::Tool),
        WorkloadRequest::PgChecksums { dir, timeout_ms } => {
            let seen = checksums::whole(env, Path::new(&dir), ms(timeout_ms))?;
            Ok(Observation::Checksums(Box::new(seen)))
        }
        WorkloadRequest::PgFirstStart { dir, timeout_ms } => {
            let seen = initdb::first_start(env, Path::new(&dir), ms(timeout_ms))?;
            Ok(Observation::FirstStart(Box::new(seen)))
        }
        WorkloadRequest::PostgresLoad {
            dir,
            load,
            batch,
            conf,
            timeout_ms,
        } => {
            let batch = batch.unwrap_or(1);
            let seen = load::run(env, Path::new(&dir), load, batch, &conf, ms(timeout_ms))?;
            Ok(Observation::Load(Box::new(seen)))
        }
        WorkloadRequest::PostgresLedgerPrepare {
            dir,
            connections,
            timeout_ms,
        } => {
            ledger::prepare(env, Path::new(&dir), connections, ms(timeout_ms))?;
            Ok(Observation::Prepared)
        }
        WorkloadRequest::PostgresLedger {
            dir,
            connections,
            seed,
            conf,
            transactions,
            load_ms,
            checkpoint_every_ms,
            reader_every_ms,
            timeout_ms,
        } => {
            let plan = ledger::Plan {
                connections,
                seed,
                transactions,
                load: ms(load_ms),
                checkpoint_every: ms(checkpoint_every_ms),
                reader_every: ms(reader_every_ms),
                timeout: ms(timeout_ms),
            };
            let seen = ledger::run(env, Path::new(&dir), &conf, &plan)?;
            Ok(Observation::Ledger(Box::new(seen)))
        }
        WorkloadRequest::PostgresRecover {
            dir,
            seed,
            full,
            conf,
            timeout_ms,
        } => {
            let timeout = ms(timeout_ms);
            let seen = recover::run(env, Path::new(&dir), seed, full, &conf, timeout)?;
            Ok(Observation::Recover(Box::new(seen)))
        }
        other => anyhow::bail!("{other:?} is not a workload on PostgreSQL"),
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
