//! What a program of the user's left in one state: handed to its own check, or
//! looked at file by file.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use plugpull_protocol::{
    Observation, Promise, WorkloadRequest,
    workload::user::{Call, UserFile, UserRequest, UserSeen},
};
use sha2::{Digest, Sha256};

use super::{own_dir, seed, seed_number};
use crate::{
    oracle::{Finding, Ledger, ledger_file, stores, user as judges},
    programs,
    runner::{Stage, cuts::Timeline},
    scenario::{Count, Cuttable, Judge, OracleName, Program},
    session::Session,
};

/// The check of one state.
const CHECK: Duration = Duration::from_secs(60);
/// Looking at a message full of files.
const LOOK: Duration = Duration::from_secs(120);
/// How much of a ledger, and how many bytes of keys, one message carries.
const PART: usize = 256 << 10;

/// Where the check finds the ledger, in memory.
pub(in crate::runner) const LEDGER: &str = "/run/plugpull-ledger.jsonl";

/// What is asked of a state beside its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::runner) enum Question {
    /// What every state of the workload is asked.
    Usual,
    /// A check reads this ledger.
    Check(String),
    /// These files are looked at, whatever has been promised by then.
    Files(Vec<String>),
}

impl Question {
    /// A name for it: the ledger of a check may be long, and there are many.
    pub(in crate::runner) fn digest(&self) -> [u8; 32] {
        match self {
            Self::Check(ledger) => Sha256::digest(ledger).into(),
            // The same for all states of a run.
            Self::Usual | Self::Files(_) => [0; 32],
        }
    }

    /// What is asked of a state of this cut.
    pub(in crate::runner) fn of(workload: &Cuttable, timeline: &Timeline, cut: u64) -> Self {
        match workload {
            Cuttable::Program(program) => Self::about(program, timeline, cut),
            _ => Self::Usual,
        }
    }

    pub(super) fn about(program: &Program, timeline: &Timeline, cut: u64) -> Self {
        match program.judge {
            Judge::Check { .. } => Self::Check(ledger_file::json_lines(timeline.records(), cut)),
            // All that it holds is read, whatever has been promised by then.
            Judge::Store(_) => Self::Usual,
            Judge::Files { .. } => {
                let keys = timeline.records().filter_map(|(_, promise)| match promise {
                    Promise::Begin { key, .. } | Promise::Served { key, .. } => Some(key),
                    _ => None,
                });
                let keys: BTreeSet<&String> = keys.collect();
                Self::Files(keys.into_iter().cloned().collect())
            }
        }
    }
}

/// What the guest is asked so that the check runs, or the files are looked at,
/// on what is mounted at `at`; each with how long the answer may take.
pub(in crate::runner) fn looks(
    session: &Session<'_>,
    stage: &Stage<'_>,
    program: &Program,
    question: &Question,
    at: &str,
) -> Result<Vec<(WorkloadRequest, Duration)>> {
    let dir = own_dir(at);
    match (&program.judge, question) {
        (Judge::Check { run, .. }, Question::Check(ledger)) => {
            let seed = seed(stage);
            let values = [("dir", dir.as_str()), ("ledger", LEDGER), ("seed", &seed)];
            let check = UserRequest::Check {
                program: Call {
                    cwd: programs::guest_dir(&stage.case.scenario.name, program),
                    argv: run.filled(&values),
                    timeout_ms: session.timeout_ms(CHECK),
                },
            };
            let mut looks = ledger_requests(ledger);
            looks.push((WorkloadRequest::User(check), CHECK * 2));
            Ok(looks)
        }
        (Judge::Files { .. }, Question::Files(keys)) => {
            let files = |keys: &[String]| UserRequest::Files {
                dir: dir.clone(),
                keys: keys.to_vec(),
            };
            let request = |keys| (WorkloadRequest::User(files(keys)), LOOK);
            Ok(parts(keys).into_iter().map(request).collect())
        }
        (Judge::Store(store), Question::Usual) => {
            let seed = seed(stage);
            let request = UserRequest::Check {
                program: Call {
                    cwd: "/".to_owned(),
                    argv: store.look.filled(&[("dir", &dir), ("seed", &seed)]),
                    timeout_ms: session.timeout_ms(CHECK),
                },
            };
            Ok(vec![(WorkloadRequest::User(request), CHECK * 2)])
        }
        (_, other) => bail!("a program's state cannot be asked {other:?}"),
    }
}

/// What the answers to these questions say together.
pub(in crate::runner) fn answer(
    question: &Question,
    answers: Vec<Observation>,
) -> Result<Observation> {
    let Question::Files(keys) = question else {
        return answers
            .into_iter()
            .last()
            .context("a check was asked nothing");
    };
    let mut files = BTreeMap::new();
    for answer in answers {
        match answer {
            Observation::User(UserSeen::Files { files: some }) => files.extend(some),
            other => bail!("the guest looked at files and saw {other:?}"),
        }
    }
    ensure!(
        files.len() == keys.len(),
        "the guest looked at {} of {} files",
        files.len(),
        keys.len()
    );
    Ok(Observation::User(UserSeen::Files { files }))
}

/// Give the guest the ledger as a file.
pub(in crate::runner) fn send_ledger(session: &Session<'_>, ledger: &str) -> Result<()> {
    for (request, timeout) in ledger_requests(ledger) {
        session.workload(request, timeout)?;
    }
    Ok(())
}

fn ledger_requests(ledger: &str) -> Vec<(WorkloadRequest, Duration)> {
    let mut requests = Vec::new();
    let mut rest = ledger;
    while requests.is_empty() || !rest.is_empty() {
        // Whole lines; one is far shorter than a part.
        let end = match rest.get(PART..) {
            None => rest.len(),
            Some(_) => rest.as_bytes()[..PART]
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(rest.len(), |at| at + 1),
        };
        let (text, more) = rest.split_at(end);
        let request = UserRequest::Ledger {
            path: LEDGER.to_owned(),
            text: text.to_owned(),
            first: requests.is_empty(),
        };
        requests.push((WorkloadRequest::User(request), LOOK));
        rest = more;
    }
    requests
}

/// Keys in as many messages as they need.
fn parts(keys: &[String]) -> Vec<&[String]> {
    let mut parts = Vec::new();
    let mut from = 0;
    let mut bytes = 0;
    for (at, key) in keys.iter().enumerate() {
        // The answer has a hash and a size for each key, and may have an error.
        bytes += key.len() + 200;
        if bytes >= PART {
            parts.push(&keys[from..=at]);
            (from, bytes) = (at + 1, 0);
        }
    }
    if from < keys.len() {
        parts.push(&keys[from..]);
    }
    parts
}

/// Judge what was seen of a state.
pub(in crate::runner) fn judge(
    stage: &mut Stage<'_>,
    program: &Program,
    ledger: &Ledger,
    seen: &UserSeen,
    state: Option<&str>,
) -> Result<()> {
    match (seen, &program.judge) {
        (UserSeen::Checked { ended }, Judge::Check { .. }) => {
            let findings = judges::check(ended).map_err(|why| {
                anyhow::anyhow!(
                    "the check could not be started: {why}; it is run beside the `files` of \
                     `[workload]` and `[check]`"
                )
            })?;
            stage.count(Count::CheckRuns, 1);
            stage.judged(&[OracleName::Check], findings, state);
        }
        (UserSeen::Files { files }, Judge::Files { atomic }) => {
            let found = |key: &str| -> Option<&UserFile> { files.get(key) };
            let findings = judges::files(ledger, *atomic, found);
            stage.count(Count::FilesVerified, judges::promised(ledger));
            stage.judged(&[OracleName::Files], findings, state);
        }
        (UserSeen::Checked { ended }, Judge::Store(store)) => {
            let judged = stores::judge(store, seed_number(stage), ledger, ended)?;
            stage.count(judged.counts, judged.looked_at);
            // The states of a built-in program are mounted before it is asked.
            stage.judged(store.oracles(), judged.findings, state);
        }
        (other, _) => bail!("the check answered with something else: {other:?}"),
    }
    Ok(())
}

/// Judge a state that could not be mounted, or brought the guest down.
pub(in crate::runner) fn unusable(
    stage: &mut Stage<'_>,
    program: &Program,
    mut findings: Vec<Finding>,
    ledger: &Ledger,
    state: Option<&str>,
) {
    let mut judges = vec![OracleName::Recovery];
    // A check that never ran has found nothing.
    let loses = match &program.judge {
        Judge::Files { .. } => Some(OracleName::Files),
        Judge::Store(store) => Some(store.keeps()),
        Judge::Check { .. } => None,
    };
    if let Some(oracle) = loses {
        judges.push(oracle);
        if let acked @ 1.. = ledger.acked() {
            findings.push(Finding {
                oracle,
                detail: format!("{acked} acknowledged operations cannot be read at all"),
            });
        }
    }
    stage.judged(&judges, findings, state);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_in_messages_of_bounded_size_and_none_is_lost() {
        let keys: Vec<String> = (0..5000).map(|n| format!("{n:0>100}")).collect();
        let parts = parts(&keys);
        assert!(parts.len() > 1);
        assert_eq!(parts.concat(), keys);
        let longest = parts
            .iter()
            .map(|p| p.iter().map(|k| k.len() + 200).sum::<usize>());
        assert!(longest.max().is_some_and(|bytes| bytes < 2 * PART));
        assert!(super::parts(&[]).is_empty());
    }
}
