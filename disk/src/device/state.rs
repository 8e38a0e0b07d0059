//! What the disk's one lock guards: the log, the content, and how the disk ends.

use std::path::Path;
use std::sync::{Arc, Condvar};
use std::time::Instant;

use anyhow::Result;

use crate::device::{Counts, CutTrigger, DiskConfig, DiskError};
use crate::log::{Frame, Kind, LogHeader, LogWriter, Operation};
use crate::reads::Reads;
use crate::table::SourceId;
use crate::units::{CutPoint, SECTOR_BYTES, Sector, Seq};
use crate::view::View;

pub(super) struct State {
    pub(super) view: View,
    /// `None` on a read-only disk.
    pub(super) log: Option<Log>,
    pub(super) counts: Counts,
    pub(super) reads: Reads,
    /// Requests submitted and not answered, reads included.
    pub(super) outstanding: u64,
    pub(super) trigger: Option<CutTrigger>,
    /// Why nothing more is taken, once that is so.
    pub(super) end: Option<DiskError>,
    changed: Arc<Condvar>,
}

pub(super) struct Log {
    pub(super) writer: LogWriter,
    pub(super) source: SourceId,
    pub(super) next_id: u64,
}

impl Log {
    /// Creates a log file and makes it a source of `view`.
    pub(super) fn create(view: &mut View, path: &Path, config: &DiskConfig) -> Result<Log> {
        let writer = LogWriter::create(
            path,
            &LogHeader {
                recorded: config.record,
                size: view.size(),
                seed: config.seed,
                unit: config.unit,
                honesty: config.honesty,
            },
        )?;
        let source = view.add_source(writer.file().clone())?;
        Ok(Log {
            writer,
            source,
            next_id: 0,
        })
    }
}

impl State {
    pub(super) fn new(view: View, log: Option<Log>, changed: Arc<Condvar>) -> State {
        State {
            view,
            log,
            counts: Counts::default(),
            reads: Reads::default(),
            outstanding: 0,
            trigger: None,
            end: None,
            changed,
        }
    }

    /// One request fewer is under way.
    pub(super) fn settle(&mut self) {
        self.outstanding -= 1;
        if self.outstanding == 0 {
            self.changed.notify_all();
        }
    }

    fn end_with(&mut self, end: DiskError) {
        self.end = Some(end);
        self.changed.notify_all();
    }

    /// Appends to the log; a failure ends the disk, because it could not be recorded.
    pub(super) fn append(&mut self, frame: Frame, payload: &[u8]) -> Result<u64, DiskError> {
        let log = self.log.as_mut().ok_or(DiskError::NotRecording)?;
        let appended = log.writer.append(frame, payload);
        appended.map_err(|error| self.fail(&error))
    }

    fn fail(&mut self, error: &std::io::Error) -> DiskError {
        let end = DiskError::LogFailed(error.to_string());
        tracing::error!("{end}");
        self.end_with(end.clone());
        end
    }

    pub(super) fn recorded_log(&self) -> Result<&LogWriter, DiskError> {
        self.log
            .as_ref()
            .map(|log| &log.writer)
            .filter(|writer| writer.is_recorded())
            .ok_or(DiskError::NotRecording)
    }

    pub(super) fn change(
        &mut self,
        operation: Operation,
        offset: u64,
        length: u64,
        data_offset: u64,
    ) {
        let Some(log) = &self.log else { return };
        let at = Sector(offset / SECTOR_BYTES);
        let sectors = length / SECTOR_BYTES;
        match operation {
            Operation::Write => self.view.set_data(at, sectors, log.source, data_offset),
            Operation::WriteZeroes | Operation::Trim => self.view.set_zeros(at, sectors),
            Operation::Flush => {}
        }
    }

    pub(super) fn cut_if_due(&mut self) -> Result<(), DiskError> {
        if self.end.is_some() {
            return Ok(());
        }
        let Some(log) = &self.log else { return Ok(()) };
        let is_due = match &self.trigger {
            None | Some(CutTrigger::Mark(_)) => false,
            Some(CutTrigger::Time(at)) => Instant::now() >= *at,
            Some(CutTrigger::Request(count)) => log.next_id >= *count,
            Some(CutTrigger::Flush(count)) => self.counts.flushes >= *count,
            Some(CutTrigger::Seq(seq)) => log.writer.last_seq() >= seq.0,
        };
        if is_due {
            self.cut()?;
        }
        Ok(())
    }

    /// The moment at which the power goes, where one was named and has not come.
    pub(super) fn cut_time(&self) -> Option<Instant> {
        match (&self.end, &self.trigger) {
            (None, Some(CutTrigger::Time(at))) => Some(*at),
            _ => None,
        }
    }

    /// Records the cut and closes the log: nothing can follow.
    pub(super) fn cut(&mut self) -> Result<CutPoint, DiskError> {
        self.append(Frame::bare(Kind::Cut), &[])?;
        let cut = CutPoint(Seq(self.recorded_log()?.last_seq()));
        self.close()?;
        self.end_with(DiskError::Cut(cut));
        Ok(cut)
    }

    pub(super) fn finish(&mut self) -> Result<(), DiskError> {
        match &self.end {
            None => {
                self.close()?;
                self.end_with(DiskError::Finished);
                Ok(())
            }
            Some(DiskError::Cut(_) | DiskError::Finished) => Ok(()),
            Some(other) => Err(other.clone()),
        }
    }

    fn close(&mut self) -> Result<(), DiskError> {
        let Some(log) = self.log.as_mut() else {
            return Ok(());
        };
        let closed = log.writer.close();
        closed.map_err(|error| self.fail(&error))
    }
}

impl Drop for State {
    /// A disk that goes away in good order leaves a whole recording.
    fn drop(&mut self) {
        if self.end.is_none()
            && let Err(error) = self.close()
        {
            tracing::error!("the recording stays without its trailer: {error}");
        }
    }
}
