//! The command line. A run ends 0 for a pass, 1 for a failure, 2 for a mistake in the
//! call and 69 when the directories could not be used.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{check, differential, fsx, known};

/// Tests any mounted filesystem against a plain directory.
#[derive(Debug, Parser)]
#[command(name = "plugpull-conformance", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Random sequences of calls on both; every answer must be equal
    Differential(differential::Options),
    /// Named deterministic checks, each on both
    Check(check::Options),
    /// Run the fsx program on one file of the mount
    Fsx(fsx::Options),
    /// Print the differences that no FUSE server can avoid, with reasons
    Known,
}

/// Parses this process's arguments and runs them.
#[must_use]
pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("plugpull-conformance: {error:#}");
            ExitCode::from(69)
        }
    }
}

/// Parses and runs a command line, program name first; whether it passed.
///
/// # Errors
/// If the command line is wrong, or the run could not be made.
pub fn run_line<T: Into<OsString> + Clone>(line: impl IntoIterator<Item = T>) -> Result<bool> {
    run(Cli::try_parse_from(line)?)
}

fn run(cli: Cli) -> Result<bool> {
    match cli.command {
        Command::Differential(options) => {
            let report = differential::run(&options)?;
            println!(
                "differential: {} sequences, {} calls",
                report.cases, report.calls
            );
            for (name, count) in &report.known {
                println!("  known difference {name}: {count} times");
            }
            if let Some(failure) = &report.failure {
                println!("FAILED: {failure}");
            }
            Ok(report.failure.is_none())
        }
        Command::Check(options) if options.list => {
            for check in check::all() {
                println!("{}: {}", check.name, check.statement);
            }
            Ok(true)
        }
        Command::Check(options) => {
            let verdicts = check::run(&options)?;
            for verdict in &verdicts {
                match (&verdict.failure, verdict.limit) {
                    (Some(failure), _) => println!("FAIL {}: {failure}", verdict.name),
                    (None, Some(limit)) => println!("limit {}: {limit}", verdict.name),
                    (None, None) => println!("pass {}", verdict.name),
                }
            }
            println!("check: {} checks", verdicts.len());
            Ok(verdicts.iter().all(|verdict| verdict.failure.is_none()))
        }
        Command::Fsx(options) => fsx::run(&options),
        Command::Known => {
            for known in known::KNOWN {
                println!("{}: {}", known.name, known.reason);
            }
            Ok(true)
        }
    }
}
