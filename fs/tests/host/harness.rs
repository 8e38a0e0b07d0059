//! A private mount namespace, a server in it, and programs with deadlines.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::thread::UnshareFlags;

/// How long anything may take on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Every I/O mode; `passthrough` needs Linux 6.9 or later on the host.
pub(crate) const IO_MODES: [&str; 4] = ["passthrough", "cached", "writeback", "direct"];

/// Switches FUSE over io_uring on for connections that are made afterwards.
const IO_URING: &str = "/sys/module/fuse/parameters/enable_uring";

/// The server under test.
pub(crate) const SERVER: &str = env!("CARGO_BIN_EXE_plugpull-fs");

/// A directory with `source`, `mount` and `native` in it, in a mount namespace that
/// ends with the test: a test that is killed leaves no mount behind.
pub(crate) struct Sandbox {
    dir: tempfile::TempDir,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists(),
            "host mount tests need root and /dev/fuse"
        );
        enter_private_namespace();
        let dir = tempfile::tempdir().expect("a temporary directory");
        open_to_all(dir.path());
        for name in ["source", "mount", "native"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Sandbox { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn source(&self) -> PathBuf {
        self.path("source")
    }

    pub(crate) fn mountpoint(&self) -> PathBuf {
        self.path("mount")
    }

    pub(crate) fn native(&self) -> PathBuf {
        self.path("native")
    }

    /// Serves `source` on `mount` with four threads and these further arguments.
    pub(crate) fn serve(&self, arguments: &[&str]) -> Server {
        Server::start(&self.source(), &self.mountpoint(), arguments)
    }

    /// The same, with no log of single requests.
    pub(crate) fn serve_quietly(&self) -> Server {
        Server::start_quietly(&self.source(), &self.mountpoint(), &[])
    }
}

impl Drop for Sandbox {
    /// Nothing can be removed on which something is mounted, and tests mount filesystems of
    /// their own.
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        let own: Vec<&Path> = places
            .map(Path::new)
            .filter(|place| place.starts_with(self.dir.path()))
            .collect();
        for place in own.iter().rev() {
            let _ended = unmount(*place, UnmountFlags::DETACH);
        }
        let removed = fs::remove_dir_all(self.dir.path());
        if let (Err(error), false) = (removed, std::thread::panicking()) {
            panic!("{} is left behind: {error}", self.dir.path().display());
        }
    }
}

pub(crate) fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[expect(unsafe_code, reason = "unshare(2) of a thread's mount namespace")]
fn enter_private_namespace() {
    // SAFETY: CLONE_FILES is not among the flags, so no descriptor changes its meaning.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.expect("unshare -m");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).expect("mount --make-rprivate /");
}

/// Runs something while FUSE over io_uring is switched off.
pub(crate) fn without_io_uring<T>(run: impl Fn() -> T) -> T {
    switched(b"N", &run).unwrap_or_else(run)
}

/// Runs something while FUSE over io_uring is switched on or off, if there is such a switch;
/// other tests, which do the same, wait meanwhile.
fn switched<T>(value: &[u8], run: impl FnOnce() -> T) -> Option<T> {
    let mut switch = File::options().read(true).write(true).open(IO_URING).ok()?;
    rustix::fs::flock(&switch, FlockOperation::LockExclusive).unwrap();
    let before = std::io::read_to_string(&switch).unwrap();
    switch.write_all(value).unwrap();
    let result = run();
    switch.write_all(before.as_bytes()).unwrap();
    Some(result)
}

/// A running server in the foreground, killed when the test's thread ends.
pub(crate) struct Server {
    child: Child,
    mountpoint: PathBuf,
    log: Receiver<String>,
    lines: Vec<String>,
    ended: bool,
}

impl Server {
    pub(crate) fn start(source: &Path, mountpoint: &Path, arguments: &[&str]) -> Self {
        Self::start_logging("plugpull_fs=trace", source, mountpoint, arguments)
    }

    /// The same, with no log of single requests.
    pub(crate) fn start_quietly(source: &Path, mountpoint: &Path, arguments: &[&str]) -> Self {
        Self::start_logging("plugpull_fs=info", source, mountpoint, arguments)
    }

    /// Starts a server whose requests come over io_uring, which needs Linux 6.14 or later on
    /// the host. It is switched on only until the connection stands, which then keeps it.
    pub(crate) fn start_over_io_uring(
        source: &Path,
        mountpoint: &Path,
        arguments: &[&str],
    ) -> Self {
        let arguments = [&["--transport", "io-uring"], arguments].concat();
        let server = switched(b"Y", || Self::start_quietly(source, mountpoint, &arguments));
        let server = server.unwrap_or_else(|| {
            panic!("{IO_URING} is not there: Linux 6.14 with CONFIG_FUSE_IO_URING is needed")
        });
        assert!(
            server
                .lines
                .last()
                .unwrap()
                .contains("transport=\"io-uring\"")
        );
        server
    }

    fn start_logging(filter: &str, source: &Path, mountpoint: &Path, arguments: &[&str]) -> Self {
        Self::start_by(&["--", SERVER], filter, source, mountpoint, arguments)
    }

    /// The same, with these arguments of setpriv(1) that end in a server's path.
    pub(crate) fn start_by(
        setpriv: &[&str],
        filter: &str,
        source: &Path,
        mountpoint: &Path,
        arguments: &[&str],
    ) -> Self {
        let mut command = program("setpriv", &["--pdeathsig", "KILL"]);
        let mut child = command
            .args(setpriv)
            // What the kernel happens to offer must not decide what is tested.
            .args(["--foreground", "--threads", "4", "--transport", "device"])
            .args(arguments)
            .args([source, mountpoint])
            .env("RUST_LOG", filter)
            .stderr(Stdio::piped())
            .spawn()
            .expect("setpriv is missing: install util-linux");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (send, log) = channel();
        std::thread::spawn(move || {
            // The test may have ended and hung up; the pipe is drained all the same.
            stderr.lines().map_while(Result::ok).for_each(|line| {
                let _unread = send.send(line);
            });
        });
        let mut server = Server {
            child,
            mountpoint: mountpoint.to_owned(),
            log,
            lines: Vec::new(),
            ended: false,
        };
        server.wait_for_line(" mounted ");
        server
    }

    /// Waits until the server has logged a line with this text.
    pub(crate) fn wait_for_line(&mut self, text: &str) {
        let end = Instant::now() + DEADLINE;
        while !self.lines.last().is_some_and(|line| line.contains(text)) {
            let left = end.saturating_duration_since(Instant::now());
            match self.log.recv_timeout(left) {
                Ok(line) => self.lines.push(line),
                Err(error) => panic!("{error}, waited for {text:?} in {:#?}", self.lines),
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Unmounts as umount(8) does and returns how the server ended and what it logged.
    pub(crate) fn unmount(self) -> (ExitStatus, Vec<String>) {
        unmount(&self.mountpoint, UnmountFlags::empty()).expect("umount");
        self.wait()
    }

    /// Waits for the server's end.
    pub(crate) fn wait(mut self) -> (ExitStatus, Vec<String>) {
        let end = Instant::now() + DEADLINE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.log.recv_timeout(left) {
                Ok(line) => self.lines.push(line),
                // Standard error is closed: it has ended or is about to.
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                Err(error) => panic!("{error}, waited for the server to end"),
            }
        }
        let status = self.child.wait().unwrap();
        self.ended = true;
        (status, std::mem::take(&mut self.lines))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // A test failed half-way, or is done with a server that is wrong on purpose.
        let _gone = unmount(&self.mountpoint, UnmountFlags::DETACH);
        let _dead = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Runs a program to its end; a missing one is named with its package.
pub(crate) fn run(package: &str, argv: &[&str]) -> Output {
    let seconds = DEADLINE.as_secs().to_string();
    let output = program("timeout", &[&seconds])
        .args(argv)
        .env("LC_ALL", "C")
        .output()
        .expect("timeout is missing: install coreutils");
    match output.status.code() {
        Some(127) => panic!("{} is missing: install {package}", argv[0]),
        Some(124) => panic!("{argv:?} took longer than {DEADLINE:?}"),
        _ => output,
    }
}

/// Runs a program that must succeed and returns what it printed.
pub(crate) fn run_ok(package: &str, argv: &[&str]) -> String {
    let output = run(package, argv);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(
        output.status.success(),
        "{argv:?}: {}\n{stdout}\n{stderr}",
        output.status
    );
    stdout
}

/// Runs a shell script that must succeed, in `dir`.
pub(crate) fn shell(dir: &Path, script: &str) -> String {
    let script = format!("set -eu; cd '{}'; {script}", dir.display());
    run_ok("dash", &["sh", "-c", &script])
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place of these tests that starts programs"
)]
fn program(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::null());
    command
}
