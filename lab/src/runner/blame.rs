//! Gathers what lays a failure at a door.

use std::collections::BTreeSet;

use plugpull_disk::{CrashState, CutPoint, RequestId};

use super::{
    Failure, Stage,
    explore::Plan,
    smallest::{Found, Story},
};
use crate::{
    doors::{self, Laid, Promised, Scene, Torn},
    naming::Owner,
    oracle::Ledger,
    scenario::{OracleName, Server},
};

/// Lay a failure whose smallest story is known.
pub(super) fn lay(
    stage: &Stage<'_>,
    plan: &Plan<'_>,
    found: &Found<'_>,
    story: &Story,
) -> Option<Laid> {
    let mut failures = stage.outcome.failures.iter();
    let failure = failures.find(|failure| failure.oracle == found.oracle)?;
    let lost = Lost {
        cut: found.cut.state().cut,
        writes: &story.lost,
        files: files_of(story, &story.lost),
        torn: match (
            story.torn.is_empty(),
            files_of(story, &story.torn).is_empty(),
        ) {
            (true, _) => None,
            (false, false) => Some(Torn::Files),
            (false, true) => Some(Torn::Else),
        },
    };
    scene(stage, plan, failure, found.ledger, &lost)
}

/// The files that these writes of the story are content of; none where any of them is something
/// else, which every sync of the filesystem could have saved.
fn files_of(story: &Story, writes: &[RequestId]) -> BTreeSet<u64> {
    let mut files = BTreeSet::new();
    for id in writes {
        let Some(places) = story.whose.get(id) else {
            return BTreeSet::new();
        };
        for place in places {
            match &place.named.owner {
                Owner::File { inode, .. } => files.insert(*inode),
                _ => return BTreeSet::new(),
            };
        }
    }
    files
}

/// Put a door on what an oracle said of a state.
pub(super) fn note(stage: &mut Stage<'_>, oracle: OracleName, state: &str, laid: Option<&Laid>) {
    for failure in &mut stage.outcome.failures {
        if failure.oracle == oracle && failure.state.as_deref() == Some(state) {
            failure.laid = laid.cloned();
        }
    }
}

/// Lay the failures of the first guilty state, those from `new` on, without a story.
pub(super) fn the_first(
    stage: &mut Stage<'_>,
    plan: &Plan<'_>,
    new: usize,
    state: &CrashState,
    ledger: &Ledger,
) {
    if stage.outcome.failures[..new]
        .iter()
        .any(|failure| failure.laid.is_some())
    {
        return;
    }
    let lost = Lost {
        cut: state.cut,
        writes: &state.dropped,
        files: BTreeSet::new(),
        torn: None,
    };
    for number in new..stage.outcome.failures.len() {
        let failure = stage.outcome.failures[number].clone();
        stage.outcome.failures[number].laid = scene(stage, plan, &failure, ledger, &lost);
    }
}

struct Lost<'a> {
    cut: CutPoint,
    writes: &'a [RequestId],
    files: BTreeSet<u64>,
    /// What was torn, if that is what broke the promise.
    torn: Option<Torn>,
}

fn scene(
    stage: &Stage<'_>,
    plan: &Plan<'_>,
    failure: &Failure,
    ledger: &Ledger,
    lost: &Lost<'_>,
) -> Option<Laid> {
    doors::lay(&Scene {
        requests: &doors::requests(plan.recording),
        cut: lost.cut.0.0,
        lost: lost.writes,
        files: &lost.files,
        torn: lost.torn,
        promise: promise(ledger, &failure.detail)?,
        native: matches!(stage.case.mount.server, Server::Native),
        notes: &plan.timeline.notes,
    })
}

/// The promise that a finding is about: of the key that it begins with, else the last of all.
fn promise(ledger: &Ledger, detail: &str) -> Option<Promised> {
    let begins = |name: &str| {
        let rest = detail.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with([':', ' ']))
    };
    let about = ledger
        .keys()
        .map(|(name, _)| name)
        .find(|name| begins(name));
    let promised = ledger
        .keys()
        .filter(|(name, _)| about.is_none_or(|about| about == *name))
        .flat_map(|(name, key)| {
            key.attempts.iter().filter_map(move |attempt| {
                Some(Promised {
                    key: name.to_string(),
                    begun: attempt.begun,
                    acked: attempt.acked?,
                })
            })
        });
    promised.max_by_key(|promise| promise.acked)
}
