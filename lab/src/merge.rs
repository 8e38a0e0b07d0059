//! Joins the directories of shards to the directory of one run.
//!
//! Artefacts of a case that one shard ran whole keep their places; of a case whose states were
//! shared out, each shard's are below `shard-M-of-N`, beside what was joined.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use plugpull_vm::cache;

use crate::{
    report::{self, Exploration, Part, Report, Unfit},
    rundir::{self, RunDir, STATES, TIMELINE},
    select::Shard,
};

/// How the directory of a shard's artefacts begins, in that of a case.
pub(crate) const SHARD: &str = "shard-";

/// Make one run of shards; `runs` are their directories.
///
/// # Errors
/// [`Unfit`] in the chain where they are no shards of one run; otherwise when a file cannot be
/// read or written.
pub fn merge(root: &Path, runs: &[PathBuf]) -> Result<(RunDir, Report)> {
    let mut reports = Vec::new();
    for run in runs {
        let path = run.join(report::JSON);
        let text = fs::read(&path)
            .map_err(|error| Unfit(format!("{}: {error}: it is no run", path.display())))?;
        let read: Report = serde_json::from_slice(&text)
            .map_err(|error| Unfit(format!("{} is no report: {error}", path.display())))?;
        reports.push((run.display().to_string(), read));
    }
    let whole = report::merge(&reports)?;
    let shared = shared(runs, &reports)?;
    let dir = RunDir::create(root)?;
    for (run, (_, report)) in runs.iter().zip(&reports) {
        copy_run(run, report, dir.path())?;
    }
    for (case, joined) in shared {
        let to = dir.path().join("tests").join(rundir::file_name(&case));
        for (name, text) in joined.files {
            cache::publish_bytes(&to.join(name), text.as_bytes())
                .with_context(|| format!("write {name} of {case}"))?;
        }
    }
    for result in &whole.scenarios {
        let to = dir
            .path()
            .join("tests")
            .join(rundir::file_name(&result.name));
        fs::create_dir_all(&to).with_context(|| format!("make {}", to.display()))?;
        let json = serde_json::to_vec_pretty(result)?;
        // In a file of its own: the one that is there may be the shard's.
        cache::publish_bytes(&to.join("result.json"), &json).context("write a joined result")?;
    }
    Ok((dir, whole))
}

/// What is joined of a case whose states were shared out.
#[derive(Default)]
struct Joined {
    files: Vec<(&'static str, String)>,
}

fn shared(runs: &[PathBuf], reports: &[(String, Report)]) -> Result<BTreeMap<String, Joined>> {
    let mut parts: BTreeMap<&str, Vec<PathBuf>> = BTreeMap::new();
    for (run, (_, report)) in runs.iter().zip(reports) {
        for result in report.scenarios.iter().filter(|of| of.part.is_some()) {
            let dir = run.join("tests").join(rundir::file_name(&result.name));
            parts.entry(&result.name).or_default().push(dir);
        }
    }
    let mut all = BTreeMap::new();
    for (case, dirs) in parts {
        // A test that was killed has left neither; what the report says of it is infra.
        let drawn = |dir: &&PathBuf| dir.join(TIMELINE).exists() && dir.join(STATES).exists();
        let mut pictures = Vec::new();
        let mut tables = Vec::new();
        for dir in dirs.iter().filter(drawn) {
            let read = |name| fs::read_to_string(dir.join(name)).context(dir.display().to_string());
            let picture: Exploration = serde_json::from_str(&read(TIMELINE)?)
                .with_context(|| format!("{} of {} is malformed", TIMELINE, dir.display()))?;
            pictures.push(picture);
            tables.push(read(STATES)?);
        }
        let unfit = |why: String| Unfit(format!("{case}: {why}"));
        let whole = Exploration::joined(pictures).map_err(|error| unfit(error.to_string()))?;
        let mut joined = Joined::default();
        if let Some(whole) = whole {
            joined
                .files
                .push((TIMELINE, serde_json::to_string(&whole)?));
            joined
                .files
                .push((STATES, join_tables(&tables).map_err(unfit)?));
        }
        all.insert(case.to_owned(), joined);
    }
    Ok(all)
}

/// Each state with what the shard said that looked at it. Two that looked at the same would have
/// done work twice, and were no shards.
fn join_tables(tables: &[String]) -> Result<String, String> {
    const UNSEEN: &str = "\tunseen";
    let mut lines: Vec<&str> = tables.first().map_or(Vec::new(), |of| of.lines().collect());
    let head = usize::from(!lines.is_empty());
    let state = |line: &str| line.split('\t').next().unwrap_or_default().to_owned();
    for table in &tables[1.min(tables.len())..] {
        let others: Vec<&str> = table.lines().collect();
        if others.len() != lines.len() {
            return Err("the shards list different states".into());
        }
        for (line, other) in lines.iter_mut().zip(others).skip(head) {
            if state(line) != state(other) {
                return Err("the shards list different states".into());
            }
            match (line.ends_with(UNSEEN), other.ends_with(UNSEEN)) {
                (true, _) => *line = other,
                (false, true) => {}
                (false, false) => {
                    return Err(format!("two shards looked at the state {}", state(line)));
                }
            }
        }
    }
    let states: BTreeSet<String> = lines.iter().map(|line| state(line)).collect();
    if states.len() != lines.len() {
        return Err("a state is listed twice".into());
    }
    Ok(lines.iter().map(|line| format!("{line}\n")).collect())
}

/// The artefacts of a shard, where they belong in the whole.
fn copy_run(run: &Path, report: &Report, to: &Path) -> Result<()> {
    for result in &report.scenarios {
        let name = rundir::file_name(&result.name);
        let from = run.join("tests").join(&name);
        let to = match result.part {
            Some(Part::States(shard)) => to.join("tests").join(&name).join(below(shard)),
            _ => to.join("tests").join(&name),
        };
        if from.exists() {
            copy(&from, &to)?;
        }
    }
    let listed = fs::read_dir(run).with_context(|| format!("list {}", run.display()))?;
    for entry in listed {
        let entry = entry?;
        if entry.file_type()?.is_dir() && entry.file_name() != "tests" {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn below(shard: Shard) -> String {
    let (index, count) = shard.of();
    format!("{SHARD}{index}-of-{count}")
}

/// A tree; files that are there already stay. Artefacts never change, so one file may have two
/// names.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy(&source, &target)?;
        } else if kind.is_file() && !target.exists() && fs::hard_link(&source, &target).is_err() {
            fs::copy(&source, &target)
                .with_context(|| format!("copy {} to {}", source.display(), target.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(of: &[&[(&str, &str)]]) -> Vec<String> {
        let line = |(sum, outcome): &(&str, &str)| format!("{sum}\tnone\t7\t{outcome}\n");
        let table = |states: &&[(&str, &str)]| {
            let lines: String = states.iter().map(line).collect();
            format!("state\tclass\tcut\toutcome\n{lines}")
        };
        of.iter().map(table).collect()
    }

    #[test]
    fn each_state_is_looked_at_by_one_shard() {
        let two = tables(&[
            &[("a", "kept"), ("b", "unseen"), ("c", "unseen")],
            &[("a", "unseen"), ("b", "broken"), ("c", "unseen")],
        ]);
        let joined = join_tables(&two).expect("parts");
        let whole = tables(&[&[("a", "kept"), ("b", "broken"), ("c", "unseen")]]);
        assert_eq!(joined, whole[0]);
        let twice = tables(&[&[("a", "kept")], &[("a", "kept")]]);
        let why = join_tables(&twice).expect_err("twice");
        assert_eq!(why, "two shards looked at the state a");
        let other = tables(&[&[("a", "kept")], &[("b", "kept")]]);
        assert!(join_tables(&other).is_err());
        let again = tables(&[&[("a", "kept"), ("a", "kept")]]);
        assert!(join_tables(&again).is_err());
        assert_eq!(join_tables(&[]), Ok(String::new()));
    }
}
