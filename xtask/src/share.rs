//! A run on several machines: recordings that are given to it, and joining its shards.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::Result;
use plugpull_lab::{
    merge,
    progress::Progress,
    report::{self, Look, Report, SCHEMA, Verdict},
    scenario::Profile,
    select::Shard,
    sharing::{self, Sharing},
};
use plugpull_vm::cache::Home;

use crate::{
    commands::{Exit, Mistake},
    options::{self, TestVm},
    report as written,
    test::{Run, say},
};

/// What of a run is done here, and the seed that its recordings ask for.
pub(crate) fn sharing(args: &TestVm, profile: Profile) -> Result<(Sharing, Option<u64>)> {
    let mut sharing = Sharing {
        shard: match &args.shard {
            Some(text) => text.parse().map_err(Mistake::new)?,
            None => Shard::ALL,
        },
        record_only: args.record_only,
        ..Sharing::default()
    };
    let mut seed = None;
    for run in &args.recordings {
        for (dir, manifest) in sharing::recordings(run).map_err(Mistake::new)? {
            let wrong = |what: &str, asked: &dyn std::fmt::Display, is: &dyn std::fmt::Display| {
                let of = &manifest.case;
                Mistake::text(format!(
                    "{of} was recorded with the {what} {is}, not {asked}"
                ))
            };
            if manifest.profile != profile {
                return Err(wrong("profile", &profile, &manifest.profile).into());
            }
            let wanted = *seed.get_or_insert(args.seed.unwrap_or(manifest.seed));
            if manifest.seed != wanted {
                return Err(wrong("seed", &wanted, &manifest.seed).into());
            }
            if let Some(other) = sharing.recordings.insert(manifest.case.clone(), dir) {
                let text = format!("{} was recorded twice: {}", manifest.case, other.display());
                return Err(Mistake::text(text).into());
            }
        }
    }
    Ok((sharing, seed))
}

/// The report of a shard to which nothing fell.
pub(crate) fn nothing(
    home: &Home,
    shard: Shard,
    seed: u64,
    profile: Profile,
    progress: &dyn Progress,
) -> Result<Exit> {
    let run = Run::begin(home, progress)?;
    let report = Report {
        schema: SCHEMA,
        seed,
        profile,
        shard: shard.to_string(),
        shards: Vec::new(),
        missing: Vec::new(),
        accel: String::new(),
        qemu: String::new(),
        images: Vec::new(),
        verdict: Verdict::Infra,
        seconds: 0.0,
        phases: BTreeMap::new(),
        scenarios: Vec::new(),
    }
    .finish();
    written::write(&run.dir, &report)?;
    say(&written::places(run.dir.path()))?;
    Ok(Exit::Pass)
}

/// What comes after recording.
pub(crate) fn how_to_explore(run: &Path, profile: Profile) -> String {
    format!(
        "explore:  cargo xtask test-vm --profile {profile} --recordings '{}' --shard M/N\n",
        run.display()
    )
}

/// Join shards.
pub(crate) fn merge(args: &options::Merge) -> Result<Exit> {
    let home = Home::find()?;
    let runs: Vec<PathBuf> = args.runs.iter().map(|run| place(&home, run)).collect();
    let (dir, report) = merge::merge(&home.state, &runs)?;
    written::write(&dir, &report)?;
    let table = report::table(&report, Look::of(&std::io::stdout()));
    say(&format!("{table}{}", written::places(dir.path())))?;
    Ok(match report.verdict {
        Verdict::Pass => Exit::Pass,
        Verdict::Fail => Exit::Fail,
        Verdict::Infra => Exit::Infra,
    })
}

/// A run by its directory, or by its name among those here.
fn place(home: &Home, run: &Path) -> PathBuf {
    let named = home.state.join("runs").join(run);
    match !run.exists() && named.exists() {
        true => named,
        false => run.to_owned(),
    }
}
