//! `timeline.json`: one exploration as a picture of bounded size, whatever the length of its
//! recording: what the disk was asked, what was promised, where the power was cut and with what
//! outcome, and what was left out and why.

use std::{collections::BTreeMap, fs, io::ErrorKind, path::Path};

use serde::{Deserialize, Serialize};

use super::{Report, ScenarioResult};
use crate::rundir::{TIMELINE, file_name};

/// Version of `timeline.json`.
pub const SCHEMA: u32 = 1;

/// What became of a crash state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// No oracle objected.
    Kept,
    /// An oracle objected.
    Broken,
    /// It was planned and not looked at here.
    Unseen,
}

impl Outcome {
    /// Its name in files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Broken => "broken",
            Self::Unseen => "unseen",
        }
    }
}

/// `timeline.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exploration {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Events that were recorded: requests, answers, marks.
    pub events: u64,
    /// The first cut that counts; nothing before it is looked at.
    pub from: u64,
    /// All requests and promises, by kind.
    pub totals: BTreeMap<String, u64>,
    /// How many events each element of the columns below stands for.
    pub events_each: u64,
    /// What the disk was asked and what was promised, and where, by kind.
    pub columns: BTreeMap<String, Vec<u64>>,
    /// The states, by the place of their cut.
    pub states: States,
    /// The stretches between flushes, several to an element where they are many.
    pub epochs: Vec<Epoch>,
    /// How many stretches between flushes there were.
    pub epochs_total: u64,
    /// Stretches of cuts with the same durable writes; 0 where cuts were drawn.
    pub situations: u64,
    /// The kinds of states, in the order in which they were planned.
    pub classes: Vec<ClassOf>,
    /// What was not planned, and why.
    pub left_out: Vec<LeftOut>,
    /// Why planned states were not looked at, where some were not.
    pub unseen_because: String,
    /// The first states that broke a promise.
    pub broken: Vec<Broken>,
    /// SHA-256 over the whole plan, in hexadecimal: parts of one exploration have the same.
    pub plan: String,
}

/// States by the place of their cut, in columns as long as the others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct States {
    /// All that were planned.
    pub planned: Vec<u64>,
    /// Those that kept every promise.
    pub kept: Vec<u64>,
    /// Those that broke one.
    pub broken: Vec<u64>,
}

/// Some epochs: an epoch ends with the answer of a flush.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// The first of them; the first of all is 1.
    pub first: u64,
    /// The last.
    pub last: u64,
    /// Its last event.
    pub until: u64,
    /// Writes that were submitted.
    pub writes: u64,
    /// States that were planned.
    pub planned: u64,
    /// Those of them that kept every promise.
    pub kept: u64,
    /// Those that broke one.
    pub broken: u64,
}

/// What was done about one kind of states.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassOf {
    /// Its name.
    pub class: String,
    /// Whether every exploration looks at them first.
    pub mandatory: bool,
    /// How many choices of survivors there are; unknown where cuts were drawn.
    pub possible: Option<u64>,
    /// How many of them were drawn.
    pub drawn: u64,
    /// How many of those were contents that had not been planned before.
    pub planned: u64,
    /// How many of these kept every promise.
    pub kept: u64,
    /// How many broke one.
    pub broken: u64,
}

/// So many, for this reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// What it is, in words.
    pub why: String,
    /// How many.
    pub count: u64,
}

/// A state that broke a promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broken {
    /// Its name.
    pub state: String,
    /// The cut at which the promise was broken.
    pub cut: u64,
    /// Its kind.
    pub class: String,
    /// Who objected first.
    pub oracle: String,
}

impl Exploration {
    /// States that were planned, that kept, and that broke a promise.
    pub fn counts(&self) -> (u64, u64, u64) {
        let sum = |column: &Vec<u64>| column.iter().sum();
        let states = &self.states;
        (sum(&states.planned), sum(&states.kept), sum(&states.broken))
    }

    /// How many mandatory states the budget left no room for.
    pub fn skipped_mandatory(&self) -> u64 {
        let mandatory = self.classes.iter().filter(|of| of.mandatory);
        mandatory
            .filter_map(|of| Some(of.possible?.saturating_sub(of.drawn)))
            .sum()
    }
}

/// What was drawn of the explorations of a report, in the directory of its run; or why it cannot
/// be read.
pub fn of_run(run: &Path, report: &Report) -> BTreeMap<String, Result<Exploration, String>> {
    let drawn = |result: &ScenarioResult| {
        let dir = run.join("tests").join(file_name(&result.name));
        let path = dir.join(TIMELINE);
        let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let read = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => Err(told(&error)),
            Ok(text) => serde_json::from_slice(&text).map_err(|error| told(&error)),
        };
        Some((result.name.clone(), read))
    };
    report.scenarios.iter().filter_map(drawn).collect()
}

/// Parts of different explorations.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the shards explored different plans, so theirs are no parts of one recording")]
pub struct Different;

impl Exploration {
    /// The whole, of parts that looked at different states of one plan.
    ///
    /// # Errors
    /// [`Different`] plans; `None` where there is no part.
    pub fn joined(parts: impl IntoIterator<Item = Self>) -> Result<Option<Self>, Different> {
        let mut parts = parts.into_iter();
        let Some(mut whole) = parts.next() else {
            return Ok(None);
        };
        for part in parts {
            let same = |a: &Self, b: &Self| {
                (&a.plan, a.events, a.epochs.len(), &a.states.planned)
                    == (&b.plan, b.events, b.epochs.len(), &b.states.planned)
            };
            if !same(&whole, &part) {
                return Err(Different);
            }
            add(&mut whole.states.kept, &part.states.kept);
            add(&mut whole.states.broken, &part.states.broken);
            for (epoch, more) in whole.epochs.iter_mut().zip(&part.epochs) {
                epoch.kept += more.kept;
                epoch.broken += more.broken;
            }
            for (class, more) in whole.classes.iter_mut().zip(&part.classes) {
                class.kept += more.kept;
                class.broken += more.broken;
            }
            whole.broken.extend(part.broken);
        }
        whole
            .broken
            .sort_by(|a, b| (a.cut, &a.state).cmp(&(b.cut, &b.state)));
        whole.unseen_because = "were planned and looked at by no shard that is here".into();
        Ok(Some(whole))
    }
}

fn add(to: &mut [u64], more: &[u64]) {
    for (to, more) in to.iter_mut().zip(more) {
        *to += more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(kept: [u64; 2], broken: [u64; 2]) -> Exploration {
        Exploration {
            plan: "ab".into(),
            states: States {
                planned: vec![3, 4],
                kept: kept.into(),
                broken: broken.into(),
            },
            epochs: vec![Epoch {
                planned: 7,
                kept: kept.iter().sum(),
                broken: broken.iter().sum(),
                ..Epoch::default()
            }],
            ..Exploration::default()
        }
    }

    #[test]
    fn parts_of_one_plan_add_up_and_others_are_refused() {
        let joined = Exploration::joined([part([1, 2], [0, 1]), part([2, 0], [0, 1])]);
        let whole = joined.expect("one plan").expect("some");
        assert_eq!(whole.counts(), (7, 5, 2));
        assert_eq!(whole.states.kept, [3, 2]);
        assert_eq!((whole.epochs[0].kept, whole.epochs[0].broken), (5, 2));
        let other = Exploration {
            plan: "cd".into(),
            ..part([0, 0], [0, 0])
        };
        assert_eq!(
            Exploration::joined([part([0, 0], [0, 0]), other]),
            Err(Different)
        );
        assert_eq!(Exploration::joined([]), Ok(None));
    }
}
