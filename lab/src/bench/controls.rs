//! How often a control is caught by nature, over many runs with other seeds.
//!
//! The controls that stand in the suite must be certain, so they are given
//! enough threads to lose every race. Beside them run the same mutants with
//! few threads: how often those are caught says how good the testbed is at
//! finding a race that nobody made easy.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result};
use plugpull_vm::cache::Home;

use super::{
    Stage,
    figures::{Figure, Group, Rate, Setting, Sheet, Unit, Value},
};
use crate::{
    runner::{self, Outcome},
    scenario::{Case, ImageName, Named, Profile, Scenario, image_names},
    suite,
    testbed::{Setup, Testbed},
};

/// The mutants whose fault is a race.
const RACES: [&str; 2] = ["fd-as-handle", "fd-as-handle-bare"];
/// With two dispatch threads the race is rare, with four it is common.
const THREADS: [u32; 2] = [2, 4];

/// The controls: those of the suite at the size of a profile, and the races
/// with few threads.
///
/// # Errors
/// When the scenarios cannot be read, or one is malformed.
pub fn cases(home: &Home, profile: Profile) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for loaded in suite::load(home, None)? {
        let scenario = loaded.scenario?;
        if scenario.is_control() {
            cases.extend(Arc::new(scenario).cases(profile));
        }
    }
    let images = image_names(&home.recipes).context("list the images")?;
    for mutant in RACES {
        cases.extend(natural(mutant, &images, profile)?);
    }
    Ok(cases)
}

/// A race with few threads, under both workloads that meet it.
fn natural(mutant: &str, images: &[ImageName], profile: Profile) -> Result<Vec<Case>> {
    let writers = "builtin = \"writers\"\nwriters = 250\nrounds = 10\nfiles_per_round = 4";
    let workloads = [
        ("initdb", "builtin = \"postgres-initdb\"", "tree"),
        ("writers", writers, "writers"),
    ];
    let mut cases = Vec::new();
    for (short, workload, oracle) in workloads {
        for threads in THREADS {
            let text = format!(
                "about = \"{mutant} with {threads} threads, as nature has it\"\n\
                 [matrix]\nimage = [\"debian13\"]\nlower = [\"ext4\"]\n\
                 mount = [\"{mutant}-{threads}-threads\"]\n\
                 [mount.{mutant}-{threads}-threads]\n\
                 mutant = \"{mutant}\"\nthreads = {threads}\n\
                 [disk]\nsize = \"1 GiB\"\ncache = \"volatile\"\n\
                 [workload]\n{workload}\n\
                 [expect]\nverdict = \"fail\"\ncaught_by = \"{oracle}\"\n"
            );
            let path = format!("natural-{short}.toml");
            let scenario = Scenario::parse(Path::new(&path), &text, images)?;
            cases.extend(Arc::new(scenario).cases(profile));
        }
    }
    Ok(cases)
}

/// Run each case with the seeds 1 to `runs`, one after the other.
///
/// # Errors
/// When the testbed cannot be opened; a run that cannot be told to its end is
/// counted, not an error.
pub fn controls(stage: Stage<'_>, cases: &[Case], runs: u32) -> Result<Sheet> {
    let notes = [
        "caught: an oracle complained, any of them; with Wilson's interval for the rate",
        "infra: the run could not be told to its end; such runs are not part of the rate",
        "one guest at a time; seeds 1 to n, the controls taking turns; a run ends as soon as its \
         own oracle has caught it",
    ];
    let setting = Setting::of(stage.bed)?;
    let mut sheet = Sheet::new("controls", setting, notes.map(str::to_owned).into());
    let mut tallies = vec![Tally::default(); cases.len()];
    for seed in 1..=u64::from(runs) {
        for (case, tally) in cases.iter().zip(&mut tallies) {
            let run = one(stage, case, seed)?;
            stage.tell(format!(
                "{}, seed {seed} of {runs}: {run} after {:.1} s",
                case.name, run.seconds
            ));
            tally.add(run);
        }
    }
    let groups = cases.iter().zip(tallies);
    sheet.groups = groups.map(|(case, tally)| tally.group(case)).collect();
    Ok(sheet)
}

/// One run of one case.
#[derive(Debug, Clone)]
struct Run {
    seconds: f64,
    /// The oracles that complained, or why the story was not told.
    by: Result<BTreeSet<&'static str>, String>,
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.by {
            Err(why) => write!(f, "infra ({why})"),
            Ok(by) if by.is_empty() => f.write_str("not caught"),
            Ok(by) => {
                let by: Vec<_> = by.iter().copied().collect();
                write!(f, "caught by {}", by.join(", "))
            }
        }
    }
}

fn one(stage: Stage<'_>, case: &Case, seed: u64) -> Result<Run> {
    let setup = Setup {
        seed,
        ..stage.bed.setup().clone()
    };
    let bed = Testbed::new(stage.bed.home().clone(), setup)?;
    let dir = tempfile::Builder::new()
        .prefix(&format!("{}-{seed}-", case.scenario.name))
        .tempdir_in(stage.dir)
        .context("make a directory for a run")?;
    let start = Instant::now();
    let mut outcome = Outcome::default();
    let told = runner::run(&bed, case, dir.path(), &mut outcome);
    let seconds = start.elapsed().as_secs_f64();
    let by = match told {
        Ok(()) => {
            let failures = outcome.failures.iter();
            Ok(failures.map(|failure| failure.oracle.name()).collect())
        }
        // Its artefacts stay.
        Err(error) => Err(format!("{error:#}; see {}", dir.keep().display())),
    };
    Ok(Run { seconds, by })
}

/// The runs of one case.
#[derive(Debug, Clone, Default)]
struct Tally {
    caught: u32,
    passed: u32,
    infra: Vec<String>,
    by: BTreeMap<String, u32>,
    seconds: Vec<f64>,
}

impl Tally {
    fn add(&mut self, run: Run) {
        match run.by {
            Err(why) => {
                self.infra.push(why);
                return;
            }
            Ok(by) if by.is_empty() => self.passed += 1,
            Ok(by) => {
                self.caught += 1;
                for oracle in by {
                    *self.by.entry(oracle.to_owned()).or_default() += 1;
                }
            }
        }
        self.seconds.push(run.seconds);
    }

    fn group(self, case: &Case) -> Group {
        let rate = Rate {
            runs: self.caught + self.passed,
            caught: self.caught,
            infra: u32::try_from(self.infra.len()).unwrap_or(u32::MAX),
            by: self.by,
            infra_because: self.infra,
        };
        let mut figures = vec![Figure {
            name: String::from("caught"),
            value: Value::Rate(rate),
            goal: None,
        }];
        figures.extend(Figure::sampled(
            "time of a run",
            Unit::Seconds,
            &self.seconds,
        ));
        Group {
            title: case.name.to_string(),
            figures,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case() -> Case {
        let images = [ImageName::new("debian13")];
        natural(RACES[0], &images, Profile::Smoke)
            .expect("the text is a scenario")
            .remove(0)
    }

    #[test]
    fn natural_cases_are_well_formed_and_have_names_of_their_own() {
        let images = [ImageName::new("debian13")];
        for mutant in RACES {
            let cases = natural(mutant, &images, Profile::Smoke).expect("the text is a scenario");
            let names: BTreeSet<_> = cases.iter().map(|case| case.name.to_string()).collect();
            assert_eq!(names.len(), 4, "{names:?}");
        }
        assert_eq!(
            case().name.to_string(),
            "natural-initdb::debian13::ext4::fd-as-handle-2-threads"
        );
    }

    #[test]
    fn infra_is_no_part_of_the_rate() {
        let run = |by: Result<&[&'static str], &str>| Run {
            seconds: 2.0,
            by: by
                .map(|by| by.iter().copied().collect())
                .map_err(str::to_owned),
        };
        let mut tally = Tally::default();
        tally.add(run(Ok(&["exit", "tree"])));
        tally.add(run(Ok(&["tree"])));
        tally.add(run(Ok(&[])));
        tally.add(run(Err("the guest hung")));
        let group = tally.group(&case());
        let rate = Rate {
            runs: 3,
            caught: 2,
            infra: 1,
            by: [("exit", 1), ("tree", 2)]
                .map(|(oracle, n)| (oracle.to_owned(), n))
                .into(),
            infra_because: vec![String::from("the guest hung")],
        };
        assert_eq!(group.figures[0].value, Value::Rate(rate));
        let Value::Sample { samples, .. } = &group.figures[1].value else {
            panic!("times are samples");
        };
        assert_eq!(samples.len(), 3);
    }
}
