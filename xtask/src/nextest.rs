//! Hands a prepared run over to nextest.

use std::{
    os::{fd::AsFd, unix::process::CommandExt},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use plugpull_lab::{
    rundir::{Left, ProcessId, RunDir},
    scenario::{Named, Profile},
    testbed::RUN_VARIABLE,
};
use plugpull_vm::{cache::Home, process::Cmd};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

/// How long `cargo install cargo-nextest` may take on a slow machine.
const INSTALL_DEADLINE: Duration = Duration::from_secs(3600);

/// From a terminal's Ctrl-C to the end of nextest, whose tests die of theirs.
const ENDS_BY_ITSELF: Duration = Duration::from_secs(2);
/// From a request to end to the end: nextest gives its tests ten seconds.
const ENDS_WHEN_TOLD: Duration = Duration::from_secs(60);

/// How long a whole run may take, builds included. nextest's own configuration
/// ends each test that hangs, long before; this is for a nextest that hangs.
fn last_resort(profile: Profile) -> Duration {
    let hours = match profile {
        Profile::Smoke => 12,
        Profile::Full => 48,
        Profile::Nightly => 7 * 24,
    };
    Duration::from_secs(hours * 3600)
}

/// Which tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The chosen cases in guests.
    Vm,
    /// Every test of the workspace.
    Workspace,
    /// The tests that need the filesystem's deliberate faults compiled in, and the
    /// models of its tables: another build of it, so another run.
    FsControls,
}

/// Install nextest if it is missing, and say how long that takes.
pub(crate) fn ensure() -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let version = Cmd::new(&cargo)
        .args(["nextest", "--version"])
        .run(Duration::from_secs(60));
    if version.is_ok() {
        return Ok(());
    }
    eprintln!("cargo-nextest is missing: installing it, which takes 5 to 15 minutes once");
    Cmd::new(&cargo)
        .args(["install", "--locked", "cargo-nextest"])
        .run_with(INSTALL_DEADLINE, &mut |line| eprintln!("{line}"))
        .context(
            "install cargo-nextest; or install it yourself: cargo install --locked cargo-nextest",
        )?;
    Ok(())
}

/// Run the tests; nextest talks to the user itself.
pub(crate) fn run(
    home: &Home,
    run: &RunDir,
    scope: Scope,
    profile: Profile,
    bless: bool,
) -> Result<ExitStatus> {
    ensure()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    #[expect(
        clippy::disallowed_methods,
        reason = "nextest owns the terminal; `wait` has the deadline"
    )]
    let mut command = Command::new(cargo);
    command
        .args(["nextest", "run", "--locked"])
        .current_dir(&home.root);
    match scope {
        Scope::Vm => command.args([
            "--package",
            "plugpull-tests",
            "--test",
            "vm",
            "--no-tests",
            "pass",
        ]),
        Scope::Workspace => command.arg("--workspace"),
        Scope::FsControls => command.args([
            "--package",
            "plugpull-fs",
            "--features",
            "mutants,shuttle",
            "--filterset",
            "test(caught) or test(mutant) or test(model)",
        ]),
    };
    let nextest_profile = match profile {
        Profile::Smoke => "default",
        other => other.name(),
    };
    command
        .args(["--profile", nextest_profile])
        .stdin(Stdio::null())
        .env(RUN_VARIABLE, run.path())
        .env("PLUGPULL_FSX", plugpull_lab::artifacts::fsx_program(home));
    if bless {
        command.env("INSTA_UPDATE", "always");
    } else {
        // A changed outcome fails the test; nothing is written behind a
        // user's back.
        command.env("INSTA_UPDATE", "no");
    }
    wait(&mut command, run, last_resort(profile))
}

/// Start and wait, surviving a Ctrl-C: this process lives on to tidy up.
///
/// A terminal sends the signal to nextest as well, which then ends its tests; a
/// second one would make it kill them. Sent to this process alone, nextest
/// knows nothing of it and is told.
fn wait(command: &mut Command, run: &RunDir, deadline: Duration) -> Result<ExitStatus> {
    die_with_parent(command);
    let signals = crate::signals::readable()?;
    let mut child = command.spawn().context("start cargo nextest")?;
    run.register(&Left::Process {
        process: ProcessId::of(child.id())?,
        what: String::from("nextest"),
    })?;
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
        .context("get a descriptor of nextest")?;
    let interrupted = readable(&signals, &pidfd, deadline)?;
    let patience = match interrupted {
        true => ENDS_BY_ITSELF,
        false => Duration::ZERO,
    };
    // A process's descriptor is readable once it has ended (pidfd_open(2)).
    let mut ended = readable(&pidfd, &pidfd, patience)?;
    let in_time = ended || interrupted;
    for signal in [Signal::TERM, Signal::KILL] {
        if !ended {
            pidfd_send_signal(&pidfd, signal).context("end nextest")?;
            ended = readable(&pidfd, &pidfd, ENDS_WHEN_TOLD)?;
        }
    }
    ensure!(ended, "cargo nextest (pid {}) cannot be killed", child.id());
    let status = child.wait().context("wait for cargo nextest")?;
    ensure!(
        in_time,
        "cargo nextest had not ended after {} hours and was ended",
        deadline.as_secs() / 3600
    );
    if interrupted {
        bail!("interrupted; what the tests had started is ended");
    }
    Ok(status)
}

/// Whether `wanted` is readable; looked at when it or `other` is, or at the
/// timeout.
fn readable(wanted: impl AsFd, other: impl AsFd, timeout: Duration) -> Result<bool> {
    let mut fds = [
        PollFd::new(&wanted, PollFlags::IN),
        PollFd::new(&other, PollFlags::IN),
    ];
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut fds, Some(&left)) {
            Ok(_) => return Ok(!fds[0].revents().is_empty()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for cargo nextest"),
        }
    }
}

#[expect(
    unsafe_code,
    reason = "pre_exec is the only way to set the parent-death signal"
)]
fn die_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec this makes one plain system call, which
    // neither allocates nor takes a lock. The main thread spawns, and it lives
    // as long as the process, so the signal means the death of the process.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
            Ok(())
        });
    }
}
