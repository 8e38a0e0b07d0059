//! How fast an exploration is planned: records 100,000 requests that come over NBD, and plans
//! them with several budgets. `cargo run --release -p plugpull-disk --example plan`

#[path = "../tests/common/client.rs"]
#[allow(dead_code, reason = "the tests' client, of which this uses a part")]
mod client;

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use plugpull_disk::explore::{Budget, Classes, Plan, plan};
use plugpull_disk::{ByteCount, CutPoint, Disk, DiskConfig, Recording, Seed, Seq, View};

const REQUESTS: u64 = 100_000;
/// Writes between two flushes.
const EPOCH: u64 = 40;

fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let base = View::zeros(ByteCount::mib(1024))?;
    let mut out = std::io::stdout();
    let recording = record(dir.path(), &base)?;
    let bytes = std::fs::metadata(recording.path())?.len();
    writeln!(out, "{REQUESTS} requests, {} MiB recorded", bytes >> 20)?;
    let (_, reading) = timed(&recording, &base, 0)?;
    writeln!(
        out,
        "reading and counting them: {} ms; peak {} MiB",
        reading.as_millis(),
        peak_mib()?
    )?;
    for states in [400, 10_000, 1_000_000] {
        let (plan, whole) = timed(&recording, &base, states)?;
        let examined: u64 = plan.coverage.classes.iter().map(|of| of.examined).sum();
        let planning = whole.saturating_sub(reading).as_secs_f64();
        writeln!(
            out,
            "budget {states}: {} states out of {examined} examined, planned in {:.0} ms: {:.0} \
             examined a second; peak {} MiB",
            plan.states.len(),
            planning * 1e3,
            examined as f64 / planning,
            peak_mib()?
        )?;
    }
    Ok(())
}

fn timed(recording: &Recording, base: &View, states: usize) -> anyhow::Result<(Plan, Duration)> {
    let start = Instant::now();
    let budget = Budget {
        states,
        from: CutPoint(Seq(0)),
        seed: Seed(1),
        classes: Classes::ALL,
    };
    Ok((plan(recording, base, budget)?, start.elapsed()))
}

fn record(dir: &Path, base: &View) -> anyhow::Result<Recording> {
    let disk = Disk::create(base.clone(), &dir.join("log"), DiskConfig::default())?;
    let socket = dir.join("nbd.sock");
    let server = disk.serve(&socket)?;
    let mut client = client::Client::connect(&socket);
    let mut rng = fastrand::Rng::with_seed(1);
    let mut data = vec![0; 64 << 10];
    for request in 1..=REQUESTS {
        if request % (EPOCH + 1) == 0 {
            client.flush();
            continue;
        }
        let blocks = 1 << rng.u32(0..5);
        let at = rng.u64(0..(1 << 18) - blocks);
        rng.fill(&mut data[..64]);
        client.write(at * 4096, &data[..(blocks * 4096) as usize]);
    }
    drop(server);
    disk.finish()
}

fn peak_mib() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib.unwrap_or("0").parse::<u64>()? >> 10)
}
