//! Draws an exploration up as `timeline.json`, and its states, one a line, as `states.tsv`.
//!
//! The picture is of bounded size: what happened is counted by stretches of the recording, not
//! told event by event.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt::Write as _, fs};

use anyhow::{Context, Result};
use plugpull_disk::{
    CrashState, Entry, Keep, Operation, Recording,
    explore::{Class, Coverage},
};
use plugpull_protocol::Promise;
use sha2::{Digest, Sha256};

use super::{Failure, Stage, cuts::Timeline};
use crate::report::{Broken, ClassOf, Epoch, Exploration, LeftOut, Outcome, exploration::SCHEMA};

/// Stretches of the recording in the picture.
const COLUMNS: u64 = 160;
/// So many epochs are shown one by one; more go several to an element.
const EPOCHS: usize = 160;
/// So many guilty states are named.
const NAMED: usize = 100;

/// A planned state, and what became of it.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    /// Tells its content from the others of the same exploration.
    pub(super) sum: String,
    pub(super) class: &'static str,
    /// The first cut that leaves it; where a promise was broken, that cut.
    pub(super) cut: u64,
    pub(super) outcome: Outcome,
    /// Its name and who objected first, where a promise was broken.
    pub(super) guilty: Option<(String, String)>,
}

impl Shown {
    /// A state of a cut that was drawn; the failure is what an oracle said of it first.
    pub(super) fn of_cut(state: &CrashState, keep: &Keep, failure: Option<&Failure>) -> Self {
        Self {
            sum: state.id.clone(),
            class: match keep {
                Keep::DurableOnly => Class::None,
                Keep::Everything => Class::All,
                _ => Class::Random,
            }
            .name(),
            cut: state.cut.0.0,
            outcome: match failure {
                Some(_) => Outcome::Broken,
                None => Outcome::Kept,
            },
            guilty: failure.map(|failure| (state.id.clone(), failure.oracle.to_string())),
        }
    }
}

/// What is drawn.
pub(super) struct Drawing<'a> {
    pub(super) recording: &'a Recording,
    pub(super) timeline: &'a Timeline,
    pub(super) from: u64,
    pub(super) states: &'a [Shown],
    /// Where states were planned; none where cuts were drawn.
    pub(super) coverage: Option<&'a Coverage>,
    /// Why planned states were not looked at.
    pub(super) unseen: &'a str,
}

/// Leave both files among the artefacts.
pub(super) fn write(stage: &Stage<'_>, drawing: &Drawing<'_>) -> Result<()> {
    let picture = serde_json::to_vec(&drawn(drawing))?;
    for (name, bytes) in [
        (crate::rundir::TIMELINE, picture),
        (crate::rundir::STATES, table(drawing.states).into_bytes()),
    ] {
        let path = stage.dir.join(name);
        fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn table(states: &[Shown]) -> String {
    let mut text = String::from("state\tclass\tcut\toutcome\n");
    for state in states {
        let outcome = state.outcome.name();
        let _ = writeln!(
            text,
            "{}\t{}\t{}\t{outcome}",
            state.sum, state.class, state.cut
        );
    }
    text
}

fn drawn(drawing: &Drawing<'_>) -> Exploration {
    let events = drawing.recording.last_seq().0.max(1);
    let each = events.div_ceil(COLUMNS);
    let mut columns = Columns::new(each, events.div_ceil(each) as usize);
    let mut epochs = vec![Epoch::default()];
    let mut exploration = Exploration {
        schema: SCHEMA,
        events,
        from: drawing.from,
        events_each: each,
        situations: drawing.coverage.map_or(0, |of| of.situations),
        ..Exploration::default()
    };
    for entry in drawing.recording.entries() {
        take(drawing.recording, entry, &mut columns, &mut epochs);
    }
    for candidate in drawing.recording.cut_candidates() {
        let pending = candidate.losable_completed + candidate.in_flight;
        columns.most("pending", candidate.cut.0.0, pending);
    }
    for (seq, promise) in &drawing.timeline.promises {
        columns.add(kind(promise), *seq, 1);
    }
    let last = epochs.len() - 1;
    epochs[last].until = events;
    for (number, epoch) in (1..).zip(&mut epochs) {
        (epoch.first, epoch.last) = (number, number);
    }
    for state in drawing.states {
        let at = columns.place(state.cut);
        let of = epochs.partition_point(|epoch| epoch.until < state.cut);
        let epoch = &mut epochs[of.min(last)];
        let class = class_of(&mut exploration.classes, drawing.coverage, state.class);
        let count = |planned: &mut u64, kept: &mut u64, broken: &mut u64| {
            *planned += 1;
            *kept += u64::from(state.outcome == Outcome::Kept);
            *broken += u64::from(state.outcome == Outcome::Broken);
        };
        count(&mut epoch.planned, &mut epoch.kept, &mut epoch.broken);
        count(&mut 0, &mut class.kept, &mut class.broken);
        if drawing.coverage.is_none() {
            class.drawn += 1;
            class.planned += 1;
        }
        let states = &mut columns.states;
        count(
            &mut states.planned[at],
            &mut states.kept[at],
            &mut states.broken[at],
        );
    }
    for of in drawing.coverage.iter().flat_map(|of| &of.classes) {
        class_of(&mut exploration.classes, drawing.coverage, of.class.name());
    }
    let order = |of: &ClassOf| ORDER.iter().position(|name| *name == of.class);
    exploration.classes.sort_by_key(order);
    exploration.totals = columns.totals;
    exploration.columns = columns.of;
    exploration.states = columns.states;
    exploration.epochs_total = epochs.len() as u64;
    exploration.epochs = grouped(&epochs);
    exploration.left_out = left_out(drawing);
    exploration.unseen_because = drawing.unseen.to_owned();
    exploration.broken = broken(drawing.states);
    exploration.plan = plan(drawing.states);
    exploration
}

/// The kinds of states in the order in which they are planned.
const ORDER: [&str; 10] = {
    let all = Class::ALL;
    let mut names = [""; 10];
    let mut at = 0;
    while at < all.len() {
        names[at] = all[at].name();
        at += 1;
    }
    names
};

/// Counts by stretches of a recording.
struct Columns {
    each: u64,
    count: usize,
    of: BTreeMap<String, Vec<u64>>,
    totals: BTreeMap<String, u64>,
    states: crate::report::exploration::States,
}

impl Columns {
    fn new(each: u64, count: usize) -> Self {
        let zeros = || vec![0; count];
        Self {
            each,
            count,
            of: BTreeMap::new(),
            totals: BTreeMap::new(),
            states: crate::report::exploration::States {
                planned: zeros(),
                kept: zeros(),
                broken: zeros(),
            },
        }
    }

    /// Events are numbered from 1; a cut may be before the first.
    fn place(&self, seq: u64) -> usize {
        ((seq.saturating_sub(1) / self.each) as usize).min(self.count - 1)
    }

    fn column(&mut self, what: &str, seq: u64) -> &mut u64 {
        let at = self.place(seq);
        let column = self.of.entry(what.to_owned());
        &mut column.or_insert_with(|| vec![0; self.count])[at]
    }

    fn add(&mut self, what: &str, seq: u64, n: u64) {
        *self.column(what, seq) += n;
        *self.totals.entry(what.to_owned()).or_default() += n;
    }

    fn most(&mut self, what: &str, seq: u64, n: u64) {
        let column = self.column(what, seq);
        *column = n.max(*column);
        let total = self.totals.entry(what.to_owned()).or_default();
        *total = n.max(*total);
    }
}

fn take(recording: &Recording, entry: &Entry, columns: &mut Columns, epochs: &mut Vec<Epoch>) {
    match entry {
        Entry::Submit(submit) if submit.is_write() => {
            let seq = submit.seq.0;
            columns.add("writes", seq, 1);
            columns.add("bytes", seq, submit.length.0);
            if submit.fua {
                columns.add("fua", seq, 1);
            }
            if let Some(epoch) = epochs.last_mut() {
                epoch.writes += 1;
            }
        }
        Entry::Submit(submit) => columns.add("flushes", submit.seq.0, 1),
        Entry::Complete(complete) if complete.errno != 0 => {
            columns.add("errors", complete.seq.0, 1);
        }
        Entry::Complete(complete) => {
            let answered = recording.submit(complete.id);
            if answered.is_some_and(|submit| submit.operation == Operation::Flush) {
                if let Some(epoch) = epochs.last_mut() {
                    epoch.until = complete.seq.0;
                }
                epochs.push(Epoch::default());
            }
        }
        Entry::Mark(_) | Entry::Cut(_) => {}
    }
}

fn kind(promise: &Promise) -> &'static str {
    match promise {
        Promise::Begin { .. } => "begun",
        Promise::Ack { .. } => "acknowledged",
        Promise::Served { .. } => "served",
        Promise::Mark { .. } => "marks",
        Promise::Garbled { .. } => "garbled",
    }
}

fn class_of<'c>(
    classes: &'c mut Vec<ClassOf>,
    coverage: Option<&Coverage>,
    name: &str,
) -> &'c mut ClassOf {
    if let Some(at) = classes.iter().position(|of| of.class == name) {
        return &mut classes[at];
    }
    let known = coverage.and_then(|of| of.classes.iter().find(|of| of.class.name() == name));
    classes.push(ClassOf {
        class: name.to_owned(),
        mandatory: known.is_some_and(|of| of.class.is_mandatory()),
        possible: known.map(|of| of.candidates),
        drawn: known.map_or(0, |of| of.examined),
        planned: known.map_or(0, |of| of.planned),
        ..ClassOf::default()
    });
    let last = classes.len() - 1;
    &mut classes[last]
}

/// Where there are many, as many to an element as make few elements.
fn grouped(epochs: &[Epoch]) -> Vec<Epoch> {
    let each = epochs.len().div_ceil(EPOCHS).max(1);
    let joined = |some: &[Epoch]| {
        let sum = |of: fn(&Epoch) -> u64| some.iter().map(of).sum();
        Epoch {
            first: some[0].first,
            last: some[some.len() - 1].last,
            until: some[some.len() - 1].until,
            writes: sum(|epoch| epoch.writes),
            planned: sum(|epoch| epoch.planned),
            kept: sum(|epoch| epoch.kept),
            broken: sum(|epoch| epoch.broken),
        }
    };
    epochs.chunks(each).map(joined).collect()
}

fn left_out(drawing: &Drawing<'_>) -> Vec<LeftOut> {
    let classes = drawing.coverage.map_or(&[][..], |of| &of.classes);
    let sum = |of: fn(&plugpull_disk::explore::ClassCoverage) -> u64| classes.iter().map(of).sum();
    let reasons: [(&str, u64); 2] = [
        (
            "left a content that was planned already, which is looked at once and judged under \
             every promise it can meet",
            sum(|of| of.examined - of.planned),
        ),
        (
            "are possible and did not fit in the budget of states",
            sum(|of| of.candidates - of.examined),
        ),
    ];
    let some = reasons.into_iter().filter(|(_, count)| *count > 0);
    some.map(|(why, count)| LeftOut {
        why: why.to_owned(),
        count,
    })
    .collect()
}

fn broken(states: &[Shown]) -> Vec<Broken> {
    let named = |state: &Shown| {
        let (id, oracle) = state.guilty.clone()?;
        Some(Broken {
            state: id,
            cut: state.cut,
            class: state.class.to_owned(),
            oracle,
        })
    };
    states.iter().filter_map(named).take(NAMED).collect()
}

/// What a plan is recognised by, whoever looks at which part of it.
fn plan(states: &[Shown]) -> String {
    let mut hash = Sha256::new();
    for state in states {
        hash.update(state.sum.as_bytes());
        hash.update([0]);
    }
    let hash = hash.finalize();
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
