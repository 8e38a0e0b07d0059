//! Every chosen case of every scenario, as an ordinary test.
//!
//! The verdict, the oracles, the thresholds and the controls' catches of each
//! scenario are an accepted snapshot, one a scenario: a change of outcome is a
//! diff, accepted with `cargo xtask test-vm --bless`.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use plugpull_lab::{
    report::canonical::canonical,
    suite::{self, Test},
};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let tests = match suite::listed() {
        Ok(tests) => tests,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let trials = tests
        .into_iter()
        .map(|test| Trial::test(test.name().to_owned(), move || run(&test)))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn run(test: &Test) -> Result<(), Failed> {
    let result = suite::check(test).map_err(|error| format!("{error:#}"))?;
    if result.part.is_some() || !suite::has_snapshots().map_err(|error| format!("{error:#}"))? {
        return Ok(());
    }
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(concat!(env!("CARGO_MANIFEST_DIR"), "/snapshots"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(result.scenario(), canonical(&result)));
    Ok(())
}
