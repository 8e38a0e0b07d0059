//! Differential testing: the same random calls on the mount and on a plain directory.
//!
//! After each call the results are compared, often also the attributes of what it
//! touched, and at the end whole trees. The first difference is shrunk to a short
//! script. What is not compared: inode numbers (only which names share one), free space,
//! clock readings, and the order of extended attributes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum as _;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use rustix::fs::{CWD, Mode, OFlags, openat, syncfs};

use crate::client::{Client, Kernel};
use crate::known::{KnownDifference, Tolerance, forget_birth, is_seek_for_data};
use crate::op::{Base, Octal, Op, Place, SLOTS, Target, User, Whence};
use crate::outcome::{Value, When};
use crate::plant::Plant;
use crate::side::Side;
use crate::strategy::{Step, sequences};
use crate::tree;

/// What to compare, and for how long.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// A directory in the mount under test
    #[arg(long, value_name = "DIR")]
    pub mount: PathBuf,
    /// A directory on the filesystem that the mount shows
    #[arg(long, value_name = "DIR")]
    pub plain: PathBuf,
    /// What the mount directory is on the lower filesystem: in the end this tree must be
    /// the same too
    #[arg(long, value_name = "DIR")]
    pub source: Option<PathBuf>,
    /// Calls in a sequence, at most
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub ops: usize,
    /// Sequences
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub cases: u64,
    /// The seed of the first sequence; the next has the next number [default: the clock]
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Go on for so many seconds, whatever `--cases` says
    #[arg(long, value_name = "T")]
    pub seconds: Option<u64>,
    /// Spend at most so long on shrinking a failure
    #[arg(long, value_name = "T", default_value_t = 20)]
    pub shrink_seconds: u32,
    /// Make the mount look wrong in one way, which must be found
    #[arg(long, value_name = "FAULT")]
    pub plant: Option<Plant>,
    /// The mount is a FUSE server's that has its reads and writes done so: leave out the
    /// calls that the kernel's client does not carry to any such server
    #[arg(long, value_name = "HOW")]
    pub fuse: Option<Client>,
    /// Leave out calls that contain this text in the script; `birth` leaves out birth
    /// times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub without: Vec<String>,
}

/// What a run did.
#[derive(Debug, Default)]
pub struct Report {
    /// Sequences run, without those of shrinking.
    pub cases: u64,
    /// Calls made on both sides.
    pub calls: u64,
    /// How often each line of the table of known differences was met.
    pub known: BTreeMap<&'static str, u64>,
    /// The shrunk failure, with its script, seed and command.
    pub failure: Option<String>,
}

/// How often a long run says how far it is.
const PROGRESS: Duration = Duration::from_secs(10);

/// Runs sequences until one fails or the time or number is used up.
///
/// # Errors
/// If the directories cannot be used, or a call hangs.
pub fn run(options: &Options) -> Result<Report> {
    let clock = || {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(1, |since| since.as_secs())
    };
    let first = options.seed.unwrap_or_else(clock);
    println!("differential: seed {first}");
    let start = Instant::now();
    let mut said = start;
    let mut report = Report::default();
    for seed in first.. {
        let more = match options.seconds {
            Some(seconds) => start.elapsed() < Duration::from_secs(seconds),
            None => seed - first < options.cases,
        };
        if !more {
            break;
        }
        report.cases += 1;
        report.failure = run_seed(options, seed, &mut report)?;
        if report.failure.is_some() {
            break;
        }
        if said.elapsed() > PROGRESS {
            said = Instant::now();
            println!(
                "differential: {} sequences, {} calls",
                report.cases, report.calls
            );
        }
    }
    Ok(report)
}

/// One sequence, and if it fails its shrinking.
fn run_seed(options: &Options, seed: u64, report: &mut Report) -> Result<Option<String>> {
    let config = Config {
        cases: 1,
        failure_persistence: None,
        max_shrink_iters: if options.shrink_seconds == 0 { 0 } else { 3000 },
        max_shrink_time: options.shrink_seconds * 1000,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, random);
    let (serial, counts) = (Cell::new(0), RefCell::new(report));
    let broken = RefCell::new(None);
    let mut left_out = match options.fuse {
        Some(client) => client.left_out(Kernel::running()?),
        None => Vec::new(),
    };
    left_out.extend_from_slice(&options.without);
    let outcome = runner.run(&sequences(options.ops), |steps| {
        if broken.borrow().is_some() {
            // Nothing to be learnt by shrinking on a broken mount.
            return Ok(());
        }
        serial.set(serial.get() + 1);
        let name = format!("case-{}-{seed}-{}", std::process::id(), serial.get());
        let case = Case {
            options,
            left_out: left_out.clone(),
            name,
            report: &counts,
        };
        match case.run(&steps) {
            Ok(None) => Ok(()),
            Ok(Some(difference)) => Err(TestCaseError::fail(difference)),
            Err(error) => {
                let message = format!("{error:#}");
                *broken.borrow_mut() = Some(error);
                Err(TestCaseError::fail(message))
            }
        }
    });
    if let Some(error) = broken.into_inner() {
        return Err(error.context(format!("seed {seed}; {}", command(options, seed))));
    }
    Ok(match outcome {
        Ok(()) => None,
        Err(TestError::Fail(difference, steps)) => Some(script(
            &steps,
            difference.message(),
            &command(options, seed),
            seed,
        )),
        Err(TestError::Abort(reason)) => Some(reason.message().to_owned()),
    })
}

fn command(options: &Options, seed: u64) -> String {
    let (mount, plain) = (options.mount.display(), options.plain.display());
    let mut command = format!(
        "plugpull-conformance differential --mount {mount} --plain {plain} --ops {} \
         --cases 1 --seed {seed}",
        options.ops
    );
    if let Some(source) = &options.source {
        command += &format!(" --source {}", source.display());
    }
    if let Some(fuse) = options.fuse.and_then(|fuse| fuse.to_possible_value()) {
        command += &format!(" --fuse {}", fuse.get_name());
    }
    for text in &options.without {
        command += &format!(" --without '{text}'");
    }
    command
}

/// The shrunk sequence for people.
fn script(steps: &[Step], difference: &str, command: &str, seed: u64) -> String {
    let mut text = format!("seed {seed}, shrunk to {} calls:\n", steps.len());
    for (number, step) in steps.iter().enumerate() {
        let look = if step.look { "  # and look" } else { "" };
        text += &format!("  {number:3}: {:?}{look}\n", step.op);
    }
    text += &format!("{difference}\nrun it again, before shrinking:\n  {command}\n");
    text
}

/// One sequence on two fresh directories.
struct Case<'a, 'b> {
    options: &'a Options,
    name: String,
    /// Texts of calls that are not made.
    left_out: Vec<String>,
    report: &'a RefCell<&'b mut Report>,
}

/// Below each side's directory: sequences may climb, and must not meet each other.
const DEPTH: &str = "x/y/z";

impl Case<'_, '_> {
    /// The first difference, if there is one.
    fn run(&self, steps: &[Step]) -> Result<Option<String>> {
        let (mount, plain) = (
            self.root(&self.options.mount)?,
            self.root(&self.options.plain)?,
        );
        let tolerance = Tolerance::of(self.options.fuse, steps.iter().map(|step| &step.op));
        let difference = {
            let (mount, plain) = (Side::start(&mount)?, Side::start(&plain)?);
            self.calls(&mount, &plain, tolerance, steps)?
        };
        let difference = match difference {
            None => self.trees(tolerance)?,
            some => some,
        };
        remove(&self.options.mount.join(&self.name))?;
        remove(&self.options.plain.join(&self.name))?;
        Ok(difference)
    }

    fn root(&self, side: &Path) -> Result<PathBuf> {
        let root = side.join(&self.name).join(DEPTH);
        fs::create_dir_all(&root).with_context(|| format!("make {}", root.display()))?;
        fs::set_permissions(&root, fs::Permissions::from_mode(0o777))?;
        // Absolute, to be told apart from what getcwd(2) says.
        Ok(fs::canonicalize(root)?)
    }

    fn calls(
        &self,
        mount: &Side,
        plain: &Side,
        tolerance: Tolerance,
        steps: &[Step],
    ) -> Result<Option<String>> {
        for op in prologue() {
            if let Some(difference) = self.call(mount, plain, tolerance, &op, None)? {
                return Ok(Some(format!("while preparing: {difference}")));
            }
        }
        for (number, step) in steps.iter().enumerate() {
            let shown = format!("{:?}", step.op);
            if self.left_out.iter().any(|text| shown.contains(text)) {
                continue;
            }
            let mut calls = vec![step.op.clone()];
            if step.look {
                calls.extend(step.op.touched().into_iter().map(Op::Stat));
            }
            for op in calls {
                if let Some(difference) =
                    self.call(mount, plain, tolerance, &op, self.options.plant)?
                {
                    return Ok(Some(format!("at call {number}, {difference}")));
                }
            }
        }
        for op in epilogue() {
            if let Some(difference) = self.call(mount, plain, tolerance, &op, None)? {
                return Ok(Some(format!("in the end, {difference}")));
            }
        }
        Ok(None)
    }

    fn call(
        &self,
        mount: &Side,
        plain: &Side,
        tolerance: Tolerance,
        op: &Op,
        plant: Option<Plant>,
    ) -> Result<Option<String>> {
        let distorted = plant.map(|plant| plant.distort(op.clone()));
        let found = mount.apply(distorted.as_ref().unwrap_or(op))?;
        if let Some(known) = tolerance.refused(op, &found) {
            self.count(known);
            return Ok(None);
        }
        let expected = plain.apply(op)?;
        self.report.borrow_mut().calls += 1;
        let (mut found, tolerated) = tolerance.outcome(op, &found, &expected);
        if self.leaves_out("birth") {
            forget_birth(&mut found, &expected);
        }
        if !tolerated.is_empty() && is_seek_for_data(op) {
            same_position(mount, plain, op)?;
        }
        tolerated.into_iter().for_each(|known| self.count(known));
        Ok((found != expected).then(|| {
            format!("{op:?}\n  the mount answers {found:?}\n  the plain one    {expected:?}")
        }))
    }

    fn leaves_out(&self, text: &str) -> bool {
        self.options.without.iter().any(|without| without == text)
    }

    fn count(&self, known: &'static KnownDifference) {
        *self
            .report
            .borrow_mut()
            .known
            .entry(known.name)
            .or_default() += 1;
    }

    fn trees(&self, tolerance: Tolerance) -> Result<Option<String>> {
        let tree = |side: &Path| {
            let path = side.join(&self.name);
            let directory = openat(CWD, &path, OFlags::DIRECTORY, Mode::empty())?;
            syncfs(&directory).with_context(|| format!("syncfs of {}", path.display()))?;
            tree::read(&path)
        };
        let (mount, mut plain) = (tree(&self.options.mount), tree(&self.options.plain)?);
        let mut mount = match mount {
            Ok(mount) => mount,
            Err(error) => return Ok(Some(format!("in the end, the mount's tree: {error:#}"))),
        };
        if self.leaves_out("birth") {
            for entry in mount.values_mut().chain(plain.values_mut()) {
                entry.stat_mut().birth = None;
            }
        }
        if let Err(difference) = tree::compare(&mount, &plain, tolerance, |known| self.count(known))
        {
            return Ok(Some(format!("in the end, on the mount {difference}")));
        }
        let Some(source) = &self.options.source else {
            return Ok(None);
        };
        let mut source = tree(source)?;
        if self.leaves_out("birth") {
            source
                .values_mut()
                .for_each(|entry| entry.stat_mut().birth = None);
        }
        // The mount's tree was read through the source, which counts as access.
        for entry in source.values_mut().chain(plain.values_mut()) {
            entry.stat_mut().access = When::Now;
        }
        let compared = tree::compare(&source, &plain, tolerance, |_| {});
        Ok(compared
            .err()
            .map(|difference| format!("in the end, in the source {difference}")))
    }
}

/// What every sequence finds: directories, one of them sticky, and a file.
fn prologue() -> Vec<Op> {
    let root = |name| Place {
        base: Base::Root,
        name,
    };
    let file = Op::Open {
        slot: 0,
        place: root(0),
        flags: OFlags::CREATE | OFlags::RDWR,
        mode: Octal(0o666),
    };
    vec![
        Op::Umask(Octal(0)),
        Op::MakeDirectory {
            place: root(2),
            mode: Octal(0o777),
        },
        Op::MakeDirectory {
            place: root(5),
            mode: Octal(0o1777),
        },
        file,
        Op::Write {
            slot: 0,
            at: None,
            length: 5000,
            fill: 1,
        },
        Op::Umask(Octal(0o022)),
    ]
}

/// What is open, seen once more as root.
fn epilogue() -> Vec<Op> {
    let mut ops = vec![Op::Become(User::Root), Op::WorkingDirectory];
    for slot in 0..SLOTS {
        ops.push(Op::Stat(Target::Slot(slot)));
        ops.push(Op::GetFlags(slot));
        ops.push(Op::Seek {
            slot,
            whence: Whence::Current,
            offset: 0,
        });
        ops.push(Op::Read {
            slot,
            at: Some(0),
            length: 2 << 20,
        });
        ops.push(Op::List { slot, resume: 1 });
    }
    ops
}

/// Removes a tree whose files may have the append-only attribute.
fn remove(path: &Path) -> Result<()> {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    fn permit(path: &Path) -> std::io::Result<()> {
        let kind = fs::symlink_metadata(path)?.file_type();
        if kind.is_file() || kind.is_dir() {
            let file = fs::File::open(path)?;
            if let Ok(flags) = ioctl_getflags(&file)
                && flags.contains(IFlags::APPEND)
            {
                ioctl_setflags(&file, flags - IFlags::APPEND)?;
            }
        }
        if kind.is_dir() {
            for entry in fs::read_dir(path)? {
                permit(&entry?.path())?;
            }
        }
        Ok(())
    }
    permit(path).with_context(|| format!("prepare the removal of {}", path.display()))?;
    fs::remove_dir_all(path).with_context(|| format!("remove {}", path.display()))
}

/// Has the file of the mount go on where that of the plain directory stands, after a seek
/// whose answers may differ.
fn same_position(mount: &Side, plain: &Side, op: &Op) -> Result<()> {
    let Op::Seek { slot, .. } = *op else {
        return Ok(());
    };
    let seek = |whence, offset| Op::Seek {
        slot,
        whence,
        offset,
    };
    if let Ok(Value::Number(position)) = plain.apply(&seek(Whence::Current, 0))? {
        let _moved = mount.apply(&seek(Whence::Set, position.cast_signed()))?;
    }
    Ok(())
}
