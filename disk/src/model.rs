//! What a power cut may leave: which writes are durable and which are pending, exactly.
//!
//! The rules are those of a drive with a volatile write cache (ATA FLUSH CACHE, SCSI SYNCHRONIZE
//! CACHE, Linux `Documentation/block/writeback_cache_control.rst`, and for the wire the NBD
//! protocol's "Ordering of messages and writes"). At a cut `c`, counting events up to and
//! including `c` only:
//!
//! * A write is **completed** when its successful answer was recorded.
//! * A write is **durable** when it is completed and
//!   - the device is `none` (write-through), or
//!   - it carried FUA (which makes nothing but itself durable), or
//!   - a flush that was *submitted after the write completed* has itself completed with success.
//! * A write is **pending** when it was submitted and is not durable: completed into the volatile
//!   cache, or still in flight. After the cut it may be there or not, independently of all others.
//! * A write that was answered with an error is **failed**: it is not durable and never there.
//!   (A real drive may have stored some of it; that is for the fault model to say.) While its
//!   answer lies beyond the cut it is in flight like any other.
//! * A flush that failed makes nothing durable. A flush covers writes from every connection.
//! * Write-zeroes and trim are writes of zeros. A real drive may forget a trim or return other
//!   bytes after one; that is not simulated.
//!
//! Where writes overlap, order decides what a sector holds:
//!
//! * Of two writes that were both answered by the cut, the one submitted later lies on top: so
//!   this device carried them out, and a read had shown it.
//! * A write in flight may land at any moment after those that had been answered when it was
//!   submitted. So it may lie on top of everything else, also of a durable write that was
//!   submitted after it.
//! * A sector therefore holds, independently of every other atomic unit: its last durable write
//!   (or what it held before), or a completed pending write submitted after that, or any write in
//!   flight. Nothing else; and every combination over the units is possible, which is what a torn
//!   write is. The sectors of one atomic unit share their fate within one write.
//!
//! `lies-on-flush` answers flush and FUA like `volatile`, and keeps something else: of the
//! completed writes since recording began, in order of completion, a prefix of 30 % to 70 %
//! (a share drawn once from the disk's seed) is durable, whatever was flushed; the rest is pending
//! and [`Keep::DurableOnly`](crate::Keep::DurableOnly) loses it. A prefix, so that the filesystem
//! still mounts and the lost promise must be noticed by whoever was promised; a share that stays,
//! so that what was kept at one cut is kept at the next.
//!
//! What is seen is the order at this device, not at the guest: QEMU may have a write outstanding
//! when the guest issues its flush, and yet deliver its answer here first, so some ordering bugs
//! of a guest stay hidden.

use std::collections::HashMap;

use anyhow::{Result, ensure};

use crate::log::{Complete, Entry, Operation, Recording, Submit};
use crate::units::{CutPoint, Epoch, Honesty, RequestId, Seed};

#[cfg(test)]
mod tests;

/// Everything that was submitted by a cut, by what the cut may do to it. Flushes are in none of
/// the lists; each list is in order of submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutState {
    /// The moment.
    pub cut: CutPoint,
    /// How many flushes had succeeded.
    pub epoch: Epoch,
    /// Writes that every crash state holds.
    pub durable: Vec<RequestId>,
    /// Writes that were answered with success and may be lost all the same.
    pub completed: Vec<RequestId>,
    /// Writes without an answer.
    pub in_flight: Vec<RequestId>,
    /// Writes answered with an error; no crash state holds them.
    pub failed: Vec<RequestId>,
}

impl CutState {
    /// Every write that may be there or not, in order of submission.
    pub fn pending(&self) -> Vec<RequestId> {
        let mut pending = [&self.completed[..], &self.in_flight[..]].concat();
        pending.sort_unstable();
        pending
    }
}

impl Recording {
    /// What a power cut at this moment may leave.
    ///
    /// # Errors
    /// The moment lies beyond the last event that is whole.
    pub fn at(&self, cut: CutPoint) -> Result<CutState> {
        self.check_cut(cut)?;
        let mut tracker = Tracker::new(self.honesty(), self.seed());
        for entry in self
            .entries()
            .iter()
            .take_while(|entry| entry.seq() <= cut.0)
        {
            tracker.observe(entry);
        }
        Ok(tracker.state(cut))
    }

    pub(crate) fn check_cut(&self, cut: CutPoint) -> Result<()> {
        ensure!(
            cut.0 <= self.last_seq(),
            "the recording {} ends at event {}, before the cut at {cut}",
            self.path().display(),
            self.last_seq()
        );
        Ok(())
    }
}

/// What the share that a lying disk keeps is drawn for.
const LIE: u64 = 0x6c69_6573;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Awaited,
    Success,
    Failure,
}

struct Request {
    is_write: bool,
    fua: bool,
    answer: Answer,
}

/// Follows a recording forwards; one step costs constant time, so that a whole run's cut points
/// are judged in one pass.
pub(crate) struct Tracker {
    honesty: Honesty,
    /// Of a hundred completed writes, how many a lying disk keeps.
    kept_of_hundred: usize,
    requests: Vec<Request>,
    /// Successful writes in order of completion.
    completed: Vec<RequestId>,
    /// How many of `completed` are durable whatever they carried: always a prefix, because a
    /// flush covers all that had completed when it was submitted.
    flushed: usize,
    /// FUA writes in `completed` beyond that prefix.
    forced_beyond: usize,
    /// For each flush without an answer, how many writes it will cover.
    flushing: HashMap<RequestId, usize>,
    in_flight_writes: usize,
    epoch: Epoch,
    /// What became durable with the last event, in order of completion.
    news: Vec<RequestId>,
}

impl Tracker {
    pub(crate) fn new(honesty: Honesty, seed: Seed) -> Tracker {
        Tracker {
            honesty,
            kept_of_hundred: seed.derive(LIE).rng().usize(30..=70),
            requests: Vec::new(),
            completed: Vec::new(),
            flushed: 0,
            forced_beyond: 0,
            flushing: HashMap::new(),
            in_flight_writes: 0,
            epoch: Epoch(0),
            news: Vec::new(),
        }
    }

    /// Takes in the next event; the answer is what became durable with it, in order of
    /// completion.
    pub(crate) fn observe(&mut self, entry: &Entry) -> &[RequestId] {
        self.news.clear();
        match entry {
            Entry::Submit(submit) => self.submitted(submit),
            Entry::Complete(complete) => self.answered(complete),
            Entry::Mark(_) | Entry::Cut(_) => {}
        }
        &self.news
    }

    fn submitted(&mut self, submit: &Submit) {
        let is_write = submit.operation != Operation::Flush;
        self.requests.push(Request {
            is_write,
            fua: submit.fua,
            answer: Answer::Awaited,
        });
        if is_write {
            self.in_flight_writes += 1;
        } else {
            self.flushing.insert(submit.id, self.completed.len());
        }
    }

    fn answered(&mut self, complete: &Complete) {
        let success = complete.errno == 0;
        let request = &mut self.requests[complete.id.0 as usize];
        request.answer = if success {
            Answer::Success
        } else {
            Answer::Failure
        };
        if request.is_write {
            self.in_flight_writes -= 1;
            if success {
                self.completed.push(complete.id);
                match self.honesty {
                    Honesty::None => self.keep_prefix(self.completed.len()),
                    Honesty::Volatile if request.fua => {
                        self.forced_beyond += 1;
                        self.news.push(complete.id);
                    }
                    Honesty::Volatile => {}
                    Honesty::LiesOnFlush => {
                        self.keep_prefix(self.completed.len() * self.kept_of_hundred / 100);
                    }
                }
            }
        } else if let Some(covered) = self.flushing.remove(&complete.id)
            && success
        {
            self.epoch.0 += 1;
            if self.honesty == Honesty::Volatile {
                self.keep_prefix(covered);
            }
        }
    }

    /// Makes so many of the completed writes durable.
    fn keep_prefix(&mut self, length: usize) {
        while self.flushed < length {
            let write = self.completed[self.flushed];
            let forced = self.honours_fua() && self.requests[write.0 as usize].fua;
            if forced {
                self.forced_beyond -= 1;
            } else {
                self.news.push(write);
            }
            self.flushed += 1;
        }
    }

    fn honours_fua(&self) -> bool {
        self.honesty == Honesty::Volatile
    }

    /// How many completed writes a cut now could lose.
    pub(crate) fn losable(&self) -> usize {
        self.completed.len() - self.flushed - self.forced_beyond
    }

    pub(crate) fn in_flight_writes(&self) -> usize {
        self.in_flight_writes
    }

    /// The lists at a cut now.
    pub(crate) fn state(&self, cut: CutPoint) -> CutState {
        let (mut durable, mut completed) = (Vec::new(), Vec::new());
        for (position, id) in self.completed.iter().enumerate() {
            let forced = self.honours_fua() && self.requests[id.0 as usize].fua;
            if position < self.flushed || forced {
                durable.push(*id);
            } else {
                completed.push(*id);
            }
        }
        durable.sort_unstable();
        completed.sort_unstable();
        let writes_with = |answer: Answer| {
            (0..)
                .map(RequestId)
                .zip(&self.requests)
                .filter(|(_, request)| request.is_write && request.answer == answer)
                .map(|(id, _)| id)
                .collect()
        };
        CutState {
            cut,
            epoch: self.epoch,
            durable,
            completed,
            in_flight: writes_with(Answer::Awaited),
            failed: writes_with(Answer::Failure),
        }
    }
}
