//! Other processes: found below a parent, watched until they are gone.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use plugpull_vm::process::{Child, RunError};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

/// A process, by a descriptor that no later one can be mistaken for.
pub(crate) struct Watched {
    pid: u32,
    handle: OwnedFd,
}

impl Watched {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let raw = Pid::from_raw(i32::try_from(pid)?).context("a pid")?;
        let handle = pidfd_open(raw, PidfdFlags::empty());
        let handle = handle.with_context(|| format!("there is no process {pid}"))?;
        Ok(Self { pid, handle })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        pidfd_send_signal(&self.handle, signal)
            .with_context(|| format!("send {signal:?} to {}", self.pid))
    }

    /// Whether it has ended, at the latest after this time.
    pub(crate) fn ends_within(&self, timeout: Duration) -> Result<bool> {
        let timeout = Timespec::try_from(timeout)?;
        let mut fds = [PollFd::new(&self.handle, PollFlags::IN)];
        Ok(poll(&mut fds, Some(&timeout))? > 0)
    }

    /// A variable of its environment.
    pub(crate) fn variable(&self, name: &str) -> Result<PathBuf> {
        let environ = fs::read(format!("/proc/{}/environ", self.pid))?;
        let text = String::from_utf8_lossy(&environ);
        let value = text
            .split('\0')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
            .with_context(|| format!("process {} has no {name}", self.pid))?;
        Ok(PathBuf::from(value))
    }
}

/// A run of `xtask` with a guest in it.
pub(crate) struct Running {
    pub(crate) xtask: Child,
    pub(crate) nextest: Watched,
    pub(crate) test: Watched,
    pub(crate) qemu: Watched,
    /// The run's directory.
    pub(crate) run: PathBuf,
}

impl Running {
    /// Wait until a test of the run has a guest.
    pub(crate) fn with_a_guest(mut xtask: Child, said: &Path, timeout: Duration) -> Result<Self> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some([nextest, test, qemu]) = chain(xtask.pid())? {
                let test = Watched::of(test)?;
                return Ok(Self {
                    nextest: Watched::of(nextest)?,
                    qemu: Watched::of(qemu)?,
                    run: test.variable("PLUGPULL_RUN")?,
                    test,
                    xtask,
                });
            }
            let said = || fs::read_to_string(said).unwrap_or_default();
            match xtask.wait(Duration::from_millis(50)) {
                Err(RunError::Deadline { .. }) => {}
                Err(error) => return Err(error.into()),
                Ok(status) => bail!("it ended before it had a guest, {status}: {}", said()),
            }
            ensure!(
                Instant::now() < deadline,
                "no guest within {timeout:?}: {}",
                said()
            );
        }
    }
}

/// nextest, the test and QEMU below a run of `xtask`.
fn chain(xtask: u32) -> Result<Option<[u32; 3]>> {
    let processes = processes()?;
    let child = |parent: u32, word: &str| {
        processes
            .iter()
            .find(|(_, (above, line))| *above == parent && line.contains(word))
            .map(|(pid, _)| *pid)
    };
    Ok(child(xtask, "nextest").and_then(|nextest| {
        let test = child(nextest, "--exact")?;
        Some([nextest, test, child(test, "qemu-system")?])
    }))
}

/// Every process with its parent and its command line.
fn processes() -> Result<BTreeMap<u32, (u32, String)>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse() else {
            continue;
        };
        // It may end at any moment.
        let (Ok(stat), Ok(line)) = (
            fs::read_to_string(format!("/proc/{pid}/stat")),
            fs::read(format!("/proc/{pid}/cmdline")),
        ) else {
            continue;
        };
        // The name stands in parentheses and may hold any byte.
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        all.insert(pid, (parent.unwrap_or(0), line));
    }
    Ok(all)
}
