//! Which disks a power cut during a recorded run could have left: as many as a budget allows,
//! spread over the whole run, each content once.
//!
//! States are planned **breadth first**: nothing but the durable for every cut, then everything
//! submitted, then one write alone, all but one, everything at the cuts between, pairs, torn
//! writes, late ones, every combination where there are few, and a seeded random tail. A class
//! that would leave less than half of the budget to those behind it gets half, and takes one from
//! each of so many equal stretches of the run, so that the last second is looked at as much as the
//! first. The first two are cut short only where they do not fit at all, and a plan says so. What
//! is left in the end, because many of what was drawn were equal, goes round once more.
//!
//! Equal contents are planned once, with every stretch of cuts that can leave them: the same disk
//! under a stronger promise is another question, which needs no other look at the disk.
//!
//! The same recording, base, seed and budget give the same plan. No disk is made on the way; what
//! is held is as much as the recording holds, and the plan.

mod classes;
mod index;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::HashMap;

use anyhow::Result;
use serde::Serialize;

use crate::crash::Keep;
use crate::log::Recording;
use crate::units::{CutPoint, Seed};
use crate::view::View;

use classes::{Candidate, Candidates};
pub use classes::{Class, Classes};
pub use index::ContentSum;
use index::Index;
use walk::Walker;

/// How much is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// How many different contents.
    pub states: usize,
    /// The first cut that counts; 0 is before everything.
    pub from: CutPoint,
    /// Where random choices begin.
    pub seed: Seed,
    /// What kinds of states; of others none is planned.
    pub classes: Classes,
}

/// A stretch of cuts, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first.
    pub first: CutPoint,
    /// The last.
    pub last: CutPoint,
}

/// One content that a power cut could have left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedState {
    /// What it is an example of.
    pub class: Class,
    /// A cut that leaves it, perhaps before the first that counts.
    pub cut: CutPoint,
    /// Which pending writes survived that cut.
    pub keep: Keep,
    /// Every stretch of cuts that was found to leave this content; never empty.
    pub spans: Vec<Span>,
    /// Whether at one of these cuts it lacks some of a write that was answered with success: a
    /// loss that only a flush would have prevented.
    pub drops_completed: bool,
    /// What tells it from the other contents of this plan.
    pub sum: ContentSum,
}

/// What was done about one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ClassCoverage {
    /// The class.
    pub class: Class,
    /// How many choices of survivors there are, equal contents included.
    pub candidates: u64,
    /// How many of them were looked at, at most all.
    pub examined: u64,
    /// How many of those were contents that had not been planned before, and are.
    pub planned: u64,
}

/// What was planned out of what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// Stretches of cuts with the same durable writes.
    pub situations: u64,
    /// By class, in the order in which they were planned.
    pub classes: Vec<ClassCoverage>,
}

impl Coverage {
    /// How many mandatory candidates (see [`Class::is_mandatory`]) the budget left no room for.
    pub fn skipped_mandatory(&self) -> u64 {
        let mandatory = self.classes.iter().filter(|of| of.class.is_mandatory());
        mandatory.map(|of| of.candidates - of.examined).sum()
    }
}

/// What to look at, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The states.
    pub states: Vec<PlannedState>,
    /// What they are out of.
    pub coverage: Coverage,
}

/// Plans an exploration.
///
/// # Errors
/// The base has another size than the recorded disk, or a file cannot be read.
pub fn plan(recording: &Recording, base: &View, budget: Budget) -> Result<Plan> {
    let index = Index::new(recording, base)?;
    let mut counts = vec![0; Class::ALL.len()];
    let mut situations = 0;
    Walker::walk(recording, &index, |walker| {
        if walker.last < budget.from {
            return;
        }
        situations += 1;
        for (count, class) in counts.iter_mut().zip(Class::ALL) {
            *count += Candidates::of(class, walker, budget.seed).count(walker);
        }
    });
    let mut planned = Planned {
        from: budget.from,
        states: Vec::new(),
        by_sum: HashMap::new(),
    };
    let of = |(class, candidates)| ClassCoverage {
        class,
        candidates,
        examined: 0,
        planned: 0,
    };
    let counted = Class::ALL.into_iter().zip(counts);
    let chosen = counted.filter(|(class, _)| budget.classes.contains(*class));
    let mut classes: Vec<ClassCoverage> = chosen.map(of).collect();
    for round in 0..ROUNDS {
        for of in &mut classes {
            let left = budget.states - planned.states.len();
            let room = match round {
                0 => room(of.class, of.candidates, left),
                _ => left as u64,
            };
            if room == 0 || of.examined >= of.candidates {
                continue;
            }
            let before = planned.states.len();
            let seed = budget.seed.derive(of.class as u64 + (round << 32));
            let mut draw = Draw::new(of.candidates, room, seed, round == 0);
            let mut first = 0;
            Walker::walk(recording, &index, |walker| {
                if walker.last < budget.from {
                    return;
                }
                let candidates = Candidates::of(of.class, walker, budget.seed);
                let end = first + candidates.count(walker);
                while let Some(number) = draw.next_before(end) {
                    let candidate = candidates.get(number - first, walker);
                    let drops_completed = candidate.drops_completed(walker);
                    let fresh = planned.add(of.class, candidate, drops_completed);
                    draw.found(fresh);
                }
                first = end;
            });
            of.examined = (of.examined + draw.examined).min(of.candidates);
            of.planned += (planned.states.len() - before) as u64;
        }
        if planned.states.len() >= budget.states {
            break;
        }
    }
    Ok(Plan {
        states: planned.states,
        coverage: Coverage {
            situations,
            classes,
        },
    })
}

/// Rounds after the first give what is left of the budget to the classes that were cut short: at
/// most so many, because draws may go on hitting contents that are planned already.
const ROUNDS: u64 = 8;

/// How many states a class may add where there is room for so many.
fn room(class: Class, candidates: u64, left: usize) -> u64 {
    let left = left as u64;
    let fits = candidates <= if class.is_mandatory() { left } else { left / 2 };
    match fits || class == Class::Random {
        true => left,
        false => left.div_ceil(2),
    }
}

/// What is planned so far.
struct Planned {
    from: CutPoint,
    states: Vec<PlannedState>,
    by_sum: HashMap<ContentSum, usize>,
}

impl Planned {
    /// Whether it is a content that was not planned yet.
    fn add(&mut self, class: Class, candidate: Candidate, drops_completed: bool) -> bool {
        if candidate.last < self.from {
            return false;
        }
        let span = Span {
            first: candidate.cut.max(self.from),
            last: candidate.last,
        };
        if let Some(at) = self.by_sum.get(&candidate.sum) {
            let state = &mut self.states[*at];
            state.drops_completed |= drops_completed;
            add(&mut state.spans, span);
            return false;
        }
        self.by_sum.insert(candidate.sum, self.states.len());
        self.states.push(PlannedState {
            class,
            cut: candidate.cut,
            keep: candidate.keep,
            spans: vec![span],
            drops_completed,
            sum: candidate.sum,
        });
        true
    }
}

/// Adds a span, unless the spans hold it already; one that goes on where the last one added ends
/// makes that longer.
fn add(spans: &mut Vec<Span>, span: Span) {
    if let Some(last) = spans.last_mut()
        && span.first >= last.first
        && span.first.0.0 <= last.last.0.0 + 1
    {
        last.last = last.last.max(span.last);
        return;
    }
    let within = |other: &Span| other.first <= span.first && span.last <= other.last;
    if !spans.iter().rev().take(LOOKED_BACK).any(within) {
        spans.push(span);
    }
}

/// How many spans are searched for one that holds a new one.
const LOOKED_BACK: usize = 8;

/// How many candidates of a stretch are tried for one that is new.
const TRIES: u64 = 16;

/// Draws numbers in rising order: all, where there is room, or one from each of so many equal
/// stretches, and the next ones where that is nothing new.
struct Draw {
    candidates: u64,
    room: u64,
    stretch: u64,
    next: u64,
    tries: u64,
    examined: u64,
    /// Whether the last of all is drawn, come what may: that is where the plug was pulled.
    takes_last: bool,
    rng: fastrand::Rng,
}

impl Draw {
    fn new(candidates: u64, room: u64, seed: Seed, takes_last: bool) -> Draw {
        let mut draw = Draw {
            candidates,
            room,
            stretch: 0,
            next: 0,
            tries: 0,
            examined: 0,
            takes_last,
            rng: seed.rng(),
        };
        draw.enter(0);
        draw
    }

    fn takes_all(&self) -> bool {
        self.candidates <= self.room
    }

    fn enter(&mut self, stretch: u64) {
        self.stretch = stretch;
        self.tries = 0;
        if !self.takes_all() && stretch < self.room {
            let (start, end) = (self.start(stretch), self.start(stretch + 1));
            self.next = match self.takes_last && stretch + 1 == self.room {
                true => end - 1,
                false => self.rng.u64(start..end),
            };
        }
    }

    fn start(&self, stretch: u64) -> u64 {
        (u128::from(self.candidates) * u128::from(stretch) / u128::from(self.room)) as u64
    }

    fn next_before(&mut self, end: u64) -> Option<u64> {
        let over = !self.takes_all() && self.stretch >= self.room;
        (!over && self.next < end.min(self.candidates)).then_some(self.next)
    }

    /// What the drawn one was.
    fn found(&mut self, fresh: bool) {
        self.examined += 1;
        self.next += 1;
        self.tries += 1;
        if self.takes_all() {
            return;
        }
        let ends = self.next >= self.start(self.stretch + 1) || self.tries >= TRIES;
        if fresh || ends {
            self.enter(self.stretch + 1);
        }
    }
}
