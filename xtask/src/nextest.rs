//! Hands a prepared run over to nextest.

use std::{
    os::{fd::AsFd, unix::process::CommandExt},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
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
const ENDS_BY_ITSELF: Timespec = Timespec {
    tv_sec: 2,
    tv_nsec: 0,
};

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
        reason = "nextest owns the terminal, and its own configuration has the deadlines"
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
        .env(RUN_VARIABLE, run.path());
    if bless {
        command.env("INSTA_UPDATE", "always");
    } else {
        // A changed outcome fails the test; nothing is written behind a
        // user's back.
        command.env("INSTA_UPDATE", "no");
    }
    wait(&mut command, run)
}

/// Start and wait, surviving a Ctrl-C: this process lives on to tidy up.
///
/// A terminal sends the signal to nextest as well, which then ends its tests; a
/// second one would make it kill them. Sent to this process alone, nextest
/// knows nothing of it and is told.
fn wait(command: &mut Command, run: &RunDir) -> Result<ExitStatus> {
    die_with_parent(command);
    let signals = crate::signals::readable()?;
    let mut child = command.spawn().context("start cargo nextest")?;
    run.register(&Left::Process {
        process: ProcessId::of(child.id())?,
        what: String::from("nextest"),
    })?;
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
        .context("get a descriptor of nextest")?;
    // No deadline: nextest's own configuration ends what hangs.
    let interrupted = readable(&signals, &pidfd, None)?;
    if interrupted && !readable(&pidfd, &pidfd, Some(&ENDS_BY_ITSELF))? {
        pidfd_send_signal(&pidfd, Signal::TERM).context("end nextest")?;
    }
    let status = child.wait().context("wait for cargo nextest")?;
    if interrupted {
        bail!("interrupted; what the tests had started is ended");
    }
    Ok(status)
}

/// Whether `wanted` is readable; looked at when it or `other` is, or at the
/// timeout.
fn readable(wanted: impl AsFd, other: impl AsFd, timeout: Option<&Timespec>) -> Result<bool> {
    let mut fds = [
        PollFd::new(&wanted, PollFlags::IN),
        PollFd::new(&other, PollFlags::IN),
    ];
    loop {
        match poll(&mut fds, timeout) {
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
