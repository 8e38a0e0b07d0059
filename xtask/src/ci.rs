//! What CI jobs run; the workflow files hold no logic.

use std::time::Duration;

use anyhow::Result;
use plugpull_vm::{cache::Home, process::Cmd};

use crate::{
    commands::{Exit, Failed},
    options::{self, Ci, CiJob, TestVm},
    test,
};

const FMT_DEADLINE: Duration = Duration::from_secs(120);
const CLIPPY_DEADLINE: Duration = Duration::from_secs(1800);

/// Run a job.
pub(crate) fn run(args: &Ci) -> Result<Exit> {
    match &args.job {
        CiJob::Lint => lint(&Home::find()?).map(|()| Exit::Pass),
        CiJob::Test => test::test(&options::Test {
            seed: None,
            accel: options::Accel::Auto,
        }),
        CiJob::Nightly { shard, seed } => test::test_vm(&TestVm {
            shard: shard.clone(),
            seed: *seed,
            ..TestVm::all_of(options::Profile::Nightly)
        }),
    }
}

/// fmt, clippy and rustdoc over the whole workspace; warnings are errors.
pub(crate) fn lint(home: &Home) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let command = |args: &[&str]| Cmd::new(&cargo).args(args).dir(&home.root);
    eprintln!("fmt …");
    command(&["fmt", "--all", "--", "--check"])
        .run_with(FMT_DEADLINE, &mut |line| eprintln!("{line}"))
        .map_err(|_| {
            Failed(String::from(
                "the formatting is off; `cargo fmt --all` mends it",
            ))
        })?;
    for features in [
        &[][..],
        &["--features", "plugpull-fs/mutants,plugpull-fs/shuttle"],
    ] {
        eprintln!("clippy {} …", features.join(" "));
        command(&["clippy", "--locked", "--workspace", "--all-targets"])
            .args(features)
            .args(["--", "--deny", "warnings"])
            .run_with(CLIPPY_DEADLINE, &mut |line| say_what_counts(line))
            .map_err(|_| Failed(String::from("clippy complains; see above")))?;
    }
    eprintln!("doc …");
    command(&["doc", "--locked", "--workspace", "--no-deps"])
        .env("RUSTDOCFLAGS", "--deny warnings")
        .run_with(CLIPPY_DEADLINE, &mut |line| say_what_counts(line))
        .map_err(|_| Failed(String::from("rustdoc complains; see above")))?;
    Ok(())
}

/// Pass on what a compiler says, without what it says to show that it is at work.
fn say_what_counts(line: &str) {
    let work = ["Checking", "Compiling", "Documenting", "Generated"];
    if !work.iter().any(|verb| line.trim_start().starts_with(verb)) {
        eprintln!("{line}");
    }
}
