//! Our own exploration, as a case of the suite runs it.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use plugpull_disk::{CutPoint, Keep, PowerCut, Recording, View};

use super::{Stage, States, Written, size_mib};
use crate::{
    base::{Base, Kind, Wanted},
    runner::{self, Looked, Outcome},
    scenario::{Case, Fs, Named},
    testbed::{Setup, Testbed},
};

/// How states are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Each one mounted, read and judged.
    Looked,
    /// The same, and checked by the filesystem's own tool.
    Fsck,
    /// As a scenario runs unless it says otherwise.
    Pruned,
}

impl Mode {
    pub(super) const ALL: [Self; 3] = [Self::Looked, Self::Fsck, Self::Pruned];

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Looked => "ours, no fsck",
            Self::Fsck => "ours, with fsck",
            Self::Pruned => "ours, with fsck, pruned",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Looked => "looked",
            Self::Fsck => "fsck",
            Self::Pruned => "pruned",
        }
    }

    /// What runs on this filesystem.
    pub(super) fn scenario(self, fs: Fs, order: &States) -> Written {
        let (fsck, prune) = match self {
            Self::Looked => (false, false),
            Self::Fsck => (true, false),
            Self::Pruned => (true, true),
        };
        let (image, states, size) = (&order.image, order.states, size_mib(fs));
        let fs = fs.name();
        Written {
            name: format!("states-{}", self.name()),
            text: format!(
                "about = \"Crash states a second\"\n\
                 [matrix]\nimage = [\"{image}\"]\nlower = [\"{fs}\"]\nmount = [\"native\"]\n\
                 [disk]\nsize = \"{size} MiB\"\ncache = \"volatile\"\n\
                 [workload]\nbuiltin = \"page-fsync\"\n\
                 [power-cut]\nstates = {states}\nfsck = {fsck}\nprune = {prune}\n"
            ),
        }
    }
}

/// How fast the guests of one exploration were.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Explored(Vec<Looked>);

impl From<Vec<Looked>> for Explored {
    fn from(guests: Vec<Looked>) -> Self {
        Self(guests)
    }
}

impl Explored {
    #[cfg(test)]
    pub(super) fn of(guests: &[(u64, u64, f64)]) -> Self {
        let looked = |(states, judged, seconds): &(u64, u64, f64)| Looked {
            states: *states,
            judged: *judged,
            seconds: *seconds,
        };
        Self(guests.iter().map(looked).collect())
    }

    pub(super) fn guests(&self) -> usize {
        self.0.len()
    }

    /// States that were mounted and read.
    pub(super) fn states(&self) -> u64 {
        self.0.iter().map(|guest| guest.states).sum()
    }

    /// Seconds of all guests together.
    pub(super) fn seconds(&self) -> f64 {
        self.0.iter().map(|guest| guest.seconds).sum()
    }

    /// Of all guests while all of them are up.
    pub(super) fn states_per_second(&self) -> f64 {
        let rates = self.0.iter();
        rates.map(|guest| guest.states as f64 / guest.seconds).sum()
    }

    pub(super) fn judged_per_second(&self) -> f64 {
        let rates = self.0.iter();
        rates.map(|guest| guest.judged as f64 / guest.seconds).sum()
    }

    /// Of one of them, beside the others.
    pub(super) fn states_per_second_of_a_guest(&self) -> f64 {
        self.states() as f64 / self.seconds()
    }
}

impl fmt::Display for Explored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} states in {} guests, {:.1} a second",
            self.states(),
            self.guests(),
            self.states_per_second()
        )
    }
}

/// Explore a case with the seed of this round; what its last cut left, with
/// nothing but the durable, comes along.
pub(super) fn explore(stage: Stage<'_>, case: &Case, round: u32) -> Result<(Explored, View)> {
    let (outcome, dir) = run(stage, case, round)?;
    let crash = last_state(stage, case, dir.path())?;
    Ok((Explored(outcome.looked), crash))
}

/// Tell a case's story, which has to end with all promises kept.
pub(super) fn run(
    stage: Stage<'_>,
    case: &Case,
    round: u32,
) -> Result<(Outcome, tempfile::TempDir)> {
    let setup = Setup {
        seed: u64::from(round),
        ..stage.bed.setup().clone()
    };
    let bed = Testbed::new(stage.bed.home().clone(), setup)?;
    let dir = tempfile::Builder::new()
        .prefix(&format!("{}-{}-", case.scenario.name, case.lower.name))
        .tempdir_in(stage.dir)
        .context("make a directory for a run")?;
    let mut outcome = Outcome::default();
    if let Err(error) = runner::run(&bed, case, dir.path(), &mut outcome) {
        // Its artefacts stay.
        let kept = dir.keep();
        return Err(error.context(format!("run {}; see {}", case.name, kept.display())));
    }
    if let Some(failure) = outcome.failures.first() {
        bail!("{} broke a promise: {}", case.name, failure.detail);
    }
    ensure!(
        !outcome.looked.is_empty(),
        "{} looked at no state",
        case.name
    );
    Ok((outcome, dir))
}

fn last_state(stage: Stage<'_>, case: &Case, dir: &std::path::Path) -> Result<View> {
    let wanted = Wanted {
        image: &case.guest,
        lower: &case.lower,
        disk: case.scenario.disk,
        kind: Kind::Empty,
    };
    let base = Base::ensure(stage.bed, wanted)?.view()?;
    let recording = Recording::open(&dir.join("load.disklog"))?;
    let cut = PowerCut::new(&base, &recording, CutPoint(recording.last_seq()))?;
    Ok(cut.crash_state(&Keep::DurableOnly)?.view)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_came_late_counts_for_as_long_as_it_was_there() {
        let explored = Explored::of(&[(200, 250, 10.0), (50, 50, 2.5)]);
        assert!((explored.states_per_second() - 40.0).abs() < 1e-9);
        assert!((explored.judged_per_second() - 45.0).abs() < 1e-9);
        assert!((explored.states_per_second_of_a_guest() - 20.0).abs() < 1e-9);
        assert_eq!((explored.states(), explored.guests()), (250, 2));
    }
}
