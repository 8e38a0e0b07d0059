//! The guard of a process that outlives the call that started it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{self, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};

use super::RunError;
use super::stream::poll_until;

/// A running process. Killed (with its group, where it has its own) and reaped
/// when dropped.
#[derive(Debug)]
pub struct Child {
    inner: process::Child,
    pidfd: OwnedFd,
    own_group: bool,
    command: String,
    /// How it ended; set means reaped, and its pid may belong to another.
    ended: Option<ExitStatus>,
}

impl Child {
    pub(super) fn new(
        mut inner: process::Child,
        own_group: bool,
        command: String,
    ) -> io::Result<Child> {
        match pidfd_open(Pid::from_child(&inner), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Child {
                inner,
                pidfd,
                own_group,
                command,
                ended: None,
            }),
            Err(errno) => {
                inner.kill()?;
                inner.wait()?;
                Err(errno.into())
            }
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.inner.id()
    }

    /// The command line that started it, quoted for a shell.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// A descriptor that becomes readable when it has ended, for a poll of the
    /// caller's own.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// How it ended, or `None` while it runs.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, RunError> {
        self.wait_until(Instant::now())
    }

    /// Waits for it to end. What is left of its own group is killed then.
    ///
    /// # Errors
    /// [`RunError::Deadline`] when it still runs after `deadline`; it is then
    /// *not* killed, that is the caller's choice.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus, RunError> {
        self.wait_until(Instant::now() + deadline)?
            .ok_or_else(|| RunError::Deadline {
                command: self.command.clone(),
                deadline,
                stderr: Vec::new(),
            })
    }

    /// Asks it to end with a signal such as `TERM`; no error when it has ended.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn signal(&mut self, signal: Signal) -> Result<(), RunError> {
        if self.ended.is_some() {
            return Ok(());
        }
        let pid = Pid::from_child(&self.inner);
        let sent = if self.own_group {
            kill_process_group(pid, signal)
        } else {
            kill_process(pid, signal)
        };
        sent.map_err(|errno| self.follow_error(errno.into()))
    }

    /// Kills it (with its own group) and reaps it; returns how it ended, which
    /// is its own status when it had ended before.
    ///
    /// # Errors
    /// When it cannot be killed or reaped.
    pub fn kill(&mut self) -> Result<ExitStatus, RunError> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        self.signal(Signal::KILL)?;
        self.reap()
    }

    fn wait_until(&mut self, until: Instant) -> Result<Option<ExitStatus>, RunError> {
        if self.ended.is_some() {
            return Ok(self.ended);
        }
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let ready = poll_until(&mut fds, until).map_err(|error| self.follow_error(error))?;
        if !ready {
            return Ok(None);
        }
        if self.own_group {
            // Before reaping: until then the group's id cannot be reused.
            self.signal(Signal::KILL)?;
        }
        self.reap().map(Some)
    }

    fn reap(&mut self) -> Result<ExitStatus, RunError> {
        let status = self
            .inner
            .wait()
            .map_err(|error| self.follow_error(error))?;
        self.ended = Some(status);
        Ok(status)
    }

    fn follow_error(&self, source: io::Error) -> RunError {
        RunError::Follow {
            command: self.command.clone(),
            source,
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!(%error, "a child process may be left behind");
        }
    }
}
