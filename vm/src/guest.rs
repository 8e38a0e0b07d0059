//! A running guest: its channel, its monitor, its end.

use std::{
    fs::File,
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};
use plugpull_protocol::{Hello, Phase, Promise, Reply, Request, ToGuest, ToHost, frame};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    console::{self, Attached, Tap},
    machine::{Machine, Medium, MemoryFile, Shape},
    monitor::{Monitor, Trouble},
    process::Child,
    qmp::{self, Qmp},
    tools::Qemu,
};

/// Records a promise among the disk's requests; called on the channel's
/// reader, and the guest's workload waits for its return.
pub type PromiseSink = Arc<dyn Fn(Promise) + Send + Sync>;

/// What a machine boots.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Payload {
    /// The kernel image.
    pub kernel: PathBuf,
    /// Our initramfs.
    pub initramfs: PathBuf,
    /// Words for the guest's kernel command line.
    pub words: Vec<String>,
}

impl Payload {
    fn command_line(&self) -> String {
        // `quiet` with a console level of 5 shows warnings and worse; panic=-1
        // with -no-reboot ends QEMU at once.
        let fixed = "console=ttyS0 loglevel=5 panic=-1 oops=panic random.trust_cpu=on tsc=reliable no_timer_check";
        std::iter::once(fixed)
            .chain(self.words.iter().map(String::as_str))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// A running guest. Dropping it kills QEMU.
pub struct Guest {
    // The order of fields is the order of their end: QEMU first, so that the
    // readers see their streams close.
    child: Child,
    qmp: Qmp,
    console: UnixStream,
    tap: Arc<Tap>,
    to_guest: Arc<Mutex<UnixStream>>,
    next_request: AtomicU64,
    monitor: Arc<Monitor>,
    readers: Vec<JoinHandle<()>>,
    console_log: PathBuf,
}

/// How a guest is started.
pub(crate) struct Start<'a> {
    pub(crate) qemu: &'a Qemu,
    pub(crate) shape: &'a Shape,
    pub(crate) media: &'a [Medium<'a>],
    pub(crate) payload: &'a Payload,
    pub(crate) memory: MemoryFile,
    pub(crate) incoming: bool,
    pub(crate) phase: Phase,
    pub(crate) logs: &'a Path,
    pub(crate) promises: PromiseSink,
}

impl Guest {
    /// Start QEMU and its readers.
    pub(crate) fn start(start: Start<'_>) -> Result<Self> {
        let (serial, serial_qemu) = UnixStream::pair().context("make the console's socket pair")?;
        let (qmp, qmp_qemu) = UnixStream::pair().context("make the monitor's socket pair")?;
        let (to_host, to_host_qemu) =
            UnixStream::pair().context("make the channel's socket pair")?;
        let (to_guest, to_guest_qemu) =
            UnixStream::pair().context("make the channel's socket pair")?;
        // QEMU gets a descriptor of its own for each NBD disk; the caller's
        // stays the caller's.
        let nbd = start
            .media
            .iter()
            .map(|medium| match medium {
                Medium::Nbd(fd) => fd.try_clone_to_owned().map(Some),
                Medium::File(_) | Medium::Null => Ok(None),
            })
            .collect::<std::io::Result<Vec<_>>>()
            .context("duplicate the disk's socket")?;
        let media: Vec<Medium<'_>> = start
            .media
            .iter()
            .zip(&nbd)
            .map(|(medium, own)| match (medium, own) {
                (Medium::File(file), _) => Medium::File(file.clone()),
                (_, Some(own)) => Medium::Nbd(own.as_fd()),
                (_, None) => Medium::Null,
            })
            .collect();
        let arguments = Machine {
            shape: start.shape,
            media: &media,
            kernel: start.payload.kernel.clone(),
            initrd: start.payload.initramfs.clone(),
            append: start.payload.command_line(),
            memory: start.memory,
            serial: serial_qemu.as_fd(),
            qmp: qmp_qemu.as_fd(),
            to_host: to_host_qemu.as_fd(),
            to_guest: to_guest_qemu.as_fd(),
            incoming: start.incoming,
        }
        .arguments();
        std::fs::create_dir_all(start.logs)
            .with_context(|| format!("make {}", start.logs.display()))?;
        let create = |name: &str| {
            let path = start.logs.join(name);
            File::options()
                .append(true)
                .create(true)
                .open(&path)
                .with_context(|| format!("make {}", path.display()))
        };
        let mut command = start
            .qemu
            .command()
            .args(&arguments)
            .stderr_file(create("qemu.log")?);
        for fd in [serial_qemu, qmp_qemu, to_host_qemu, to_guest_qemu] {
            command = command.inherit(OwnedFd::from(fd));
        }
        for fd in nbd.into_iter().flatten() {
            command = command.inherit(fd);
        }
        let monitor = Arc::new(Monitor::new(start.phase));
        let child = command.spawn().context("start QEMU")?;
        let to_guest = Arc::new(Mutex::new(to_guest));
        let mut readers = Vec::new();
        let log = create("console.log")?;
        let console = serial
            .try_clone()
            .context("duplicate the console's socket")?;
        let tap = Arc::new(Tap::default());
        let watched = Arc::clone(&tap);
        readers.push(reader("console", &monitor, move |monitor| {
            console::watch(serial, log, &watched, monitor)
        })?);
        let events = qmp.try_clone()?;
        readers.push(reader("qmp", &monitor, move |monitor| {
            qmp::watch(events, monitor)
        })?);
        let answers = Arc::clone(&to_guest);
        let promises = start.promises;
        readers.push(reader("channel", &monitor, move |monitor| {
            watch_channel(to_host, &answers, &promises, monitor);
        })?);
        let guest = Self {
            child,
            qmp: Qmp::new(qmp, Arc::clone(&monitor)),
            console,
            tap,
            to_guest,
            next_request: AtomicU64::new(1),
            monitor,
            readers,
            console_log: start.logs.join("console.log"),
        };
        guest.qmp.handshake().with_context(|| {
            let said = std::fs::read_to_string(start.logs.join("qemu.log")).unwrap_or_default();
            format!("QEMU did not start: {}", said.trim())
        })?;
        Ok(guest)
    }

    pub(crate) fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// Wait for the agent's hello.
    pub(crate) fn hello(&self, timeout: Duration) -> Result<Hello, Trouble> {
        self.monitor
            .wait("hello of the agent", timeout, |state| state.hello.clone())
    }

    /// Wait until the console has shown a line with this text.
    pub(crate) fn console_shows(&self, text: &str, timeout: Duration) -> Result<(), Trouble> {
        self.monitor
            .wait(&format!("line {text:?} on the console"), timeout, |state| {
                state
                    .console
                    .iter()
                    .any(|line| line.contains(text))
                    .then_some(())
            })
    }

    /// Ask the guest for something and wait for the answer.
    ///
    /// # Errors
    /// [`Trouble::Refused`] when the guest answers that it could not; every
    /// other kind means that the guest or the host is not well.
    pub fn request(&self, request: Request, timeout: Duration) -> Result<Reply, Trouble> {
        let what = format!("{request:?}");
        let pending = self.send(request)?;
        self.answer(pending, &what, timeout)
    }

    /// Send a request without waiting.
    pub fn send(&self, request: Request) -> Result<Pending, Trouble> {
        let id = self.next_request.fetch_add(1, Ordering::Relaxed);
        if !matches!(request, Request::Ping) {
            self.monitor.update(|state| state.reached(Phase::Scenario));
        }
        let mut to_guest = self.to_guest.lock().unwrap_or_else(PoisonError::into_inner);
        frame::write(&mut *to_guest, &ToGuest::Request { id, request })
            .map_err(|error| Trouble::Host(format!("send a request to the guest: {error}")))?;
        Ok(Pending(id))
    }

    /// Send requests that the guest carries out one after the other, without
    /// waiting. When one fails, those after it do too.
    pub fn send_in_order(&self, requests: Vec<Request>) -> Result<Vec<Pending>, Trouble> {
        let ids = requests.len() as u64;
        let first = self.next_request.fetch_add(ids, Ordering::Relaxed);
        self.monitor.update(|state| state.reached(Phase::Scenario));
        let mut to_guest = self.to_guest.lock().unwrap_or_else(PoisonError::into_inner);
        frame::write(&mut *to_guest, &ToGuest::InOrder { first, requests })
            .map_err(|error| Trouble::Host(format!("send requests to the guest: {error}")))?;
        Ok((first..first + ids).map(Pending).collect())
    }

    /// Wait for the answer to a request that was sent.
    pub fn answer(
        &self,
        pending: Pending,
        what: &str,
        timeout: Duration,
    ) -> Result<Reply, Trouble> {
        let short: String = what.chars().take(120).collect();
        let reply = self
            .monitor
            .wait(&format!("answer to {short}"), timeout, |state| {
                state.replies.remove(&pending.0)
            })?;
        Ok(reply?)
    }

    /// The answer to a request that was sent, if it has come.
    ///
    /// # Errors
    /// The guest's refusal or trouble.
    pub fn answered(&self, pending: Pending) -> Result<Option<Reply>, Trouble> {
        match self.answer(pending, "", Duration::ZERO) {
            Ok(reply) => Ok(Some(reply)),
            Err(Trouble::Hung { .. }) => Ok(None),
            Err(trouble) => Err(trouble),
        }
    }

    /// Give the serial console to a person: what it shows is also written to
    /// `screen`.
    ///
    /// # Errors
    /// When there is no descriptor to be had.
    pub fn attach(&self, screen: Box<dyn Write + Send>) -> Result<Attached> {
        Attached::new(&self.console, &self.tap, screen).context("attach to the console")
    }

    /// For whoever serves the guest: to tell that they cannot any more.
    pub fn alarm(&self) -> Alarm {
        Alarm(Arc::downgrade(&self.monitor))
    }

    /// QEMU's process.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Wait for a condition outside, woken also by trouble in the guest: looks
    /// each time anything of the guest changes, and at least ten times a second.
    ///
    /// # Errors
    /// The guest's trouble, or the deadline.
    pub fn wait_until(
        &self,
        what: &str,
        timeout: Duration,
        mut happened: impl FnMut() -> bool,
    ) -> Result<(), Trouble> {
        let deadline = std::time::Instant::now() + timeout;
        loop {
            if happened() {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            match self
                .monitor
                .wait(what, left.min(Duration::from_millis(100)), |_| None::<()>)
            {
                Err(Trouble::Hung {
                    phase,
                    waited_for,
                    console,
                    ..
                }) => {
                    if left.is_zero() {
                        return Err(Trouble::Hung {
                            phase,
                            waited_for,
                            after: timeout,
                            console,
                        });
                    }
                }
                Err(trouble) => return Err(trouble),
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Kernel messages of the console that name trouble, fatal or not.
    pub fn warnings(&self) -> Vec<String> {
        self.monitor.lock().warnings.clone()
    }

    /// Where the console's output is kept.
    pub fn console_log(&self) -> &Path {
        &self.console_log
    }

    /// End the guest as a power cut does: at once.
    pub fn pull_the_plug(mut self) -> Result<()> {
        self.child.kill().context("kill QEMU")?;
        Ok(())
    }

    /// Write everything back, power off, and wait for QEMU's end.
    pub fn power_off(mut self, timeout: Duration) -> Result<(), Trouble> {
        self.send(Request::PowerOff)?;
        let reason = self
            .monitor
            .wait("power-off", timeout, |state| state.ended.clone())?;
        if !reason.starts_with("shutdown") {
            return Err(Trouble::Host(format!(
                "the guest did not power off: {reason}"
            )));
        }
        self.child
            .wait(timeout)
            .map_err(|error| Trouble::Host(format!("wait for QEMU's end: {error}")))?;
        // Now the console is all there: trouble in the kernel's last moments
        // must not pass for a clean end.
        self.join_readers();
        self.monitor.check()
    }

    /// Once QEMU has ended, its streams are closed, so each reader ends.
    fn join_readers(&mut self) {
        for reader in self.readers.drain(..) {
            if reader.join().is_err() {
                tracing::warn!("a reader of the guest panicked");
            }
        }
    }

    /// Stop the machine's processors.
    pub(crate) fn stop(&self) -> Result<(), Trouble> {
        self.monitor.update(|state| state.stopping = true);
        self.qmp.command("stop", json!({})).map(drop)
    }

    /// Tell QEMU to end without asking the guest.
    pub(crate) fn quit(mut self, timeout: Duration) -> Result<()> {
        self.qmp.send("quit", json!({}))?;
        self.child.wait(timeout).context("wait for QEMU's end")?;
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill() {
            tracing::warn!(%error, "QEMU could not be killed");
        }
        self.join_readers();
    }
}

/// Ends every wait for a guest with [`Trouble::Host`]; outlives the guest.
#[derive(Debug, Clone)]
pub struct Alarm(Weak<Monitor>);

impl Alarm {
    /// What the guest depends on has failed. The first failure stays.
    pub fn raise(&self, failure: impl Into<String>) {
        if let Some(monitor) = self.0.upgrade() {
            monitor.update(|state| {
                state.host.get_or_insert(failure.into());
            });
        }
    }

    /// Whether the guest has ended.
    pub fn is_over(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// A request that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending(u64);

fn reader(
    name: &str,
    monitor: &Arc<Monitor>,
    run: impl FnOnce(&Arc<Monitor>) + Send + 'static,
) -> Result<JoinHandle<()>> {
    let monitor = Arc::clone(monitor);
    std::thread::Builder::new()
        .name(format!("guest-{name}"))
        .spawn(move || run(&monitor))
        .with_context(|| format!("start the thread that reads the {name}"))
}

fn watch_channel(
    mut from_guest: UnixStream,
    to_guest: &Mutex<UnixStream>,
    promises: &PromiseSink,
    monitor: &Arc<Monitor>,
) {
    loop {
        match frame::read::<ToHost>(&mut from_guest) {
            Ok(ToHost::Hello(hello)) => monitor.update(|state| {
                state.reached(Phase::Agent);
                state.hello = Some(hello);
            }),
            Ok(ToHost::Reply { id, result }) => monitor.update(|state| {
                state.replies.insert(id, result);
            }),
            Ok(ToHost::Promise { id, event }) => {
                promises(event);
                let mut to_guest = to_guest.lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(error) = frame::write(&mut *to_guest, &ToGuest::Recorded { id }) {
                    tracing::debug!(%error, "a promise could not be answered");
                }
            }
            Err(frame::Error::Closed) => return,
            Err(error) => {
                monitor.update(|state| state.channel_error = Some(error.to_string()));
                return;
            }
        }
    }
}
