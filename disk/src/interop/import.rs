//! From a foreign log to a recording.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::{DISCARD, ENTRY_BYTES, FLUSH, FUA, MAGIC, MARK, METADATA, SUPER_BYTES, VERSION};
use crate::log::{Frame, Kind, LogHeader, LogWriter, Operation, Recording};
use crate::units::{AtomicUnit, ByteCount, Honesty, SECTOR_BYTES, Seed};

/// Which entries of a log count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// As many as its first sector says. The kernel brings that up to date at FUA writes and
    /// marks only, QEMU as often as `log-super-update-interval` says.
    AsWritten,
    /// Those, and what follows as far as it looks like entries: for a log whose machine was
    /// killed, on a device that was zeroed before.
    Scanned,
}

/// The longest data of one entry: no request of the kernel or of QEMU comes near it.
const MOST_BYTES: u64 = 1 << 30;

/// Makes a recording `out` from a log, for a disk of `size` bytes.
///
/// # Errors
/// The log cannot be read or is none, an entry lies outside the disk or is cut short, or the
/// recording cannot be written. Nothing is left behind.
pub fn import(log: &Path, size: ByteCount, count: Count, out: &Path) -> Result<Recording> {
    let mut reader = Reader::open(log, size)?;
    let header = LogHeader {
        recorded: true,
        size,
        seed: Seed(0),
        unit: AtomicUnit::default(),
        honesty: Honesty::Volatile,
    };
    let mut writer = Writer {
        log: LogWriter::create(out, &header)?,
        next: 0,
    };
    let imported = reader
        .entries(count, |entry| writer.take(&entry))
        .with_context(|| format!("import {}", log.display()))
        .and_then(|()| {
            let closed = writer.log.close();
            closed.with_context(|| format!("write {}", out.display()))
        });
    if let Err(error) = imported {
        let _ = std::fs::remove_file(out);
        return Err(error);
    }
    Recording::open(out)
}

/// One entry as it stands.
struct Entry {
    at: u64,
    bytes: u64,
    flags: u64,
    data: Vec<u8>,
}

struct Reader {
    file: File,
    size: ByteCount,
    sector: u64,
    entries: u64,
    at: u64,
}

impl Reader {
    fn open(path: &Path, size: ByteCount) -> Result<Reader> {
        let shown = path.display();
        let file = File::open(path).with_context(|| format!("open the log {shown}"))?;
        let mut bytes = [0; SUPER_BYTES];
        file.read_exact_at(&mut bytes, 0)
            .with_context(|| format!("read the first sector of {shown}"))?;
        let magic = number(&bytes, 0);
        ensure!(
            magic == MAGIC,
            "{shown} is no log of dm-log-writes or blklogwrites: it begins with {magic:#x}, not \
             with {MAGIC:#x}"
        );
        let version = number(&bytes, 8);
        ensure!(
            version == VERSION,
            "{shown} has version {version}; this build reads {VERSION}"
        );
        let sector = u64::from(u32::from_le_bytes(std::array::from_fn(|at| bytes[24 + at])));
        ensure!(
            sector.is_power_of_two() && (SECTOR_BYTES..=65_536).contains(&sector),
            "{shown} says that a sector has {sector} bytes"
        );
        Ok(Reader {
            file,
            size,
            sector,
            entries: number(&bytes, 16),
            at: sector,
        })
    }

    fn entries(&mut self, count: Count, mut take: impl FnMut(Entry) -> Result<()>) -> Result<()> {
        for index in 0..self.entries {
            let entry = self.next().with_context(|| {
                format!("entry {index} of {}, at byte {}", self.entries, self.at)
            })?;
            take(entry)?;
        }
        if count == Count::Scanned {
            // The first that is no entry is where the log ended.
            while let Ok(entry) = self.next() {
                take(entry)?;
            }
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Entry> {
        let mut head = vec![0; self.sector as usize];
        self.file
            .read_exact_at(&mut head, self.at)
            .context("the log ends here")?;
        let [at, sectors, flags, length] = [0, 8, 16, 24].map(|place| number(&head, place));
        let known = FLUSH | FUA | DISCARD | MARK | METADATA;
        ensure!(
            flags & !known == 0 && (flags | sectors | length) != 0,
            "there is no entry"
        );
        if flags & MARK != 0 {
            let text = head.get(ENTRY_BYTES..ENTRY_BYTES.saturating_add(length as usize));
            let text = text.context("a mark longer than a sector")?;
            self.at += self.sector;
            return Ok(Entry {
                at: 0,
                bytes: 0,
                flags,
                data: text.to_vec(),
            });
        }
        let within = at
            .checked_add(sectors)
            .and_then(|end| end.checked_mul(self.sector))
            .is_some_and(|end| end <= self.size.0);
        ensure!(
            within,
            "{sectors} sectors of {} bytes at {at} are not on a disk of {} bytes",
            self.sector,
            self.size
        );
        let bytes = sectors * self.sector;
        let stored = if flags & DISCARD == 0 { bytes } else { 0 };
        ensure!(stored <= MOST_BYTES, "a write of {bytes} bytes");
        let mut data = vec![0; stored as usize];
        self.file
            .read_exact_at(&mut data, self.at + self.sector)
            .context("the log ends inside the entry's data")?;
        self.at += self.sector + stored;
        Ok(Entry {
            at: at * self.sector,
            bytes,
            flags,
            data,
        })
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|index| bytes[at + index]))
}

struct Writer {
    log: LogWriter,
    next: u64,
}

impl Writer {
    fn take(&mut self, entry: &Entry) -> Result<()> {
        if entry.flags & MARK != 0 {
            let mut frame = Frame::bare(Kind::Mark);
            self.append(&mut frame, &entry.data)?;
            return Ok(());
        }
        if entry.flags & FLUSH != 0 {
            self.request(Operation::Flush, false, 0..0, &[])?;
        }
        if entry.bytes > 0 {
            let operation = match entry.flags & DISCARD {
                0 => Operation::Write,
                _ => Operation::Trim,
            };
            let bytes = entry.at..entry.at + entry.bytes;
            self.request(operation, entry.flags & FUA != 0, bytes, &entry.data)?;
        }
        Ok(())
    }

    /// A request that is answered at once.
    fn request(
        &mut self,
        operation: Operation,
        fua: bool,
        bytes: Range<u64>,
        data: &[u8],
    ) -> Result<()> {
        let mut submit = Frame::bare(Kind::Submit { operation, fua });
        submit.id = self.next;
        submit.offset = bytes.start;
        submit.length = bytes.end - bytes.start;
        self.append(&mut submit, data)?;
        let mut complete = Frame::bare(Kind::Complete);
        complete.id = self.next;
        self.next += 1;
        self.append(&mut complete, &[])
    }

    fn append(&mut self, frame: &mut Frame, payload: &[u8]) -> Result<()> {
        let Ok(length) = u32::try_from(payload.len()) else {
            bail!("{} bytes in one entry", payload.len());
        };
        frame.payload_bytes = length;
        frame.payload_crc = crc32fast::hash(payload);
        self.log
            .append(*frame, payload)
            .context("write the recording")?;
        Ok(())
    }
}
