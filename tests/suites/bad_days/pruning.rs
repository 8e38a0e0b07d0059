//! One recording, explored with every state looked at and with those spared that differ only where
//! nobody looked: each state comes to the same.

use anyhow::{Context, Result, ensure};
use plugpull_lab::report::Verdict;

use crate::{
    Test,
    shards::{Bench, looked_at, report},
};

pub(crate) const TESTS: &[Test] = &[("what_is_pruned_is_told_right", what_is_pruned_is_told_right)];

/// It promises what it has not synced, so that some states keep and some break a promise.
const SCENARIO: &str = r#"
[workload]
builtin   = "files"
sequences = 12
fsync     = false

[power-cut]
states = 100
"#;

fn what_is_pruned_is_told_right() -> Result<()> {
    let place = tempfile::tempdir()?;
    let text = format!("{SCENARIO}prune = false\n");
    let plain = Bench::new(place.path(), "plain", &text)?;
    let pruned = Bench::new(place.path(), "pruned", SCENARIO)?;
    let recorded = plain.run("recorded", &["--record-only"], 0)?;
    let recorded = recorded.to_str().context("a plain path")?;
    let plain = plain.run("plain", &["--recordings", recorded], 1)?;
    let pruned = pruned.run("pruned", &["--recordings", recorded], 1)?;

    let (every, fewer) = (looked_at(&plain)?, looked_at(&pruned)?);
    let outcomes = |word: &str| every.values().filter(|outcome| *outcome == word).count();
    ensure!(
        outcomes("kept") > 0 && outcomes("broken") > 0,
        "of one outcome alone nothing is learned: {every:?}"
    );
    ensure!(every == fewer, "{every:?} and, pruned, {fewer:?}");

    let counts = |run| -> Result<_> {
        let mut report = report(run)?;
        let case = report.scenarios.pop().context("a case")?;
        ensure!(case.verdict == Verdict::Fail);
        Ok((case.unique_states, case.counts.named("pruned_looks")))
    };
    let (looks, none) = counts(&plain)?;
    ensure!(none == 0, "{none} looks were spared without pruning");
    let (fewer_looks, spared) = counts(&pruned)?;
    ensure!(spared > 0 && fewer_looks < looks, "no look was spared");
    Ok(())
}
