//! The built-in workloads and checkers: they act and observe, and leave the
//! judging to the oracles on the host.
//!
//! An error from here means that the workload could not be carried out (a
//! missing program, a deadline). What the system under test did wrong is part
//! of the observation instead.

mod page;
mod postgres;
mod programs;
mod tree;
mod user;
mod writers;

use std::path::{Path, PathBuf};
use std::time::Duration;

use plugpull_protocol::{Observation, Promise, WorkloadRequest};

pub(crate) use postgres::Sound;

/// Where promises go.
pub(crate) trait Promises: Sync {
    /// Have a promise recorded; returns when it has its place in the log.
    ///
    /// # Errors
    /// When the host is gone.
    fn record(&self, event: Promise) -> anyhow::Result<()>;
}

/// What workloads need of the guest they run in.
pub(crate) struct Env<'a> {
    /// Where promises go.
    pub(crate) promises: &'a dyn Promises,
    /// The directory of PostgreSQL's programs.
    pub(crate) postgres_bin: PathBuf,
    /// The user that the database runs as.
    pub(crate) postgres_uid: u32,
    /// And its group.
    pub(crate) postgres_gid: u32,
    /// A directory in memory, for sockets.
    pub(crate) run_dir: PathBuf,
    /// What PostgreSQL's tables were found to be.
    pub(crate) sound: &'a Sound,
}

/// Carry out a workload or checker.
///
/// # Errors
/// When it could not be carried out.
pub(crate) fn run(request: WorkloadRequest, env: &Env) -> anyhow::Result<Observation> {
    match request {
        WorkloadRequest::Tree {
            dir,
            after,
            contents,
        } => tree::list(Path::new(&dir), after.as_deref(), contents),
        WorkloadRequest::Writers { dir, files } => writers::write(Path::new(&dir), files),
        WorkloadRequest::VerifyWriters { dir, files } => writers::verify(Path::new(&dir), files),
        WorkloadRequest::PageFsync {
            dir,
            writes,
            pages,
            seed,
        } => page::write(Path::new(&dir), writes, pages, seed, env.promises),
        WorkloadRequest::PageCheck {
            dir,
            writes,
            pages,
            seed,
        } => page::check(Path::new(&dir), writes, pages, seed),
        WorkloadRequest::Program {
            dir,
            program,
            act,
            timeout_ms,
        } => {
            let timeout = Duration::from_millis(timeout_ms);
            programs::run(Path::new(&dir), program, act, timeout, &env.run_dir)
        }
        WorkloadRequest::User(request) => {
            user::run(request, env.promises, &env.run_dir).map(Observation::User)
        }
        of_postgres => postgres::run(of_postgres, env),
    }
}
