//! `plugpull-disk`: the disk for use without the rest: serve one, list a recording, write out the
//! state after a power cut. Nothing is decided here; each command is a call of the library.

use std::io::{self, BufWriter, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use plugpull_disk::{
    AtomicUnit, ByteCount, CutPoint, CutTrigger, Cutter, Disk, DiskConfig, End, Entry, Honesty,
    Keep, Recording, Seed, Seq, View, crash_state,
    explore::{self, Budget, Classes},
    interop,
};

/// A virtual disk that records, and loses power on command.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a disk over NBD until standard input ends.
    ///
    /// A server that is killed instead leaves a recording that is recognised as broken off.
    Serve(Serve),
    /// List the events of a recording, one a line.
    Log {
        /// The recording.
        log: PathBuf,
    },
    /// Write what a power cut left as a sparse raw image.
    Crash(Crash),
    /// Say which states an exploration of a recording would look at.
    Plan(Plan),
    /// Make a recording from a log of dm-log-writes or of QEMU's blklogwrites.
    ///
    /// Neither says when a request was submitted, so nothing is in flight at any cut; and in
    /// a log of blklogwrites a write that was answered during a flush seems to be durable with it.
    Import(Import),
    /// Write a recording as a log of dm-log-writes.
    Export {
        /// The recording.
        #[arg(long)]
        log: PathBuf,
        /// Log to write.
        #[arg(long)]
        out: PathBuf,
    },
}

#[derive(Args)]
struct Plan {
    #[command(flatten)]
    content: Content,
    /// The recording.
    #[arg(long)]
    log: PathBuf,
    /// How many different contents.
    #[arg(long, default_value_t = 1000)]
    states: usize,
    /// The first event that a cut may come after.
    #[arg(long, default_value_t = 0, value_name = "EVENT")]
    from: u64,
    /// Where random choices begin.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// List every state: its kind, the cuts that can leave it, and how many pending writes it
    /// keeps and loses.
    #[arg(long)]
    list: bool,
}

#[derive(Args)]
struct Import {
    /// The log: a block device or an image of one.
    log: PathBuf,
    /// Size in bytes of the disk that was logged.
    #[arg(long, value_name = "BYTES")]
    size: u64,
    /// Go on where the log says that it ends, as far as there are entries: for one whose
    /// machine was killed. What its device held before it must have been zeros.
    #[arg(long)]
    scan: bool,
    /// Recording to write.
    #[arg(long)]
    out: PathBuf,
}

#[derive(Args)]
struct Content {
    /// Raw image below the disk; it is not changed.
    #[arg(long, required_unless_present = "size")]
    base: Option<PathBuf>,
    /// Size in MiB of a disk of zeros.
    #[arg(long, value_name = "MIB", conflicts_with = "base")]
    size: Option<u64>,
}

impl Content {
    fn view(&self) -> Result<View> {
        match (&self.base, self.size) {
            (Some(image), _) => View::from_image(image),
            (None, Some(mebibytes)) => {
                let bytes = mebibytes.checked_mul(1 << 20).context("a size in MiB")?;
                View::zeros(ByteCount(bytes))
            }
            (None, None) => bail!("neither --base nor --size"),
        }
    }
}

#[derive(Args)]
struct Serve {
    #[command(flatten)]
    content: Content,
    /// New file for the recording and the data.
    #[arg(long)]
    log: PathBuf,
    /// UNIX socket to listen on: nbd+unix:///?socket=PATH.
    #[arg(long)]
    socket: PathBuf,
    /// What the cache promises and keeps: none, volatile or lies-on-flush.
    #[arg(long, default_value_t)]
    cache: Honesty,
    /// What a power cut leaves whole, in bytes: 512 or 4096.
    #[arg(long, default_value = "4096", value_parser = parse_unit)]
    unit: AtomicUnit,
    /// Where the disk's random choices begin.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Cut the power as the N-th flush comes in.
    #[arg(long, value_name = "N")]
    cut_at_flush: Option<u64>,
}

#[derive(Args)]
struct Crash {
    #[command(flatten)]
    content: Content,
    /// The recording.
    #[arg(long)]
    log: PathBuf,
    /// The last event before the cut; where the recording was cut, or its end, unless given.
    #[arg(long, value_name = "EVENT")]
    cut: Option<u64>,
    /// Which pending writes survive: none, all, or a seed for some.
    #[arg(long, default_value = "none", value_parser = parse_keep)]
    keep: Keep,
    /// Image to write.
    #[arg(long)]
    out: PathBuf,
}

fn parse_unit(text: &str) -> Result<AtomicUnit, String> {
    let bytes: u32 = text.parse().map_err(|error| format!("{error}"))?;
    AtomicUnit::try_from(bytes)
}

fn parse_keep(text: &str) -> Result<Keep, String> {
    match text {
        "none" => Ok(Keep::DurableOnly),
        "all" => Ok(Keep::Everything),
        seed => match seed.parse() {
            Ok(seed) => Ok(Keep::Subset(Seed(seed))),
            Err(_) => Err("expected none, all or a number as a seed".into()),
        },
    }
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Serve(arguments) => serve(&arguments),
        Command::Log { log } => list(&Recording::open(&log)?),
        Command::Crash(arguments) => write_crash_state(&arguments),
        Command::Plan(arguments) => show_plan(&arguments),
        Command::Import(arguments) => import(&arguments),
        Command::Export { log, out } => {
            let entries = interop::export(&Recording::open(&log)?, &out)?;
            writeln!(io::stdout(), "{entries} entries")?;
            Ok(())
        }
    }
}

fn import(arguments: &Import) -> Result<()> {
    let count = match arguments.scan {
        true => interop::Count::Scanned,
        false => interop::Count::AsWritten,
    };
    let size = ByteCount(arguments.size);
    let recording = interop::import(&arguments.log, size, count, &arguments.out)?;
    let events = recording.entries().len();
    writeln!(io::stdout(), "{events} events are recorded")?;
    Ok(())
}

fn show_plan(arguments: &Plan) -> Result<()> {
    let recording = Recording::open(&arguments.log)?;
    let base = arguments.content.view()?;
    let budget = Budget {
        states: arguments.states,
        from: CutPoint(Seq(arguments.from)),
        seed: Seed(arguments.seed),
        classes: Classes::ALL,
    };
    let plan = explore::plan(&recording, &base, budget)?;
    let mut out = BufWriter::new(io::stdout().lock());
    if arguments.list {
        let mut cutter = Cutter::new(&base, &recording)?;
        for state in &plan.states {
            let made = cutter.at(state.cut)?.crash_state(&state.keep)?;
            let (kept, lost) = (made.kept.len(), made.dropped.len());
            write!(
                out,
                "{} {}: {kept} kept, {lost} lost, at ",
                made.id, state.class
            )?;
            let spans = state.spans.iter();
            let spans: Vec<String> = spans
                .map(|span| format!("{}-{}", span.first, span.last))
                .collect();
            writeln!(out, "{}", spans.join(", "))?;
        }
    }
    writeln!(
        out,
        "{} stretches of cuts with the same durable writes",
        plan.coverage.situations
    )?;
    writeln!(
        out,
        "{:<14}{:>14}{:>12}{:>12}",
        "kind", "possible", "examined", "planned"
    )?;
    for of in &plan.coverage.classes {
        let name = of.class.to_string();
        writeln!(
            out,
            "{name:<14}{:>14}{:>12}{:>12}",
            of.candidates, of.examined, of.planned
        )?;
    }
    out.flush()?;
    Ok(())
}

fn serve(arguments: &Serve) -> Result<()> {
    let config = DiskConfig {
        honesty: arguments.cache,
        unit: arguments.unit,
        seed: Seed(arguments.seed),
        record: true,
    };
    let disk = Disk::create(arguments.content.view()?, &arguments.log, config)?;
    if let Some(count) = arguments.cut_at_flush {
        disk.arm(CutTrigger::Flush(count))?;
    }
    let server = disk.serve(&arguments.socket)?;
    let mut out = io::stdout();
    writeln!(out, "serving on {}", arguments.socket.display())?;
    out.flush()?;
    io::copy(&mut io::stdin().lock().by_ref(), &mut io::sink()).context("read standard input")?;
    drop(server);
    if let Some(cut) = disk.wait_cut(Duration::ZERO)? {
        writeln!(out, "the power was cut at event {cut}")?;
    }
    let recording = disk.finish()?;
    writeln!(out, "{} events are recorded", recording.entries().len())?;
    Ok(())
}

fn list(recording: &Recording) -> Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    for entry in recording.entries() {
        let seq = entry.seq();
        match entry {
            Entry::Submit(submit) => writeln!(
                out,
                "{seq} submit {} {:?}{} at sector {} for {} bytes",
                submit.id,
                submit.operation,
                if submit.fua { " FUA" } else { "" },
                submit.at,
                submit.length
            )?,
            Entry::Complete(complete) => {
                writeln!(
                    out,
                    "{seq} complete {} errno {}",
                    complete.id, complete.errno
                )?;
            }
            Entry::Mark(mark) => {
                writeln!(
                    out,
                    "{seq} mark {}",
                    String::from_utf8_lossy(&mark.text).escape_debug()
                )?;
            }
            Entry::Cut(_) => writeln!(out, "{seq} cut")?,
        }
    }
    if let End::Truncated {
        at_byte,
        last_seq,
        why,
    } = recording.end()
    {
        writeln!(
            out,
            "broken off at byte {at_byte}, after event {last_seq}: {why}"
        )?;
    }
    out.flush()?;
    Ok(())
}

fn write_crash_state(arguments: &Crash) -> Result<()> {
    let recording = Recording::open(&arguments.log)?;
    let end = recording.cut().unwrap_or(CutPoint(recording.last_seq()));
    let cut = arguments.cut.map_or(end, |seq| CutPoint(Seq(seq)));
    let base = arguments.content.view()?;
    let state = crash_state(&base, &recording, cut, &arguments.keep)?;
    state.view.export_sparse(&arguments.out)?;
    writeln!(
        io::stdout(),
        "{}: {} pending writes kept, {} lost, of which {} had been completed",
        state.id,
        state.kept.len(),
        state.dropped.len(),
        state.dropped_completed.len()
    )?;
    Ok(())
}
