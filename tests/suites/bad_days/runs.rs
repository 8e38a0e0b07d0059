//! Runs and test processes that are killed or interrupted: no guest, socket or
//! mount stays, and the next run works.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{BufRead, BufReader},
    os::{fd::OwnedFd, unix::fs::FileTypeExt},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use plugpull_vm::{
    cache::Home,
    process::{Child, Cmd},
};
use rustix::process::Signal;

use crate::{
    PART, SMALL_CASE, Stage, Test,
    processes::{Running, Watched},
};

pub(crate) const TESTS: &[Test] = &[
    ("killed_test_process", killed_test_process),
    ("killed_run", killed_run),
    ("interrupted_run", interrupted_run),
];

/// The part of a test process that has a guest and waits.
pub(crate) const HOLDS_A_GUEST: &str = "holds-a-guest";
/// A case that is short and has a guest from its first second on.
const CASE: &str = "page-power-cut::debian13::ext4::native";
/// One that is still at work whenever something has happened to its run.
const LONG_SCENARIO: &str = r#"
[workload]
builtin = "page-fsync"

[power-cut]
cuts   = 200
states = 600
"#;
/// From nothing to a guest: preparation, a listing, a clone, perhaps others
/// that have the slots.
const GUEST_TIMEOUT: Duration = Duration::from_secs(300);
const RUN_TIMEOUT: Duration = Duration::from_secs(600);
/// A process that was killed is gone at once; the host may be busy.
const SOON: Duration = Duration::from_secs(20);

/// As the child: start a guest, say which, and wait to be killed.
pub(crate) fn hold_a_guest() -> Result<()> {
    let stage = Stage::new("bad-days::held")?;
    let session = stage.session(false)?;
    println!("{}", session.guest().pid());
    let killed = session
        .guest()
        .wait_until("somebody to kill this", RUN_TIMEOUT, || false);
    bail!("nobody came: {killed:?}")
}

fn killed_test_process() -> Result<()> {
    let (said, says) = std::io::pipe()?;
    let mut child = Cmd::new(std::env::current_exe()?)
        .env(PART, HOLDS_A_GUEST)
        .stderr_file(File::from(OwnedFd::from(says.try_clone()?)))
        .stdout_file(File::from(OwnedFd::from(says)))
        .spawn()?;
    let mut line = String::new();
    BufReader::new(said).read_line(&mut line)?;
    let pid = line.trim().parse();
    let qemu = Watched::of(pid.with_context(|| format!("no pid but {line:?}"))?)?;
    ensure!(
        !qemu.ends_within(Duration::ZERO)?,
        "there was no guest to leave behind"
    );
    // A guest whose host has gone powers off by itself; this one cannot.
    qemu.signal(Signal::STOP)?;
    child.kill()?;
    if !qemu.ends_within(SOON)? {
        qemu.signal(Signal::KILL)?;
        bail!("QEMU outlived its test");
    }
    Ok(())
}

/// The worst that can happen to a run: both processes that would tidy up die
/// at once, and the test lives on with its guest.
fn killed_run() -> Result<()> {
    let place = tempfile::tempdir()?;
    let (state, said) = (place.path(), place.path().join("said"));
    let killed = start_long(state, &said, false)?;
    let Running {
        mut xtask,
        nextest,
        test,
        qemu,
        run,
    } = Running::with_a_guest(killed, &said, GUEST_TIMEOUT)?;
    // Stopped first, or it ends its tests when xtask dies.
    nextest.signal(Signal::STOP)?;
    xtask.kill()?;
    nextest.signal(Signal::KILL)?;
    ensure!(nextest.ends_within(SOON)?, "nextest outlived SIGKILL");
    for (process, what) in [(&test, "the test"), (&qemu, "its guest")] {
        ensure!(
            !process.ends_within(Duration::ZERO)?,
            "{what} is gone already: nothing was left to sweep"
        );
    }

    let next = place.path().join("next");
    let status = start(state, [CASE], &next, false)?.wait(RUN_TIMEOUT)?;
    let said = fs::read_to_string(&next)?;
    ensure!(status.success(), "the next run ended with {status}: {said}");
    let removed = format!("removed process {} (test long::", test.pid());
    ensure!(said.contains(&removed), "{removed:?} is not in: {said}");
    for (process, what) in [(&test, "the test"), (&qemu, "its guest")] {
        ensure!(process.ends_within(SOON)?, "{what} outlived the sweep");
    }
    nothing_below(&run)
}

/// Ctrl-C on a terminal reaches xtask and nextest; `kill -INT` only xtask.
fn interrupted_run() -> Result<()> {
    for whole_group in [true, false] {
        let place = tempfile::tempdir()?;
        let said = place.path().join("said");
        let run = start_long(place.path(), &said, whole_group)?;
        let Running {
            mut xtask,
            nextest,
            test,
            qemu,
            run,
        } = Running::with_a_guest(run, &said, GUEST_TIMEOUT)?;
        xtask.signal(Signal::INT)?;
        for (process, what) in [(&qemu, "QEMU"), (&test, "the test"), (&nextest, "nextest")] {
            ensure!(
                process.ends_within(SOON)?,
                "{what} outlived the interrupt (whole group: {whole_group})"
            );
        }
        let status = xtask.wait(SOON)?;
        let said = fs::read_to_string(&said)?;
        ensure!(status.code() == Some(69), "{status}: {said}");
        ensure!(said.contains("interrupted"), "{said}");
        nothing_below(&run)?;
    }
    Ok(())
}

/// Start a run of the long scenario.
fn start_long(state: &Path, said: &Path, own_group: bool) -> Result<Child> {
    let file = state.join("long.toml");
    fs::write(&file, format!("{SMALL_CASE}{LONG_SCENARIO}"))?;
    start(
        state,
        [OsStr::new("--scenario"), file.as_os_str()],
        said,
        own_group,
    )
}

/// Start a run of these cases; what it says goes into a file. Its directory is
/// not among those of the user's runs: it would be the latest of them, and push
/// the oldest out.
fn start<S: AsRef<OsStr>>(
    state: &Path,
    cases: impl IntoIterator<Item = S>,
    said: &Path,
    own_group: bool,
) -> Result<Child> {
    let file = || File::options().create(true).append(true).open(said);
    let command = Cmd::new(xtask())
        .args(["test-vm", "--seed", "7"])
        .args(cases)
        .env("PLUGPULL_STATE", state)
        .env("PLUGPULL_CACHE", Home::find()?.cache)
        .stdout_file(file()?)
        .stderr_file(file()?);
    let command = match own_group {
        true => command.own_group(),
        false => command,
    };
    Ok(command.spawn()?)
}

/// The `xtask` that was built beside this test.
pub(crate) fn xtask() -> PathBuf {
    let mut path = std::env::current_exe().unwrap_or_default();
    path.pop();
    path.pop();
    path.join("xtask")
}

/// No socket and no mount is left in a run's directory, and no loop device has
/// a file there.
fn nothing_below(run: &Path) -> Result<()> {
    let mut places = vec![run.to_owned()];
    while let Some(place) = places.pop() {
        for entry in fs::read_dir(place)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            ensure!(!kind.is_socket(), "{} is left", entry.path().display());
            if kind.is_dir() {
                places.push(entry.path());
            }
        }
    }
    let run = run.to_string_lossy();
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(&*run), "a mount is left: {mounts}");
    for entry in fs::read_dir("/sys/block")? {
        let backing = entry?.path().join("loop/backing_file");
        let file = fs::read_to_string(backing).unwrap_or_default();
        ensure!(!file.starts_with(&*run), "a loop device has {file}");
    }
    Ok(())
}
