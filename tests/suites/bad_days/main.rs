//! Bad days: guests that panic, hang or are shot, runs that are killed, files
//! that are wrong, hosts that lack something. None of these may pass for a
//! good day, and none may leave anything behind.
//!
//! The guests are real. They come from what `cargo xtask` has prepared for the
//! run that it announces; the calls of `xtask` are made with the binary that was
//! built beside this one.

mod guests;
mod input;
mod processes;
mod recording;
mod runs;
mod shell;
mod strangers;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Trial};
use plugpull_lab::{
    base::{Base, Kind, Wanted},
    rundir::{RunDir, TestDir},
    scenario::{self, ByteCount, Fs, ImageName, Lower},
    session::{Opening, Session},
    testbed::{Setup, Testbed, announced},
};
use plugpull_vm::cache::Home;

/// Makes this binary a test process that plays a part, instead of the suite.
const PART: &str = "PLUGPULL_BAD_DAY";

/// A test, as the suite lists it.
type Test = (&'static str, fn() -> Result<()>);

fn main() -> ExitCode {
    let played = match std::env::var(PART).as_deref() {
        Ok(runs::HOLDS_A_GUEST) => runs::hold_a_guest(),
        Ok(recording::RUNS_A_CASE) => recording::run_a_case(),
        _ => {
            let tests = [
                guests::TESTS,
                recording::TESTS,
                runs::TESTS,
                shell::TESTS,
                input::TESTS,
                strangers::TESTS,
            ]
            .concat();
            let trials = tests.into_iter().map(|(name, test)| {
                Trial::test(name, move || Ok(test().map_err(|e| format!("{e:#}"))?))
            });
            let arguments = Arguments::from_args();
            return libtest_mimic::run(&arguments, trials.collect()).exit_code();
        }
    };
    match played {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The disk and the image of the smallest power-cut scenario, whose template is
/// there already.
const DISK: scenario::Disk = scenario::Disk {
    size: ByteCount(64 << 20),
    bus: scenario::Bus::Virtio,
    cache: scenario::Cache::Volatile,
    unit: 4096,
};
const IMAGE: &str = "debian13";

/// A test's place in the announced run, and the means to start guests.
struct Stage {
    bed: Testbed,
    image: ImageName,
    dir: TestDir,
}

impl Stage {
    fn new(test: &str) -> Result<Self> {
        let run = RunDir::open(&announced()?)?;
        let setup = Setup::read(run.path())?;
        let preferred = ImageName::new(IMAGE);
        let image = match setup.images.contains_key(&preferred) {
            true => preferred,
            false => setup.images.keys().next().context("no image")?.clone(),
        };
        Ok(Self {
            bed: Testbed::new(Home::find()?, setup)?,
            image,
            dir: run.start_test(&format!("bad-days::{test}"))?,
        })
    }

    /// The disk's log, by a name that is free also when the test is run again.
    fn log(&self) -> PathBuf {
        let name = format!("{}.disklog", std::process::id());
        self.dir.artefact(&name)
    }

    /// A guest on a disk with an empty ext4.
    fn session(&self, record: bool) -> Result<Session<'_>> {
        let lower = ext4();
        let base = Base::ensure(
            &self.bed,
            Wanted {
                image: &self.image,
                lower: &lower,
                disk: DISK,
                kind: Kind::Empty,
            },
        )?;
        Session::start(
            &self.bed,
            Opening {
                image: &self.image,
                spec: DISK,
                view: base.view()?,
                log: self.log(),
                record,
                seed: 1,
                logs: self.dir.path(),
                slot: None,
            },
        )
    }
}

fn ext4() -> Lower {
    Lower {
        name: String::from("ext4"),
        fs: Fs::Ext4,
        mkfs: Vec::new(),
        options: String::new(),
        mounted: true,
    }
}
