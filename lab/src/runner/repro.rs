//! Shows one crash state of a capsule again: the same disk, mounted and looked
//! at in a guest, judged by the same oracles.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use plugpull_disk::End;

use super::{Outcome, Stage, cuts::Timeline, explore, user};
use crate::{
    capsule::{State, Unpacked, Words},
    oracle::{Ledger, ledger_file},
    scenario::{Case, Cuttable, Story},
    session::{DATA, MOUNT, Opening, Session},
    shell::Shell,
    testbed::Testbed,
};

/// What came of looking again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Again {
    /// What the oracles say now.
    pub findings: Vec<Words>,
    /// How the recording ends, where it is not whole: nothing is proved then.
    pub cut_short: Option<String>,
    /// How long other guests were waited for.
    pub waited: Duration,
}

/// Look at a state again; artefacts go below `dir`.
///
/// # Errors
/// [`crate::capsule::BadCapsule`] when it is another state than the one that
/// failed; otherwise the host's or the guest's trouble.
pub fn again(
    bed: &Testbed,
    case: &Case,
    capsule: &Unpacked,
    state: &State,
    dir: &Path,
) -> Result<Again> {
    let crash = capsule.crash_state(state)?;
    let workload = workload(case, capsule)?;
    let timeline = Timeline::of(capsule.recording());
    let ledger = Ledger::at(timeline.records(), state.promised_by)?;
    let question = user::Question::of(workload, &timeline, state.promised_by);
    let mut outcome = Outcome::default();
    let mut stage = Stage {
        bed,
        case,
        dir,
        // Not from the case's name: another scenario may judge.
        seed: capsule.manifest().case_seed,
        outcome: &mut outcome,
    };
    let start = Instant::now();
    let slot = bed.slot()?;
    let waited = start.elapsed();
    let mut checker = explore::Checker::helper(1, slot, &explore::Helped::default());
    let seen = checker.see(&mut stage, workload, &crash, &question)?;
    explore::judge(&mut stage, workload, &crash, &seen, &ledger)?;
    let words = outcome.failures.into_iter().map(|failure| Words {
        oracle: failure.oracle,
        detail: failure.detail,
    });
    Ok(Again {
        findings: words.collect(),
        cut_short: cut_short(capsule),
        waited,
    })
}

fn workload<'a>(case: &'a Case, capsule: &Unpacked) -> Result<&'a Cuttable> {
    match &case.story {
        Story::PowerCut(workload, _) => Ok(workload),
        _ => Err(capsule.bad("its scenario cuts no power").into()),
    }
}

fn cut_short(capsule: &Unpacked) -> Option<String> {
    match capsule.recording().end() {
        End::Complete => None,
        End::Truncated { last_seq, why, .. } => Some(format!(
            "the recording breaks off after event {last_seq} ({why}), so what is seen proves \
             nothing"
        )),
    }
}

/// Start a guest with a state as its disk, and mount what can be mounted; what
/// cannot is said by the shell.
///
/// # Errors
/// As [`again`].
pub fn shell_on<'a>(
    bed: &'a Testbed,
    case: &Case,
    capsule: &Unpacked,
    state: &State,
    dir: &Path,
) -> Result<Shell<'a>> {
    let crash = capsule.crash_state(state)?;
    let timeline = Timeline::of(capsule.recording());
    let opening = Opening {
        image: &case.guest,
        spec: case.scenario.disk,
        view: crash.view,
        log: dir.join("shell.disklog"),
        record: false,
        seed: capsule.manifest().case_seed,
        logs: dir,
        slot: None,
    };
    let mut session = Session::start(bed, opening)?;
    let ledger = ledger_file::json_lines(timeline.records(), state.promised_by);
    user::send_ledger(&session, &ledger)?;
    let mounted = match session.mount_lower(&case.lower) {
        Ok(()) => session.mount(&case.mount),
        Err(trouble) => Err(trouble),
    };
    let (at, mounts) = match mounted {
        Ok(MOUNT) => (
            MOUNT,
            format!("{MOUNT} is {} over {}", case.mount.name, case.lower.name),
        ),
        Ok(at) => (at, format!("{at} is {}", case.lower.name)),
        Err(trouble) => ("/", format!("it does not mount: {trouble}")),
    };
    let about = format!(
        "{mounts}; the disk has the serial `{DATA}`; what had been promised by then is in {}",
        user::LEDGER
    );
    Ok(Shell::on(session, at, about))
}
