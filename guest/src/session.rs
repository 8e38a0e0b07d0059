//! Ends every process of a session, and waits until they have ended.
//!
//! A shell that is hung up passes the signal on to its jobs and is gone before
//! they are; one of them may still have its working directory on the mount that
//! is taken down next. Only a process that has ended keeps nothing busy.
//!
//! A process that has made itself the leader of another session (setsid(2), as
//! daemons do) is not reached: who wants to outlive a terminal may.

use std::{
    fs,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

/// From SIGHUP to SIGKILL: an editor saves what it has. The host waits longer
/// than this and [`KILL`] together.
const GRACE: Duration = Duration::from_secs(5);
/// From SIGKILL to the end; only uninterruptible sleep takes longer.
const KILL: Duration = Duration::from_secs(10);

/// A process of the session that has not ended.
struct Member {
    pid: Pid,
    /// A number could be another process by the time it is signalled.
    pidfd: OwnedFd,
}

/// End the session that this process leads: with SIGHUP, as when a terminal's
/// line drops, and with SIGKILL what ignores that. The leader must not have
/// been reaped, or its number could be another session's.
///
/// # Errors
/// When a process cannot be signalled, or is there after SIGKILL; they are
/// named.
pub(crate) fn end(leader: Pid) -> Result<()> {
    let left = signalled(leader, &[Signal::HUP, Signal::CONT], GRACE)?;
    if left.is_empty() {
        return Ok(());
    }
    let left = signalled(leader, &[Signal::KILL], KILL)?;
    let named: Vec<_> = left.iter().map(Member::name).collect();
    ensure!(
        left.is_empty(),
        "of the session {leader} there are still, {KILL:?} after SIGKILL: {}",
        named.join(", ")
    );
    Ok(())
}

/// Signal every process of the session, those included that are started
/// meanwhile, until there is none. What is left at the end of the time is
/// returned.
fn signalled(leader: Pid, signals: &[Signal], within: Duration) -> Result<Vec<Member>> {
    let deadline = Instant::now() + within;
    loop {
        let members = members(leader)?;
        if members.is_empty() || Instant::now() >= deadline {
            return Ok(members);
        }
        for member in &members {
            for signal in signals {
                member.signal(*signal)?;
            }
        }
        for member in &members {
            if !member.ends_before(deadline)? {
                break;
            }
        }
    }
}

/// Who is in the session now and has not ended.
fn members(leader: Pid) -> Result<Vec<Member>> {
    let mut members = Vec::new();
    for entry in fs::read_dir("/proc").context("list the processes")? {
        let name = entry.context("list the processes")?.file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        let Some(pid) = number.and_then(Pid::from_raw) else {
            continue;
        };
        if let Some(member) = Member::of(leader, pid)?
            && !member.ends_before(Instant::now())?
        {
            members.push(member);
        }
    }
    Ok(members)
}

impl Member {
    /// This process, if it is in the session. Its descriptor comes before the
    /// question: should the number be given to another one in between, the
    /// descriptor is of one that has ended.
    fn of(leader: Pid, pid: Pid) -> Result<Option<Self>> {
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            // It has been reaped; which of them is said depends on the kernel.
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("watch the process {pid}")),
        };
        // The leader belongs to it from before it made the session.
        let belongs = pid == leader || session_of(pid) == Some(leader);
        Ok(belongs.then_some(Self { pid, pidfd }))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("send {signal:?} to {}", self.name())),
        }
    }

    /// Wait for its end: true also for a zombie, whose files and working
    /// directory are released already (do_exit() in kernel/exit.c).
    fn ends_before(&self, deadline: Instant) -> Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).context("a wait of ages")?;
            match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&left)) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("wait for {}", self.name()));
                }
            }
        }
    }

    /// Its number and what it is called.
    fn name(&self) -> String {
        let comm = fs::read_to_string(format!("/proc/{}/comm", self.pid)).unwrap_or_default();
        format!("{} ({})", self.pid, comm.trim())
    }
}

/// The session of a process, from proc_pid_stat(5): the fourth field behind the
/// name, which may itself have blanks and brackets. getsid(2) would do for
/// programs, but answers zero, which is no process, for the kernel's threads.
fn session_of(pid: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    Pid::from_raw(fields.split_whitespace().nth(3)?.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        process::{Child, Command, Stdio},
    };

    use super::*;

    /// The leader of a new session, which ends with it also when a test fails.
    struct Leader {
        child: Child,
        pid: Pid,
    }

    impl Leader {
        /// A shell, once its script and what that starts have said `up` so many
        /// times.
        fn start(script: &str, ups: usize) -> Self {
            #[expect(
                clippy::disallowed_methods,
                reason = "the process helper makes a group, whose leader could make no session"
            )]
            let mut command = Command::new("setsid");
            let child = command
                .args(["bash", "-c", script])
                .stdout(Stdio::piped())
                .spawn()
                .expect("it starts");
            let pid = Pid::from_child(&child);
            let mut leader = Self { child, pid };
            let stdout = leader.child.stdout.take().expect("a pipe");
            let lines = BufReader::new(stdout).lines().take(ups);
            let said: Vec<_> = lines.map(|line| line.expect("a line")).collect();
            assert_eq!(said, vec!["up"; ups]);
            leader
        }

        fn code(&mut self) -> Option<i32> {
            self.child.wait().expect("it has ended").code()
        }
    }

    impl Drop for Leader {
        fn drop(&mut self) {
            if let Ok(None) = self.child.try_wait() {
                end(self.pid).expect("a session of a test ends");
                self.code();
            }
        }
    }

    #[test]
    fn who_ends_slowly_is_waited_for() {
        let mut leader = Leader::start("trap 'sleep 1; exit 7' HUP; echo up; sleep 99 & wait", 1);
        end(leader.pid).expect("it ends");
        let status = leader.child.try_wait().expect("it can be asked");
        assert_eq!(status.expect("it has ended").code(), Some(7));
    }

    #[test]
    fn who_is_stopped_or_deaf_or_has_left_the_group_is_ended() {
        // With -m each job has a group of its own, as on a terminal.
        let script = "set -m; sh -c 'echo up; kill -STOP $$' & trap '' HUP; \
                      sh -c 'sleep 99 & echo up; wait' & echo up; sleep 99";
        let mut leader = Leader::start(script, 3);
        assert!(members(leader.pid).expect("they are listed").len() >= 4);
        end(leader.pid).expect("all end");
        assert_eq!(members(leader.pid).expect("they are listed").len(), 0);
        assert_eq!(leader.code(), None, "a signal ended it");
    }

    #[test]
    fn another_session_is_left_alone() {
        let one = Leader::start("echo up; sleep 99", 1);
        let mut other = Leader::start("echo up; sleep 99", 1);
        end(one.pid).expect("it ends");
        assert!(other.child.try_wait().expect("it can be asked").is_none());
    }
}
