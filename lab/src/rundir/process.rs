//! A process that cannot be mistaken for a later one with the same number.

use std::{fs, io, os::fd::OwnedFd, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};

/// A process: its number, when it started, and in which boot of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pid: u32,
    /// Field 22 of `/proc/PID/stat` (`proc_pid_stat(5)`), in clock ticks since
    /// boot.
    start_ticks: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    boot: String,
}

/// What became of a process that was to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// It was gone already, or its number belongs to another process.
    Before,
    /// It was killed.
    Killed,
}

impl ProcessId {
    /// A process that is running now.
    ///
    /// # Errors
    /// When there is none with this number.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self {
            pid,
            start_ticks: start_ticks(pid)?,
            boot: boot()?,
        })
    }

    /// This process.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub fn current() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it still runs. A zombie does not.
    pub fn is_alive(&self) -> bool {
        boot().is_ok_and(|boot| boot == self.boot)
            && start_ticks(self.pid).is_ok_and(|ticks| ticks == self.start_ticks)
    }

    /// Kill it and wait for its end.
    ///
    /// # Errors
    /// When it may not be signalled, or does not end in time.
    pub(super) fn kill(&self, timeout: Duration) -> io::Result<Ended> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other(format!("{} is no process", self.pid)))?;
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(Ended::Before),
            Err(error) => return Err(error.into()),
        };
        // The handle names one process for good. Asked after it was opened,
        // the start time says whether that is ours.
        if !self.is_alive() {
            return Ok(Ended::Before);
        }
        match pidfd_send_signal(&handle, Signal::KILL) {
            Ok(()) => {}
            Err(rustix::io::Errno::SRCH) => return Ok(Ended::Before),
            Err(error) => return Err(error.into()),
        }
        wait(&handle, timeout, self.pid)?;
        Ok(Ended::Killed)
    }
}

fn wait(handle: &OwnedFd, timeout: Duration, pid: u32) -> io::Result<()> {
    let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
    // A pidfd is readable once its process has ended (pidfd_open(2)).
    let mut fds = [PollFd::new(handle, PollFlags::IN)];
    match poll(&mut fds, Some(&timeout))? {
        0 => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("process {pid} did not end after SIGKILL"),
        )),
        _ => Ok(()),
    }
}

fn boot() -> io::Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(boot.trim().to_owned())
}

fn start_ticks(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&stat).ok_or_else(|| io::Error::other(format!("process {pid} has ended")))
}

/// The start time; `None` for a zombie. The name stands in parentheses and may
/// hold any byte, so fields are counted from the last of them.
fn parse_stat(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    // The state is field 3, so 22 is 18 fields after the one behind it.
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "these tests need children that are killed on purpose"
)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn child() -> Child {
        // It lives until its input ends, so a failing test leaves nothing.
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        command.spawn().expect("spawned")
    }

    #[test]
    fn names_with_parentheses_do_not_move_the_fields() {
        let fields: Vec<_> = (4..30).map(|n| n.to_string()).collect();
        let stat = |state| format!("7 (a) b) ({state} {}", fields.join(" "));
        assert_eq!(parse_stat(&stat(") S")), Some(22));
        assert_eq!(parse_stat(&stat(") Z")), None);
        assert_eq!(parse_stat("7 (x) S 4"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn a_child_is_killed_once() {
        let mut child = child();
        let id = ProcessId::of(child.id()).expect("alive");
        assert!(id.is_alive());
        assert_eq!(id.kill(SOON).expect("killed"), Ended::Killed);
        assert!(!id.is_alive(), "a zombie is not alive");
        assert_eq!(id.kill(SOON).expect("gone"), Ended::Before);
        assert!(!child.wait().expect("reaped").success());
        assert_eq!(id.kill(SOON).expect("gone"), Ended::Before);
    }

    #[test]
    fn a_recycled_number_is_never_killed() {
        let mut child = child();
        let id = ProcessId::of(child.id()).expect("alive");
        let earlier = ProcessId {
            start_ticks: id.start_ticks - 1,
            ..id.clone()
        };
        let other_boot = ProcessId {
            boot: "another".into(),
            ..id.clone()
        };
        for other in [earlier, other_boot] {
            assert_eq!(other.kill(SOON).expect("not ours"), Ended::Before);
            assert!(child.try_wait().expect("asked").is_none(), "still running");
        }
        assert_eq!(id.kill(SOON).expect("killed"), Ended::Killed);
        child.wait().expect("reaped");
    }
}
