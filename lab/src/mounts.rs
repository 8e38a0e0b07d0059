//! Whether plugpull-fs knows what the chosen cases ask of it.
//!
//! Its mutants and I/O modes are named in its own code alone, which nothing
//! here links. So the very binaries that enter the guests are asked, on the
//! host and before any guest starts, by a command line that would mount
//! nothing.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use plugpull_vm::process::{Cmd, RunError};

use crate::{
    artifacts::Artifacts,
    scenario::{Case, Server},
    session::plugpull_fs,
};

/// It parses a command line and ends.
const DEADLINE: Duration = Duration::from_secs(30);

/// A `[mount.NAME]` table asks for something that plugpull-fs has not: a
/// mistake in the scenario.
#[derive(Debug, thiserror::Error)]
#[error(
    "`[mount.{mount}]` of the scenario `{scenario}`: plugpull-fs refuses `{}`: {said}",
    argv.join(" ")
)]
pub struct Refused {
    mount: String,
    scenario: String,
    argv: Vec<String>,
    said: String,
}

/// Ask for every mount of these cases.
///
/// # Errors
/// [`Refused`] for the first that plugpull-fs does not understand; another
/// when it cannot be run.
pub fn check(artifacts: &Artifacts, cases: &[Case]) -> Result<()> {
    let mut asked = BTreeMap::new();
    for case in cases {
        let Server::PlugpullFs {
            mutant,
            threads,
            io,
            options: _,
        } = &case.mount.server
        else {
            continue;
        };
        let binary = match mutant {
            Some(_) => &artifacts.fs_mutants.path,
            None => &artifacts.fs.path,
        };
        let argv = plugpull_fs(mutant.as_ref(), *threads, io.as_ref());
        asked.entry((binary, argv)).or_insert(case);
    }
    for ((binary, argv), case) in asked {
        match Cmd::new(binary).args(&argv).arg("--version").run(DEADLINE) {
            Ok(_) => {}
            Err(RunError::Failed { output, .. }) => {
                let said = output.stderr_text();
                // Its first line is the complaint, the others are how to get help.
                let said = said.lines().next().unwrap_or_default();
                return Err(Refused {
                    mount: case.mount.name.clone(),
                    scenario: case.scenario.name.to_string(),
                    argv,
                    said: said.trim_start_matches("error: ").to_owned(),
                }
                .into());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
