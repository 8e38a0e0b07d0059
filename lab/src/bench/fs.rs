//! Our filesystem beside native, its peers and the protocol floor.
//!
//! Within a round every line is measured on every server, which take turns, and the
//! turns rotate. Each measurement has a server of its own: the lower directory is
//! prepared, the server started, warmed up, measured and ended. So only one filesystem
//! is mounted at any time, all see the same files, and what one leaves in its tables or
//! in the kernel's caches is not another's.
//!
//! What is mounted is in a mount namespace of this process: an interrupt, which ends the
//! process at once, ends mounts, loop device and servers too.

mod goals;
mod lines;
mod load;
mod lower;
mod programs;
mod results;
mod servers;
mod table;
mod tools;
mod walk;
mod work;

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

pub use goals::{Judged, Reached};
pub use lines::Amount;
pub use results::Results;
pub use servers::{Programs, Server};
pub use table::table;

use self::{
    lines::Line,
    lower::Lower,
    results::{LineResult, Sample, ServerResult, Setting},
    servers::Serving,
    work::Meter,
};
use crate::{
    progress::{Event, Progress},
    select::Filter,
};

/// What is asked for.
pub struct Order<'a> {
    /// Only lines whose name fits one of these; all where there is none.
    pub lines: Vec<Filter>,
    /// Only servers whose name fits one of these; ratios to the others are then missing.
    pub servers: Vec<Filter>,
    /// How often.
    pub rounds: u32,
    /// How much of each line.
    pub amount: Amount,
    /// Names of the tree that is walked for memory; none, no walk.
    pub walk: u64,
    /// A directory of the user's instead of a new ext4.
    pub lower: Option<&'a Path>,
    /// Where mount points and logs go.
    pub dir: &'a Path,
    /// Told what goes on.
    pub progress: &'a dyn Progress,
}

/// Measures. The process must have entered a mount namespace of its own.
///
/// # Errors
/// When nothing fits the filters, or the lower directory cannot be had. A line that
/// fails on a server is part of the results.
pub fn fs(order: &Order<'_>, programs: &Programs) -> Result<Results> {
    let (mut servers, mut notes) = servers::all(programs)?;
    let mut lines = lines::all();
    servers.retain(|server| fits(&order.servers, &server.name));
    lines.retain(|line| fits(&order.lines, &line.name));
    ensure!(!servers.is_empty(), "no server fits the filter");
    ensure!(
        !lines.is_empty() || order.walk > 0,
        "no line fits the filter"
    );
    let lower = match order.lower {
        Some(dir) => Lower::given(dir)?,
        None => Lower::ext4(order.dir)?,
    };
    notes.extend(explanations());
    let facts = plugpull_vm::host::facts(order.dir)?;
    let setting = Setting {
        kernel: facts.kernel,
        cores: facts.cores,
        lower: lower.about.clone(),
        libfuse: programs.passthrough_hp.version.clone(),
        rounds: order.rounds,
        load: Vec::new(),
    };
    let mut results = Results::new(setting, notes, servers);
    results.lines = lines
        .into_iter()
        .map(|line| empty(line, &results.servers))
        .collect();
    let mountpoint = order.dir.join("mount");
    fs::create_dir(&mountpoint).with_context(|| format!("make {}", mountpoint.display()))?;
    let place = Place {
        order,
        lower: &lower,
        mountpoint: &mountpoint,
    };
    for round in 1..=order.rounds {
        results.setting.load.push(load_average()?);
        place.round(round, &mut results)?;
    }
    work::clean_data(&lower.path)?;
    if order.walk > 0 {
        let (walks, errors) = walk::all(&place, &results.servers)?;
        results.walks = walks;
        results.notes.extend(errors);
    }
    results.setting.load.push(load_average()?);
    results.goals = goals::judge(&results);
    Ok(results)
}

fn explanations() -> [String; 4] {
    [
        "stat is lstat(2), without the time of birth that statx(2) has: plugpull-fs is \
         asked for that by one more request, the peers do not know it"
            .to_owned(),
        "median (min–max) of the rounds; × is the median of each round's ratio; peer is \
         the one with the best median; CPU is the server's user and system time"
            .to_owned(),
        "each thread has its own files; files for reading and writing exist, and are in \
         the lower page cache; names are cold above the server and warm below it"
            .to_owned(),
        "passthrough_hp believes names and attributes for a day, others for a second".to_owned(),
    ]
}

fn fits(filters: &[Filter], name: &str) -> bool {
    filters.is_empty() || filters.iter().any(|filter| filter.matches(name))
}

fn empty(line: Line, servers: &[Server]) -> LineResult {
    let able = servers.iter().filter(|server| server.can(&line));
    let of = able.map(|server| ServerResult {
        server: server.name.clone(),
        role: server.role,
        samples: Vec::new(),
        errors: Vec::new(),
    });
    LineResult {
        unit: line.unit(),
        of: of.collect(),
        line,
    }
}

/// The first number of /proc/loadavg (proc(5)).
fn load_average() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("read /proc/loadavg")?;
    let first = text.split(' ').next().and_then(|text| text.parse().ok());
    first.with_context(|| format!("malformed /proc/loadavg: {text:?}"))
}

/// Where measurements take place.
struct Place<'a> {
    order: &'a Order<'a>,
    lower: &'a Lower,
    mountpoint: &'a Path,
}

impl Place<'_> {
    fn round(&self, round: u32, results: &mut Results) -> Result<()> {
        for (n, line) in results.lines.iter_mut().enumerate() {
            self.order.progress.tell(&Event::Notice {
                text: format!("round {round} of {}: {}", self.order.rounds, line.line.name),
            });
            let count = line.of.len();
            for turn in 0..count {
                // By line as well, so that nobody is always the first.
                let turn = (turn + n + round as usize) % count;
                let name = &line.of[turn].server;
                let Some(server) = results.servers.iter().find(|s| s.name == *name) else {
                    continue;
                };
                match self.sample(round, &line.line, server) {
                    Ok(sample) => line.of[turn].samples.push(sample),
                    Err(error) => {
                        let text = format!("{}: {}: {error:#}", line.line.name, server.name);
                        self.order.progress.tell(&Event::Warning { text });
                        line.of[turn].errors.push(format!("{error:#}"));
                    }
                }
                work::clean(&self.lower.path)?;
            }
        }
        Ok(())
    }

    /// One line on one server, once.
    fn sample(&self, round: u32, line: &Line, server: &Server) -> Result<Sample> {
        work::prepare(line, &self.order.amount, &self.lower.path)?;
        self.lower.settle()?;
        let mut serving = self.start(server)?;
        let mut meter = Meter {
            serving: &serving,
            round,
            sample: None,
        };
        let measured = work::measure(line, &self.order.amount, self.order.dir, &mut meter);
        let sample = meter.sample;
        if let Err(error) = measured {
            // Threads that hang in a request are let go.
            serving.kill()?;
            return Err(error);
        }
        serving.stop()?;
        sample.context("the line was not measured")
    }

    fn start(&self, server: &Server) -> Result<Serving> {
        let log = self.order.dir.join("server.log");
        server.start(&self.lower.path, self.mountpoint, log)
    }
}
