//! Programs of a user's that do not keep to the rules: each is told so in
//! words, and none of them passes. One that keeps them is cut, checked, and
//! convicted by its own check, so that the refusals are about the mistakes.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use plugpull_lab::{
    runner::{self, Outcome},
    scenario::{OracleName, Profile, Scenario},
};

use crate::{Stage, Test};

pub(crate) const TESTS: &[Test] = &[
    ("stranger_fails", fails),
    ("stranger_is_silent", is_silent),
    ("stranger_talks_nonsense", talks_nonsense),
    ("stranger_check_cannot_start", check_cannot_start),
    ("stranger_promises_no_hash", promises_no_hash),
    ("stranger_is_convicted", is_convicted),
];

/// Says lines to the promise socket, each after the answer to the one before.
const SAY: &str = "say() { perl -MIO::Socket::UNIX -e '$s = IO::Socket::UNIX->new($ENV{PLUGPULL}) \
                   or die; for (@ARGV) { print $s \"$_\\n\"; print scalar <$s> }' \"$@\"; }";

/// Run a scenario whose workload and check are shell scripts; what was counted
/// and found, or why nothing can be said.
fn run(name: &str, workload: &str, check: Option<&str>) -> Result<(Outcome, Option<String>)> {
    let stage = Stage::new(&format!("bad-days::{name}"))?;
    let shell = |script: &str| match script.starts_with('/') {
        true => format!("run = [\"{script}\"]"),
        false => format!("run = [\"/bin/sh\", \"-c\", '''{script}''']"),
    };
    let check = check.map(|script| format!("[check]\n{}\n", shell(script)));
    let text = format!(
        "about = \"x\"\n[matrix]\nimage = [\"{}\"]\nlower = [\"ext4\"]\nmount = [\"native\"]\n\
         [disk]\nsize = \"64 MiB\"\n[workload]\n{}\n{}[power-cut]\nstates = 6\n",
        stage.image,
        shell(&workload.replace("SAY", SAY)),
        check.unwrap_or_default()
    );
    let images = [stage.image.clone()];
    let scenario = Scenario::parse(Path::new("stranger.toml"), &text, &images)?;
    let cases = Arc::new(scenario).cases(Profile::Smoke);
    let case = cases.first().context("no case")?;
    let mut outcome = Outcome::default();
    // A name that is free also when the test is run again.
    let dir = stage.dir.artefact(&std::process::id().to_string());
    std::fs::create_dir(&dir)?;
    let told = runner::run(&stage.bed, case, &dir, &mut outcome);
    Ok((outcome, told.err().map(|error| format!("{error:#}"))))
}

/// Nothing was judged, for a reason with these words.
fn nothing_said(name: &str, workload: &str, check: Option<&str>, words: &[&str]) -> Result<()> {
    let (outcome, why) = run(name, workload, check)?;
    let why = why.context("it passed for a run that says something")?;
    ensure!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    for word in words {
        ensure!(why.contains(word), "{word:?} is not in: {why}");
    }
    Ok(())
}

fn fails() -> Result<()> {
    let workload = "SAY; say \"begin k v\" \"ack k\"; echo no space >&2; exit 3";
    let words = ["ended with 3 before its power was cut", "no space"];
    nothing_said("fails", workload, Some("exit 1"), &words)
}

fn is_silent() -> Result<()> {
    let words = [
        "never connected to the promise socket",
        "PLUGPULL",
        "[check]",
    ];
    nothing_said("is-silent", "echo x > {dir}/f; sync", None, &words)
}

fn talks_nonsense() -> Result<()> {
    let workload = "SAY; say \"begin k v\" \"ack k\" \"acknowledge k\"";
    let words = [
        "line 3: `acknowledge k` is no promise",
        "expected `begin KEY VALUE`",
    ];
    nothing_said("talks-nonsense", workload, Some("exit 1"), &words)
}

fn check_cannot_start() -> Result<()> {
    let workload = "SAY; say \"begin k v\" \"ack k\"";
    let words = ["the check could not be started", "/absent", "No such file"];
    nothing_said("check-cannot-start", workload, Some("/absent"), &words)
}

fn promises_no_hash() -> Result<()> {
    let workload = "SAY; say \"begin k v\" \"ack k\"";
    nothing_said("promises-no-hash", workload, None, &["SHA-256", "`v`"])
}

/// It promises and never writes: the untouched disk convicts it.
fn is_convicted() -> Result<()> {
    let workload = "SAY; say \"begin k v\" \"ack k\" \"begin gone\"";
    let check = "echo \"seed {seed}\"; cat {ledger}; ! grep -q gone {ledger} || test -e {dir}/k";
    let (outcome, why) = run("is-convicted", workload, Some(check))?;
    ensure!(why.is_none(), "{why:?}");
    let first = outcome.failures.first().context("it was acquitted")?;
    ensure!(first.oracle == OracleName::Check, "{first:?}");
    for word in [
        "the check ended with 1",
        "{\"key\":\"k\",\"value\":\"v\",\"state\":\"begun\"}\n",
        "{\"key\":\"k\",\"value\":\"v\",\"state\":\"acked\"}\n",
        "{\"key\":\"gone\",\"value\":null,\"state\":\"begun\"}",
    ] {
        ensure!(
            first.detail.contains(word),
            "{word:?} is not in: {}",
            first.detail
        );
    }
    Ok(())
}
