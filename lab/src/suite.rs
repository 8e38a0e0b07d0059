//! One test process: from a case's name to a verdict on disk and an exit.
//!
//! nextest runs a process per test. `xtask` has prepared everything and names
//! the run's directory in the environment; a test writes `started`, tells its
//! story, writes its result in one rename, and fails unless the verdict is a
//! pass. Whoever joins the results derives the verdicts anew.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use anyhow::{Context, Result, bail};
use plugpull_vm::cache::Home;

use crate::{
    capsule,
    report::{Evidence, Failure, Planned, ScenarioResult, Verdict},
    rundir::RunDir,
    runner::{self, Outcome},
    scenario::{self, BadFile, Case, CaseName, Loaded, OracleName, Profile},
    testbed::{Setup, Testbed, announced},
};

/// Names the profile to a listing that no run has been prepared for.
pub const PROFILE_VARIABLE: &str = "PLUGPULL_PROFILE";

/// A test: a case, or a file that is none.
#[derive(Debug)]
pub enum Test {
    /// A case of a scenario.
    Case(Box<Case>),
    /// A scenario file that is malformed: a failing test, never a failing
    /// listing.
    Malformed {
        /// The file's name without its ending.
        name: String,
        /// What is wrong with it.
        bad: Box<BadFile>,
    },
}

impl Test {
    /// Its name in nextest, reports and snapshots.
    pub fn name(&self) -> &str {
        match self {
            Self::Case(case) => case.name.as_str(),
            Self::Malformed { name, .. } => name,
        }
    }

    /// What is known before it runs.
    pub fn planned(&self) -> Planned {
        match self {
            Self::Case(case) => Planned::from(&**case),
            Self::Malformed { name, .. } => Planned::malformed(name),
        }
    }
}

/// Every scenario of the workspace, or the one file that the user named.
///
/// # Errors
/// When a directory or the named file cannot be read.
pub fn load(home: &Home, file: Option<&std::path::Path>) -> Result<Vec<Loaded>> {
    let images = scenario::image_names(&home.recipes)
        .with_context(|| format!("list the images in {}", home.recipes.display()))?;
    match file {
        Some(file) => {
            let loaded = scenario::load_file(file, &images)
                .with_context(|| format!("read {}", file.display()))?;
            Ok(vec![loaded])
        }
        None => {
            let dir = home.root.join("tests/scenarios");
            scenario::load_dir(&dir, &images)
                .with_context(|| format!("list the scenarios in {}", dir.display()))
        }
    }
}

/// The tests of a profile.
pub fn tests(loaded: Vec<Loaded>, profile: Profile) -> Vec<Test> {
    let mut tests = Vec::new();
    for file in loaded {
        match file.scenario {
            Ok(scenario) => {
                let cases = Arc::new(scenario).cases(profile);
                tests.extend(cases.into_iter().map(|case| Test::Case(Box::new(case))));
            }
            Err(bad) => tests.push(Test::Malformed {
                name: file.name,
                bad: Box::new(bad),
            }),
        }
    }
    tests
}

/// The tests that this process may be asked for: those that the run chose, or
/// all of a profile where no run has been prepared.
///
/// # Errors
/// When the run's setup or the scenarios cannot be read.
pub fn listed() -> Result<Vec<Test>> {
    let home = Home::find()?;
    let Ok(run) = announced() else {
        let profile = match std::env::var(PROFILE_VARIABLE) {
            Ok(name) => scenario::Named::from_name(&name)
                .with_context(|| format!("there is no profile {name:?}"))?,
            Err(_) => Profile::Smoke,
        };
        return Ok(tests(load(&home, None)?, profile));
    };
    let setup = Setup::read(&run)?;
    let chosen: BTreeSet<&str> = setup.cases.iter().map(|name| name.as_str()).collect();
    let all = tests(load(&home, setup.scenario_file.as_deref())?, setup.profile);
    Ok(all
        .into_iter()
        .filter(|test| matches!(test, Test::Malformed { .. }) || chosen.contains(test.name()))
        .collect())
}

/// Whether outcomes are compared with accepted snapshots: those of the
/// workspace's own scenarios are, a user's file has none.
///
/// # Errors
/// When the run's setup cannot be read.
pub fn has_snapshots() -> Result<bool> {
    Ok(Setup::read(&announced()?)?.scenario_file.is_none())
}

/// Run one test to its verdict. The result is written before this returns.
///
/// # Errors
/// Only when not even a result could be written.
pub fn run(test: &Test) -> Result<Ran> {
    let run = RunDir::open(&announced()?)?;
    let setup = Setup::read(run.path())?;
    let dir = run.start_test(test.name())?;
    let result = match test {
        Test::Malformed { name, bad } => Planned::malformed_result(name, bad),
        Test::Case(case) => {
            let start = Instant::now();
            let mut outcome = Outcome::default();
            let told = Testbed::new(Home::find()?, setup.clone())
                .and_then(|bed| runner::run(&bed, case, dir.path(), &mut outcome));
            let infra = told.err().map(|error| format!("{error:#}"));
            evidence(case, outcome, infra, start, &setup)
        }
    };
    dir.finish(&result)?;
    if result.verdict == Verdict::Pass && !setup.keep {
        remove_bulk(dir.path())?;
    }
    Ok(Ran {
        result,
        artefacts: dir.path().to_owned(),
        setup,
    })
}

/// A test that ran.
#[derive(Debug)]
pub struct Ran {
    /// What came of it.
    pub result: ScenarioResult,
    /// Where its artefacts are.
    pub artefacts: std::path::PathBuf,
    /// What the run was set up with.
    setup: Setup,
}

impl Ran {
    /// The command that runs this case again with the same choices.
    pub fn rerun(&self) -> String {
        rerun(&self.result.name, &self.setup)
    }
}

fn rerun(name: &str, setup: &Setup) -> String {
    let file = setup.scenario_file.as_ref();
    let scenario = file.map(|file| format!(" --scenario '{}'", file.display()));
    let given = setup.sharing.recordings.get(&CaseName::new(name));
    let recorded = given.and_then(|dir| dir.ancestors().nth(3)).map(|run| {
        let profile = setup.profile;
        format!(" --profile {profile} --recordings '{}'", run.display())
    });
    format!(
        "cargo xtask test-vm '{name}'{}{} --seed {} --keep",
        scenario.unwrap_or_default(),
        recorded.unwrap_or_default(),
        setup.seed
    )
}

fn evidence(
    case: &Case,
    outcome: Outcome,
    infra: Option<String>,
    start: Instant,
    setup: &Setup,
) -> ScenarioResult {
    let planned = Planned::from(case).shared(&setup.sharing);
    let asked = |oracle: &&OracleName| !outcome.applied.contains(oracle);
    let unasked = planned.oracles.iter().filter(asked).copied().collect();
    let mut counts = outcome.counts;
    counts.add_named("kernel_warnings", outcome.warnings.len() as u64);
    let rerun = rerun(case.name.as_str(), setup);
    let kept = outcome.capsule.unwrap_or_default();
    let repro = |state: &String| {
        let id = capsule::id(&case.name, state);
        kept.states
            .contains(state)
            .then(|| format!("cargo xtask repro {id}"))
    };
    let mut failures: Vec<Failure> = Vec::new();
    for failure in outcome.failures {
        failures.push(Failure {
            oracle: failure.oracle.to_string(),
            repro: failure
                .state
                .as_ref()
                .and_then(repro)
                .unwrap_or_else(|| rerun.clone()),
            detail: match &failure.state {
                Some(state) => format!("{}: {}", capsule::id(&case.name, state), failure.detail),
                None => failure.detail,
            },
            door: failure.laid.as_ref().map(|laid| laid.door),
            evidence: failure.laid.map(|laid| laid.evidence),
        });
    }
    if let (Some(why), Some(first)) = (&kept.why_not, failures.first_mut()) {
        first
            .detail
            .push_str(&format!("\nno capsule was made: {why}"));
    }
    planned.result(Evidence {
        failures,
        counts,
        phases: outcome.seconds,
        seconds: start.elapsed().as_secs_f64(),
        infra,
        unasked,
    })
}

/// Remove what is large and can be made again; the result and the consoles
/// stay.
fn remove_bulk(dir: &std::path::Path) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "disklog") {
            std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Run the test and say why it is not a pass.
///
/// # Errors
/// The message is for a person: the verdict, the findings, where the artefacts
/// are, and the command that runs it again.
pub fn check(test: &Test) -> Result<ScenarioResult> {
    let ran = run(test)?;
    if ran.result.verdict == Verdict::Pass {
        return Ok(ran.result);
    }
    let mut text = format!(
        "{}: {}",
        ran.result.verdict,
        ran.result.because.as_deref().unwrap_or("no reason given")
    );
    for failure in ran.result.failures.iter().take(10) {
        text.push_str(&format!("\n  {}: {}", failure.oracle, failure.detail));
    }
    if let more @ 1.. = ran.result.failures.len().saturating_sub(10) {
        text.push_str(&format!("\n  and {more} more in the report"));
    }
    bail!(
        "{text}\n  artefacts: {}\n  again:     {}",
        ran.artefacts.display(),
        ran.rerun()
    );
}
