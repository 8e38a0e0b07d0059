//! Real programs of the guest's distribution, with their files on the mount:
//! what they answer, and whether what they left is what the plan says.

mod git;
mod sqlite;
mod tar;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use plugpull_protocol::workload::{Act, Program, ProgramRun, Step};
use plugpull_protocol::{Exited, Observation};

use crate::process::Spec;

/// How many differences are described.
const DESCRIBED: usize = 20;
/// How much of a program's output is reported; its start tells most.
const REPORTED_BYTES: usize = 4 << 10;

/// Carry out one act in `dir`; scratch files that belong to no filesystem
/// under test go to `scratch`.
///
/// # Errors
/// When a program cannot be started, does not end in time, or the damage finds
/// nothing to damage.
pub(super) fn run(
    dir: &Path,
    program: Program,
    act: Act,
    timeout: Duration,
    scratch: &Path,
) -> Result<Observation> {
    let mut stage = Stage {
        dir: dir.to_owned(),
        scratch: scratch.to_owned(),
        timeout,
        run: ProgramRun::default(),
    };
    match (program, act) {
        (Program::GitClone(plan), Act::Run) => git::run(&mut stage, &plan)?,
        (Program::GitClone(plan), Act::Check) => git::check(&mut stage, &plan)?,
        (Program::GitClone(_), Act::Damage) => git::damage(dir)?,
        (Program::TarRoundTrip(plan), Act::Run) => tar::run(&mut stage, &plan)?,
        (Program::TarRoundTrip(plan), Act::Check) => tar::check(&mut stage, &plan),
        (Program::TarRoundTrip(plan), Act::Damage) => tar::damage(dir, &plan)?,
        (Program::Sqlite(plan), Act::Run) => sqlite::run(&mut stage, &plan)?,
        (Program::Sqlite(plan), Act::Check) => sqlite::check(&mut stage, &plan)?,
        (Program::Sqlite(plan), Act::Damage) => sqlite::damage(dir, &plan)?,
    }
    Ok(Observation::Program(Box::new(stage.run)))
}

/// What an act needs, and what it has seen so far.
struct Stage {
    dir: PathBuf,
    scratch: PathBuf,
    timeout: Duration,
    run: ProgramRun,
}

impl Stage {
    /// Run a program to its end and report it. `expected` is all that it says
    /// on standard output when all is well. False: nothing after it makes
    /// sense.
    fn step<S: Into<OsString>>(
        &mut self,
        what: &str,
        argv: impl IntoIterator<Item = S>,
        env: &[(&str, &str)],
        expected: Option<&str>,
    ) -> Result<bool> {
        let argv: Vec<OsString> = argv.into_iter().map(Into::into).collect();
        let spec = env
            .iter()
            .fold(Spec::new(argv), |spec, (name, value)| spec.env(name, value));
        let exited = spec.run(self.timeout)?;
        Ok(self.report(what, exited, expected))
    }

    /// Report a program that ran to its end.
    fn report(&mut self, what: &str, exited: Exited, expected: Option<&str>) -> bool {
        let well = exited.success();
        self.run.steps.push(Step {
            what: what.to_owned(),
            expected: expected.map(str::to_owned),
            exited: Exited {
                stdout: start(&exited.stdout),
                stderr: start(&exited.stderr),
                ..exited
            },
        });
        well
    }

    /// Count the commits that the last program told.
    fn count_commits(&mut self) {
        let last = self.run.steps.last();
        let told = last.and_then(|step| step.exited.stdout.parse::<u64>().ok());
        self.run.commits += told.unwrap_or(0);
    }

    /// Count something that is not as planned.
    fn differs(&mut self, told: impl FnOnce() -> String) {
        self.run.differences += 1;
        if self.run.first.len() < DESCRIBED {
            self.run.first.push(told());
        }
    }
}

fn start(output: &str) -> String {
    let mut end = output.len().min(REPORTED_BYTES);
    while !output.is_char_boundary(end) {
        end -= 1;
    }
    output[..end].trim_end_matches('\n').to_owned()
}

/// Where two contents part, for a description.
fn parting(expected: &[u8], found: &[u8]) -> String {
    let at = expected
        .iter()
        .zip(found)
        .take_while(|(e, f)| e == f)
        .count();
    let from = |of: &[u8]| {
        let end = of.len().min(at + 16);
        of[at..end].escape_ascii().to_string()
    };
    format!(
        "{} bytes instead of {}; at {at} \"{}\" instead of \"{}\"",
        found.len(),
        expected.len(),
        from(found),
        from(expected)
    )
}

/// Flip the lowest bit of one byte of a file.
fn flip(path: &Path, at: u64) -> Result<()> {
    let doing = || format!("damage {} at {at}", path.display());
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.with_context(doing)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).with_context(doing)?;
    file.write_all_at(&[byte[0] ^ 1], at).with_context(doing)
}
