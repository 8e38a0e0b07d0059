//! Appends to a log. Every append has reached the kernel when it returns, so a recorded event
//! survives the death of this process (not that of the host: the log is evidence, not a database).

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::log::format::{Frame, HEADER_BYTES, Kind, LogHeader};

/// The one writer of a log file.
pub(crate) struct LogWriter {
    path: PathBuf,
    file: Arc<File>,
    recorded: bool,
    end: u64,
    last_seq: u64,
    entries: u64,
}

impl LogWriter {
    /// Creates the file, which must not exist yet.
    pub(crate) fn create(path: &Path, header: &LogHeader) -> Result<LogWriter> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .with_context(|| format!("create the log {}", path.display()))?;
        file.write_all(&header.encode())
            .with_context(|| format!("write the header of {}", path.display()))?;
        Ok(LogWriter {
            path: path.to_owned(),
            file: Arc::new(file),
            recorded: header.recorded,
            end: HEADER_BYTES as u64,
            last_seq: 0,
            entries: 0,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file, for views that point into it.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Whether events are recorded, or only data is stored.
    pub(crate) fn is_recorded(&self) -> bool {
        self.recorded
    }

    pub(crate) fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Appends one event under the next sequence number; returns where its payload begins.
    ///
    /// The caller has filled in the payload's checksum, so that it can be computed outside locks.
    /// An unrecorded log keeps the payload only.
    pub(crate) fn append(&mut self, mut frame: Frame, payload: &[u8]) -> io::Result<u64> {
        if !self.recorded {
            write_fully(&self.file, &[], payload)?;
            let place = self.end;
            self.end += payload.len() as u64;
            return Ok(place);
        }
        self.last_seq += 1;
        frame.seq = self.last_seq;
        self.push(&frame, payload)
    }

    fn push(&mut self, frame: &Frame, payload: &[u8]) -> io::Result<u64> {
        let head = frame.encode();
        write_fully(&self.file, &head, payload)?;
        let place = self.end + head.len() as u64;
        self.end = place + payload.len() as u64;
        self.entries += 1;
        Ok(place)
    }

    /// Ends the log in good order: whoever opens it later knows that nothing is missing.
    pub(crate) fn close(&mut self) -> io::Result<()> {
        if !self.recorded {
            return Ok(());
        }
        let mut trailer = Frame::bare(Kind::Trailer);
        trailer.seq = self.last_seq;
        trailer.id = self.entries;
        self.push(&trailer, &[]).map(|_| ())
    }
}

/// Both pieces in one system call where the kernel takes them whole, which is nearly always.
fn write_fully(mut file: &File, head: &[u8], payload: &[u8]) -> io::Result<()> {
    let mut slices = [IoSlice::new(head), IoSlice::new(payload)];
    let mut left = &mut slices[..];
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match file.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
