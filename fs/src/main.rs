//! The mount command of plugpull-fs.
//!
//! Exit codes: 0 when the mount has ended (or, in the background, stands), 1 when it
//! could not be made or served, 2 for a mistake in the call.

use std::io::{self, IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{CommandFactory, Parser, error::ErrorKind};
use plugpull_fs::options::{MountOptions, thread_count};
use plugpull_fs::passthrough::{CachePolicy, IoMode, Settings, Transport};
use plugpull_fs::serve::{Mounted, Plan};
use plugpull_fs::sys::{Forked, fork};
use plugpull_fuse::readable_before;
use rustix::io::{read, write};
use rustix::process::{Pid, Signal, kill_process};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use tracing_subscriber::EnvFilter;

/// Shows a directory at another place through FUSE, with handles that never repeat
/// and an honest fsync.
///
/// Also a mount helper: linked as /sbin/mount.fuse.plugpull-fs it serves
/// `mount -t fuse.plugpull-fs SOURCE MOUNTPOINT -o OPTIONS`. Messages go to standard
/// error, filtered by the environment variable RUST_LOG (such as `plugpull_fs=debug`).
/// In the background, standard error is left once the mount stands.
#[derive(Debug, Parser)]
#[command(name = "plugpull-fs", version, args_override_self = true)]
struct Cli {
    /// The directory to show; nothing else should write to it meanwhile
    source: PathBuf,
    /// The directory over which to show it
    mountpoint: PathBuf,
    /// Stay in the foreground; otherwise return as soon as the mount stands
    #[arg(short, long)]
    foreground: bool,
    /// Mount options, separated by commas: ro, nodev, nosuid, noexec, noatime, sync,
    /// dirsync and their opposites, allow_other, default_permissions, fsname=NAME,
    /// subtype=NAME, max_read=BYTES, threads=N, io=MODE, cache=POLICY, transport=WAY;
    /// those of fstab are ignored
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Dispatch threads at most; one waits, more join while requests are slow or many.
    /// Over io_uring the processors share them, and each has at least four
    /// [default: one per core, at least 16]
    #[arg(long, value_name = "N", value_parser = thread_count)]
    threads: Option<usize>,
    /// How reads and writes travel [default: auto]
    ///
    /// passthrough: the kernel reads, writes and maps the source's files itself (Linux
    /// 6.9 or later, as root); cached: through the page cache, written through;
    /// writeback: through the page cache, written later, and changes of known files from
    /// elsewhere go unnoticed under every cache policy; direct: each is a request of its
    /// own; auto: passthrough where it can be had, else cached
    #[arg(long, value_name = "MODE")]
    io: Option<IoMode>,
    /// What may be believed when something else changes the source [default: auto]
    ///
    /// none: nothing, each lookup and open asks; auto: names, attributes and data for
    /// up to a second; always: everything, changes from elsewhere may go unnoticed
    #[arg(long, value_name = "POLICY")]
    cache: Option<CachePolicy>,
    /// How requests come from the kernel [default: auto]
    ///
    /// io-uring: with threads on each processor, so that a client is answered where it
    /// runs (Linux 6.14 or later, after `echo Y > /sys/module/fuse/parameters/enable_uring`);
    /// device: through /dev/fuse; auto: io-uring where the kernel offers it
    #[arg(long, value_name = "WAY")]
    transport: Option<Transport>,
    /// Seconds within which the mount must stand, or the command fails; also what
    /// fusermount3 may take to unmount
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Print the manual page, for man(1) to show: plugpull-fs --manual | man -l -
    #[arg(long, exclusive = true)]
    manual: bool,
    /// Be wrong on purpose, in one way
    #[cfg(feature = "mutants")]
    #[arg(long, value_name = "NAME")]
    mutant: Option<plugpull_fs::mutant::Mutant>,
    /// Say what is done (mount(8) passes this)
    #[arg(short, hide = true)]
    verbose: bool,
    /// Passed by mount(8): write no /etc/mtab, which has no meaning here
    #[arg(short = 'n', hide = true)]
    no_mtab: bool,
    /// Passed by mount(8): tolerate unknown mount options
    #[arg(short, hide = true)]
    sloppy: bool,
    /// The type, passed by mount(8)
    #[arg(short = 't', hide = true, value_name = "TYPE")]
    fs_type: Option<String>,
}

impl Cli {
    fn plan(&self) -> Plan {
        let mut options = MountOptions::default();
        for list in &self.options {
            for option in list.split(',') {
                match options.add(option) {
                    Err(message) if self.sloppy => tracing::warn!("{message}: ignored"),
                    Err(message) => usage_error(&message),
                    Ok(()) => {}
                }
            }
        }
        let threads = self.threads.or(options.threads);
        Plan {
            source: self.source.clone(),
            mountpoint: self.mountpoint.clone(),
            settings: Settings {
                io: self.io.or(options.io).unwrap_or_default(),
                cache: self.cache.or(options.cache).unwrap_or_default(),
                transport: self.transport.or(options.transport).unwrap_or_default(),
            },
            threads: threads.unwrap_or_else(default_threads),
            options,
            patience: Duration::from_secs(self.timeout),
        }
    }
}

fn usage_error(message: &str) -> ! {
    Cli::command()
        .error(ErrorKind::InvalidValue, message)
        .exit()
}

fn main() -> ExitCode {
    if std::env::args_os().skip(1).eq(["--manual"]) {
        return print_manual();
    }
    let cli = Cli::parse();
    start_log(cli.verbose);
    stop_on_panic();
    let plan = cli.plan();
    if cli.foreground && called_by_mount() {
        // mount(8) passes `-f` for its `--fake`: everything but the mount.
        return ExitCode::SUCCESS;
    }
    #[cfg(feature = "mutants")]
    if let Some(mutant) = cli.mutant {
        plugpull_fs::mutant::select(mutant);
    }
    let result = if cli.foreground {
        Mounted::new(&plan).and_then(Mounted::serve)
    } else {
        in_background(&plan)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plugpull-fs: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The manual page in the language of man(7), from the same text as the help.
fn print_manual() -> ExitCode {
    let page = clap_mangen::Man::new(Cli::command()).section("8");
    let mut text = Vec::new();
    let written = page
        .render(&mut text)
        .and_then(|()| text.write_all(MANUAL_END.as_bytes()))
        .and_then(|()| io::stdout().write_all(&text));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plugpull-fs: write the manual page: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the help text does not say.
const MANUAL_END: &str = r#".SH "EXIT STATUS"
0 when the mount has ended (or, in the background, stands); 1 when it could not be
made or served; 2 for a mistake in the call.
.SH SIGNALS
SIGTERM, SIGINT and SIGHUP unmount; files that are open then are served until they
are closed. A second one ends the server at once.
.SH EXAMPLES
.nf
plugpull-fs /srv/data /mnt/data
plugpull-fs --foreground --io direct -o ro,allow_other /srv/data /mnt/data
mount -t fuse.plugpull-fs -o cache=always,threads=32 /srv/data /mnt/data
fusermount3 -u /mnt/data
.fi
.SH "SEE ALSO"
.BR mount (8),
.BR fuse (4),
.BR fusermount3 (1)
"#;

/// mount(8) calls its helpers by names like /sbin/mount.fuse.plugpull-fs.
fn called_by_mount() -> bool {
    let name = std::env::args_os().next().unwrap_or_default();
    let file = Path::new(&name).file_name().unwrap_or_default();
    file.as_encoded_bytes().starts_with(b"mount.")
}

/// A dispatch thread that is gone leaves its request unanswered and its client hanging;
/// a process that is gone gives every client ENOTCONN.
fn stop_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}

/// As many as requests may wait for disks at a time; those that are not needed are not
/// started.
fn default_threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    cores.clamp(16, 256)
}

fn start_log(verbose: bool) {
    // What was chosen is said once, when the mount stands.
    let fallback = if verbose {
        "info"
    } else {
        "warn,plugpull_fs::serve=info"
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(fallback));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

/// Returns in the parent when the child has mounted, or has said why it could not.
fn in_background(plan: &Plan) -> Result<()> {
    let (ready, announce) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    match fork().context("fork")? {
        Forked::Parent(server) => {
            drop(announce);
            wait_until_mounted(&ready, server, plan)
        }
        Forked::Child => {
            drop(ready);
            serve_detached(plan, &announce)
        }
    }
}

/// How much longer than the server's own waits this one is, so that its reason is told.
const MARGIN: Duration = Duration::from_secs(1);

fn wait_until_mounted(ready: &OwnedFd, server: Pid, plan: &Plan) -> Result<()> {
    if !readable_before(ready, Instant::now() + plan.patience + MARGIN)? {
        // It blocks this signal before it looks at anything: it either never mounts, or
        // unmounts as soon as it has.
        kill_process(server, Signal::TERM).context("end the server")?;
        bail!(
            "the server, process {server}, did not mount {} on {} in {:?}; it was told to end",
            plan.source.display(),
            plan.mountpoint.display(),
            plan.patience
        );
    }
    match rustix::io::retry_on_intr(|| read(ready, &mut [0])) {
        Ok(1) => Ok(()),
        // The server is gone. It shares standard error and has used it.
        Ok(_) => std::process::exit(1),
        Err(error) => bail!("waiting for the server to mount: {error}"),
    }
}

fn serve_detached(plan: &Plan, announce: &OwnedFd) -> Result<()> {
    rustix::process::setsid().context("setsid")?;
    let mounted = Mounted::new(plan)?;
    rustix::process::chdir(Path::new("/")).context("chdir to /")?;
    // Whoever reads our output must see its end when the parent ends.
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .context("open /dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    // A parent that was killed no longer reads; the mount stands all the same.
    let _told = write(announce, &[1]);
    mounted.serve()
}
