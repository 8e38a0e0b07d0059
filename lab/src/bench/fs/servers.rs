//! Who is measured: native, our filesystem in its modes, its peers, the protocol floor;
//! and one of them as a running process with its mount.

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use plugpull_vm::{
    peers::PassthroughHp,
    process::{Child, Cmd},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::statfs,
    mount::{UnmountFlags, unmount},
};
use serde::Serialize;

use super::lines::{Line, Work};

/// How a server is to be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The lower filesystem itself.
    Native,
    /// Ours, in one I/O mode.
    Ours,
    /// Somebody else's.
    Peer,
    /// The answers without the work.
    Floor,
}

/// Somebody who is measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Server {
    /// As the table calls it, and what filters look at.
    pub name: String,
    /// How it is judged.
    pub role: Role,
    /// Program and arguments, without source and mount point; none for native.
    #[serde(skip)]
    pub(super) launch: Option<Launch>,
}

/// How a server is started. Source and mount point follow the arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Launch {
    Program(PathBuf, Vec<String>),
    /// Ours, with requests over io_uring.
    OverIoUring(PathBuf, Vec<String>),
    PassthroughHp(PassthroughHp, Vec<String>),
}

/// Our I/O modes, as `--io` will have them; those that the binary does not know are
/// left out.
const MODES: [&str; 5] = ["auto", "passthrough", "writeback", "cached", "direct"];
const HELP_DEADLINE: Duration = Duration::from_secs(30);
const START_DEADLINE: Duration = Duration::from_secs(30);
const END_DEADLINE: Duration = Duration::from_secs(30);

/// The programs that there are.
#[derive(Debug, Clone)]
pub struct Programs {
    /// plugpull-fs.
    pub ours: PathBuf,
    /// The protocol floor: an example of plugpull-fuse.
    pub floor: PathBuf,
    /// libfuse's.
    pub passthrough_hp: PassthroughHp,
    /// bindfs.
    pub bindfs: PathBuf,
}

/// Everybody, in the order of the table, and notes on who is missing.
///
/// # Errors
/// When our binary does not tell its options.
pub fn all(programs: &Programs) -> Result<(Vec<Server>, Vec<String>)> {
    let help = Cmd::new(&programs.ours).arg("--help").run(HELP_DEADLINE)?;
    let (modes, missing) = modes(&help.stdout_text());
    let mut notes = Vec::new();
    if !missing.is_empty() {
        notes.push(format!(
            "left out, for plugpull-fs --help does not list them: --io {}",
            missing.join(", --io ")
        ));
    }
    let text = |args: &[&str]| args.iter().map(|arg| String::from(*arg)).collect();
    let server = |name: &str, role, launch| Server {
        name: name.to_owned(),
        role,
        launch: Some(launch),
    };
    let mut servers = vec![Server {
        name: "native".to_owned(),
        role: Role::Native,
        launch: None,
    }];
    for mode in modes {
        let args = text(&["--foreground", "--io", mode, "--transport", "device"]);
        let launch = Launch::Program(programs.ours.clone(), args);
        servers.push(server(&format!("plugpull-fs {mode}"), Role::Ours, launch));
    }
    if Path::new(IO_URING).exists() {
        let args = text(&["--foreground", "--io", "auto", "--transport", "io-uring"]);
        let launch = Launch::OverIoUring(programs.ours.clone(), args);
        servers.push(server("plugpull-fs io_uring", Role::Ours, launch));
    } else {
        notes.push("io_uring left out, for this kernel has no FUSE over it".to_owned());
    }
    // Root's mounts of ours and of bindfs are open to all users.
    let hp = |more: &[&str]| {
        let args = [&["--foreground", "-o", "allow_other"], more].concat();
        Launch::PassthroughHp(programs.passthrough_hp.clone(), text(&args))
    };
    servers.push(server("passthrough_hp", Role::Peer, hp(&[])));
    servers.push(server(
        "passthrough_hp, no pt",
        Role::Peer,
        hp(&["--nopassthrough"]),
    ));
    servers.push(server(
        "bindfs",
        Role::Peer,
        Launch::Program(programs.bindfs.clone(), text(&["-f"])),
    ));
    servers.push(server(
        "protocol floor",
        Role::Floor,
        Launch::Program(programs.floor.clone(), Vec::new()),
    ));
    Ok((servers, notes))
}

/// Our modes that the help text lists among the values of `--io`, and those that it
/// does not.
fn modes(help: &str) -> (Vec<&'static str>, Vec<&'static str>) {
    let about = help.split("--io <").nth(1).unwrap_or_default();
    // Up to the next option, which begins a line.
    let end = about.find("\n  -").or_else(|| about.find("\n      --"));
    let about = &about[..end.unwrap_or(about.len())];
    let words: Vec<_> = about.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    MODES.into_iter().partition(|mode| words.contains(mode))
}

/// A server that serves, or native, which needs none.
#[derive(Debug)]
pub(super) struct Serving {
    child: Option<Child>,
    /// Where its filesystem is seen.
    pub(super) view: PathBuf,
    /// What it said on standard error.
    log: PathBuf,
}

impl Server {
    /// Whether it can carry out a line. The floor keeps nothing of what is written.
    pub(super) fn can(&self, line: &Line) -> bool {
        self.role != Role::Floor || !matches!(line.work, Work::Checkout | Work::Pgbench)
    }

    /// Mounts `lower` on `mountpoint`; native has `lower` itself for a view.
    ///
    /// # Errors
    /// When the mount does not stand in time; with what the server said.
    pub(super) fn start(&self, lower: &Path, mountpoint: &Path, log: PathBuf) -> Result<Serving> {
        let Some(launch) = &self.launch else {
            return Ok(Serving {
                child: None,
                view: lower.to_owned(),
                log,
            });
        };
        // A connection that has begun keeps what it has.
        let _switch = match launch {
            Launch::OverIoUring(..) => Some(Switch::on()?),
            _ => None,
        };
        let stderr = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let child = launch
            .command()
            .arg(lower)
            .arg(mountpoint)
            .stderr_file(stderr)
            .spawn()?;
        let mut serving = Serving {
            child: Some(child),
            view: mountpoint.to_owned(),
            log,
        };
        serving
            .wait_for_mount()
            .with_context(|| format!("start {}", self.name))?;
        Ok(serving)
    }
}

/// Switches FUSE over io_uring on for connections that are made meanwhile.
const IO_URING: &str = "/sys/module/fuse/parameters/enable_uring";

/// As it was before when dropped.
struct Switch {
    before: String,
}

impl Switch {
    fn on() -> Result<Self> {
        let before = fs::read_to_string(IO_URING).with_context(|| format!("read {IO_URING}"))?;
        fs::write(IO_URING, "Y").with_context(|| format!("write {IO_URING}"))?;
        Ok(Switch { before })
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        if let Err(error) = fs::write(IO_URING, &self.before) {
            tracing::warn!(%error, "{IO_URING} stays switched on");
        }
    }
}

impl Launch {
    fn command(&self) -> Cmd {
        match self {
            Self::Program(path, args) | Self::OverIoUring(path, args) => Cmd::new(path).args(args),
            Self::PassthroughHp(program, args) => program.command().args(args),
        }
    }
}

impl Serving {
    /// The kernel tells changes of the list of mounts by POLLERR and POLLPRI (proc(5),
    /// mountinfo); a server that ends instead is told by its pidfd.
    fn wait_for_mount(&mut self) -> Result<()> {
        let mounts = File::open("/proc/thread-self/mountinfo").context("open mountinfo")?;
        let end = Instant::now() + START_DEADLINE;
        while !self.is_mounted(&mounts)? {
            let left = end.saturating_duration_since(Instant::now());
            let Some(child) = &mut self.child else {
                return Ok(());
            };
            if let Some(status) = child.try_wait()? {
                let command = child.command().to_owned();
                bail!("{status}: {command}{}", self.said());
            }
            let pidfd = child.pidfd();
            let mut fds = [
                PollFd::new(&mounts, PollFlags::PRI),
                PollFd::new(&pidfd, PollFlags::IN),
            ];
            let left = Timespec::try_from(left)?;
            if poll(&mut fds, Some(&left)).context("wait for a mount")? == 0 {
                let command = child.command().to_owned();
                bail!(
                    "no mount after {START_DEADLINE:?}: {command}{}",
                    self.said()
                );
            }
        }
        // Answered once the handshake is done.
        statfs(&self.view).map(drop).context("ask the mount")
    }

    fn is_mounted(&self, mut mounts: &File) -> Result<bool> {
        let mut text = String::new();
        std::io::Seek::rewind(&mut mounts)?;
        mounts.read_to_string(&mut text)?;
        let view = self.view.to_string_lossy();
        Ok(text
            .lines()
            .any(|line| line.split(' ').nth(4) == Some(&*view)))
    }

    fn said(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().map(|line| format!("\n    {line}")).collect()
    }

    /// What the process has used so far; nothing for native.
    ///
    /// # Errors
    /// When it has ended.
    pub(super) fn usage(&self) -> Result<Usage> {
        let Some(child) = &self.child else {
            return Ok(Usage::default());
        };
        let proc = PathBuf::from(format!("/proc/{}", child.pid()));
        let read = |name: &str| {
            fs::read_to_string(proc.join(name))
                .with_context(|| format!("{} has ended{}", child.command(), self.said()))
        };
        let ticks = cpu_ticks(&read("stat")?).context("malformed /proc/PID/stat")?;
        Ok(Usage {
            cpu_s: ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
            rss_kib: rss_kib(&read("status")?).unwrap_or(0),
            descriptors: fs::read_dir(proc.join("fd")).map_or(0, Iterator::count),
        })
    }

    /// Ends it at once; whoever waits for an answer is let go with an error.
    pub(super) fn kill(&mut self) -> Result<()> {
        if let Some(child) = &mut self.child {
            child.kill()?;
        }
        Ok(())
    }

    /// Unmounts and waits for the server's end.
    ///
    /// # Errors
    /// When somebody still uses the mount, or the server does not end.
    pub(super) fn stop(mut self) -> Result<()> {
        let Some(child) = &mut self.child else {
            return Ok(());
        };
        unmount(&self.view, UnmountFlags::NOFOLLOW)
            .with_context(|| format!("unmount {}", self.view.display()))?;
        child.wait(END_DEADLINE)?;
        self.child = None;
        Ok(())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if self.child.is_none() {
            return;
        }
        if let Err(error) = self.kill() {
            tracing::warn!(%error, "a server may be left behind");
        }
        // A server that never mounted has left nothing to unmount.
        let _not_mounted = unmount(&self.view, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
}

/// What a process has used.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Usage {
    /// User and system time in seconds; the clock's tick is mostly 10 ms.
    pub(super) cpu_s: f64,
    /// Memory in use.
    pub(super) rss_kib: u64,
    /// Open descriptors.
    pub(super) descriptors: usize,
}

/// utime and stime, fields 14 and 15 (proc(5)); the name in field 2 may hold blanks.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let (user, system) = (fields.next()?, fields.next()?);
    Some(user.parse::<u64>().ok()? + system.parse::<u64>().ok()?)
}

fn rss_kib(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_modes_that_are_listed_are_used() {
        let help = "      --threads <N>\n          auto, of course\n\n      --io <MODE>\n          \
                    How: cached (in the page cache)\n          or direct [default: cached]\n\n  \
                    -h, --help\n          not passthrough";
        let (known, missing) = modes(help);
        assert_eq!(known, ["cached", "direct"]);
        assert_eq!(missing, ["auto", "passthrough", "writeback"]);
        assert_eq!(modes("").0, [""; 0]);
    }

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 100 0 0 0 17 25 0 0 20 0 4 0 100 1 1";
        assert_eq!(cpu_ticks(stat), Some(42));
        assert_eq!(cpu_ticks("42"), None);
        assert_eq!(rss_kib("VmPeak:\t 9 kB\nVmRSS:\t   1234 kB\n"), Some(1234));
    }
}
