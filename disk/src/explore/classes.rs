//! The kinds of crash states, and of each situation its candidates by number, so that a few can
//! be drawn from very many.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::crash::Keep;
use crate::explore::index::ContentSum;
use crate::explore::walk::Walker;
use crate::survivors::{Part, Piece, Survivors, units_of};
use crate::units::{CutPoint, Honesty, RequestId, Seed, Seq};

/// What a crash state is an example of, in the order in which they are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Nothing that is not durable.
    None,
    /// Everything submitted, where most is pending: before something becomes durable or fails.
    All,
    /// One pending write and no other.
    OneOnly,
    /// All but one.
    AllButOne,
    /// Everything submitted, at the cuts before.
    Earlier,
    /// Two of them and no others.
    Pair,
    /// One of them torn at the atomic unit, alone or with all others whole.
    Torn,
    /// One that was in flight on top of a write submitted after it.
    Late,
    /// Every combination of what each atomic unit may hold, where there are few.
    Combination,
    /// A seeded choice.
    Random,
}

impl Class {
    /// All of them, in that order.
    pub const ALL: [Class; 10] = [
        Class::None,
        Class::All,
        Class::OneOnly,
        Class::AllButOne,
        Class::Earlier,
        Class::Pair,
        Class::Torn,
        Class::Late,
        Class::Combination,
        Class::Random,
    ];

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Class::None => "none",
            Class::All => "all",
            Class::OneOnly => "one-only",
            Class::AllButOne => "all-but-one",
            Class::Earlier => "earlier",
            Class::Pair => "pair",
            Class::Torn => "torn",
            Class::Late => "late",
            Class::Combination => "combination",
            Class::Random => "random",
        }
    }

    /// Whether every exploration looks at them first.
    pub fn is_mandatory(self) -> bool {
        matches!(self, Class::None | Class::All)
    }
}

/// A set of classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Classes(u16);

impl Classes {
    /// Every class.
    pub const ALL: Classes = Classes(u16::MAX);

    /// These.
    pub fn of(classes: impl IntoIterator<Item = Class>) -> Classes {
        let bits = classes.into_iter().map(|class| 1 << class as u16);
        Classes(bits.fold(0, std::ops::BitOr::bitor))
    }

    /// Whether it is one of them.
    pub fn contains(self, class: Class) -> bool {
        self.0 & 1 << class as u16 != 0
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One state of a situation.
pub(super) struct Candidate {
    pub(super) keep: Keep,
    /// A cut that can leave it.
    pub(super) cut: CutPoint,
    /// The last such cut of the situation; every one between can.
    pub(super) last: CutPoint,
    pub(super) sum: ContentSum,
}

impl Candidate {
    /// Whether it lacks, at one of its cuts, some of a write that had been answered with success.
    pub(super) fn drops_completed(&self, walker: &Walker<'_>) -> bool {
        let is_answered = |id: &RequestId| {
            let answer = walker.answer(*id);
            answer.is_some_and(|answer| answer <= self.last.0)
        };
        let mut answered = walker.pending.iter().filter(|id| is_answered(id));
        match &self.keep {
            Keep::DurableOnly => answered.next().is_some(),
            Keep::AllBut(id, _) => is_answered(id),
            Keep::Exactly(survivors) => {
                let (ids, torn) = (survivors.ids(), survivors.torn());
                answered.any(|id| ids.binary_search(id).is_err() || torn.contains(id))
            }
            Keep::Everything | Keep::Subset(_) => false,
        }
    }
}

/// Where combinations are more, random choice is left to find them.
const MOST_COMBINATIONS: u64 = 1024;
/// Where more is pending, combinations are too many nearly always, and not counted out.
const FEW_PENDING: usize = 32;
/// How many random choices a situation is good for, as a multiple of what is pending.
const RANDOM_PER_WRITE: u64 = 64;

/// The candidates of a class in one situation.
pub(super) enum Candidates {
    None,
    All,
    OneOnly,
    AllButOne,
    Earlier,
    Pair,
    Torn(Vec<Torn>),
    Late(Vec<Late>),
    Combination(Vec<Combination>),
    Random(Seed),
}

/// A write torn in one way.
pub(super) struct Torn {
    id: RequestId,
    part: Part,
}

/// A write in flight, and one that it may lie on top of; alone, if that is durable.
pub(super) struct Late {
    id: RequestId,
    under: Option<RequestId>,
    cut: CutPoint,
    last: CutPoint,
}

/// What every unit may hold at one cut.
pub(super) struct Combination {
    cut: CutPoint,
    /// Units by place, with the writes that may be on top.
    units: Vec<(u64, Vec<RequestId>)>,
    count: u64,
}

impl Candidates {
    /// Of one class; empty where a lying disk would be left without a filesystem to mount.
    pub(super) fn of(class: Class, walker: &Walker<'_>, seed: Seed) -> Candidates {
        match class {
            Class::None => Candidates::None,
            Class::All => Candidates::All,
            Class::Earlier => Candidates::Earlier,
            Class::Random => Candidates::Random(seed.derive(walker.first.0.0)),
            _ if walker.recording.honesty() == Honesty::LiesOnFlush => Candidates::Torn(Vec::new()),
            Class::OneOnly => Candidates::OneOnly,
            Class::AllButOne => Candidates::AllButOne,
            Class::Pair => Candidates::Pair,
            Class::Torn => Candidates::Torn(torn(walker)),
            Class::Late => Candidates::Late(late(walker)),
            Class::Combination => Candidates::Combination(combinations(walker)),
        }
    }

    /// How many there are.
    pub(super) fn count(&self, walker: &Walker<'_>) -> u64 {
        let pending = walker.pending.len() as u64;
        match self {
            Candidates::None => 1,
            Candidates::All => u64::from(!walker.stages.is_empty()),
            Candidates::Earlier => walker.stages.len().saturating_sub(1) as u64,
            Candidates::OneOnly | Candidates::AllButOne => pending,
            Candidates::Pair => pending * pending.saturating_sub(1) / 2,
            // Alone, and with all others.
            Candidates::Torn(torn) => 2 * torn.len() as u64,
            Candidates::Late(late) => late.len() as u64,
            Candidates::Combination(cuts) => cuts.iter().map(|cut| cut.count).sum(),
            Candidates::Random(_) if pending < 2 => 0,
            Candidates::Random(_) => pending * RANDOM_PER_WRITE,
        }
    }

    /// One of them, by number.
    pub(super) fn get(&self, number: u64, walker: &mut Walker<'_>) -> Candidate {
        let at = number as usize;
        let last = walker.last;
        let (keep, cut, last) = match self {
            Candidates::None => {
                return Candidate {
                    keep: Keep::DurableOnly,
                    cut: walker.first,
                    last,
                    sum: walker.none,
                };
            }
            Candidates::All => return everything(walker, walker.stages.len() - 1),
            Candidates::Earlier => return everything(walker, at),
            Candidates::AllButOne => return all_but(walker, walker.pending[at], None),
            Candidates::Torn(torn) => {
                let Torn { id, part } = &torn[at / 2];
                if at % 2 == 1 {
                    return all_but(walker, *id, Some(part.clone()));
                }
                let piece = Piece {
                    id: *id,
                    part: part.clone(),
                };
                (Survivors::new(vec![piece]), since(walker, *id), last)
            }
            Candidates::OneOnly => {
                let id = walker.pending[at];
                (Survivors::whole([id]), since(walker, id), last)
            }
            Candidates::Pair => {
                let (first, second) = pair(number);
                let ids = [first, second].map(|at| walker.pending[at as usize]);
                (
                    Survivors::whole(ids),
                    since(walker, ids[1].max(ids[0])),
                    last,
                )
            }
            Candidates::Late(late) => {
                let late = &late[at];
                let survivors = Survivors::whole(late.under);
                let survivors = survivors.and_late(vec![Piece::whole(late.id)]);
                (survivors, late.cut, late.last)
            }
            Candidates::Combination(cuts) => combination(cuts, number, walker),
            Candidates::Random(seed) => random(walker, seed.derive(number)),
        };
        let sum = walker.sum(&keep);
        Candidate {
            keep: Keep::Exactly(keep),
            cut,
            last,
            sum,
        }
    }
}

/// Everything submitted by a stage: until the next one, at which there is more.
fn everything(walker: &Walker<'_>, stage: usize) -> Candidate {
    let next = walker.stages.get(stage + 1);
    Candidate {
        keep: Keep::Everything,
        cut: walker.stages[stage].cut,
        last: next.map_or(walker.last, |next| CutPoint(Seq(next.cut.0.0 - 1))),
        sum: walker.stages[stage].all,
    }
}

/// The first cut of the situation at which a write is pending.
fn since(walker: &Walker<'_>, id: RequestId) -> CutPoint {
    CutPoint(walker.submitted(id)).max(walker.first)
}

fn all_but(walker: &Walker<'_>, id: RequestId, left: Option<Part>) -> Candidate {
    Candidate {
        cut: walker.stages.last().map_or(walker.last, |stage| stage.cut),
        last: walker.last,
        sum: walker.all_but(id, left.as_ref()),
        keep: Keep::AllBut(id, left),
    }
}

/// The pair with this number: (0, 1), (0, 2), (1, 2), (0, 3) and so on.
fn pair(number: u64) -> (u64, u64) {
    // The larger is the greatest n with n (n - 1) / 2 <= number; the root may be one off.
    let mut larger = ((1.0 + (8.0 * number as f64 + 1.0).sqrt()) / 2.0) as u64;
    while larger * (larger - 1) / 2 > number {
        larger -= 1;
    }
    while (larger + 1) * larger / 2 <= number {
        larger += 1;
    }
    (number - larger * (larger - 1) / 2, larger)
}

/// The ways of tearing every pending write: the first and the last unit, half, and all but one.
fn torn(walker: &Walker<'_>) -> Vec<Torn> {
    let mut all = Vec::new();
    for id in &walker.pending {
        let Some(write) = walker.recording.submit(*id) else {
            continue;
        };
        let units = units_of(write, walker.recording.unit());
        let count = units.end - units.start;
        let mut lengths = vec![1, count / 2, count.saturating_sub(1)];
        lengths.retain(|length| *length > 0);
        lengths.dedup();
        let heads = lengths
            .iter()
            .map(|length| units.start..units.start + length);
        let tails = lengths.iter().map(|length| units.end - length..units.end);
        if count > 1 {
            all.extend(heads.chain(tails).map(|part| Torn {
                id: *id,
                part: Part::of(part),
            }));
        }
    }
    all
}

fn late(walker: &Walker<'_>) -> Vec<Late> {
    let mut all = Vec::new();
    for id in walker.pending.iter().copied() {
        let (over_durable, over) = walker.later_on(id);
        let last = match walker.answer(id) {
            Some(answer) => CutPoint(Seq(answer.0 - 1)).min(walker.last),
            None => walker.last,
        };
        let unders = over_durable.then_some(None).into_iter();
        for under in unders.chain(over.into_iter().map(Some)) {
            let cut = since(walker, under.unwrap_or(id));
            if cut <= last {
                all.push(Late {
                    id,
                    under,
                    cut,
                    last,
                });
            }
        }
    }
    all
}

/// The cuts of a situation that leave most to choose: before each answer, because it takes the
/// choice away of landing late, and at the end.
fn combinations(walker: &Walker<'_>) -> Vec<Combination> {
    if walker.pending.len() > FEW_PENDING {
        return Vec::new();
    }
    let mut cuts: Vec<CutPoint> = walker
        .pending
        .iter()
        .filter_map(|id| walker.answer(*id))
        .map(|answer| CutPoint(Seq(answer.0 - 1)))
        .filter(|cut| *cut >= walker.first)
        .chain([walker.last])
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    let of = |cut| combinations_at(walker, cut);
    cuts.into_iter().filter_map(of).collect()
}

fn combinations_at(walker: &Walker<'_>, cut: CutPoint) -> Option<Combination> {
    let unit = walker.recording.unit();
    let mut tops: Vec<(u64, RequestId)> = Vec::new();
    for id in &walker.pending {
        let write = walker.recording.submit(*id).filter(|w| w.seq <= cut.0);
        let units = write.map_or(0..0, |write| units_of(write, unit));
        if units.end - units.start > MOST_COMBINATIONS.ilog2().into() {
            return None;
        }
        tops.extend(units.map(|unit| (unit, *id)));
    }
    tops.sort_unstable();
    let mut units: Vec<(u64, Vec<RequestId>)> = Vec::new();
    for (place, id) in tops {
        match units.last_mut() {
            Some((last, ids)) if *last == place => ids.push(id),
            _ => units.push((place, vec![id])),
        }
    }
    let choices = units.iter().map(|(_, ids)| ids.len() as u64 + 1);
    let count = choices.fold(1_u64, u64::saturating_mul);
    (count <= MOST_COMBINATIONS).then_some(Combination { cut, units, count })
}

fn combination(
    cuts: &[Combination],
    number: u64,
    walker: &Walker<'_>,
) -> (Survivors, CutPoint, CutPoint) {
    let mut left = number;
    let mut which = 0;
    while left >= cuts[which].count {
        left -= cuts[which].count;
        which += 1;
    }
    let at = &cuts[which];
    let mut kept: Vec<(RequestId, u64)> = Vec::new();
    for (place, ids) in &at.units {
        let choices = ids.len() as u64 + 1;
        if let Some(top) = (left % choices).checked_sub(1) {
            kept.push((ids[top as usize], *place));
        }
        left /= choices;
    }
    kept.sort_unstable();
    let (mut pieces, mut late) = (Vec::new(), Vec::new());
    for group in kept.chunk_by(|one, next| one.0 == next.0) {
        let id = group[0].0;
        let part = part_of(walker, id, group.iter().map(|(_, place)| *place));
        let in_flight = walker.answer(id).is_none_or(|answer| answer > at.cut.0);
        // No two of them meet, so that late only means: on top of what is durable.
        let to = if in_flight { &mut late } else { &mut pieces };
        to.push(Piece { id, part });
    }
    let ids = || kept.iter().map(|(id, _)| *id);
    let cut = ids().map(|id| since(walker, id)).max();
    let answers = late.iter().filter_map(|piece| walker.answer(piece.id));
    let last = answers.map(|answer| CutPoint(Seq(answer.0 - 1))).min();
    (
        Survivors::new(pieces).and_late(late),
        cut.unwrap_or(walker.first),
        last.map_or(walker.last, |last| last.min(walker.last)),
    )
}

fn part_of(walker: &Walker<'_>, id: RequestId, units: impl Iterator<Item = u64>) -> Part {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for unit in units {
        match ranges.last_mut() {
            Some(range) if range.end == unit => range.end += 1,
            _ => ranges.push(unit..unit + 1),
        }
    }
    let write = walker.recording.submit(id);
    let whole = write.map(|write| units_of(write, walker.recording.unit()));
    match (&ranges[..], whole) {
        ([range], Some(whole)) if *range == whole => Part::Whole,
        _ => Part::Units(ranges),
    }
}

/// Up to a random moment, each write with a probability of 1/4, 1/2 or 3/4, one in eight torn; of
/// a lying disk a longer prefix, in order of completion.
fn random(walker: &Walker<'_>, seed: Seed) -> (Survivors, CutPoint, CutPoint) {
    let mut rng = seed.rng();
    if walker.recording.honesty() == Honesty::LiesOnFlush {
        let count = rng.usize(0..=walker.answered.len());
        let kept = &walker.answered[..count];
        let since = kept.iter().filter_map(|id| walker.answer(*id)).max();
        let cut = since.map_or(walker.first, |seq| CutPoint(seq).max(walker.first));
        return (Survivors::whole(kept.iter().copied()), cut, walker.last);
    }
    let quarters = rng.u8(1..=3);
    let among = 1 + rng.usize(0..walker.pending.len());
    let mut pieces = Vec::new();
    for id in walker.pending[..among].iter().copied() {
        if rng.u8(0..4) >= quarters {
            continue;
        }
        let part = match rng.u8(0..8) {
            0 => random_part(walker, id, &mut rng),
            _ => Part::Whole,
        };
        pieces.push(Piece { id, part });
    }
    let cut = pieces
        .last()
        .map_or(walker.first, |last| since(walker, last.id));
    (Survivors::new(pieces), cut, walker.last)
}

fn random_part(walker: &Walker<'_>, id: RequestId, rng: &mut fastrand::Rng) -> Part {
    let Some(write) = walker.recording.submit(id) else {
        return Part::Whole;
    };
    let units = units_of(write, walker.recording.unit());
    let cut = rng.u64(units.clone());
    match rng.bool() {
        true if cut > units.start => Part::of(units.start..cut),
        false if cut > units.start => Part::of(cut..units.end),
        _ => Part::Whole,
    }
}
