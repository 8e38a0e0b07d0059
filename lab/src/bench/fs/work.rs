//! Carrying out a line: what is there before, what the threads do, what is measured.
//!
//! Names and files are prepared below the mount, in the lower directory, so that the
//! mount has not seen them; a part of the work is done beforehand as a warm-up.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, Dir, lstat, statat};

use super::{
    lines::{Amount, Line, NameWork, Place, Unit, Way, Work},
    load::{self, Done, Job, Stop},
    programs::{checkout, pgbench},
    results::Sample,
    servers::Serving,
};

/// For one line on one server; a busy host gets ten times what a line should take.
const DEADLINE: Duration = Duration::from_secs(120);
/// This part of the names is used for the warm-up.
const WARM_UP_PART: usize = 10;
/// What is written into a new file.
const SMALL: usize = 1 << 10;
const FSYNC_BLOCK: usize = 4 << 10;

/// What a line came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Measured {
    /// In the line's unit.
    pub(super) rate: f64,
    /// Operations in all.
    pub(super) ops: u64,
    /// Seconds in all.
    pub(super) seconds: f64,
}

/// A directory in the lower one that every line has to itself.
const SCRATCH: &str = "line";
/// Files for reading and writing stay from line to line, which saves most of the time
/// and gives everybody the same blocks.
const DATA: &str = "data";

/// What the line needs to find.
///
/// # Errors
/// When it cannot be made.
pub(super) fn prepare(line: &Line, amount: &Amount, lower: &Path) -> Result<()> {
    let dir = lower.join(SCRATCH);
    fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
    match line.work {
        Work::Data { .. } | Work::Fsync => {
            let dir = lower.join(DATA);
            fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
            (0..line.threads).try_for_each(|n| fill(&data_file(&dir, n), amount.file_bytes))
        }
        Work::Names(work) => {
            let per_thread = amount.names / line.threads;
            for n in 0..line.threads {
                make_names(&names_dir(&dir, n), work, per_thread)?;
            }
            make_names(&dir.join("warm-up"), work, amount.names / WARM_UP_PART)
        }
        Work::Checkout => checkout::prepare(&dir, amount.checkout),
        Work::Pgbench => pgbench::prepare(&dir),
    }
}

/// Removes what [`prepare`] and [`measure`] made.
///
/// # Errors
/// When it cannot be removed.
pub(super) fn clean(lower: &Path) -> Result<()> {
    let dir = lower.join(SCRATCH);
    fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))
}

/// Removes what stayed from line to line.
///
/// # Errors
/// When it cannot be removed.
pub(super) fn clean_data(lower: &Path) -> Result<()> {
    let dir = lower.join(DATA);
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Takes the time of what counts, and what the server used meanwhile.
#[derive(Debug)]
pub(super) struct Meter<'a> {
    pub(super) serving: &'a Serving,
    pub(super) round: u32,
    pub(super) sample: Option<Sample>,
}

impl Meter<'_> {
    /// Runs what counts.
    ///
    /// # Errors
    /// Its own, or that the server has ended.
    pub(super) fn measure(&mut self, run: impl FnOnce() -> Result<Measured>) -> Result<()> {
        let before = self.serving.usage()?;
        let Measured { rate, ops, seconds } = run()?;
        self.sample = Some(Sample {
            round: self.round,
            rate,
            ops,
            seconds,
            server_cpu_s: self.serving.usage()?.cpu_s - before.cpu_s,
        });
        Ok(())
    }
}

/// Warms up, then measures; the sample is in `meter`.
///
/// # Errors
/// What failed, or did not end in time.
pub(super) fn measure(
    line: &Line,
    amount: &Amount,
    aside: &Path,
    meter: &mut Meter<'_>,
) -> Result<()> {
    let dir = meter.serving.view.join(SCRATCH);
    let data = meter.serving.view.join(DATA);
    match line.work {
        Work::Data {
            way,
            place,
            block_bytes,
        } => {
            let mut jobs = Vec::new();
            for n in 0..line.threads {
                let path = data_file(&data, n);
                read_through(&path, 1 << 20)?;
                jobs.push(data_job(
                    way,
                    place,
                    block_bytes,
                    path,
                    amount.file_bytes,
                    n,
                )?);
            }
            let per_op = match line.unit() {
                Unit::Mebibytes => block_bytes as f64 / f64::from(1 << 20),
                _ => 1.0,
            };
            timed(jobs, Some(amount.data), per_op, meter)
        }
        Work::Fsync => {
            let jobs =
                (0..line.threads).map(|n| fsync_job(&data_file(&data, n), amount.file_bytes));
            timed(jobs.collect::<Result<_>>()?, Some(amount.data), 1.0, meter)
        }
        Work::Names(work) => {
            names_job(work, dir.join("warm-up"), amount.names / WARM_UP_PART)(&Stop::default())
                .context("warm-up")?;
            let per_thread = amount.names / line.threads;
            let jobs = (0..line.threads).map(|n| names_job(work, names_dir(&dir, n), per_thread));
            timed(jobs.collect(), None, 1.0, meter)
        }
        Work::Checkout => meter.measure(|| checkout::run(&dir, amount.checkout, DEADLINE)),
        Work::Pgbench => pgbench::run(&dir, aside, amount.pgbench_s, meter),
    }
}

fn timed(
    jobs: Vec<Job>,
    duration: Option<Duration>,
    per_op: f64,
    meter: &mut Meter<'_>,
) -> Result<()> {
    meter.measure(|| {
        let Done { ops, elapsed } = load::run(jobs, duration, DEADLINE)?;
        let seconds = elapsed.as_secs_f64();
        Ok(Measured {
            rate: ops as f64 * per_op / seconds,
            ops,
            seconds,
        })
    })
}

fn data_file(dir: &Path, thread: usize) -> PathBuf {
    dir.join(format!("data-{thread}"))
}

fn names_dir(dir: &Path, thread: usize) -> PathBuf {
    dir.join(format!("names-{thread}"))
}

/// Names alike in length, in an order that is not the directory's.
fn name(n: usize) -> String {
    format!("name-{n:07}")
}

/// Every byte is written: reading holes would measure nothing. A file that is there has
/// its bytes.
fn fill(path: &Path, bytes: u64) -> Result<()> {
    if fs::metadata(path).is_ok_and(|about| about.len() == bytes) {
        return Ok(());
    }
    let block = vec![0x5a; 1 << 20];
    let write = || {
        let mut file = File::create(path)?;
        (0..bytes / block.len() as u64).try_for_each(|_| file.write_all(&block))
    };
    write().with_context(|| format!("fill {}", path.display()))
}

fn make_names(dir: &Path, work: NameWork, count: usize) -> Result<()> {
    fs::create_dir(dir).with_context(|| format!("make {}", dir.display()))?;
    if work == NameWork::Create {
        return Ok(());
    }
    for n in 0..count {
        let path = dir.join(name(n));
        File::create(&path).with_context(|| format!("make {}", path.display()))?;
    }
    Ok(())
}

fn read_through(path: &Path, block_bytes: usize) -> Result<()> {
    let mut block = vec![0; block_bytes];
    let mut read = || -> std::io::Result<()> {
        let mut file = File::open(path)?;
        while file.read(&mut block)? > 0 {}
        Ok(())
    };
    read().with_context(|| format!("read {}", path.display()))
}

fn data_job(
    way: Way,
    place: Place,
    block_bytes: usize,
    path: PathBuf,
    file_bytes: u64,
    thread: usize,
) -> Result<Job> {
    let context = format!("{way:?} {}", path.display());
    let open = {
        let path = path.clone();
        move || match way {
            Way::Read => File::open(&path),
            Way::Write => File::options().write(true).open(&path),
        }
    };
    let mut block = vec![0xa5; block_bytes];
    let mut step = move |file: &File, at: u64| match way {
        Way::Read => file.read_exact_at(&mut block, at),
        Way::Write => file.write_all_at(&block, at),
    };
    let blocks = file_bytes / block_bytes as u64;
    if place == Place::Sequential {
        return Ok(Box::new(move |stop| {
            let mut ops = 0;
            loop {
                let file = open().with_context(|| context.clone())?;
                for n in 0..blocks {
                    if stop.asked() {
                        return Ok(ops);
                    }
                    step(&file, n * block_bytes as u64).with_context(|| context.clone())?;
                    ops += 1;
                }
            }
        }));
    }
    let file = open().with_context(|| context.clone())?;
    let mut random = fastrand::Rng::with_seed(thread as u64 + 1);
    // Where the mount caches what is read, all of it is there from the beginning.
    if way == Way::Read {
        (0..file_bytes / (1 << 20)).try_for_each(|n| {
            let mut mebibyte = vec![0; 1 << 20];
            file.read_exact_at(&mut mebibyte, n << 20)
        })?;
    }
    Ok(Box::new(move |stop| {
        let mut ops = 0;
        while !stop.asked() {
            let at = random.u64(0..blocks) * block_bytes as u64;
            step(&file, at).with_context(|| context.clone())?;
            ops += 1;
        }
        Ok(ops)
    }))
}

fn fsync_job(path: &Path, file_bytes: u64) -> Result<Job> {
    let context = format!("write and fsync {}", path.display());
    let file = File::options()
        .write(true)
        .open(path)
        .with_context(|| context.clone())?;
    let block = [0xa5; FSYNC_BLOCK];
    Ok(Box::new(move |stop| {
        let mut ops = 0;
        while !stop.asked() {
            let at = ops * FSYNC_BLOCK as u64 % file_bytes;
            file.write_all_at(&block, at)
                .and_then(|()| file.sync_all())
                .with_context(|| context.clone())?;
            ops += 1;
        }
        Ok(ops)
    }))
}

fn names_job(work: NameWork, dir: PathBuf, count: usize) -> Job {
    Box::new(move |_stop| {
        let context = || format!("{work:?} in {}", dir.display());
        let ops = match work {
            NameWork::List => list(&dir).with_context(context)?,
            _ => {
                (0..count)
                    .try_for_each(|n| one_name(work, &dir, n))
                    .with_context(context)?;
                count
            }
        };
        ensure!(
            ops == count,
            "{}: {ops} names instead of {count}",
            context()
        );
        Ok(ops as u64)
    })
}

fn one_name(work: NameWork, dir: &Path, n: usize) -> std::io::Result<()> {
    let path = dir.join(name(n));
    match work {
        NameWork::Create => File::create_new(path)?.write_all(&[0x5a; SMALL]),
        // Not the library's: that wants the time of birth too, which takes ours another
        // request and of which the peers know nothing.
        NameWork::Stat => Ok(lstat(path).map(drop)?),
        NameWork::Rename => fs::rename(path, dir.join(format!("other-{n:07}"))),
        NameWork::Unlink => fs::remove_file(path),
        NameWork::List => Ok(()),
    }
}

fn list(dir: &Path) -> std::io::Result<usize> {
    let listed = File::open(dir)?;
    let mut count = 0;
    for entry in Dir::read_from(&listed)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            statat(&listed, name, AtFlags::SYMLINK_NOFOLLOW)?;
            count += 1;
        }
    }
    Ok(count)
}
