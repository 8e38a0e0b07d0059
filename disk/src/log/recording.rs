//! Reads a log back: every entry that is whole, and how the log ends.

use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use crate::log::entry::{Complete, End, Entry, Mark, Operation, Submit};
use crate::log::format::{FRAME_BYTES, Frame, HEADER_BYTES, Kind, LogHeader};
use crate::units::{
    AtomicUnit, ByteCount, CutPoint, Honesty, RequestId, SECTOR_BYTES, Sector, Seed, Seq,
};

/// A log that has been read back.
#[derive(Clone, Debug)]
pub struct Recording {
    path: PathBuf,
    file: Arc<File>,
    header: LogHeader,
    entries: Vec<Entry>,
    /// The position in `entries` of each request's submission, by request number.
    submissions: Vec<usize>,
    end: End,
}

impl Recording {
    /// Reads a log and checks every checksum in it, those of the data included.
    ///
    /// # Errors
    /// The file cannot be read, or its first 64 bytes are not the header of a recording. A log
    /// that breaks off later is no error: see [`Recording::end`].
    pub fn open(path: &Path) -> Result<Recording> {
        let shown = path.display();
        let file = File::open(path).with_context(|| format!("open the recording {shown}"))?;
        let file_bytes = file
            .metadata()
            .with_context(|| format!("read the size of {shown}"))?
            .len();
        let mut header = [0; HEADER_BYTES];
        if file_bytes < HEADER_BYTES as u64 {
            bail!("{shown} is no recording: it has {file_bytes} bytes, not even a header");
        }
        file.read_exact_at(&mut header, 0)
            .with_context(|| format!("read the header of {shown}"))?;
        let header = LogHeader::decode(&header)
            .map_err(|why| anyhow::anyhow!("{shown} is no recording: {why}"))?;
        if !header.recorded {
            bail!("{shown} is the store of a disk that was not recorded");
        }
        let mut parser = Parser::new(&file, header, file_bytes);
        let end = parser
            .run()
            .with_context(|| format!("read the recording {shown}"))?;
        let Parser {
            entries,
            submissions,
            ..
        } = parser;
        Ok(Recording {
            path: path.to_owned(),
            file: Arc::new(file),
            header,
            entries,
            submissions,
            end,
        })
    }

    /// A recording that never was a log: these events, with their data in a file.
    #[cfg(test)]
    pub(crate) fn made_up(file: Arc<File>, header: LogHeader, entries: Vec<Entry>) -> Recording {
        let is_submission = |entry: &Entry| matches!(entry, Entry::Submit(_));
        let numbered = entries.iter().enumerate();
        let submissions = numbered.filter(|(_, entry)| is_submission(entry));
        Recording {
            path: PathBuf::from("made up"),
            file,
            header,
            submissions: submissions.map(|(position, _)| position).collect(),
            entries,
            end: End::Complete,
        }
    }

    /// The log's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Every event that is whole, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How the recording ends.
    pub fn end(&self) -> &End {
        &self.end
    }

    /// Whether nothing is missing.
    pub fn is_complete(&self) -> bool {
        self.end == End::Complete
    }

    /// The size of the recorded disk.
    pub fn size(&self) -> ByteCount {
        self.header.size
    }

    /// What the recorded disk's cache promised and kept.
    pub fn honesty(&self) -> Honesty {
        self.header.honesty
    }

    /// The recorded disk's atomic unit.
    pub fn unit(&self) -> AtomicUnit {
        self.header.unit
    }

    /// The recorded disk's seed.
    pub fn seed(&self) -> Seed {
        self.header.seed
    }

    /// The last event.
    pub fn last_seq(&self) -> Seq {
        self.entries.last().map(Entry::seq).unwrap_or_default()
    }

    /// The moment the power was cut, if it was cut while recording.
    pub fn cut(&self) -> Option<CutPoint> {
        match self.entries.last() {
            Some(Entry::Cut(seq)) => Some(CutPoint(*seq)),
            _ => None,
        }
    }

    /// One request; `None` where no such number was recorded.
    pub fn submit(&self, id: RequestId) -> Option<&Submit> {
        let position = *self.submissions.get(usize::try_from(id.0).ok()?)?;
        match &self.entries[position] {
            Entry::Submit(submit) => Some(submit),
            _ => None,
        }
    }

    /// Every mark, in order.
    pub fn marks(&self) -> impl Iterator<Item = &Mark> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Mark(mark) => Some(mark),
            _ => None,
        })
    }
}

/// What reading one entry can come to.
enum Step {
    Entry(Entry),
    Trailer { entries: u64 },
    Broken(String),
}

struct Parser<'a> {
    input: BufReader<&'a File>,
    header: LogHeader,
    at: u64,
    file_bytes: u64,
    entries: Vec<Entry>,
    submissions: Vec<usize>,
    answered: Vec<bool>,
    scratch: Vec<u8>,
}

impl<'a> Parser<'a> {
    fn new(file: &'a File, header: LogHeader, file_bytes: u64) -> Parser<'a> {
        Parser {
            input: BufReader::with_capacity(64 << 10, file),
            header,
            at: 0,
            file_bytes,
            entries: Vec::new(),
            submissions: Vec::new(),
            answered: Vec::new(),
            scratch: Vec::new(),
        }
    }

    fn run(&mut self) -> Result<End> {
        let mut skipped = [0; HEADER_BYTES];
        self.input.read_exact(&mut skipped)?;
        self.at = HEADER_BYTES as u64;
        loop {
            let start = self.at;
            let why = match self.step()? {
                Step::Entry(entry) => {
                    self.entries.push(entry);
                    continue;
                }
                Step::Trailer { entries } if entries != self.entries.len() as u64 => {
                    format!(
                        "the trailer counts {entries} entries, not {}",
                        self.entries.len()
                    )
                }
                Step::Trailer { .. } if self.at != self.file_bytes => {
                    "bytes follow the trailer".to_owned()
                }
                Step::Trailer { .. } => return Ok(End::Complete),
                Step::Broken(why) => why,
            };
            return Ok(End::Truncated {
                at_byte: start,
                last_seq: self.last_seq(),
                why,
            });
        }
    }

    fn last_seq(&self) -> Seq {
        self.entries.last().map(Entry::seq).unwrap_or_default()
    }

    fn step(&mut self) -> Result<Step> {
        let left = self.file_bytes - self.at;
        if left == 0 {
            return Ok(Step::Broken("the file ends without a trailer".into()));
        }
        if left < FRAME_BYTES as u64 {
            return Ok(Step::Broken("the file ends inside an entry".into()));
        }
        let mut head = [0; FRAME_BYTES];
        self.input.read_exact(&mut head)?;
        let frame = match Frame::decode(&head) {
            Ok(frame) => frame,
            Err(why) => return Ok(Step::Broken(why)),
        };
        if left - (FRAME_BYTES as u64) < u64::from(frame.payload_bytes) {
            return Ok(Step::Broken("the file ends inside an entry's data".into()));
        }
        let payload_at = self.at + FRAME_BYTES as u64;
        self.scratch.resize(frame.payload_bytes as usize, 0);
        self.input.read_exact(&mut self.scratch)?;
        if crc32fast::hash(&self.scratch) != frame.payload_crc {
            return Ok(Step::Broken(
                "the checksum of an entry's data does not fit".into(),
            ));
        }
        self.at = payload_at + u64::from(frame.payload_bytes);
        Ok(self
            .interpret(&frame, payload_at)
            .unwrap_or_else(Step::Broken))
    }

    /// Gives a whole entry its meaning; entries that contradict what came before are damage too.
    fn interpret(&mut self, frame: &Frame, payload_at: u64) -> Result<Step, String> {
        let seq = Seq(frame.seq);
        if frame.kind == Kind::Trailer {
            return Ok(Step::Trailer { entries: frame.id });
        }
        if seq <= self.last_seq() {
            return Err(format!("event {seq} follows event {}", self.last_seq()));
        }
        if matches!(self.entries.last(), Some(Entry::Cut(_))) {
            return Err("an event follows the power cut".into());
        }
        Ok(Step::Entry(match frame.kind {
            Kind::Submit { operation, fua } => {
                self.check_submit(frame, operation)?;
                self.submissions.push(self.entries.len());
                self.answered.push(false);
                Entry::Submit(Submit {
                    seq,
                    id: RequestId(frame.id),
                    operation,
                    at: Sector(frame.offset / SECTOR_BYTES),
                    length: ByteCount(frame.length),
                    fua,
                    data_offset: payload_at,
                })
            }
            Kind::Complete => {
                let answered = usize::try_from(frame.id)
                    .ok()
                    .and_then(|index| self.answered.get_mut(index))
                    .filter(|answered| !**answered)
                    .ok_or_else(|| format!("request {} is not waiting for an answer", frame.id))?;
                *answered = true;
                Entry::Complete(Complete {
                    seq,
                    id: RequestId(frame.id),
                    errno: frame.errno,
                })
            }
            Kind::Mark => Entry::Mark(Mark {
                seq,
                text: self.scratch.clone(),
            }),
            Kind::Cut | Kind::Trailer => Entry::Cut(seq),
        }))
    }

    fn check_submit(&self, frame: &Frame, operation: Operation) -> Result<(), String> {
        if frame.id != self.submissions.len() as u64 {
            return Err(format!(
                "request {} follows {} requests",
                frame.id,
                self.submissions.len()
            ));
        }
        let aligned =
            frame.offset.is_multiple_of(SECTOR_BYTES) && frame.length.is_multiple_of(SECTOR_BYTES);
        let inside = frame
            .offset
            .checked_add(frame.length)
            .is_some_and(|end| end <= self.header.size.0);
        let data = if operation == Operation::Write {
            frame.length
        } else {
            0
        };
        if !aligned || !inside || data != u64::from(frame.payload_bytes) {
            return Err(format!("request {} has an impossible range", frame.id));
        }
        Ok(())
    }
}
