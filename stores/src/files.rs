//! `files`: short sequences of operations on files with fsync at every place,
//! as the protocol's `sequences` has them.
//!
//! An operation is begun in the ledger before it is issued, and promises
//! nothing by itself; a sync is acknowledged when it returned. `--no-fsync`
//! acknowledges without one, to be caught.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::Subcommand;
use plugpull_protocol::workload::{
    sequences::{
        self, CELL, Entry, GIVEN, GIVEN_CELLS, GIVEN_DIR, Sequence, Step, cell_bytes, step_key,
    },
    stores::StoreSeen,
};
use rustix::fs::FallocateFlags;

use crate::{Chosen, Place, begins, dirs, plugpull::Promises, tell};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Carry out sequences.
    Run {
        #[command(flatten)]
        place: Place,
        /// How many.
        #[arg(long)]
        sequences: u64,
        #[command(flatten)]
        chosen: Chosen,
        /// Say that something was synced without a sync.
        #[arg(long)]
        no_fsync: bool,
    },
    /// Print what is in the directories of the sequences.
    Look {
        #[command(flatten)]
        place: Place,
        /// How many there are.
        #[arg(long)]
        sequences: u64,
    },
}

pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Run {
            place,
            sequences,
            chosen,
            no_fsync,
        } => {
            let mut all = sequences::sequences(place.seed, sequences);
            // Operations are counted from 1, sequences from 0.
            all.retain(|sequence| chosen.contains(sequence.number + 1));
            let mut promises = Promises::connect()?;
            give(&place.dir, &all, &mut promises)?;
            for sequence in &all {
                let what = format!("{:?}", sequence.steps);
                begins(&mut promises, sequence.number + 1, &what)?;
                let dir = place.dir.join(sequences::dir(sequence.number));
                for (at, step) in (1..).zip(&sequence.steps) {
                    carry_out(&dir, sequence.number, at, *step, no_fsync, &mut promises)
                        .with_context(|| {
                            format!("step {at} of sequence {}: {step:?}", sequence.number)
                        })?;
                }
            }
            Ok(())
        }
        Command::Look { place, sequences } => {
            let mut seen = StoreSeen::default();
            for sequence in sequences::sequences(place.seed, sequences) {
                look(&place.dir, &sequence, &mut seen.rows)?;
            }
            tell(&seen)
        }
    }
}

/// Make what every sequence starts from, and make it durable.
fn give(dir: &Path, all: &[Sequence], promises: &mut Promises) -> Result<()> {
    for sequence in all {
        let own = dir.join(sequences::dir(sequence.number));
        fs::create_dir(&own)?;
        fs::create_dir(own.join(GIVEN_DIR))?;
        for name in GIVEN {
            let file = File::create_new(own.join(name))?;
            write_cells(&file, sequence.number, 0, 0, GIVEN_CELLS)?;
        }
    }
    // One sync for all, or setting up would take most of the run: sync(2)
    // waits for the disks on Linux. Of a filesystem in user space over another
    // the pages may be handed down by the first and written by the second.
    rustix::fs::sync();
    rustix::fs::sync();
    for sequence in all {
        let key = step_key(sequence.number, 0);
        promises.begin(&key, Some("given"))?;
        promises.ack(&key)?;
    }
    Ok(())
}

fn carry_out(
    dir: &Path,
    number: u64,
    at: usize,
    step: Step,
    no_fsync: bool,
    promises: &mut Promises,
) -> Result<()> {
    let key = step_key(number, at);
    promises.begin(&key, Some(&format!("{step:?}")))?;
    let path = |name: &str| dir.join(name);
    let open = |name: &str| OpenOptions::new().write(true).open(path(name));
    match step {
        Step::Create(name, cells) => {
            write_cells(&File::create_new(path(name))?, number, at, 0, cells)?;
        }
        Step::Append(name, cells) => {
            let file = open(name)?;
            let end = file.metadata()?.len() / CELL;
            write_cells(&file, number, at, end, cells)?;
        }
        Step::Overwrite(name, from, cells) => {
            write_cells(&open(name)?, number, at, from, cells)?;
        }
        Step::Replace(name, cells) => {
            let mut options = OpenOptions::new();
            let file = options.write(true).truncate(true).open(path(name))?;
            write_cells(&file, number, at, 0, cells)?;
        }
        Step::Truncate(name, cells) => open(name)?.set_len(cells * CELL)?,
        Step::Fallocate(name, cells) => {
            let file = open(name)?;
            let end = file.metadata()?.len();
            rustix::fs::fallocate(&file, FallocateFlags::empty(), end, cells * CELL)?;
        }
        Step::Punch(name, from, cells) => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(open(name)?, flags, from * CELL, cells * CELL)?;
        }
        Step::Rename(from, to) => fs::rename(path(from), path(to))?,
        Step::Link(from, to) => fs::hard_link(path(from), path(to))?,
        Step::Unlink(name) => fs::remove_file(path(name))?,
        Step::Mkdir(name) => fs::create_dir(path(name))?,
        Step::SyncFile(_) | Step::SyncDir(_) if no_fsync => promises.ack(&key)?,
        Step::SyncFile(name) => {
            open(name)?.sync_all()?;
            promises.ack(&key)?;
        }
        Step::SyncDir(name) => {
            dirs::sync(&path(name))?;
            promises.ack(&key)?;
        }
    }
    Ok(())
}

fn write_cells(file: &File, number: u64, at: usize, from: u64, cells: u64) -> Result<()> {
    let cells = (from..from + cells).flat_map(|cell| cell_bytes(number, at, cell));
    let bytes: Vec<u8> = cells.collect();
    Ok(file.write_all_at(&bytes, from * CELL)?)
}

/// What is in a sequence's directory, with one below it.
fn look(dir: &Path, sequence: &Sequence, rows: &mut Vec<(String, String)>) -> Result<()> {
    let own = sequences::dir(sequence.number);
    let mut open: Vec<PathBuf> = vec![PathBuf::from(own)];
    while let Some(path) = open.pop() {
        let entry = see(&dir.join(&path), sequence);
        let entry = entry.unwrap_or_else(|error| Some(Entry::Odd(error.to_string())));
        let Some(entry) = entry else {
            continue;
        };
        rows.push((path.display().to_string(), entry.text()));
        if entry != Entry::Dir {
            continue;
        }
        let names = fs::read_dir(dir.join(&path)).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        match names {
            Ok(names) => open.extend(names.iter().map(|name| path.join(name.file_name()))),
            Err(error) => {
                let unread = path.join(OsStr::new("(names)"));
                let odd = Entry::Odd(error.to_string());
                rows.push((unread.display().to_string(), odd.text()));
            }
        }
    }
    Ok(())
}

/// What is at a path, if anything.
fn see(path: &Path, sequence: &Sequence) -> std::io::Result<Option<Entry>> {
    let meta = match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        meta => meta?,
    };
    if meta.is_dir() {
        return Ok(Some(Entry::Dir));
    }
    if !meta.is_file() {
        return Ok(Some(Entry::Odd("no file and no directory".to_owned())));
    }
    let content = fs::read(path)?;
    let steps = sequence.steps.len();
    let file = Entry::file(meta.ino(), &content, sequence.number, steps);
    Ok(Some(file))
}
