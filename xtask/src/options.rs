//! The command line, as clap reads it.

use std::{num::NonZeroU32, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Boots real kernels, puts filesystems on a disk that loses power, and says
/// which promised byte was lost.
///
/// Exit codes: 0 pass, 1 fail, 2 a mistake in the call or in a file you wrote,
/// 69 something this host lacks. All state lives under target/plugpull.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run scenarios in guests and say what survived; sets up what is missing
    TestVm(TestVm),
    /// Everything CI runs: fmt, clippy, unit tests, host mounts, the smoke profile
    Test(Test),
    /// Show a failing crash state again, without running the workload again
    ///
    /// Takes seconds: the disk that the power cut left is built from the recording,
    /// mounted in a guest, and judged by the same oracles. The disk is as the program
    /// wrote it then; whether a program that writes otherwise still fails takes a
    /// new `test-vm`.
    ///
    /// Exit codes: 1 it fails (again), 0 it does not fail any more, 2 a mistake in the
    /// call, or a capsule that is damaged or does not fit, 69 nothing can be said.
    Repro(Repro),
    /// A shell in a guest, with the filesystem mounted
    ///
    /// The lower filesystem is at /mnt/lower, plugpull-fs over it at /mnt/fs,
    /// where the shell starts. On a terminal it is interactive; otherwise
    /// standard input is one script. The disk is empty at first and forgotten
    /// at the end. With a failure it is the failing disk, mounted as its
    /// scenario says; what had been promised by then lies in
    /// /run/plugpull-ledger.jsonl.
    Shell(Shell),
    /// Join the runs of shards to one run: its report, JUnit and artefacts
    ///
    /// They must be of one seed and profile, with the same guest images, and each shard there
    /// once. Verdicts are derived anew. A shard that is missing makes the whole infra.
    Merge(Merge),
    /// Guest images: list, build, update their locks, clean
    Image(Image),
    /// What this host can do: tools, accelerator by a boot probe, FUSE, space
    Doctor(Doctor),
    /// Side-by-side figures against named peers, in one run
    Bench(Bench),
    /// What each CI job runs
    Ci(Ci),
}

/// Which set of scenarios, and how much of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Profile {
    /// Each image, lower filesystem and mount once; minutes
    Smoke,
    /// Each pair of them
    Full,
    /// All combinations, a hundred cuts each; hours
    Nightly,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Accel {
    /// KVM where it boots a kernel, TCG elsewhere
    Auto,
    /// KVM or nothing
    Kvm,
    /// QEMU's translator
    Tcg,
}

#[derive(Debug, Args)]
pub(crate) struct TestVm {
    /// Only cases whose name contains this; * and ? match as in a shell.
    /// A case is scenario::image::lower::mount
    pub(crate) filter: Option<String>,
    /// How much to run
    #[arg(long, value_enum, default_value = "smoke")]
    pub(crate) profile: Profile,
    /// Only cases on this image
    #[arg(long, value_name = "NAME")]
    pub(crate) image: Option<String>,
    /// Where all randomness comes from; printed with every run
    #[arg(long, value_name = "N", value_parser = seed)]
    pub(crate) seed: Option<u64>,
    /// How guests execute
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) accel: Accel,
    /// Run only the Mth of N parts, dealt by the hash of the case's name, and of each recording
    /// that is given by the hash of the state
    #[arg(long, value_name = "M/N")]
    pub(crate) shard: Option<String>,
    /// Explore the recordings in this run's directory instead of running their workloads anew;
    /// may be given several times
    #[arg(long, value_name = "RUN")]
    pub(crate) recordings: Vec<PathBuf>,
    /// Only make recordings, of the cases whose power is cut everywhere, for --recordings
    #[arg(long, conflicts_with_all = ["recordings", "bless"])]
    pub(crate) record_only: bool,
    /// Run this scenario file instead of tests/scenarios
    #[arg(long, value_name = "FILE")]
    pub(crate) scenario: Option<PathBuf>,
    /// Keep every artefact of the run, of passing cases too
    #[arg(long)]
    pub(crate) keep: bool,
    /// Accept the outcomes of this run as the snapshots
    #[arg(long)]
    pub(crate) bless: bool,
    /// Only print the names of the cases that would run
    #[arg(long)]
    pub(crate) list: bool,
}

impl TestVm {
    /// Every case of a profile, as the command line has it by default.
    pub(crate) fn all_of(profile: Profile) -> Self {
        Self {
            filter: None,
            profile,
            image: None,
            seed: None,
            accel: Accel::Auto,
            shard: None,
            recordings: Vec::new(),
            record_only: false,
            scenario: None,
            keep: false,
            bless: false,
            list: false,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Merge {
    /// Directories of runs
    #[arg(value_name = "RUN", required = true)]
    pub(crate) runs: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Test {
    /// Where all randomness comes from; the same each time unless given
    #[arg(long, value_name = "N", value_parser = seed)]
    pub(crate) seed: Option<u64>,
    /// How guests execute
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) accel: Accel,
}

/// Which failing state.
#[derive(Debug, Args)]
pub(crate) struct Failure {
    /// An id from a report, as notes::debian13::ext4::native@e3-a4bd89d0 or
    /// notes/ext4@e3-a4bd89d0; or a capsule: failures.capsule in the directory of a test
    #[arg(value_name = "ID|CAPSULE")]
    pub(crate) failure: String,
    /// Which state of the capsule; the first that the report told of unless given
    #[arg(long, value_name = "STATE")]
    pub(crate) state: Option<String>,
    /// Judge by this scenario file, and with the programs that it brings, as they are now,
    /// instead of those in the capsule
    #[arg(long, value_name = "FILE")]
    pub(crate) scenario: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Repro {
    #[command(flatten)]
    pub(crate) failure: Failure,
    /// Keep what the capsule holds, taken apart, and the disk as an image
    #[arg(long)]
    pub(crate) keep: bool,
    /// How guests execute
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) accel: Accel,
}

#[derive(Debug, Args)]
pub(crate) struct Shell {
    #[command(flatten)]
    pub(crate) failure: Option<Failure>,
    /// The guest's image
    #[arg(
        long,
        value_name = "NAME",
        default_value = "debian12",
        conflicts_with = "failure"
    )]
    pub(crate) image: String,
    /// The lower filesystem: ext4, xfs or btrfs
    #[arg(
        long,
        value_name = "NAME",
        default_value = "ext4",
        conflicts_with = "failure"
    )]
    pub(crate) lower: String,
    /// Run this instead of reading commands, and end with its exit code
    #[arg(short = 'c', value_name = "COMMAND")]
    pub(crate) command: Option<String>,
    /// How guests execute
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) accel: Accel,
}

#[derive(Debug, Args)]
pub(crate) struct Image {
    #[command(subcommand)]
    pub(crate) action: ImageAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageAction {
    /// The images, what they hold, whether they are built
    List,
    /// Build images; all of them unless named
    Build {
        /// Which
        names: Vec<String>,
    },
    /// Move the locks to what the archive has now
    Update {
        /// Which
        names: Vec<String>,
    },
    /// Remove built images
    Clean {
        /// Which
        names: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Do not build an image in order to boot its kernel
    #[arg(long)]
    pub(crate) no_probe: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    pub(crate) what: BenchWhat,
    /// Also write the figures, with every sample, as JSON
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchWhat {
    /// Cold boot, template and clone times of each image
    Vm {
        /// Rounds
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// Only this image
        #[arg(long, value_name = "NAME")]
        image: Option<String>,
    },
    /// The recording disk against QEMU's raw file driver and qemu-nbd
    Disk {
        /// Rounds
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// The guest's image
        #[arg(long, value_name = "NAME", default_value = "debian13")]
        image: String,
    },
    /// plugpull-fs beside native, passthrough_hp, bindfs and the protocol floor
    ///
    /// Root; on a new ext4 in memory unless a directory is named. Everything is mounted
    /// where only the bench sees it. passthrough_hp is built from Debian's packages once;
    /// bindfs, git and PostgreSQL are installed where they are missing.
    Fs(BenchFs),
    /// Crash states checked a second, beside the bare limit and prefixes replayed with
    /// dm-log-writes
    States(BenchStates),
    /// How often each control is caught by nature, over many runs
    Controls {
        /// Only cases whose name contains this; * and ? match as in a shell
        filter: Option<String>,
        /// At the size of this profile; guests have one processor in smoke,
        /// two in the others
        #[arg(long, value_enum, default_value = "smoke")]
        profile: Profile,
        /// Runs of each control, with the seeds 1 to N
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
        runs: u32,
    },
}

#[derive(Debug, Args)]
pub(crate) struct BenchFs {
    /// Only lines whose name contains one of these, separated by commas; * and ? match
    /// as in a shell
    #[arg(long, value_name = "FILTER", value_delimiter = ',')]
    pub(crate) lines: Vec<String>,
    /// Only servers whose name contains one of these
    #[arg(long, value_name = "FILTER", value_delimiter = ',')]
    pub(crate) servers: Vec<String>,
    /// Rounds
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// A tenth of everything, to see that it works
    #[arg(long)]
    pub(crate) quick: bool,
    /// Also walk a tree of so many names and show the memory that it took; 0 for none,
    /// and the goal is about 1000000
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(..=1_900_000))]
    pub(crate) walk: u64,
    /// Measure on this empty directory instead of a new ext4
    #[arg(long, value_name = "DIR")]
    pub(crate) lower: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct BenchStates {
    /// The filesystems below, separated by commas
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "ext4,xfs,btrfs",
          value_parser = ["ext4", "xfs", "btrfs"])]
    pub(crate) lower: Vec<String>,
    /// Crash states, and prefixes, of each; below 200 one guest does all
    #[arg(long, value_name = "N", default_value = "300")]
    pub(crate) states: NonZeroU32,
    /// PostgreSQL states in each round; 0 leaves them out
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub(crate) postgres: u32,
    /// So often a failing state is shown again in each round; 0 leaves that out
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) again: u32,
    /// Rounds
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// The guests' image
    #[arg(long, value_name = "NAME", default_value = "debian13")]
    pub(crate) image: String,
}

#[derive(Debug, Args)]
pub(crate) struct Ci {
    #[command(subcommand)]
    pub(crate) job: CiJob,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum CiJob {
    /// fmt and clippy
    Lint,
    /// What a pull request must pass: the same as `cargo xtask test`
    Test,
    /// The nightly profile, or one machine's part of it
    Nightly {
        /// Run only the Mth of N parts, as `test-vm --shard` does
        #[arg(long, value_name = "M/N")]
        shard: Option<String>,
        /// Where all randomness comes from; shards that are to be merged need the same
        #[arg(long, value_name = "N", value_parser = seed)]
        seed: Option<u64>,
    },
}

/// Decimal or 0x hexadecimal.
fn seed(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| {
        String::from("a seed is a number from 0 to 18446744073709551615, or 0x and hexadecimal")
    })
}
