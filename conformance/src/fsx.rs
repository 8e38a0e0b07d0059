//! The fsx program (crate `fsx`, <https://crates.io/crates/fsx>): random reads, writes,
//! mappings, truncations and copies of one file, each checked against memory.
//!
//! The crate is a program without a library and its licence is not among those of this
//! workspace, so it is run and never linked: `cargo install fsx --version 0.3.2 --locked`
//! (for guests with `--target x86_64-unknown-linux-gnu` and `+crt-static`). What is here
//! chooses the operations, since fsx by itself leaves out half of them.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::client::{Client, Kernel};

/// What to run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The file to work on, in the mount under test; it is made
    #[arg(long, value_name = "PATH")]
    pub file: PathBuf,
    /// Operations
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    pub ops: u64,
    /// What everything random follows from; each 20,000 operations have the next one
    #[arg(long, value_name = "S")]
    pub seed: u64,
    /// Read and write through mappings too
    #[arg(long)]
    pub mmap: bool,
    /// The mount is a FUSE server's that has its reads and writes done so: no mappings
    /// where the kernel's client has none
    #[arg(long, value_name = "HOW")]
    pub fuse: Option<Client>,
    /// The largest size of the file in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20)]
    pub size: u32,
    /// Where the log and the two versions of the file go when it fails [default: TMPDIR]
    #[arg(long, value_name = "DIR")]
    pub artifacts: Option<PathBuf>,
    /// The program
    #[arg(long, value_name = "PATH", env = "PLUGPULL_FSX", default_value = "fsx")]
    pub program: PathBuf,
    /// Give up after so many seconds
    #[arg(long, value_name = "T", default_value_t = 3600)]
    pub deadline_seconds: u64,
    /// Corrupt the data at this operation, which fsx must notice
    #[arg(long, value_name = "N", hide = true)]
    pub inject: Option<u64>,
}

/// fsx's configuration file: every operation that Linux has. Stores are not followed by
/// msync(2): mappings must be coherent without, and a million flushes take an hour.
fn configuration(options: &Options, kernel: Kernel) -> String {
    let can_map = |client: Client| client.maps_shared(kernel);
    let mmap = options.mmap && options.fuse.is_none_or(can_map);
    let mapped = if mmap { 10 } else { 0 };
    format!(
        "flen = {size}\n\
         nomsyncafterwrite = true\n\
         [opsize]\nmax = {largest}\n\
         [weights]\nread = 10\nwrite = 10\nmapread = {mapped}\nmapwrite = {mapped}\n\
         truncate = 5\nclose_open = 1\ninvalidate = {invalidate}\nfsync = 0.1\n\
         fdatasync = 0.1\nposix_fallocate = 1\npunch_hole = 2\nsendfile = 2\n\
         posix_fadvise = 1\ncopy_file_range = 2\n",
        size = options.size,
        largest = (options.size / 4).max(1),
        invalidate = if mmap { 1 } else { 0 },
    )
}

/// fsx 0.3.2 never unmaps what it has read through a mapping (`domapread`). Each truncation
/// walks all these mappings, and the 65530th is refused (`vm.max_map_count`, proc(5)). So
/// it is started anew after this many operations, with the next seed.
const ROUND_OPS: u64 = 20_000;

/// One start of fsx.
struct Round {
    ops: u64,
    seed: u64,
    inject: Option<u64>,
}

impl Round {
    fn all(options: &Options) -> impl Iterator<Item = Round> {
        let starts = (0..options.ops).step_by(usize::try_from(ROUND_OPS).unwrap_or(usize::MAX));
        starts.zip(options.seed..).map(|(start, seed)| Round {
            ops: ROUND_OPS.min(options.ops - start),
            seed,
            inject: options
                .inject
                .and_then(|operation| operation.checked_sub(start))
                .filter(|operation| *operation < ROUND_OPS),
        })
    }
}

/// Runs fsx to its end; whether it found nothing wrong.
///
/// # Errors
/// If it is not installed, cannot use the file or does not end in time.
pub fn run(options: &Options) -> Result<bool> {
    let artifacts = options.artifacts.clone().unwrap_or_else(std::env::temp_dir);
    let name = format!("fsx-{}.toml", std::process::id());
    let configuration_file = artifacts.join(name);
    std::fs::write(
        &configuration_file,
        configuration(options, Kernel::running()?),
    )
    .with_context(|| format!("write {}", configuration_file.display()))?;
    let outcome = rounds(options, &configuration_file, &artifacts);
    std::fs::remove_file(&configuration_file)?;
    outcome
}

fn rounds(options: &Options, configuration: &Path, artifacts: &Path) -> Result<bool> {
    let start = Instant::now();
    let deadline = start + Duration::from_secs(options.deadline_seconds);
    for round in Round::all(options) {
        let status = fsx(options, &round, configuration, artifacts, deadline)?;
        if !status.success() {
            let Round { ops, seed, .. } = round;
            println!("fsx: {status}; again by --seed {seed} --ops {ops}");
            return Ok(false);
        }
    }
    println!(
        "fsx: {} operations in {:.1?}: exit status: 0",
        options.ops,
        start.elapsed()
    );
    Ok(true)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place of this crate that starts a program, with a deadline"
)]
fn fsx(
    options: &Options,
    round: &Round,
    configuration: &Path,
    artifacts: &Path,
    deadline: Instant,
) -> Result<ExitStatus> {
    let mut command = Command::new(&options.program);
    command.arg("-N").arg(round.ops.to_string());
    command.arg("-S").arg(round.seed.to_string());
    command
        .arg("-f")
        .arg(configuration)
        .arg("-P")
        .arg(artifacts);
    if let Some(operation) = round.inject {
        command.arg("--inject").arg(operation.to_string());
    }
    command.arg(&options.file).stdin(Stdio::null());
    println!("fsx: {command:?}");
    let mut child = command.spawn().with_context(|| {
        format!(
            "start {}: install it by `cargo install fsx --version 0.3.2 --locked`, or name it \
             by --program or PLUGPULL_FSX",
            options.program.display()
        )
    })?;
    let process = rustix::process::Pid::from_child(&child);
    let ended = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty())?;
    let mut waited = [rustix::event::PollFd::new(
        &ended,
        rustix::event::PollFlags::IN,
    )];
    let left = deadline.saturating_duration_since(Instant::now());
    let limit = rustix::event::Timespec::try_from(left)?;
    if rustix::event::poll(&mut waited, Some(&limit))? == 0 {
        child.kill()?;
        child.wait()?;
        let all = options.deadline_seconds;
        bail!("{command:?} did not end within the {all} s for all rounds");
    }
    Ok(child.wait()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_add_up_and_no_two_are_the_same() {
        let options = |ops, inject| Options {
            file: PathBuf::new(),
            ops,
            seed: 7,
            mmap: true,
            fuse: None,
            size: 1,
            artifacts: None,
            program: PathBuf::new(),
            deadline_seconds: 1,
            inject,
        };
        let seen = |ops, inject| -> Vec<_> {
            Round::all(&options(ops, inject))
                .map(|round| (round.ops, round.seed, round.inject))
                .collect()
        };
        assert_eq!(seen(5, None), [(5, 7, None)]);
        assert_eq!(
            seen(45_000, Some(20_003)),
            [(20_000, 7, None), (20_000, 8, Some(3)), (5_000, 9, None)]
        );
        assert_eq!(seen(1_000_000, None).len(), 50);
    }
}
