//! A server's life: started directly (no `pg_ctl`), ready when its log says
//! so, stopped by a signal.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use plugpull_protocol::Exited;
use plugpull_protocol::workload::{ServerLog, ServerRun};
use postgres::{Client, Config, NoTls};
use rustix::process::Signal;

use super::log::{LogReader, PREFIX};
use crate::process::{Process, Spec};
use crate::workload::Env;

/// The database's superuser, whatever the operating system calls its user.
pub(super) const USER: &str = "postgres";

/// How long a server that is thrown away may take to send its children home
/// before it is killed.
const THROW_AWAY: Duration = Duration::from_secs(5);

/// One of the database's programs, run as its user with a plain environment:
/// no lookup of locale or time zone on the disk under test.
pub(super) fn program(env: &Env, name: &str) -> Spec {
    Spec::new([env.postgres_bin.join(name)])
        .user(env.postgres_uid, env.postgres_gid)
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .env("PGTZ", "UTC")
}

/// What came of starting a server.
pub(super) enum Started {
    /// It accepts connections.
    Ready(Server),
    /// It ended instead.
    Ended(ServerRun),
}

/// A running server. Dropped, it is sent home without a checkpoint: SIGQUIT,
/// so that it ends its children (they have left its process group), then
/// SIGKILL.
pub(super) struct Server {
    process: Process,
    log: Arc<Watched>,
    sockets: PathBuf,
}

#[derive(Default)]
struct Watched {
    log: Mutex<LogReader>,
    changed: Condvar,
}

impl Watched {
    fn lock(&self) -> MutexGuard<'_, LogReader> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    /// Start a server and wait until it accepts connections or has ended.
    ///
    /// # Errors
    /// When it can not be started, or is neither ready nor gone in time.
    pub(super) fn start(
        env: &Env,
        dir: &Path,
        conf: &[String],
        timeout: Duration,
    ) -> anyhow::Result<Started> {
        let sockets = &env.run_dir;
        let mut spec = program(env, "postgres").args([Path::new("-D"), dir]);
        let own = [
            "listen_addresses=".to_owned(),
            format!("unix_socket_directories={}", sockets.display()),
            "unix_socket_permissions=0777".to_owned(),
            "log_destination=stderr".to_owned(),
            "logging_collector=off".to_owned(),
            "log_checkpoints=on".to_owned(),
            "log_min_messages=warning".to_owned(),
            format!("log_line_prefix={PREFIX}"),
            "lc_messages=C".to_owned(),
            "max_connections=40".to_owned(),
        ];
        for setting in own.iter().chain(conf) {
            spec = spec.args(["-c", setting]);
        }
        let log = Arc::new(Watched::default());
        let to = Arc::clone(&log);
        let process = spec
            .stderr_lines(Box::new(move |line| {
                to.lock().line(line);
                to.changed.notify_all();
            }))
            .spawn()?;
        let server = Self {
            process,
            log,
            sockets: sockets.clone(),
        };
        let ready = {
            let log = server.log.lock();
            let undecided = |log: &mut LogReader| !log.ready && !log.ended;
            let waited = server
                .log
                .changed
                .wait_timeout_while(log, timeout, undecided);
            let log = waited.unwrap_or_else(PoisonError::into_inner).0;
            if !log.ready && !log.ended {
                let tail = log.report().tail.join("\n");
                anyhow::bail!(
                    "the server on {} was neither ready nor gone after {} ms; its log ends:\n{tail}",
                    dir.display(),
                    timeout.as_millis()
                );
            }
            log.ready
        };
        if ready {
            return Ok(Started::Ready(server));
        }
        let exited = server.wait(timeout)?;
        Ok(Started::Ended(exited))
    }

    /// A server that must start, because nothing is under test yet.
    ///
    /// # Errors
    /// When it does not; the end of its log is named.
    pub(super) fn must_start(
        env: &Env,
        dir: &Path,
        conf: &[String],
        timeout: Duration,
    ) -> anyhow::Result<Self> {
        match Self::start(env, dir, conf, timeout)? {
            Started::Ready(server) => Ok(server),
            Started::Ended(run) => {
                let tail = run.log.tail.join("\n");
                anyhow::bail!(
                    "the server on {} did not start; its log:\n{tail}",
                    dir.display()
                )
            }
        }
    }

    /// A connection whose statements end after the same time. Numeric and
    /// local: nothing is looked up.
    ///
    /// # Errors
    /// When the server does not take it in time.
    pub(super) fn connect(&self, timeout: Duration) -> anyhow::Result<Client> {
        let connected = Config::new()
            .host_path(&self.sockets)
            .user(USER)
            .dbname("postgres")
            .connect_timeout(timeout)
            .options(&format!("-c statement_timeout={}", timeout.as_millis()))
            .connect(NoTls);
        connected.context("connect to the server")
    }

    /// A client program's arguments to reach this server.
    pub(super) fn client_args(&self) -> Vec<String> {
        let host = self.sockets.display().to_string();
        ["--host", &host, "--username", USER]
            .map(str::to_owned)
            .into()
    }

    /// What its log holds so far.
    pub(super) fn log(&self) -> ServerLog {
        self.log.lock().report()
    }

    /// Wait, at most until the deadline, for the log to say something.
    pub(super) fn wait_log(&self, deadline: Instant, wanted: impl Fn(&ServerLog) -> bool) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let log = self.log.lock();
        let missing = |log: &mut LogReader| !wanted(&log.seen) && !log.ended;
        let waited = self.log.changed.wait_timeout_while(log, left, missing);
        wanted(&waited.unwrap_or_else(PoisonError::into_inner).0.seen)
    }

    /// True once it has ended; waits at most this long for it.
    ///
    /// # Errors
    /// When the kernel cannot say.
    pub(super) fn exits_within(&self, timeout: Duration) -> anyhow::Result<bool> {
        self.process.exits_within(timeout)
    }

    /// Stop it: sessions are ended, a checkpoint is written (SIGINT, "fast").
    ///
    /// # Errors
    /// When it does not end in time.
    pub(super) fn stop(self, timeout: Duration) -> anyhow::Result<ServerRun> {
        if !self.process.exits_within(Duration::ZERO)? {
            self.process.signal(Signal::INT)?;
        }
        self.wait(timeout)
    }

    /// End it without a checkpoint (SIGQUIT, then SIGKILL), from any thread.
    pub(super) fn abort(&self) {
        let _ = self.process.signal(Signal::QUIT);
    }

    fn wait(mut self, timeout: Duration) -> anyhow::Result<ServerRun> {
        let waited = self.process.wait(timeout);
        let Exited { code, .. } = waited.with_context(|| {
            let tail = self.log().tail.join("\n");
            format!("wait for the server's end; its log ends:\n{tail}")
        })?;
        let log = self.log.lock();
        Ok(ServerRun {
            started: log.ready,
            answered: false,
            exit: Some(code),
            log: log.report(),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(false) = self.process.exits_within(Duration::ZERO) {
            self.abort();
            // Its own Drop kills it if this is not enough.
            let _ = self.process.wait(THROW_AWAY);
        }
    }
}
