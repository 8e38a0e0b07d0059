//! Judges what a program of the user's left: by its own check, or file by file.
//!
//! A file's promises are judged one key at a time. What is promised (by an
//! acknowledgement, or because a reader was served it) must be there, unless
//! something begun later, or at the same time on another connection, took its
//! place. Nothing is said of paths that were never named.

use plugpull_protocol::workload::user::{Ended, UserFile};

use super::{Finding, Findings, Ledger, ledger::Key};
use crate::scenario::OracleName;

/// How much of a check's output is told, from its end.
const TOLD_BYTES: usize = 4000;

/// A check must have ended with 0.
///
/// # Errors
/// When it could not be started, which says nothing about the program.
pub fn check(ended: &Ended) -> Result<Vec<Finding>, String> {
    let mut findings = Findings::default();
    match ended {
        Ended::Exited(exited) if exited.success() => {}
        Ended::Exited(exited) => {
            let said = end_of(&format!("{}{}", exited.stdout, exited.stderr));
            findings.add(
                OracleName::Check,
                format!("the check ended with {}: {said}", exited.code),
            );
        }
        Ended::Hung { after_ms, said } => {
            let said = end_of(said);
            findings.add(
                OracleName::Check,
                format!("the check did not end within {after_ms} ms; it had said: {said}"),
            );
        }
        Ended::NotStarted { why } => return Err(why.clone()),
    }
    Ok(findings.told())
}

/// The end of an output, from the start of a line.
pub fn end_of(said: &str) -> String {
    let said = said.trim_end();
    if said.is_empty() {
        return "(nothing)".to_owned();
    }
    if said.len() <= TOLD_BYTES {
        return said.to_owned();
    }
    let mut from = said.len() - TOLD_BYTES;
    while !said.is_char_boundary(from) {
        from += 1;
    }
    let tail = &said[from..];
    let tail = tail.split_once('\n').map_or(tail, |(_, lines)| lines);
    format!("(…)\n{tail}")
}

/// What the promised files hold, by key.
pub fn files<'a>(
    ledger: &Ledger,
    atomic: bool,
    found: impl Fn(&str) -> Option<&'a UserFile>,
) -> Vec<Finding> {
    let mut findings = Findings::default();
    for (name, key) in ledger.keys() {
        let history = History::of(key);
        for stray in &history.strays {
            findings.add(OracleName::Files, format!("{name}: {stray}"));
        }
        match found(name) {
            None => findings.add(
                OracleName::Files,
                format!("{name} was promised and not looked at"),
            ),
            Some(file) => {
                if let Some(told) = history.problem(file, atomic) {
                    findings.add(OracleName::Files, format!("{name}: {told}"));
                }
            }
        }
    }
    findings.told()
}

/// How many keys of a ledger have a promise that must hold.
pub fn promised(ledger: &Ledger) -> u64 {
    ledger
        .keys()
        .filter(|(_, key)| key.promised().is_some())
        .count() as u64
}

/// What happened to one file.
struct History<'a> {
    versions: Vec<Version<'a>>,
    /// What was served and never begun.
    strays: Vec<String>,
}

/// One content that the file was given, or its removal.
struct Version<'a> {
    conn: u32,
    value: Option<&'a str>,
    begun: u64,
    /// Since when it is promised, and by what.
    promised: Option<(u64, &'static str)>,
}

impl<'a> History<'a> {
    fn of(key: &'a Key) -> Self {
        let versions = key.attempts.iter().map(|attempt| Version {
            conn: attempt.conn,
            value: attempt.value.as_deref(),
            begun: attempt.begun,
            promised: attempt.acked.map(|seq| (seq, "acknowledged")),
        });
        let mut history = Self {
            versions: versions.collect(),
            strays: Vec::new(),
        };
        for (seq, value) in &key.served {
            history.serve(*seq, value);
        }
        history
    }

    /// Who was served a content has been promised it. Of several versions with
    /// this content the first that could be current is meant: it asks the
    /// least of those before it.
    fn serve(&mut self, seq: u64, value: &str) {
        let before = |v: &Version<'_>| v.begun < seq && v.value == Some(value);
        if !self.versions.iter().any(before) {
            self.strays.push(format!(
                "a reader was served {} at seq {seq}, which nobody had begun to write",
                short(value)
            ));
            return;
        }
        let current = (0..self.versions.len())
            .find(|at| before(&self.versions[*at]) && !self.superseded(*at, seq));
        if let Some(at) = current {
            let version = &mut self.versions[at];
            if version.promised.is_none_or(|(since, _)| seq < since) {
                version.promised = Some((seq, "served"));
            }
        }
    }

    /// Whether something promised by `time` has taken a version's place for
    /// good: it was begun when this one had been promised, or it came later on
    /// the same connection.
    fn superseded(&self, at: usize, time: u64) -> bool {
        let this = &self.versions[at];
        self.versions.iter().any(|other| {
            let promised = other.promised.is_some_and(|(seq, _)| seq <= time);
            let after = this.promised.is_some_and(|(seq, _)| seq < other.begun);
            let same = this.conn == other.conn && this.begun < other.begun;
            promised && (after || same)
        })
    }

    fn problem(&self, file: &UserFile, atomic: bool) -> Option<String> {
        let current: Vec<_> = (0..self.versions.len())
            .filter(|at| !self.superseded(*at, u64::MAX))
            .map(|at| &self.versions[at])
            .collect();
        let nothing_promised = self.versions.iter().all(|v| v.promised.is_none());
        let pending = current.iter().any(|v| v.promised.is_none());
        let allowed = match file {
            _ if pending && !atomic => true,
            UserFile::Absent => nothing_promised || current.iter().any(|v| v.value.is_none()),
            UserFile::File { sha256, .. } => {
                current.iter().any(|v| v.value == Some(sha256.as_str()))
            }
            UserFile::Other { .. } | UserFile::Unreadable { .. } => false,
        };
        (!allowed).then(|| format!("{} instead of {}", self.tell(file), wanted(&current)))
    }

    fn tell(&self, file: &UserFile) -> String {
        match file {
            UserFile::Absent => "is absent".into(),
            UserFile::File { size: 0, .. } => "is empty".into(),
            UserFile::File { size, sha256 } => {
                let known = self
                    .versions
                    .iter()
                    .rfind(|v| v.value == Some(sha256.as_str()));
                match known {
                    Some(version) => format!(
                        "holds the older content {} that was begun at seq {}",
                        short(sha256),
                        version.begun
                    ),
                    None => format!("holds {size} bytes that nobody wrote, {}", short(sha256)),
                }
            }
            UserFile::Other { kind } => format!("is {kind}"),
            UserFile::Unreadable { why } => format!("cannot be read ({why})"),
        }
    }
}

fn wanted(current: &[&Version<'_>]) -> String {
    let told = current.iter().map(|version| {
        let what = version.value.map_or("its removal".to_owned(), short);
        match version.promised {
            Some((seq, how)) => format!("{what}, {how} at seq {seq}"),
            None => format!("{what}, begun at seq {}", version.begun),
        }
    });
    let told: Vec<_> = told.collect();
    match told.is_empty() {
        true => "nothing".into(),
        false => told.join(", or "),
    }
}

/// Enough of a hash to find it by.
fn short(sha256: &str) -> String {
    match sha256.char_indices().nth(12) {
        Some((at, _)) => format!("sha256:{}…", &sha256[..at]),
        None => format!("sha256:{sha256}"),
    }
}

#[cfg(test)]
#[path = "user_tests.rs"]
mod tests;
