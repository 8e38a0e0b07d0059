//! Which pending writes survive a power cut, whole or torn, and in which order they landed.

use std::collections::BTreeSet;
use std::ops::Range;

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::log::{Recording, Submit};
use crate::model::CutState;
use crate::units::{AtomicUnit, RequestId, SECTOR_BYTES};

/// How much of a write survives.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// All of it.
    Whole,
    /// These atomic units of the disk, counted from its beginning: ranges in order, none empty,
    /// none touching the next. A unit that the write covers in part survives in that part.
    Units(Vec<Range<u64>>),
}

impl Part {
    /// The units of one range, which must not be empty.
    pub fn of(units: Range<u64>) -> Part {
        Part::Units(std::iter::once(units).collect())
    }
}

/// One write that survives.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Piece {
    /// The write.
    pub id: RequestId,
    /// How much of it.
    pub part: Part,
}

impl Piece {
    /// A write that survives whole.
    pub fn whole(id: RequestId) -> Piece {
        Piece {
            id,
            part: Part::Whole,
        }
    }
}

/// Which pending writes survive.
///
/// They lie on the disk in order of submission, among the durable ones; those in flight may also
/// have landed [late](Survivors::late), on top of everything else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Survivors {
    pieces: Vec<Piece>,
    late: Vec<Piece>,
}

impl Survivors {
    /// These, in order of submission.
    pub fn new(mut pieces: Vec<Piece>) -> Survivors {
        pieces.sort_unstable_by_key(|piece| piece.id);
        Survivors {
            pieces,
            late: Vec::new(),
        }
    }

    /// These, whole and in order of submission.
    pub fn whole(ids: impl IntoIterator<Item = RequestId>) -> Survivors {
        Survivors::new(ids.into_iter().map(Piece::whole).collect())
    }

    /// And these after all others, the last of them on top. Each must be in flight at the cut.
    #[must_use]
    pub fn and_late(mut self, late: Vec<Piece>) -> Survivors {
        self.late = late;
        self
    }

    /// Those that lie in order of submission.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Those that landed after all others, in this order.
    pub fn late(&self) -> &[Piece] {
        &self.late
    }

    /// The writes that survive, whole or in part, in order of submission.
    pub fn ids(&self) -> Vec<RequestId> {
        let all = self.pieces.iter().chain(&self.late);
        let mut ids: Vec<RequestId> = all.map(|piece| piece.id).collect();
        ids.sort_unstable();
        ids
    }

    /// Those of them that survive in part.
    pub fn torn(&self) -> Vec<RequestId> {
        let all = self.pieces.iter().chain(&self.late);
        let torn = all.filter(|piece| piece.part != Part::Whole);
        torn.map(|piece| piece.id).collect()
    }

    /// Whether a cut with this outcome can leave them so.
    ///
    /// # Errors
    /// A write is named twice or is not pending, a late one is not in flight, or a torn one has
    /// units that it does not touch.
    pub(crate) fn check(&self, state: &CutState, recording: &Recording) -> Result<()> {
        let mut seen = BTreeSet::new();
        for piece in self.pieces.iter().chain(&self.late) {
            let id = piece.id;
            ensure!(seen.insert(id), "request {id} is to survive twice");
            let is_in = |ids: &[RequestId]| ids.binary_search(&id).is_ok();
            ensure!(
                is_in(&state.completed) || is_in(&state.in_flight),
                "request {id} is not a pending write at the cut {}",
                state.cut
            );
            if let (Part::Units(units), Some(write)) = (&piece.part, recording.submit(id)) {
                check_units(units, write, recording.unit())?;
            }
        }
        let answered = |piece: &&Piece| state.in_flight.binary_search(&piece.id).is_err();
        if let Some(piece) = self.late.iter().find(answered) {
            bail!(
                "request {} cannot land after the cut {}, which it was answered before",
                piece.id,
                state.cut
            );
        }
        Ok(())
    }
}

/// The atomic units that a write touches.
pub(crate) fn units_of(write: &Submit, unit: AtomicUnit) -> Range<u64> {
    let bytes = u64::from(unit.bytes());
    let start = write.at.byte_offset();
    start / bytes..(start + write.length.0).div_ceil(bytes)
}

/// The sectors of a write that lie in a range of units.
pub(crate) fn sectors_in(write: &Submit, units: &Range<u64>, unit: AtomicUnit) -> Range<u64> {
    let per_unit = u64::from(unit.bytes()) / SECTOR_BYTES;
    let (first, end) = (write.at.0, write.at.0 + write.length.sectors());
    (units.start * per_unit).max(first)..(units.end * per_unit).min(end)
}

fn check_units(units: &[Range<u64>], write: &Submit, unit: AtomicUnit) -> Result<()> {
    let touched = units_of(write, unit);
    let apart = units.windows(2).all(|pair| pair[0].end < pair[1].start);
    let inside = |range: &Range<u64>| {
        range.start < range.end && touched.start <= range.start && range.end <= touched.end
    };
    ensure!(
        !units.is_empty() && apart && units.iter().all(inside),
        "request {} touches the units {touched:?} and cannot be torn to {units:?}",
        write.id
    );
    Ok(())
}
