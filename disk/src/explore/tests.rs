//! Plans against a disk of two units of which every history is tried.
//!
//! The reference follows the words of [`crate::model`] and nothing else: every order in which
//! the writes on a unit may have landed, and of each order every moment at which the cache may
//! have been written out last. The units are independent.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::crash::PowerCut;
use crate::log::{Complete, Entry, LogHeader, Operation, Submit};
use crate::model::CutState;
use crate::testing::{DISK_SECTORS, history, honesty, record};
use crate::units::{AtomicUnit, ByteCount, Honesty, RequestId, SECTOR_BYTES, Sector, Seq};

const EVERYTHING: Budget = Budget {
    states: usize::MAX >> 1,
    from: CutPoint(Seq(0)),
    seed: Seed(1),
    classes: Classes::ALL,
};

/// What a request may be: the units it writes, and whether it asks to be durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Write(u64, u64),
    Forced(u64, u64),
    Flush,
}

const UNITS: u64 = 2;
const KINDS: [Kind; 5] = [
    Kind::Write(0, 1),
    Kind::Write(1, 1),
    Kind::Write(0, 2),
    Kind::Forced(0, 1),
    Kind::Flush,
];

/// A history as events: a request comes in, or one is answered with this errno.
#[derive(Clone, Copy, Debug)]
enum Event {
    Submit(Kind),
    Answer(usize, u32),
}

/// A file in which the data of every request lies, so that no history needs a log of its own.
struct Store {
    file: Arc<File>,
    base: View,
}

impl Store {
    fn new() -> Store {
        let file = tempfile::tempfile().expect("a temporary file");
        let mut bytes = Vec::new();
        for id in 0..2_000_u32 {
            bytes.extend(vec![(id % 251) as u8 + 1; (UNITS * SECTOR_BYTES) as usize]);
        }
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).expect("data");
        Store {
            file: Arc::new(file),
            base: View::zeros(ByteCount(UNITS * SECTOR_BYTES)).expect("a base"),
        }
    }

    fn recording(&self, events: &[Event]) -> Recording {
        let header = LogHeader {
            recorded: true,
            size: ByteCount(UNITS * SECTOR_BYTES),
            seed: Seed(3),
            unit: AtomicUnit::U512,
            honesty: Honesty::Volatile,
        };
        let mut id = 0;
        let entries = (1..).zip(events).map(|(seq, event)| match event {
            Event::Submit(kind) => {
                let (operation, at, count, fua) = match *kind {
                    Kind::Write(at, count) => (Operation::Write, at, count, false),
                    Kind::Forced(at, count) => (Operation::Write, at, count, true),
                    Kind::Flush => (Operation::Flush, 0, 0, false),
                };
                id += 1;
                Entry::Submit(Submit {
                    seq: Seq(seq),
                    id: RequestId(id - 1),
                    operation,
                    at: Sector(at),
                    length: ByteCount(count * SECTOR_BYTES),
                    fua,
                    data_offset: (id - 1) * UNITS * SECTOR_BYTES,
                })
            }
            Event::Answer(which, errno) => Entry::Complete(Complete {
                seq: Seq(seq),
                id: RequestId(*which as u64),
                errno: *errno,
            }),
        });
        Recording::made_up(Arc::clone(&self.file), header, entries.collect())
    }
}

/// One request as far as it has come.
#[derive(Clone, Copy)]
struct Seen {
    id: usize,
    submitted: usize,
    answered: Option<(usize, u32)>,
    kind: Kind,
}

fn seen(events: &[Event]) -> Vec<Seen> {
    let mut all: Vec<Seen> = Vec::new();
    for (now, event) in events.iter().enumerate() {
        match *event {
            Event::Submit(kind) => all.push(Seen {
                id: all.len(),
                submitted: now,
                answered: None,
                kind,
            }),
            Event::Answer(which, errno) => all[which].answered = Some((now, errno)),
        }
    }
    all
}

fn is_durable(write: &Seen, all: &[Seen]) -> bool {
    let Some((written, 0)) = write.answered else {
        return false;
    };
    let flushed = all.iter().any(|flush| {
        flush.kind == Kind::Flush
            && flush.submitted > written
            && matches!(flush.answered, Some((_, 0)))
    });
    flushed || matches!(write.kind, Kind::Forced(..))
}

/// What one unit may hold: nothing, or the data of a request.
fn unit_values(all: &[Seen], unit: u64) -> BTreeSet<Option<usize>> {
    let touches = |write: &&Seen| match write.kind {
        Kind::Write(at, count) | Kind::Forced(at, count) => at <= unit && unit < at + count,
        Kind::Flush => false,
    };
    let failed = |write: &&Seen| matches!(write.answered, Some((_, 1..)));
    let writes: Vec<Seen> = all
        .iter()
        .filter(touches)
        .filter(|w| !failed(w))
        .copied()
        .collect();
    let must: Vec<Seen> = writes
        .iter()
        .filter(|w| w.answered.is_some())
        .copied()
        .collect();
    let may: Vec<Seen> = writes
        .iter()
        .filter(|w| w.answered.is_none())
        .copied()
        .collect();
    let mut values = BTreeSet::new();
    for chosen in 0..1_u32 << may.len() {
        let mut landing = must.clone();
        let some = may
            .iter()
            .enumerate()
            .filter(|(at, _)| chosen >> at & 1 == 1);
        landing.extend(some.map(|(_, write)| *write));
        for_each_order(&mut landing, 0, &mut |order| {
            if is_possible(order) {
                let certain = order.iter().rposition(|write| is_durable(write, all));
                values.extend(
                    order[certain.unwrap_or(0)..]
                        .iter()
                        .map(|write| Some(write.id)),
                );
                if certain.is_none() {
                    values.insert(None);
                }
            }
        });
    }
    values
}

fn is_possible(order: &[Seen]) -> bool {
    order.iter().enumerate().all(|(at, later)| {
        order[..at].iter().all(|earlier| {
            let answered_first = |one: &Seen, other: &Seen| {
                one.answered.is_some_and(|(seq, _)| seq < other.submitted)
            };
            let both = earlier.answered.is_some() && later.answered.is_some();
            !answered_first(later, earlier) && (!both || earlier.submitted < later.submitted)
        })
    })
}

fn for_each_order(items: &mut Vec<Seen>, from: usize, then: &mut impl FnMut(&[Seen])) {
    if from == items.len() {
        return then(items);
    }
    for at in from..items.len() {
        items.swap(from, at);
        for_each_order(items, from + 1, then);
        items.swap(from, at);
    }
}

/// Every disk that a cut after these events may leave.
fn disks(events: &[Event]) -> BTreeSet<Vec<Option<usize>>> {
    let all = seen(events);
    let mut disks = BTreeSet::from([Vec::new()]);
    for unit in 0..UNITS {
        let values = unit_values(&all, unit);
        let longer = disks.iter().flat_map(|disk| {
            values.iter().map(|value| {
                let mut disk = disk.clone();
                disk.push(*value);
                disk
            })
        });
        disks = longer.collect();
    }
    disks
}

/// What a state holds, by reading it.
fn read(view: &View) -> Vec<Option<usize>> {
    let mut bytes = vec![0; (UNITS * SECTOR_BYTES) as usize];
    view.read_at(0, &mut bytes).expect("the whole disk");
    let units = bytes.chunks(SECTOR_BYTES as usize);
    units
        .map(|unit| {
            assert!(unit.iter().all(|byte| *byte == unit[0]), "a torn unit");
            usize::from(unit[0]).checked_sub(1)
        })
        .collect()
}

/// Every history of so many requests that are all answered in the end: each shorter one, and each
/// with requests that are never answered, is the beginning of one of them.
fn histories(requests: usize, errnos: &[u32], then: &mut impl FnMut(&[Event])) {
    let mut events = Vec::new();
    go(requests, errnos, &mut Vec::new(), &mut events, then);

    fn go(
        left: usize,
        errnos: &[u32],
        open: &mut Vec<usize>,
        events: &mut Vec<Event>,
        then: &mut impl FnMut(&[Event]),
    ) {
        if left == 0 && open.is_empty() {
            return then(events);
        }
        if left > 0 {
            let submits = |event: &&Event| matches!(event, Event::Submit(_));
            let id = events.iter().filter(submits).count();
            for kind in KINDS {
                events.push(Event::Submit(kind));
                open.push(id);
                go(left - 1, errnos, open, events, then);
                open.pop();
                events.pop();
            }
        }
        for at in 0..open.len() {
            let id = open.remove(at);
            for errno in errnos {
                events.push(Event::Answer(id, *errno));
                go(left, errnos, open, events, then);
                events.pop();
            }
            open.insert(at, id);
        }
    }
}

/// A plan without limits holds, for every cut, what the cut may leave, and nothing else.
fn check(store: &Store, events: &[Event]) {
    check_from(store, events, 0);
    check_from(store, events, events.len() / 2);
}

fn check_from(store: &Store, events: &[Event], from: usize) {
    let recording = store.recording(events);
    let budget = Budget {
        from: CutPoint(Seq(from as u64)),
        ..EVERYTHING
    };
    let plan = plan(&recording, &store.base, budget).expect("a plan");
    let contents: Vec<Vec<Option<usize>>> = plan
        .states
        .iter()
        .map(|state| {
            let cut = PowerCut::new(&store.base, &recording, state.cut).expect("a cut");
            read(&cut.crash_state(&state.keep).expect("a state").view)
        })
        .collect();
    let different: HashSet<_> = contents.iter().collect();
    assert_eq!(
        different.len(),
        contents.len(),
        "a content is planned twice: {events:?}"
    );
    for cut in 0..=events.len() {
        let now = CutPoint(Seq(cut as u64));
        let can = |state: &PlannedState| {
            let holds = |span: &Span| span.first <= now && now <= span.last;
            state.spans.iter().any(holds)
        };
        let states = plan.states.iter().zip(&contents);
        let planned: BTreeSet<_> = states
            .filter(|(state, _)| can(state))
            .map(|(_, content)| content.clone())
            .collect();
        let expected = match cut < from {
            true => BTreeSet::new(),
            false => disks(&events[..cut]),
        };
        assert_eq!(
            planned, expected,
            "at the cut {cut} of {events:?} from {from}"
        );
    }
}

#[test]
fn every_history_of_up_to_three_requests_and_errors() {
    let store = Store::new();
    for requests in 0..=3 {
        histories(requests, &[0, 5], &mut |events| check(&store, events));
    }
}

#[test]
fn every_history_of_four_requests() {
    let store = Store::new();
    histories(4, &[0], &mut |events| check(&store, events));
}

#[test]
#[ignore = "three million histories take ten minutes"]
fn every_history_of_five_requests() {
    let store = Store::new();
    histories(5, &[0], &mut |events| check(&store, events));
}

#[test]
fn some_histories_of_five_requests() {
    let store = Store::new();
    let mut count = 0;
    histories(5, &[0], &mut |events| {
        count += 1;
        if count % 500 == 0 {
            check(&store, events);
        }
    });
    assert_eq!(count, 2_953_125);
}

/// Whether a sector may hold what it holds, by the lists of the cut alone.
fn is_allowed(recording: &Recording, state: &CutState, sector: u64, value: u8) -> bool {
    let on_it = |ids: &[RequestId]| -> Vec<RequestId> {
        let touches = |id: &&RequestId| {
            let write = recording.submit(**id).expect("a recorded request");
            write.at.0 <= sector && sector < write.at.0 + write.length.sectors()
        };
        ids.iter().filter(touches).copied().collect()
    };
    let data = |id: &RequestId| match recording.submit(*id).map(|write| write.operation) {
        Some(Operation::Write) => id.0 as u8 + 1,
        _ => 0,
    };
    let certain = on_it(&state.durable).last().copied();
    let lying_under = certain.as_ref().map_or(BASE_BYTE, data);
    let completed = on_it(&state.completed);
    let above = completed
        .iter()
        .filter(|id| certain.is_none_or(|certain| **id > certain));
    value == lying_under
        || above.map(data).any(|other| other == value)
        || on_it(&state.in_flight)
            .iter()
            .map(data)
            .any(|other| other == value)
}

const BASE_BYTE: u8 = 0xEE;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Of any disk and history: what is planned is possible at both ends of each span, is what
    /// the sums say, and comes once.
    #[test]
    fn planned_states_are_possible_and_different(
        honesty in honesty(),
        history in history(),
        states in 1..200_usize,
        from in any::<prop::sample::Index>(),
    ) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let image = dir.path().join("base");
        std::fs::write(&image, vec![BASE_BYTE; (DISK_SECTORS * SECTOR_BYTES) as usize])
            .expect("a base image");
        let base = View::from_image(&image).expect("a base");
        let recording = record(&dir.path().join("log"), honesty, &history);
        let from = CutPoint(Seq(from.index(recording.last_seq().0 as usize + 1) as u64));
        let budget = Budget { states, from, seed: Seed(7), classes: Classes::ALL };
        let planned = plan(&recording, &base, budget).expect("a plan");
        prop_assert_eq!(&plan(&recording, &base, budget).expect("again"), &planned);
        prop_assert!(!planned.states.is_empty() && planned.states.len() <= states);
        let mut digests = HashSet::new();
        for state in &planned.states {
            let cut = PowerCut::new(&base, &recording, state.cut).expect("a cut");
            let view = cut.crash_state(&state.keep).expect("a state").view;
            prop_assert!(digests.insert(view.digest().expect("a digest")), "{state:?} again");
            let mut content = vec![0; (DISK_SECTORS * SECTOR_BYTES) as usize];
            view.read_at(0, &mut content).expect("the whole disk");
            prop_assert!(state.spans.iter().all(|span| span.first >= from));
            // At some cut of its spans, as the lists of that cut say; the other way round for
            // contents that more than one choice leaves.
            let lacks = |cut: CutPoint| {
                let lists = recording.at(cut).expect("a cut");
                let kept = match &state.keep {
                    Keep::Exactly(survivors) if survivors.torn().is_empty() => survivors.ids(),
                    Keep::DurableOnly => Vec::new(),
                    _ => return state.drops_completed,
                };
                lists.completed.iter().any(|id| !kept.contains(id))
            };
            let (first, last) = (state.spans[0].first.0.0, state.spans[0].last.0.0);
            if (first..=last).any(|cut| lacks(CutPoint(Seq(cut)))) {
                prop_assert!(state.drops_completed, "{state:?}");
            }
            for end in state.spans.iter().flat_map(|span| [span.first, span.last]) {
                let lists = recording.at(end).expect("a cut");
                for sector in 0..DISK_SECTORS {
                    let value = content[(sector * SECTOR_BYTES) as usize];
                    prop_assert!(
                        is_allowed(&recording, &lists, sector, value),
                        "sector {sector} holds {value} at {end}: {state:?}"
                    );
                }
            }
        }
        let classes = &planned.coverage.classes;
        prop_assert_eq!(
            classes.iter().map(|of| of.planned).sum::<u64>(),
            planned.states.len() as u64
        );
        prop_assert!(classes.iter().all(|of| of.planned <= of.examined));
    }
}

/// So many requests to the same two units, each answered at once; each `every`th is a flush.
fn rewriting(requests: u64, every: u64) -> Vec<Event> {
    let events = (0..requests).flat_map(|id| {
        let kind = match id % every == every - 1 {
            true => Kind::Flush,
            false => Kind::Write(id % 2, 1),
        };
        [Event::Submit(kind), Event::Answer(id as usize, 0)]
    });
    events.collect()
}

#[test]
fn a_small_budget_reaches_the_end_and_says_what_it_left_out() {
    let store = Store::new();
    let recording = store.recording(&rewriting(2_000, 5));
    let budget = |states| Budget {
        states,
        ..EVERYTHING
    };
    let small = plan(&recording, &store.base, budget(40)).expect("a plan");
    let last = recording.last_seq().0;
    let furthest = small.states.iter().map(|state| state.cut.0.0).max();
    assert!(furthest > Some(last - 20), "{furthest:?} of {last}");
    assert!(small.coverage.skipped_mandatory() > 0);
    assert_eq!(small.states.len(), 40);
    let large = plan(&recording, &store.base, budget(100_000)).expect("a plan");
    assert_eq!(large.coverage.skipped_mandatory(), 0);
}

#[test]
fn a_budget_is_used_up_where_there_is_enough_to_look_at() {
    let store = Store::new();
    // The same few blocks again and again: most of what is drawn was seen before.
    let recording = store.recording(&rewriting(600, 7));
    for seed in 0..8 {
        for states in [30, 60, 120, 250] {
            let budget = Budget {
                states,
                seed: Seed(seed),
                ..EVERYTHING
            };
            let planned = plan(&recording, &store.base, budget).expect("a plan");
            assert_eq!(planned.states.len(), states, "seed {seed}");
        }
    }
}

#[test]
fn only_the_kinds_that_were_asked_for_are_planned() {
    let store = Store::new();
    let recording = store.recording(&rewriting(200, 7));
    let planned = |classes| {
        let budget = Budget {
            states: 50,
            classes,
            ..EVERYTHING
        };
        plan(&recording, &store.base, budget).expect("a plan")
    };
    let alone = planned(Classes::of([Class::OneOnly]));
    assert!(!alone.states.is_empty());
    assert!(alone.states.iter().all(|of| of.class == Class::OneOnly));
    let covered: Vec<_> = alone.coverage.classes.iter().map(|of| of.class).collect();
    assert_eq!(covered, [Class::OneOnly]);
    assert_eq!(alone.coverage.skipped_mandatory(), 0);
    let all = planned(Classes::of(Class::ALL));
    assert_eq!(all, planned(Classes::ALL));
}
