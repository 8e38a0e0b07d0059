//! The smallest story that shows a failure: how few writes it is enough to lose, or to keep.

use anyhow::Result;
use plugpull_disk::{
    CrashState, CutPoint, Keep, Operation, Part, Piece, PowerCut, Recording, RequestId,
    SECTOR_BYTES, Seq, Survivors,
};
use plugpull_protocol::Promise;

use super::{
    Stage,
    explore::{Checker, Plan, judge},
    user::Question,
    whose::{self, Whose, whose},
};
use crate::{
    minimise::smallest,
    oracle::Ledger,
    scenario::{Cuttable, OracleName},
};

/// How many more states may be looked at for one story.
const TRIES: u32 = 200;
/// How many earlier cuts are tried.
const EARLIER: usize = 8;
/// How many writes of a story are told one by one.
const TOLD: usize = 8;

/// A failure that was found.
pub(super) struct Found<'a> {
    pub(super) cut: &'a PowerCut<'a>,
    pub(super) keep: &'a Keep,
    pub(super) ledger: &'a Ledger,
    pub(super) question: &'a Question,
    pub(super) oracle: OracleName,
}

/// The smallest story of a failure.
pub(super) struct Story {
    /// In words.
    pub(super) detail: String,
    /// The writes whose loss it takes, or all that the guilty state lost.
    pub(super) lost: Vec<RequestId>,
    /// What those of the story are, where that could be found out.
    pub(super) whose: Whose,
    /// The writes that it takes to be there in part, where nothing is wrong if they are whole.
    pub(super) torn: Vec<RequestId>,
}

/// What it takes at a cut for an oracle to object.
enum Enough {
    /// Nothing was pending.
    NothingPending,
    /// Everything is there, and it is wrong.
    Nothing,
    /// That these are lost.
    ToLose(Vec<RequestId>),
    /// That these, and no others, are there.
    ToKeep(Vec<Piece>),
    /// That these are there, the last of them late.
    Late(Vec<Piece>),
}

impl Enough {
    fn writes(&self) -> Vec<RequestId> {
        match self {
            Self::NothingPending | Self::Nothing => Vec::new(),
            Self::ToLose(lost) => lost.clone(),
            Self::ToKeep(pieces) | Self::Late(pieces) => pieces.iter().map(|of| of.id).collect(),
        }
    }
}

/// What it is enough to lose or to keep at that cut for the same oracle to object.
pub(super) fn story<'a>(
    stage: &mut Stage<'a>,
    workload: &Cuttable,
    plan: &Plan<'_>,
    checker: &mut Checker<'a>,
    found: &Found<'_>,
) -> Result<Story> {
    let state = found.cut.crash_state(found.keep)?;
    let enough = enough(stage, workload, checker, found, &state)?;
    let mut writes = enough.writes();
    writes.truncate(TOLD);
    let (whose, unnamed) = match writes.is_empty() {
        true => (Whose::new(), String::new()),
        false => match whose(stage, plan, checker, found.cut, &writes) {
            Ok(whose) => (whose, String::new()),
            // A story without names is a story all the same.
            Err(error) => {
                let why = format!("{error:#}");
                let why = why.lines().next().unwrap_or_default();
                (
                    Whose::new(),
                    format!(" (what they are is not known: {why})"),
                )
            }
        },
    };
    let (count, at) = (found.cut.state().pending().len(), state.cut);
    let told = |pieces: &[Piece]| told(plan.recording, &whose, pieces);
    let detail = match &enough {
        Enough::NothingPending => format!(
            "at event {at} nothing was pending: what was promised was not on its way to the disk"
        ),
        Enough::Nothing => {
            format!("everything submitted by event {at} is there, and it is wrong all the same")
        }
        Enough::ToLose(lost) => {
            let lost: Vec<Piece> = lost.iter().copied().map(Piece::whole).collect();
            let lost = told(&lost);
            format!("of {count} pending writes at event {at}, it is enough to lose {lost}")
        }
        Enough::ToKeep(kept) => {
            let kept = told(kept);
            format!("of {count} pending writes at event {at}, it is enough to keep {kept}")
        }
        Enough::Late(pieces) => {
            let kept = told(pieces);
            format!(
                "of {count} pending writes at event {at}, it takes these, of which the last \
                 landed late: {kept}"
            )
        }
    };
    let torn = torn(stage, workload, checker, found, &enough)?;
    let earlier = match &enough {
        Enough::ToLose(lost) => earliest(stage, workload, plan, checker, found, lost)?,
        _ => None,
    };
    let earlier = earlier.map_or_else(String::new, |at| {
        format!("; it shows from a cut at event {at} on")
    });
    Ok(Story {
        detail: format!("{detail}{unnamed}{earlier}"),
        lost: match enough {
            Enough::ToLose(lost) => lost,
            _ => state.dropped,
        },
        whose,
        torn,
    })
}

/// The writes that are kept in part, if the same writes do no harm as a whole.
fn torn<'a>(
    stage: &mut Stage<'a>,
    workload: &Cuttable,
    checker: &mut Checker<'a>,
    found: &Found<'_>,
    enough: &Enough,
) -> Result<Vec<RequestId>> {
    let Enough::ToKeep(pieces) = enough else {
        return Ok(Vec::new());
    };
    let is_torn = |piece: &&Piece| matches!(piece.part, Part::Units(_));
    let torn: Vec<_> = pieces
        .iter()
        .filter(is_torn)
        .map(|piece| piece.id)
        .collect();
    let whole = Keep::Exactly(Survivors::whole(pieces.iter().map(|piece| piece.id)));
    match torn.is_empty() || fails(stage, workload, checker, found, &whole)? {
        true => Ok(Vec::new()),
        false => Ok(torn),
    }
}

/// Delta debugging of what was lost and of what was kept; the shorter one tells more.
fn enough<'a>(
    stage: &mut Stage<'a>,
    workload: &Cuttable,
    checker: &mut Checker<'a>,
    found: &Found<'_>,
    state: &CrashState,
) -> Result<Enough> {
    let mut tries = TRIES;
    let mut fails = |keep: &Keep| fails(stage, workload, checker, found, keep);
    let pending = found.cut.state().pending();
    if pending.is_empty() {
        return Ok(Enough::NothingPending);
    }
    let without = |lost: &[RequestId]| {
        let kept = pending.iter().copied().filter(|id| !lost.contains(id));
        Keep::Exactly(Survivors::whole(kept))
    };
    // Where nothing that is kept is to blame, what was lost is all there is to tell.
    let alone = fails(&Keep::DurableOnly)?;
    let lost = match alone {
        true => &pending,
        false => &state.dropped,
    };
    let lost = match alone || fails(&without(lost))? {
        true => Some(smallest(lost, &mut tries, |some| fails(&without(some)))?),
        // A torn or late write is part of it.
        false => None,
    };
    if lost.as_ref().is_some_and(Vec::is_empty) {
        return Ok(Enough::Nothing);
    }
    let pieces = pieces_of(found.keep, &state.kept);
    let whole = |pieces: &[Piece]| Keep::Exactly(Survivors::new(pieces.to_vec()));
    let kept = match !alone && fails(&whole(&pieces))? {
        true => Some(smallest(&pieces, &mut tries, |some| fails(&whole(some)))?),
        // That a write landed late is part of it.
        false => None,
    };
    Ok(match (lost, kept) {
        (Some(lost), kept) if kept.as_ref().is_none_or(|kept| lost.len() <= kept.len()) => {
            Enough::ToLose(lost)
        }
        (_, Some(kept)) => Enough::ToKeep(kept),
        (_, None) => Enough::Late(pieces),
    })
}

/// Whether the oracle objects to what is left if these survive.
fn fails<'a>(
    stage: &mut Stage<'a>,
    workload: &Cuttable,
    checker: &mut Checker<'a>,
    found: &Found<'_>,
    keep: &Keep,
) -> Result<bool> {
    // Trying is no evidence: what it counts and finds is not the run's.
    let before = stage.outcome.clone();
    let state = found.cut.crash_state(keep)?;
    let seen = checker.see(stage, workload, &state, found.question)?;
    judge(stage, workload, &state, &seen, found.ledger)?;
    let new = &stage.outcome.failures[before.failures.len()..];
    let fails = new.iter().any(|failure| failure.oracle == found.oracle);
    let seconds = std::mem::take(&mut stage.outcome.seconds);
    *stage.outcome = before;
    stage.outcome.seconds = seconds;
    Ok(fails)
}

/// The earliest cut, of those right after an acknowledgement, at which the loss of these writes
/// is objected to as well, if that is not the cut of the failure itself.
fn earliest<'a>(
    stage: &mut Stage<'a>,
    workload: &Cuttable,
    plan: &Plan<'_>,
    checker: &mut Checker<'a>,
    found: &Found<'_>,
    lost: &[RequestId],
) -> Result<Option<u64>> {
    let sent = lost.iter().filter_map(|id| plan.recording.submit(*id));
    let Some(sent) = sent.map(|write| write.seq.0).max() else {
        return Ok(None);
    };
    let end = found.cut.state().cut.0.0;
    let acks = plan.timeline.promises.iter().filter(|(seq, promise)| {
        matches!(promise, Promise::Ack { .. }) && sent < *seq && *seq < end
    });
    for (at, _) in acks.take(EARLIER) {
        let cut = PowerCut::new(plan.base, plan.recording, CutPoint(Seq(*at)))?;
        let pending = cut.state().pending();
        if !lost.iter().all(|id| pending.contains(id)) {
            continue;
        }
        let kept = pending.into_iter().filter(|id| !lost.contains(id));
        let keep = Keep::Exactly(Survivors::whole(kept));
        let earlier = Found {
            cut: &cut,
            keep: &keep,
            ledger: &Ledger::at(plan.timeline.records(), *at)?,
            question: &Question::of(workload, plan.timeline, *at),
            oracle: found.oracle,
        };
        if fails(stage, workload, checker, &earlier, &keep)? {
            return Ok(Some(*at));
        }
    }
    Ok(None)
}

/// What survives, in pieces that can be left out one by one.
fn pieces_of(keep: &Keep, kept: &[RequestId]) -> Vec<Piece> {
    match keep {
        Keep::Exactly(survivors) => [survivors.pieces(), survivors.late()].concat(),
        Keep::AllBut(id, Some(part)) => kept
            .iter()
            .map(|kept| match kept == id {
                true => Piece {
                    id: *id,
                    part: part.clone(),
                },
                false => Piece::whole(*kept),
            })
            .collect(),
        _ => kept.iter().copied().map(Piece::whole).collect(),
    }
}

fn told(recording: &Recording, whose: &Whose, pieces: &[Piece]) -> String {
    let more = pieces.len().saturating_sub(TOLD);
    let mut words: Vec<String> = pieces
        .iter()
        .take(TOLD)
        .map(|piece| match whose.get(&piece.id) {
            Some(places) => {
                let names = whose::told(places);
                format!("{} ({names})", write(recording, piece))
            }
            None => write(recording, piece),
        })
        .collect();
    if more > 0 {
        words.push(format!("{more} more"));
    }
    words.join("; ")
}

fn write(recording: &Recording, piece: &Piece) -> String {
    let Some(submit) = recording.submit(piece.id) else {
        return format!("request {}", piece.id);
    };
    let what = match submit.operation {
        Operation::Write => "write",
        Operation::WriteZeroes => "write of zeros",
        Operation::Trim => "trim",
        Operation::Flush => "flush",
    };
    let torn = match &piece.part {
        Part::Whole => String::new(),
        Part::Units(units) => format!(", only units {units:?}"),
    };
    format!(
        "request {}, a {what} of {} bytes at byte {}{torn}",
        piece.id,
        submit.length,
        submit.at.0 * SECTOR_BYTES
    )
}
