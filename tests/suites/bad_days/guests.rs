//! Guests that come to grief: each kind of trouble is told from the others,
//! with the phase that the guest had reached and what its console said last.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use plugpull_lab::testbed::Testbed;
use plugpull_protocol::{Phase, Reply, Request};
use plugpull_vm::{Trouble, cache::Home, console::FaultKind, lock::FileLock};
use rustix::process::{Pid, Signal, kill_process};

use crate::{DISK, Stage, Test, ext4, processes::Watched};

pub(crate) const TESTS: &[Test] = &[
    ("guest_panic", panic),
    ("guest_hang", hang),
    ("guest_shot", shot),
    ("guest_hung_task", hung_task),
    ("guest_out_of_memory", out_of_memory),
    ("guest_init_without_agent", init_without_agent),
    ("guest_kernel_without_init", kernel_without_init),
];

/// Far more than any of these takes.
const LONG: Duration = Duration::from_secs(60);

fn panic() -> Result<()> {
    let stage = Stage::new("bad-days::panic")?;
    let session = stage.session(false)?;
    let trouble = expect_trouble(session.ask(Request::Panic, LONG))?;
    kernel(
        &trouble,
        FaultKind::Panic,
        Phase::Scenario,
        "sysrq triggered",
    )?;
    // It stays so: no later question is answered as if nothing had been.
    let later = expect_trouble(session.ask(Request::Ping, LONG))?;
    kernel(&later, FaultKind::Panic, Phase::Scenario, "sysrq triggered")?;
    ensure!(
        session.power_off().is_err(),
        "a panic passed for a clean end"
    );
    Ok(())
}

fn hang() -> Result<()> {
    let stage = Stage::new("bad-days::hang")?;
    let session = stage.session(false)?;
    session.ask(
        say_on_the_console("Kernel panic - not syncing: says a program"),
        Duration::from_secs(20),
    )?;
    let short = Duration::from_millis(800);
    match expect_trouble(session.guest().request(Request::Hang, short))? {
        Trouble::Hung {
            phase: Phase::Scenario,
            waited_for,
            after,
            console,
        } => {
            ensure!(waited_for.contains("Hang"), "{waited_for}");
            ensure!(after == short, "{after:?}");
            ensure!(
                console
                    .iter()
                    .any(|line| line.contains("Kernel panic - not syncing: says a program")),
                "{console:?}"
            );
        }
        other => bail!("another trouble: {other}"),
    }
    // A request that hangs does not take the agent with it.
    session.ask(Request::Ping, LONG)?;
    session.power_off().map(drop)
}

fn shot() -> Result<()> {
    let stage = Stage::new("bad-days::shot")?;
    let session = stage.session(false)?;
    let pending = session.guest().send(Request::Hang)?;
    let qemu = Watched::of(session.guest().pid())?;
    let pid = i32::try_from(qemu.pid())?;
    kill_process(Pid::from_raw(pid).context("a pid")?, Signal::KILL)?;
    match expect_trouble(session.guest().answer(pending, "an answer", LONG))? {
        Trouble::Ended {
            phase: Phase::Scenario,
            waited_for,
            reason,
            ..
        } => {
            ensure!(waited_for == "answer to an answer", "{waited_for}");
            ensure!(reason.contains("closed its monitor"), "{reason}");
        }
        other => bail!("another trouble: {other}"),
    }
    ensure!(session.power_off().is_err(), "a dead QEMU ended cleanly");
    Ok(())
}

/// A disk that never answers, as after a power cut, leaves a task in the kernel
/// waiting for ever.
fn hung_task() -> Result<()> {
    let stage = Stage::new("bad-days::hung-task")?;
    let mut session = stage.session(true)?;
    session.mount_lower(&ext4())?;
    // The guest's own setting is a minute.
    let shorter = sh("echo 1 > /proc/sys/kernel/hung_task_timeout_secs");
    session.ask(shorter, LONG)?;
    session.disk().cut_now()?;
    let write = sh("echo x > /mnt/lower/file; sync");
    let trouble = expect_trouble(session.ask(write, LONG))?;
    kernel(
        &trouble,
        FaultKind::HungTask,
        Phase::Scenario,
        "blocked for",
    )
}

fn out_of_memory() -> Result<()> {
    let stage = Stage::new("bad-days::out-of-memory")?;
    let session = stage.session(false)?;
    // The kernel kills the hog and lives on; the answer to the next question
    // is what must not be taken.
    let hog = Request::Exec {
        argv: ["/usr/bin/tail", "/dev/zero"].map(str::to_owned).into(),
        env: Vec::new(),
        uid: None,
        timeout_ms: session.timeout_ms(LONG),
    };
    let trouble = match session.guest().request(hog, session.scale(LONG)) {
        Err(trouble) => trouble,
        Ok(Reply::Exited(exited)) => {
            ensure!(exited.code == 128 + 9, "{exited:?}");
            expect_trouble(session.ask(Request::Ping, LONG))?
        }
        Ok(other) => bail!("not an answer: {other:?}"),
    };
    kernel(&trouble, FaultKind::OutOfMemory, Phase::Scenario, "(tail)")
}

/// Without the build's hash on its command line the agent ends, and init says
/// so on the console before it powers off.
fn init_without_agent() -> Result<()> {
    let words = |words: &mut Vec<String>| words.retain(|w| !w.starts_with("plugpull.build"));
    match boot("init", words)? {
        Trouble::Ended {
            phase: Phase::Init,
            waited_for,
            reason,
            console,
        } => {
            ensure!(waited_for.contains("hello"), "{waited_for}");
            ensure!(reason.starts_with("shutdown"), "{reason}");
            let why = "no plugpull.build=";
            ensure!(console.iter().any(|line| line.contains(why)), "{console:?}");
            Ok(())
        }
        other => bail!("another trouble: {other}"),
    }
}

fn kernel_without_init() -> Result<()> {
    let words = |words: &mut Vec<String>| words.push(String::from("rdinit=/nowhere"));
    let trouble = boot("kernel", words)?;
    kernel(&trouble, FaultKind::Panic, Phase::Kernel, "root fs")
}

/// Boot cold with other words on the kernel's command line.
fn boot(test: &str, change: impl Fn(&mut Vec<String>)) -> Result<Trouble> {
    let Stage { bed, image, dir } = Stage::new(&format!("bad-days::{test}"))?;
    // The shared lock on cold boots is kept; the template that does not come
    // about is not tried in the shared cache.
    let lock = bed.home().cache.join("boot.lock");
    let _alone = FileLock::exclusive(&lock, Duration::from_secs(300))?;
    let cache = dir.path().join("cache");
    let home = Home {
        cache: cache.clone(),
        ..bed.home().clone()
    };
    let mut setup = bed.into_setup();
    for image in setup.images.values_mut() {
        change(&mut image.boot.words);
    }
    let made = Testbed::new(home, setup)?.template(&image, DISK);
    let error = made.err().context("the guest came up all the same")?;
    let left = std::fs::read_dir(cache.join("templates"))?;
    for entry in left {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        ensure!(
            name == "logs" || name.ends_with(".lock"),
            "{name} is left of a template that was not made"
        );
    }
    let text = format!("{error:#}");
    error.downcast().map_err(|_| anyhow::anyhow!(text))
}

fn expect_trouble<T>(outcome: Result<T, Trouble>) -> Result<Trouble> {
    outcome.err().context("it passed for an answer")
}

fn kernel(trouble: &Trouble, kind: FaultKind, at: Phase, text: &str) -> Result<()> {
    match trouble {
        Trouble::Kernel {
            phase,
            fault,
            console,
        } => {
            ensure!((*phase, fault.kind) == (at, kind), "{trouble}");
            ensure!(fault.line.contains(text), "{trouble}");
            ensure!(console.contains(&fault.line), "{trouble}");
            Ok(())
        }
        other => bail!("another trouble: {other}"),
    }
}

fn sh(script: &str) -> Request {
    Request::Exec {
        argv: ["/bin/sh", "-c", script].map(str::to_owned).into(),
        env: Vec::new(),
        uid: None,
        timeout_ms: 600_000,
    }
}

fn say_on_the_console(text: &str) -> Request {
    sh(&format!("echo '{text}' > /dev/console"))
}
