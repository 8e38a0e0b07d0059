//! The time of showing a failing crash state again from its capsule.

use std::{fs, time::Instant};

use anyhow::{Context, Result, ensure};

use super::{Stage, States, Written, case_of};
use crate::{
    capsule::{self, Capsule},
    repro,
    runner::{self, Outcome},
    scenario::image_names,
    testbed::{Setup, Testbed},
};

/// A disk that lies: most of its states have lost something.
pub(super) fn scenario(order: &States) -> Written {
    let image = &order.image;
    Written {
        name: String::from("states-again"),
        text: format!(
            "about = \"A state that broke a promise is shown again\"\n\
             [matrix]\nimage = [\"{image}\"]\nlower = [\"ext4\"]\nmount = [\"native\"]\n\
             [disk]\nsize = \"64 MiB\"\ncache = \"lies-on-flush\"\n\
             [workload]\nbuiltin = \"page-fsync\"\n\
             [power-cut]\nstates = 60\n\
             [expect]\nverdict = \"fail\"\ncaught_by = \"ledger\"\n"
        ),
    }
}

/// Seconds from opening the capsule to what the oracles say.
pub(super) fn measure(stage: Stage<'_>, order: &States, round: u32) -> Result<Vec<f64>> {
    let dir = tempfile::tempdir_in(stage.dir).context("make a directory for a run")?;
    let written = scenario(order);
    let images = image_names(&stage.bed.home().recipes).context("list the images")?;
    let case = case_of(&images, &written, dir.path())?;
    // A capsule holds the file.
    fs::write(&case.scenario.path, &written.text).context("write the scenario")?;
    let setup = Setup {
        seed: u64::from(round),
        // Or a control that was caught leaves no capsule.
        keep: true,
        ..stage.bed.setup().clone()
    };
    let bed = Testbed::new(stage.bed.home().clone(), setup)?;
    let mut outcome = Outcome::default();
    runner::run(&bed, &case, dir.path(), &mut outcome)
        .with_context(|| format!("run {}", case.name))?;
    let why_not = outcome.capsule.and_then(|kept| kept.why_not);
    ensure!(
        why_not.is_none(),
        "{} left no capsule: {}",
        case.name,
        why_not.unwrap_or_default()
    );
    let path = dir.path().join(capsule::FILE);
    let mut seconds = Vec::new();
    for time in 0..order.again {
        let to = dir.path().join(format!("again-{time}"));
        fs::create_dir(&to).with_context(|| format!("make {}", to.display()))?;
        let start = Instant::now();
        let found = Capsule::open(&path)?;
        let state = found.state(None)?;
        let unpacked = found.unpack(&to)?;
        let case = repro::case(&unpacked, bed.home(), None)?;
        let again = runner::again(&bed, &case, &unpacked, &state, &to)?;
        seconds.push((start.elapsed() - again.waited).as_secs_f64());
        ensure!(
            again.findings == state.findings,
            "{} is not the same failure again: {:?}",
            state.id,
            again.findings
        );
    }
    Ok(seconds)
}
