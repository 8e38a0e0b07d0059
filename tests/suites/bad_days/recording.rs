//! Recordings that break off: what is whole may be looked at, and no verdict on
//! it is better than "infrastructure".

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use plugpull_disk::{End, Recording};
use plugpull_lab::{
    report::Verdict,
    rundir::RunDir,
    suite::{self, Test as Case},
    testbed::{RUN_VARIABLE, Setup, announced},
};
use plugpull_protocol::Request;
use plugpull_vm::{cache::Home, process::Cmd};

use crate::{PART, Stage, Test, ext4};

pub(crate) const TESTS: &[Test] = &[
    ("truncated_recording", truncated_recording),
    ("recorder_without_space", recorder_without_space),
];

/// The part of a test process that runs one case.
pub(crate) const RUNS_A_CASE: &str = "runs-a-case";
/// Which.
const CASE: &str = "page-power-cut::debian13::ext4::native";

fn truncated_recording() -> Result<()> {
    let stage = Stage::new("bad-days::truncated-recording")?;
    let mut session = stage.session(true)?;
    session.mount_lower(&ext4())?;
    let write = "dd if=/dev/urandom of=/mnt/lower/file bs=4k count=20 conv=fsync";
    let write = Request::Exec {
        argv: ["/bin/sh", "-c", write].map(str::to_owned).into(),
        env: Vec::new(),
        uid: None,
        timeout_ms: 60_000,
    };
    session.ask(write, Duration::from_secs(60))?;
    session.disk().cut_now()?;
    drop(session.pull_the_plug()?);
    let path = stage.log();
    let whole = Recording::open(&path)?;
    ensure!(whole.is_complete(), "{:?}", whole.end());

    let bytes = fs::read(&path)?;
    let broken = stage.dir.artefact("broken.disklog");
    for keep in [bytes.len() - 1, bytes.len() / 2, bytes.len() / 3] {
        fs::write(&broken, &bytes[..keep])?;
        let recording = Recording::open(&broken)?;
        let End::Truncated {
            at_byte, last_seq, ..
        } = recording.end()
        else {
            bail!("{keep} of {} bytes pass for a whole", bytes.len());
        };
        ensure!(
            *at_byte <= keep as u64 && *last_seq == recording.last_seq(),
            "{:?} of {keep} bytes",
            recording.end()
        );
        let entries = recording.entries();
        ensure!(
            whole.entries().starts_with(entries),
            "what is left is not a beginning of the whole"
        );
        // The last byte belongs to the trailer.
        let all = entries.len() == whole.entries().len();
        ensure!(
            all == (keep == bytes.len() - 1),
            "{keep}: {}",
            entries.len()
        );
    }
    fs::write(&broken, &bytes[..bytes.len().min(20)])?;
    ensure!(Recording::open(&broken).is_err(), "half a header passed");
    Ok(())
}

/// The host's disk is full in the middle of a recording: here, the log may not
/// grow beyond a limit.
fn recorder_without_space() -> Result<()> {
    let home = Home::find()?;
    let run = RunDir::create_aside(&home.state)?;
    Setup::read(&announced()?)?.write(run.path())?;
    // 512 blocks of 512 bytes; the signal would kill before the error is seen.
    let limited = "trap '' XFSZ && ulimit -f 512 && exec \"$0\"";
    let output = Cmd::new("/bin/sh")
        .args(["-c", limited])
        .arg(std::env::current_exe()?)
        .env(PART, RUNS_A_CASE)
        .env(RUN_VARIABLE, run.path())
        .run(Duration::from_secs(300))?;
    let said = output.stdout_text();
    ensure!(said.starts_with("infra: "), "{said}");
    ensure!(said.contains("File too large"), "{said}");
    run.remove()
}

/// As the child: run the case and print its verdict.
pub(crate) fn run_a_case() -> Result<()> {
    let home = Home::find()?;
    let setup = Setup::read(&announced()?)?;
    let tests = suite::tests(suite::load(&home, None)?, setup.profile);
    let test = tests
        .into_iter()
        .find(|test| matches!(test, Case::Case(_)) && test.name() == CASE)
        .with_context(|| format!("there is no case {CASE}"))?;
    let result = suite::run(&test)?.result;
    ensure!(result.verdict != Verdict::Pass, "it passed");
    println!("{}: {}", result.verdict, result.because.unwrap_or_default());
    Ok(())
}
