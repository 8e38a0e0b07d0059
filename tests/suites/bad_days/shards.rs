//! One exploration on four machines, and on one: the same states, none of them twice, and one
//! report. Shards that are no parts of one run are refused, one that is missing is missed.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use plugpull_lab::report::{JSON, Report, Verdict, html};
use plugpull_vm::{cache::Home, process::Cmd};

use crate::{SMALL_CASE, Test, runs::xtask};

pub(crate) const TESTS: &[Test] = &[("four_shards_are_one_run", four_shards_are_one_run)];

const SCENARIO: &str = r#"
[workload]
builtin = "page-fsync"

[power-cut]
states = 40
prune  = false
"#;
const CASE_DIR: &str = "tests/shared__debian13__ext4__native";
const RUN_TIMEOUT: Duration = Duration::from_secs(600);

fn four_shards_are_one_run() -> Result<()> {
    let place = tempfile::tempdir()?;
    // What was seen of one state may stand for another, but not for one of another shard.
    let bench = Bench::new(place.path(), "scenario", SCENARIO)?;
    let recorded = bench.run("recorded", &["--record-only"], 0)?;
    let recorded = recorded.to_str().context("a plain path")?;
    let explore =
        |name: &str, shard: &str| bench.run(name, &["--recordings", recorded, "--shard", shard], 0);
    let whole = explore("whole", "1/1")?;
    let shards = ["1/4", "2/4", "3/4", "4/4"];
    let shards: Vec<PathBuf> = (shards.iter())
        .map(|shard| explore(&shard.replace('/', "-of-"), shard))
        .collect::<Result<_>>()?;
    let merged = bench.merge("merged", &shards, 0)?.context("a run")?;

    let (one, many) = (report(&whole)?, report(&merged)?);
    ensure!(one.scenarios.len() == 1 && many.scenarios.len() == 1);
    let (one, many) = (&one.scenarios[0], &many.scenarios[0]);
    ensure!(one.verdict == Verdict::Pass && many.verdict == Verdict::Pass);
    ensure!(
        one.counts == many.counts && one.proofs == many.proofs,
        "{:?} in one run, {:?} in four",
        one.counts,
        many.counts
    );

    // The artefacts of each shard say which states it looked at: together all, none twice.
    let all = looked_at(&whole)?;
    ensure!(
        !all.is_empty() && all.len() as u64 == one.crash_states,
        "{} states listed, {} counted",
        all.len(),
        one.crash_states
    );
    ensure!(looked_at(&merged)? == all, "the merged states are others");
    let mut seen = BTreeMap::new();
    for shard in &shards {
        let part = looked_at(shard)?;
        ensure!(part.len() < all.len(), "{} did it all", shard.display());
        for (state, outcome) in part {
            let twice = seen.insert(state.clone(), outcome);
            ensure!(twice.is_none(), "{state} was looked at twice");
        }
    }
    ensure!(seen == all, "the shards looked at {} states", seen.len());
    let page = fs::read_to_string(merged.join(html::FILE))?;
    ensure!(
        page.contains("1/4, 2/4, 3/4, 4/4"),
        "the page names no shards"
    );

    let missed = bench.merge("missed", &shards[..3], 69)?.context("a run")?;
    ensure!(report(&missed)?.missing == ["4/4".parse()?]);
    let double = [shards.as_slice(), &shards[..1]].concat();
    bench.merge("double", &double, 2)?;
    bench.merge("mixed", &[whole, shards[0].clone()], 2)?;
    Ok(())
}

/// Calls `xtask` with a state of its own.
pub(crate) struct Bench<'a> {
    place: &'a Path,
    scenario: PathBuf,
}

impl<'a> Bench<'a> {
    /// With the small case that does this, in a directory of its own: benches of one place run
    /// cases of one name.
    pub(crate) fn new(place: &'a Path, name: &str, text: &str) -> Result<Self> {
        let dir = place.join(format!("{name}.bench"));
        fs::create_dir(&dir)?;
        let scenario = dir.join("shared.toml");
        fs::write(&scenario, format!("{SMALL_CASE}{text}"))?;
        Ok(Self { place, scenario })
    }

    /// A run, which ends with this code; its directory.
    pub(crate) fn run(&self, name: &str, options: &[&str], code: i32) -> Result<PathBuf> {
        let command = Cmd::new(xtask())
            .args(["test-vm", "--seed", "7", "--scenario"])
            .arg(&self.scenario)
            .args(options);
        self.call(name, command, code)?.context("a run")
    }

    fn merge(&self, name: &str, runs: &[PathBuf], code: i32) -> Result<Option<PathBuf>> {
        let command = Cmd::new(xtask()).arg("merge").args(runs);
        self.call(name, command, code)
    }

    /// Each call has a state of its own, so that its run is the latest there.
    fn call(&self, name: &str, command: Cmd, code: i32) -> Result<Option<PathBuf>> {
        let state = self.place.join(name);
        let said = self.place.join(format!("{name}.said"));
        let file = || File::options().create(true).append(true).open(&said);
        let mut child = command
            .env("PLUGPULL_STATE", &state)
            .env("PLUGPULL_CACHE", Home::find()?.cache)
            .stdout_file(file()?)
            .stderr_file(file()?)
            .spawn()?;
        let status = child.wait(RUN_TIMEOUT)?;
        let said = fs::read_to_string(&said)?;
        ensure!(
            status.code() == Some(code),
            "{name} ended with {status}: {said}"
        );
        Ok(state.join("runs/latest").canonicalize().ok())
    }
}

pub(crate) fn report(run: &Path) -> Result<Report> {
    let path = run.join(JSON);
    let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

/// The states that were looked at, and what became of each.
pub(crate) fn looked_at(run: &Path) -> Result<BTreeMap<String, String>> {
    let path = run.join(CASE_DIR).join("states.tsv");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let lines = text.lines().skip(1);
    let states = lines.filter_map(|line| {
        let (state, outcome) = (line.split('\t').next()?, line.rsplit('\t').next()?);
        (outcome != "unseen").then(|| (state.to_owned(), outcome.to_owned()))
    });
    Ok(states.collect())
}
