//! From a recording to the log that dm-log-writes would have written.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{DISCARD, ENTRY_BYTES, FLUSH, FUA, MAGIC, MARK, VERSION};
use crate::export::Draft;
use crate::log::{Complete, Entry, Operation, Recording, Submit};
use crate::units::{RequestId, SECTOR_BYTES};

/// Writes a recording as a log of dm-log-writes with sectors of 512 bytes; returns the number of
/// entries.
///
/// A replayer lays entries over one another in the order of the log. Where that is not the order
/// in which the recorded disk holds two writes that were in flight together, the sectors that lie
/// below are left out of the entry that comes later.
///
/// # Errors
/// The recording cannot be read, a mark is longer than a sector has room for, or the log cannot be
/// written. Nothing is left behind.
pub fn export(recording: &Recording, path: &Path) -> Result<u64> {
    let draft = Draft::beside(path)?;
    let entries =
        write(recording, draft.file()).with_context(|| format!("export to {}", path.display()))?;
    draft.publish(path)?;
    Ok(entries)
}

fn write(recording: &Recording, file: &File) -> Result<u64> {
    let mut log = Log {
        recording,
        out: BufWriter::with_capacity(1 << 20, file),
        entries: 0,
        last_on: HashMap::new(),
    };
    let mut first = [0; SECTOR_BYTES as usize];
    log.sector(&first)?;
    log.run()?;
    log.out.flush()?;
    first[0..8].copy_from_slice(&MAGIC.to_le_bytes());
    first[8..16].copy_from_slice(&VERSION.to_le_bytes());
    first[16..24].copy_from_slice(&log.entries.to_le_bytes());
    first[24..28].copy_from_slice(&(SECTOR_BYTES as u32).to_le_bytes());
    file.write_all_at(&first, 0)?;
    Ok(log.entries)
}

struct Log<'a, W> {
    recording: &'a Recording,
    out: W,
    entries: u64,
    /// By sector: the write submitted last of those that are in the log.
    last_on: HashMap<u64, RequestId>,
}

impl<W: Write> Log<'_, W> {
    fn run(&mut self) -> Result<()> {
        let recording = self.recording;
        // Completed without FUA, in order of completion; how many of them are in the log; and how
        // many each flush under way covers.
        let mut completed: Vec<RequestId> = Vec::new();
        let mut logged = 0;
        let mut flushes: HashMap<RequestId, usize> = HashMap::new();
        for entry in recording.entries() {
            match entry {
                Entry::Submit(submit) if !submit.is_write() => {
                    flushes.insert(submit.id, completed.len());
                }
                Entry::Complete(Complete { id, errno: 0, .. }) => match flushes.remove(id) {
                    Some(covered) => {
                        if covered > logged {
                            self.writes(&completed[logged..covered])?;
                            logged = covered;
                        }
                        self.entry(0, 0, FLUSH, &[])?;
                    }
                    None if recording.submit(*id).is_some_and(|write| write.fua) => {
                        self.writes(&[*id])?;
                    }
                    None => completed.push(*id),
                },
                Entry::Mark(mark) => self.mark(&mark.text)?,
                Entry::Submit(_) | Entry::Complete(_) | Entry::Cut(_) => {}
            }
        }
        self.writes(&completed[logged..])
    }

    fn writes(&mut self, ids: &[RequestId]) -> Result<()> {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        for id in ids {
            let Some(write) = self.recording.submit(id).copied() else {
                continue;
            };
            for sectors in self.on_top(&write) {
                self.write(&write, &sectors)?;
            }
        }
        Ok(())
    }

    /// The sectors of a write that no later one in the log has covered.
    fn on_top(&mut self, write: &Submit) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for sector in write.at.0..write.at.0 + write.length.sectors() {
            let last = self.last_on.entry(sector).or_insert(write.id);
            if *last > write.id {
                continue;
            }
            *last = write.id;
            match ranges.last_mut() {
                Some(range) if range.end == sector => range.end += 1,
                _ => ranges.push(sector..sector + 1),
            }
        }
        ranges
    }

    fn write(&mut self, write: &Submit, sectors: &Range<u64>) -> Result<()> {
        let count = sectors.end - sectors.start;
        let fua = if write.fua { FUA } else { 0 };
        let mut data = Vec::new();
        let flags = match write.operation {
            Operation::Trim => fua | DISCARD,
            Operation::Write | Operation::WriteZeroes | Operation::Flush => {
                data.resize((count * SECTOR_BYTES) as usize, 0);
                fua
            }
        };
        if write.operation == Operation::Write {
            let skipped = (sectors.start - write.at.0) * SECTOR_BYTES;
            self.recording
                .file()
                .read_exact_at(&mut data, write.data_offset + skipped)
                .with_context(|| format!("read the recorded data of request {}", write.id))?;
        }
        self.entry(sectors.start, count, flags, &data)
    }

    fn mark(&mut self, text: &[u8]) -> Result<()> {
        let mut sector = head(0, 0, MARK, text.len() as u64);
        let room = SECTOR_BYTES as usize - ENTRY_BYTES;
        if text.len() > room {
            bail!(
                "a mark of {} bytes; the format has room for {room}",
                text.len()
            );
        }
        sector[ENTRY_BYTES..ENTRY_BYTES + text.len()].copy_from_slice(text);
        self.entries += 1;
        self.sector(&sector)
    }

    fn entry(&mut self, at: u64, sectors: u64, flags: u64, data: &[u8]) -> Result<()> {
        self.entries += 1;
        self.sector(&head(at, sectors, flags, 0))?;
        self.out.write_all(data)?;
        Ok(())
    }

    fn sector(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes)?;
        Ok(())
    }
}

fn head(at: u64, sectors: u64, flags: u64, length: u64) -> [u8; SECTOR_BYTES as usize] {
    let mut bytes = [0; SECTOR_BYTES as usize];
    for (place, number) in (0..).step_by(8).zip([at, sectors, flags, length]) {
        bytes[place..place + 8].copy_from_slice(&number.to_le_bytes());
    }
    bytes
}
