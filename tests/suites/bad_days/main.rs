//! Bad days: guests that panic, hang or are shot, runs that are killed, files
//! that are wrong, hosts that lack something. None of these may pass for a
//! good day, and none may leave anything behind.
//!
//! The guests are real. They come from what `cargo xtask` has prepared for the
//! run that it announces; the calls of `xtask` are made with the binary that was
//! built beside this one.

mod capsules;
mod guests;
mod input;
mod operations;
mod processes;
mod pruning;
mod recording;
mod runs;
mod shards;
mod shell;
mod strangers;

use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Trial};
use plugpull_tests::{DISK, IMAGE, Stage, ext4};

/// Makes this binary a test process that plays a part, instead of the suite.
const PART: &str = "PLUGPULL_BAD_DAY";

/// The scenario of one case on a small disk, without its workload.
const SMALL_CASE: &str = r#"
about = "A bad day"

[matrix]
image = ["debian13"]
lower = ["ext4"]
mount = ["native"]

[disk]
size = "64 MiB"
"#;

/// A test, as the suite lists it.
type Test = (&'static str, fn() -> Result<()>);

fn main() -> ExitCode {
    let played = match std::env::var(PART).as_deref() {
        Ok(runs::HOLDS_A_GUEST) => runs::hold_a_guest(),
        Ok(recording::RUNS_A_CASE) => recording::run_a_case(),
        _ => {
            let tests = [
                capsules::TESTS,
                guests::TESTS,
                operations::TESTS,
                pruning::TESTS,
                recording::TESTS,
                runs::TESTS,
                shards::TESTS,
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
