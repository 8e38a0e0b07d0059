//! The smallest story that shows a failure: how few writes it is enough to lose, or to keep.

use anyhow::Result;
use plugpull_disk::{
    Keep, Operation, Part, Piece, PowerCut, Recording, RequestId, SECTOR_BYTES, Survivors,
};

use super::{
    Stage,
    explore::{Checker, Plan, judge},
    user::Question,
};
use crate::{
    minimise::smallest,
    oracle::Ledger,
    scenario::{Cuttable, OracleName},
};

/// How many more states may be looked at for one story.
const TRIES: u32 = 200;
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

/// What it is enough to lose or to keep at that cut for the same oracle to object, in words.
pub(super) fn story<'a>(
    stage: &mut Stage<'a>,
    workload: &Cuttable,
    plan: &Plan<'_>,
    checker: &mut Checker<'a>,
    found: &Found<'_>,
) -> Result<String> {
    let mut tries = TRIES;
    let mut fails = |keep: &Keep| -> Result<bool> {
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
    };
    let pending = found.cut.state().pending();
    let state = found.cut.crash_state(found.keep)?;
    if fails(&Keep::DurableOnly)? {
        if pending.is_empty() {
            return Ok(format!(
                "at event {} nothing was pending: what was promised was not on its way to the \
                 disk",
                state.cut
            ));
        }
        return Ok(format!(
            "what was durable at event {} is wrong by itself: none of the {} pending writes is \
             needed",
            state.cut,
            pending.len()
        ));
    }
    let pieces = pieces_of(found.keep, &state.kept);
    let whole = |pieces: &[Piece]| Keep::Exactly(Survivors::new(pieces.to_vec()));
    let kept = match fails(&whole(&pieces))? {
        true => Some(smallest(&pieces, &mut tries, |some| fails(&whole(some)))?),
        // That a write landed late is part of it.
        false => None,
    };
    let without = |lost: &[RequestId]| {
        let kept = pending.iter().copied().filter(|id| !lost.contains(id));
        Keep::Exactly(Survivors::whole(kept))
    };
    let lost = match fails(&without(&state.dropped))? {
        true => Some(smallest(&state.dropped, &mut tries, |some| {
            fails(&without(some))
        })?),
        // A torn or late write is part of it.
        false => None,
    };
    let told = |pieces| told(plan.recording, pieces);
    let enough = match (lost, kept) {
        (Some(lost), _) if lost.is_empty() => {
            return Ok(format!(
                "everything submitted by event {} is there, and it is wrong all the same",
                state.cut
            ));
        }
        (Some(lost), kept) if kept.as_ref().is_none_or(|kept| lost.len() <= kept.len()) => {
            let lost = lost.into_iter().map(Piece::whole).collect();
            format!("it is enough to lose {}", told(lost))
        }
        (_, Some(kept)) => format!("it is enough to keep {}", told(kept)),
        (_, None) => format!(
            "it takes these, of which the last landed late: {}",
            told(pieces)
        ),
    };
    Ok(format!(
        "of {} pending writes at event {}, {enough}",
        pending.len(),
        state.cut
    ))
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

fn told(recording: &Recording, pieces: Vec<Piece>) -> String {
    let more = pieces.len().saturating_sub(TOLD);
    let mut words: Vec<String> = pieces
        .iter()
        .take(TOLD)
        .map(|piece| write(recording, piece))
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
