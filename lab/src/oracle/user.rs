//! Judges what a program of the user's left: by its own check, or file by file.
//!
//! A file's promises are judged one key at a time. What is promised (by an
//! acknowledgement, or because a reader was served it) must be there, unless
//! something begun later, or at the same time on another connection, took its
//! place. Nothing is said of paths that were never named.

use std::collections::{BTreeMap, HashMap, VecDeque};

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
pub(super) struct History<'a> {
    versions: Vec<Version<'a>>,
    promised: Promised,
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

/// When the latest of the promised versions was begun: of all, and of each
/// connection's.
#[derive(Default)]
struct Promised {
    latest: u64,
    by_conn: BTreeMap<u32, u64>,
}

impl Promised {
    fn add(&mut self, version: &Version<'_>) {
        self.latest = self.latest.max(version.begun);
        let own = self.by_conn.entry(version.conn).or_default();
        *own = version.begun.max(*own);
    }

    /// Whether something promised has taken a version's place for good: it was
    /// begun when this one had been promised, or it came later on the same
    /// connection.
    fn supersedes(&self, version: &Version<'_>) -> bool {
        let after = version.promised.is_some_and(|(seq, _)| seq < self.latest);
        let own = self.by_conn.get(&version.conn);
        after || own.is_some_and(|latest| version.begun < *latest)
    }
}

/// A content that may have been written more than once.
struct Content {
    /// When it was begun first.
    begun: u64,
    /// Its versions that may still be current, in order.
    versions: VecDeque<usize>,
}

/// How a version comes to be promised.
enum Word<'a> {
    Acknowledged(usize),
    Served(&'a str),
}

impl<'a> History<'a> {
    pub(super) fn of(key: &'a Key) -> Self {
        let versions = key.attempts.iter().map(|attempt| Version {
            conn: attempt.conn,
            value: attempt.value.as_deref(),
            begun: attempt.begun,
            promised: None,
        });
        let mut history = Self {
            versions: versions.collect(),
            promised: Promised::default(),
            strays: Vec::new(),
        };
        let acked = key.attempts.iter().enumerate();
        let acked = acked.filter_map(|(at, a)| Some((a.acked?, Word::Acknowledged(at))));
        let served = key
            .served
            .iter()
            .map(|(seq, value)| (*seq, Word::Served(value)));
        let mut words: Vec<_> = acked.chain(served).collect();
        words.sort_by_key(|(seq, _)| *seq);
        let mut contents: HashMap<&str, Content> = HashMap::new();
        for (at, version) in history.versions.iter().enumerate() {
            if let Some(value) = version.value {
                let content = contents.entry(value).or_insert(Content {
                    begun: version.begun,
                    versions: VecDeque::new(),
                });
                content.versions.push_back(at);
            }
        }
        for (seq, word) in words {
            match word {
                Word::Acknowledged(at) => history.promise(at, (seq, "acknowledged")),
                Word::Served(value) => history.serve(seq, value, contents.get_mut(value)),
            }
        }
        history
    }

    fn promise(&mut self, at: usize, since: (u64, &'static str)) {
        let version = &mut self.versions[at];
        version.promised.get_or_insert(since);
        self.promised.add(version);
    }

    /// Who was served a content has been promised it. Of several versions with
    /// this content the first that could be current is meant: it asks the
    /// least of those before it.
    fn serve(&mut self, seq: u64, value: &str, content: Option<&mut Content>) {
        let Some(content) = content.filter(|content| content.begun < seq) else {
            self.strays.push(format!(
                "a reader was served {} at seq {seq}, which nobody had begun to write",
                short(value)
            ));
            return;
        };
        // What has been superseded stays so.
        while let Some(&at) = content.versions.front() {
            if !self.promised.supersedes(&self.versions[at]) {
                // Otherwise a stale content was served, which promises nothing.
                if self.versions[at].begun < seq {
                    self.promise(at, (seq, "served"));
                }
                return;
            }
            content.versions.pop_front();
        }
    }

    /// Whether this value, whole, or none, may be there.
    pub(super) fn allows(&self, value: Option<&str>) -> bool {
        let mut current = self
            .versions
            .iter()
            .filter(|v| !self.promised.supersedes(v));
        let nothing_promised = self.versions.iter().all(|v| v.promised.is_none());
        (value.is_none() && nothing_promised) || current.any(|v| v.value == value)
    }

    /// What a reader was served although nobody had begun it.
    pub(super) fn strays(&self) -> &[String] {
        &self.strays
    }

    /// The promise that must be kept: its value, since when and by what.
    pub(super) fn kept(&self) -> Option<(Option<&'a str>, u64, &'static str)> {
        let current = self.versions.iter();
        let mut current = current.filter(|v| !self.promised.supersedes(v));
        current.find_map(|v| v.promised.map(|(seq, how)| (v.value, seq, how)))
    }

    fn problem(&self, file: &UserFile, atomic: bool) -> Option<String> {
        let current = self
            .versions
            .iter()
            .filter(|v| !self.promised.supersedes(v));
        let current: Vec<_> = current.collect();
        let pending = current.iter().any(|v| v.promised.is_none());
        let allowed = match file {
            _ if pending && !atomic => true,
            UserFile::Absent => self.allows(None),
            UserFile::File { sha256, .. } => self.allows(Some(sha256)),
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
