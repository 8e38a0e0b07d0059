//! A failure that travels: the capsule of a failing run shows the same disk again
//! where the run never was, and a check that was mended is content with it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use plugpull_lab::{
    capsule,
    report::Report,
    runner::{self, Outcome},
    scenario::{Profile, Scenario},
};
use plugpull_vm::{
    cache::Home,
    process::{Cmd, Output, RunError},
};

use crate::{Stage, Test, runs::xtask};

pub(crate) const TESTS: &[Test] = &[
    ("capsule_of_the_guide", of_the_guide),
    ("capsule_of_a_check", of_a_check),
    ("capsule_that_does_not_fit", that_does_not_fit),
];

/// A run of one case, or a look at one state.
const DEADLINE: Duration = Duration::from_secs(600);

/// The example of docs/bring-your-own.md, step by step.
fn of_the_guide() -> Result<()> {
    let home = Home::find()?;
    let notes = home.root.join("examples/notes");
    let (here, there) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let file = notes.join("notes.toml");
    let ran = ended(
        with_state(&home, here.path(), ["test-vm", "--seed", "1"])
            .arg("--scenario")
            .arg(&file),
    )?;
    ensure!(ran.status.code() == Some(1), "{ran:?}");
    let report = fs::read(here.path().join("runs/latest/report.json"))?;
    let report: Report = serde_json::from_slice(&report)?;
    let told = &report.scenarios[0].failures[0];
    let id = told.repro.strip_prefix("cargo xtask repro ");
    let id = id.with_context(|| format!("no id in {:?}", told.repro))?;
    ensure!(
        ran.stdout_text()
            .contains(&format!("again: {}", told.repro)),
        "{ran:?}"
    );
    // By its id, where it was found.
    let words = told.detail.strip_prefix(&format!("{id}: "));
    let words = words.with_context(|| format!("{:?} is not of {id}", told.detail))?;
    let seen = fails(with_state(&home, here.path(), ["repro", id]))?;
    says(&seen, words)?;
    says(&seen, "fail: the same failure, word for word")?;
    // By its file, where nothing else of the run is.
    let capsule = there.path().join("mailed.capsule");
    fs::copy(in_the_run(here.path())?, &capsule)?;
    here.close()?;
    let mailed = |command: &str| with_state(&home, there.path(), [command]).arg(&capsule);
    let again = fails(mailed("repro"))?;
    ensure!(again == seen, "{again}\nis not\n{seen}");
    // The mended program wrote nothing of this disk, and that is said.
    let synced = there.path().join("notes.toml");
    let text = fs::read_to_string(&file)?
        .replace("./notes.py", "./notes-synced.py")
        .replace(
            "\"notes.py\"",
            &format!("\"{}/notes-synced.py\"", notes.display()),
        )
        .replace("../..", &home.root.display().to_string());
    fs::write(&synced, text)?;
    let seen = fails(mailed("repro").arg("--scenario").arg(&synced))?;
    says(&seen, words)?;
    says(&seen, "takes a new run")?;
    // What was promised and what is there, by hand.
    let shell = mailed("shell").args([
        "-c",
        "pwd; ls work; grep -c acked /run/plugpull-ledger.jsonl; exit 7",
    ]);
    let said = ended(shell)?;
    ensure!(said.status.code() == Some(7), "{said:?}");
    let lines = said.stdout_text();
    ensure!(lines.starts_with("/mnt/lower\n"), "{said:?}");
    let acked = lines
        .lines()
        .last()
        .and_then(|line| line.parse::<u64>().ok());
    ensure!(acked.is_some_and(|acked| acked > 0), "{said:?}");
    let left = fs::read_dir(there.path().join("runs"))?;
    for entry in left {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        ensure!(name.starts_with('.'), "{name} is left among the runs");
    }
    Ok(())
}

/// Its check takes a record that was begun for one that must be whole; the mended
/// one does not, and says so of the very same disk.
fn of_a_check() -> Result<()> {
    let stage = Stage::new("capsule-of-a-check")?;
    let dir = stage.dir.artefact(&std::process::id().to_string());
    fs::create_dir(&dir)?;
    let file = dir.join("records.toml");
    fs::write(&file, records(&stage, "test -e {dir}/begun"))?;
    let images = [stage.image.clone()];
    let scenario = Scenario::parse(&file, &fs::read_to_string(&file)?, &images)?;
    let cases = Arc::new(scenario).cases(Profile::Smoke);
    let case = cases.first().context("no case")?;
    let mut outcome = Outcome::default();
    runner::run(&stage.bed, case, &dir, &mut outcome)?;
    let kept = outcome.capsule.as_ref().context("no capsule was made")?;
    ensure!(kept.why_not.is_none(), "{kept:?}");
    let first = outcome.failures.first().context("it was acquitted")?;
    let state = first.state.as_deref().context("a failure of no state")?;
    ensure!(kept.states.contains(state), "{state} is not in {kept:?}");

    let home = Home::find()?;
    let place = tempfile::tempdir()?;
    let repro = || {
        with_state(&home, place.path(), ["repro", "--state", state]).arg(dir.join(capsule::FILE))
    };
    says(&fails(repro())?, "word for word")?;
    let mended = place.path().join("mended.toml");
    fs::write(&mended, records(&stage, "true"))?;
    let seen = ended(repro().arg("--scenario").arg(&mended))?;
    ensure!(seen.status.code() == Some(0), "{seen:?}");
    says(&seen.stdout_text(), "pass: it does not fail any more")?;
    // One that finds something else is no cure.
    let worse = place.path().join("worse.toml");
    fs::write(&worse, records(&stage, "echo worse; false"))?;
    let seen = fails(repro().arg("--scenario").arg(&worse))?;
    says(&seen, "worse")?;
    says(&seen, "the same oracle, in other words")
}

/// A program that promises nothing and writes nothing, and how it is checked.
fn records(stage: &Stage, check: &str) -> String {
    format!(
        "about = \"x\"\n[matrix]\nimage = [\"{}\"]\nlower = [\"ext4\"]\nmount = [\"native\"]\n\
         [disk]\nsize = \"64 MiB\"\n[workload]\nrun = [\"/bin/sh\", \"-c\", \"echo x > {{dir}}/f; \
         sync\"]\n[check]\nrun = [\"/bin/sh\", \"-c\", '''{check}''']\n[power-cut]\nstates = 6\n",
        stage.image
    )
}

fn that_does_not_fit() -> Result<()> {
    let home = Home::find()?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("odd.capsule");
    let call = |word: &str| with_state(&home, dir.path(), ["repro", word]);
    let name = path.display().to_string();
    refused(call(&name), &["odd.capsule", "No such file"])?;
    fs::write(&path, "no capsule at all")?;
    refused(call(&name), &["odd.capsule", "no capsule"])?;
    refused(call("e3-18d8d609"), &["e3-18d8d609", "no run in"])?;
    refused(
        call("notes/ext4@e3-18d8d609"),
        &["of notes/ext4", "no run in"],
    )?;
    refused(
        with_state(&home, dir.path(), ["shell", "--lower", "xfs", &name]),
        &["--lower", "cannot be used with"],
    )
}

/// The capsule of the only case of the only run.
fn in_the_run(state: &Path) -> Result<PathBuf> {
    let mut tests = fs::read_dir(state.join("runs/latest/tests"))?;
    let test = tests.next().context("no test")??;
    Ok(test.path().join(capsule::FILE))
}

/// A call of xtask whose runs are not among the user's.
fn with_state<const N: usize>(home: &Home, state: &Path, args: [&str; N]) -> Cmd {
    Cmd::new(xtask())
        .args(args)
        .env("PLUGPULL_STATE", state)
        .env("PLUGPULL_CACHE", &home.cache)
}

/// What it says, as it ends with the code of a failure.
fn fails(command: Cmd) -> Result<String> {
    let said = ended(command)?;
    ensure!(said.status.code() == Some(1), "{said:?}");
    Ok(said.stdout_text())
}

fn refused(command: Cmd, words: &[&str]) -> Result<()> {
    let said = ended(command)?;
    ensure!(said.status.code() == Some(2), "{said:?}");
    let text = said.stderr_text();
    words.iter().try_for_each(|word| says(&text, word))
}

/// The words are there, however the lines are broken.
fn says(text: &str, words: &str) -> Result<()> {
    let flat = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(
        flat(text).contains(&flat(words)),
        "{words:?} is not in: {text}"
    );
    Ok(())
}

/// What it came to, whatever that is.
fn ended(command: Cmd) -> Result<Output> {
    match command.run(DEADLINE) {
        Ok(output) => Ok(output),
        Err(RunError::Failed { output, .. }) => Ok(*output),
        Err(error) => Err(error.into()),
    }
}
