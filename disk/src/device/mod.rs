//! The disk itself: takes requests, records them, changes its content, and can lose its power.
//!
//! Simulated: the order of submissions and completions, cache honesty (at a cut; a live disk
//! always reads back what was written), and a power cut at a request, a flush, a mark or an event.
//! After a cut nothing is recorded and nothing is answered; an answer whose completion was recorded
//! just before may still be on its way, and no mark can follow it any more. Not simulated yet:
//! errors, latency, corruption, torn writes, completions out of order.
//!
//! One lock guards the log and the content, so that the order in the log *is* the order of events.

mod config;
mod counts;
mod state;

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::device::state::{Log, State};
use crate::log::{Frame, Kind, Operation, Recording};
use crate::reads::Reads;
use crate::units::{ByteCount, CutPoint, RequestId, Seq};
use crate::view::View;

pub use config::{CutTrigger, DiskConfig, DiskError};
pub use counts::Counts;

/// How long [`Disk::swap`] waits for requests under way.
const SWAP_DEADLINE: Duration = Duration::from_secs(10);

/// A virtual disk. Clones are handles of the same disk.
#[derive(Clone)]
pub struct Disk {
    inner: Arc<Inner>,
}

struct Inner {
    size: ByteCount,
    config: DiskConfig,
    read_only: bool,
    state: Mutex<State>,
    /// Notified by the state when the disk ends, or has no request under way.
    changed: Arc<Condvar>,
}

/// A request that is well-formed and lies on the disk.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Request {
    Read {
        offset: u64,
        length: u32,
    },
    Change {
        operation: Operation,
        offset: u64,
        length: u32,
        fua: bool,
    },
}

/// A submitted request, waiting for its turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    request: Request,
    id: RequestId,
    data_offset: u64,
}

impl Disk {
    /// A disk that holds `view` and writes its log to a new file.
    ///
    /// # Errors
    /// The log exists already or cannot be created.
    pub fn create(view: View, log_path: &Path, config: DiskConfig) -> Result<Disk> {
        let mut view = view;
        let log = Log::create(&mut view, log_path, &config)?;
        Ok(Disk::with(view, Some(log), config))
    }

    /// A disk that refuses every write with EPERM and needs no log.
    pub fn read_only(view: View) -> Disk {
        let config = DiskConfig {
            record: false,
            ..DiskConfig::default()
        };
        Disk::with(view, None, config)
    }

    fn with(view: View, log: Option<Log>, config: DiskConfig) -> Disk {
        let changed = Arc::new(Condvar::new());
        Disk {
            inner: Arc::new(Inner {
                size: view.size(),
                config,
                read_only: log.is_none(),
                state: Mutex::new(State::new(view, log, changed.clone())),
                changed,
            }),
        }
    }

    /// The size of the disk.
    pub fn size(&self) -> ByteCount {
        self.inner.size
    }

    /// What the disk is like.
    pub fn config(&self) -> DiskConfig {
        self.inner.config
    }

    /// Whether the disk refuses writes.
    pub fn is_read_only(&self) -> bool {
        self.inner.read_only
    }

    /// What the disk holds now, cache and all.
    pub fn view(&self) -> View {
        self.lock().view.clone()
    }

    /// What the disk has done since its recording began.
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// What has been read since the disk got its content.
    pub fn reads(&self) -> Reads {
        self.lock().reads.clone()
    }

    /// Why the disk takes nothing more, if so.
    pub fn end(&self) -> Option<DiskError> {
        self.lock().end.clone()
    }

    /// Gives `text` a place among the requests; it is recorded when this returns.
    ///
    /// # Errors
    /// The disk is dead, finished, or not recording.
    pub fn mark(&self, text: impl AsRef<[u8]>) -> Result<Seq, DiskError> {
        let text = text.as_ref();
        let mut frame = Frame::bare(Kind::Mark);
        frame.payload_crc = crc32fast::hash(text);
        frame.payload_bytes = u32::try_from(text.len())
            .map_err(|_| DiskError::LogFailed("a mark of more than 4 GiB".into()))?;
        let mut state = self.lock_alive()?;
        state.recorded_log()?;
        state.append(frame, text)?;
        let seq = state.recorded_log()?.last_seq();
        if matches!(&state.trigger, Some(CutTrigger::Mark(prefix)) if text.starts_with(prefix)) {
            state.cut()?;
        }
        state.cut_if_due()?;
        Ok(Seq(seq))
    }

    /// Cuts the power when `trigger` comes true; at once where its moment has already passed.
    /// A second trigger replaces the first.
    ///
    /// # Errors
    /// The disk is dead, finished, or not recording.
    pub fn arm(&self, trigger: CutTrigger) -> Result<(), DiskError> {
        let mut state = self.lock_alive()?;
        state.recorded_log()?;
        state.trigger = Some(trigger);
        state.cut_if_due()?;
        // Who waits may have to wait less now.
        self.inner.changed.notify_all();
        Ok(())
    }

    /// Cuts the power now.
    ///
    /// # Errors
    /// The disk is already dead (the error says where), finished, or not recording.
    pub fn cut_now(&self) -> Result<CutPoint, DiskError> {
        let mut state = self.lock_alive()?;
        state.recorded_log()?;
        state.cut()
    }

    /// Waits until the power is cut; `None` when it was not within `timeout`.
    ///
    /// # Errors
    /// The disk came to another end: its recording was finished, or its log cannot be written.
    pub fn wait_cut(&self, timeout: Duration) -> Result<Option<CutPoint>, DiskError> {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            let cut_time = state.cut_time();
            if cut_time.is_some() {
                state.cut_if_due()?;
            }
            match &state.end {
                Some(DiskError::Cut(cut)) => return Ok(Some(*cut)),
                Some(other) => return Err(other.clone()),
                None => {}
            }
            let now = Instant::now();
            let left = deadline.saturating_duration_since(now);
            if left.is_zero() {
                return Ok(None);
            }
            let due = cut_time.map(|at| at.saturating_duration_since(now));
            state = self.wait(state, due.map_or(left, |due| due.min(left)));
        }
    }

    /// Ends the recording in good order and reads it back. The content can still be had from
    /// [`Disk::view`]; requests are not answered any more.
    ///
    /// # Errors
    /// The disk was not recording, or its log cannot be written or read.
    pub fn finish(&self) -> Result<Recording> {
        let path = {
            let mut state = self.lock();
            let log = state.log.as_ref().filter(|log| log.writer.is_recorded());
            let path = log
                .context(DiskError::NotRecording)?
                .writer
                .path()
                .to_owned();
            state.finish()?;
            path
        };
        Recording::open(&path)
    }

    /// Replaces the medium under live connections: ends the recording as [`Disk::finish`] does
    /// and goes on with another content and a new log; counts and triggers begin anew. The guest
    /// must have unmounted the disk and emptied its cache (`BLKFLSBUF`). Returns the old
    /// recording; `None` where the disk does not record.
    ///
    /// # Errors
    /// The disk is dead or read-only, the new content has another size, requests are still under
    /// way after ten seconds, or a log cannot be written.
    pub fn swap(&self, view: View, log_path: &Path) -> Result<Option<Recording>> {
        ensure!(
            view.size() == self.size(),
            "a medium of {} bytes cannot replace one of {}",
            view.size(),
            self.size()
        );
        ensure!(
            !self.is_read_only(),
            "the medium of a read-only disk cannot be swapped"
        );
        let mut view = view;
        let fresh = Log::create(&mut view, log_path, &self.inner.config)?;
        let mut old = {
            let mut state = self.lock_idle().inspect_err(|_| {
                // Nothing was written to it; a second attempt may want the name.
                let _ = std::fs::remove_file(log_path);
            })?;
            state.view = view;
            state.counts = Counts::default();
            state.reads = Reads::default();
            state.trigger = None;
            state.log.replace(fresh).context("a disk with a log")?
        };
        old.writer
            .close()
            .with_context(|| format!("close the log {}", old.writer.path().display()))?;
        match old.writer.is_recorded() {
            true => Recording::open(old.writer.path()).map(Some),
            false => Ok(None),
        }
    }

    /// The lock, at a moment without requests under way.
    fn lock_idle(&self) -> Result<MutexGuard<'_, State>> {
        let deadline = Instant::now() + SWAP_DEADLINE;
        let mut state = self.lock_alive()?;
        while state.outstanding > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!(
                    "waited {} s for {} requests under way before a swap of the medium",
                    SWAP_DEADLINE.as_secs(),
                    state.outstanding
                );
            }
            state = self.wait(state, left);
            if let Some(end) = &state.end {
                return Err(end.clone().into());
            }
        }
        Ok(state)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave the state half changed: its fields change after the
        // fallible steps, and the log's reader checks what was written.
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_alive(&self) -> Result<MutexGuard<'_, State>, DiskError> {
        let mut state = self.lock();
        if state.cut_time().is_some() {
            state.cut_if_due()?;
        }
        match &state.end {
            None => Ok(state),
            Some(end) => Err(end.clone()),
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, left: Duration) -> MutexGuard<'a, State> {
        let waited = self.inner.changed.wait_timeout(state, left);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Records that a request has come in, and hands it to `enqueue` before any later one can
    /// come, so that the order of execution is the order of submission.
    pub(crate) fn submit(
        &self,
        request: Request,
        payload: &[u8],
        enqueue: impl FnOnce(Job),
    ) -> Result<(), DiskError> {
        // The checksum is the costly part, so it is computed before the lock is taken.
        let payload_crc = crc32fast::hash(payload);
        let mut state = self.lock_alive()?;
        state.counts.note(&request);
        let mut job = Job {
            request,
            id: RequestId(0),
            data_offset: 0,
        };
        if let Request::Read { offset, length } = request {
            state.reads.add(offset..offset + u64::from(length));
        }
        if let Request::Change {
            operation,
            offset,
            length,
            fua,
        } = request
        {
            let mut frame = Frame::bare(Kind::Submit { operation, fua });
            let log = state.log.as_mut().ok_or(DiskError::NotRecording)?;
            frame.id = log.next_id;
            job.id = RequestId(log.next_id);
            log.next_id += 1;
            frame.offset = offset;
            frame.length = u64::from(length);
            frame.payload_bytes = payload.len() as u32;
            frame.payload_crc = payload_crc;
            job.data_offset = state.append(frame, payload)?;
            state.cut_if_due()?;
            if let Some(end) = &state.end {
                return Err(end.clone());
            }
        }
        state.outstanding += 1;
        enqueue(job);
        Ok(())
    }

    /// Counts a request that was refused before it could be submitted.
    pub(crate) fn note_rejected(&self) {
        self.lock().counts.rejected += 1;
    }

    /// Carries out a submitted request and records its completion; a read's data is appended to
    /// `data`. Returns the errno to answer with, or why nobody must be answered.
    pub(crate) fn execute(&self, job: &Job, data: &mut Vec<u8>) -> Result<u32, DiskError> {
        match job.request {
            Request::Read { offset, length } => {
                let view = self.lock_alive()?.view.clone();
                let start = data.len();
                data.resize(start + length as usize, 0);
                let outcome = view.read_at(offset, &mut data[start..]);
                drop(view);
                let mut state = self.lock_alive()?;
                state.settle();
                Ok(match outcome {
                    Ok(()) => 0,
                    Err(error) => {
                        tracing::error!("a read of {length} bytes at {offset} failed: {error:#}");
                        data.truncate(start);
                        rustix::io::Errno::IO.raw_os_error() as u32
                    }
                })
            }
            Request::Change {
                operation,
                offset,
                length,
                ..
            } => {
                let mut state = self.lock_alive()?;
                state.change(operation, offset, u64::from(length), job.data_offset);
                let mut frame = Frame::bare(Kind::Complete);
                frame.id = job.id.0;
                if self.inner.config.record {
                    state.append(frame, &[])?;
                    state.cut_if_due()?;
                }
                state.settle();
                match &state.end {
                    None => Ok(0),
                    Some(end) => Err(end.clone()),
                }
            }
        }
    }
}
