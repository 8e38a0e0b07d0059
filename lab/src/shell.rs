//! A shell in a guest, for a person or a script: a scratch disk, the lower
//! filesystem on it, plugpull-fs over that.

use std::{
    io::Write,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use plugpull_protocol::{Exited, Reply, Request};
use plugpull_vm::guest::Pending;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr},
};

use crate::{
    base::{Base, Kind, Wanted},
    prepare::during,
    progress::{Activity, Progress},
    scenario::{self, ByteCount, Fs, ImageName, Lower, Mount, Server},
    session::{LOWER, MOUNT, Opening, Session},
    testbed::Testbed,
};

/// The disk that most scenarios have, so that its template is there already.
const DISK: scenario::Disk = scenario::Disk {
    size: ByteCount(1 << 30),
    bus: scenario::Bus::Virtio,
    cache: scenario::Cache::Volatile,
    unit: 4096,
};
/// A script may do a day's work, but not hang for ever.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// How much of each stream of a script comes back, in bytes.
pub const KEPT_BYTES: usize = Exited::TAIL_BYTES;
/// Ctrl-], as in telnet(1): no shell and no editor wants it.
const DETACH: u8 = 0x1d;
/// How often the shell's end is looked for while nobody types.
const LOOK_EVERY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};
/// From the answer that all on the terminal has ended to the shell's own.
const HANG_UP_TIMEOUT: Duration = Duration::from_secs(20);
const QUICK: Duration = Duration::from_secs(30);
/// For a shell that the agent starts; it has no environment of its own.
const ENVIRONMENT: [(&str, &str); 3] = [
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("HOME", "/tmp"),
    ("LANG", "C.UTF-8"),
];

/// A guest with everything mounted.
pub struct Shell<'a> {
    session: Session<'a>,
    /// Where it begins.
    at: &'static str,
    about: String,
}

/// A person's end: keyboard, screen, and something that becomes readable when
/// the command shall end.
pub struct Person<'a> {
    /// A terminal.
    pub keyboard: BorrowedFd<'a>,
    /// Where the console's output goes.
    pub screen: Box<dyn Write + Send>,
    /// Readable once a signal has asked for the end.
    pub ended: BorrowedFd<'a>,
    /// `TERM`.
    pub term: String,
}

impl<'a> Shell<'a> {
    /// Start a guest of an image that was prepared and mount a new filesystem
    /// in it; its log goes below `dir`.
    ///
    /// # Errors
    /// When the guest does not come up or does not mount.
    pub fn open(
        bed: &'a Testbed,
        image: &ImageName,
        fs: Fs,
        dir: &Path,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let lower = Lower {
            name: scenario::Named::name(fs).to_owned(),
            fs,
            mkfs: Vec::new(),
            options: String::new(),
            mounted: true,
        };
        if !bed.has_template(image, DISK)? {
            let name = format!("{image} {} {}", DISK.size, DISK.bus);
            during(progress, Activity::Template { name }, || {
                bed.template(image, DISK)
            })?;
        }
        let wanted = Wanted {
            image,
            lower: &lower,
            disk: DISK,
            kind: Kind::Empty,
        };
        let base = match Base::exists(bed, wanted)? {
            true => Base::ensure(bed, wanted)?,
            false => {
                let name = format!("{image} {fs} {}", Kind::Empty.name());
                during(progress, Activity::Base { name }, || {
                    Base::ensure(bed, wanted)
                })?
            }
        };
        let mut session = Session::start(
            bed,
            Opening {
                image,
                spec: DISK,
                view: base.view()?,
                log: dir.join("shell.disklog"),
                record: false,
                seed: bed.setup().seed,
                logs: dir,
                slot: None,
            },
        )?;
        session.mount_lower(&lower)?;
        session.mount(&Mount {
            name: String::from("plugpull-fs"),
            server: Server::PlugpullFs {
                mutant: None,
                threads: None,
                io: None,
                options: String::new(),
            },
        })?;
        let about = format!("{LOWER} is the lower filesystem, {MOUNT} is plugpull-fs over it");
        Ok(Self::on(session, MOUNT, about))
    }

    /// In a guest where everything is mounted that will be.
    pub(crate) fn on(session: Session<'a>, at: &'static str, about: String) -> Self {
        Self { session, at, about }
    }

    /// What a person should know of it.
    pub fn about(&self) -> &str {
        &self.about
    }

    /// Run a script with `/bin/sh -c`, from the directory of the mount, with
    /// nothing on its standard input.
    ///
    /// # Errors
    /// When it cannot be started or the guest is in trouble.
    pub fn run(&self, script: &str) -> Result<Exited> {
        let enter = format!("cd {} && exec /bin/sh -c \"$1\"", self.at);
        let argv = ["/bin/sh", "-c", &enter, "sh", script];
        let timeout_ms = u64::try_from(SCRIPT_TIMEOUT.as_millis())?;
        let request = Request::Exec {
            argv: argv.map(str::to_owned).into(),
            env: ENVIRONMENT
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            uid: None,
            timeout_ms,
        };
        match self.session.guest().request(request, SCRIPT_TIMEOUT)? {
            Reply::Exited(exited) => Ok(exited),
            other => bail!("the guest answered a command with {other:?}"),
        }
    }

    /// Give the guest's console to a person until the shell there ends, Ctrl-]
    /// is typed, or a signal comes. Nothing of the terminal's session runs
    /// afterwards.
    ///
    /// # Errors
    /// When the keyboard is no terminal, something on the guest's does not end,
    /// or the guest is in trouble.
    pub fn interact(&self, person: Person<'_>) -> Result<()> {
        let size = tcgetwinsize(person.keyboard).context("ask for the terminal's size")?;
        let raw = RawMode::enter(person.keyboard)?;
        let mut console = self.session.guest().attach(person.screen)?;
        let shell = self.session.guest().send(Request::Console {
            term: person.term,
            rows: size.ws_row,
            columns: size.ws_col,
            dir: self.at.to_owned(),
        })?;
        let ended = self.relay(person.keyboard, person.ended, &mut console, shell)?;
        if !ended {
            self.session.ask(Request::HangUp, QUICK)?;
            let timeout = self.session.scale(HANG_UP_TIMEOUT);
            self.session
                .guest()
                .answer(shell, "the shell's end", timeout)?;
        }
        drop(console);
        drop(raw);
        Ok(())
    }

    /// Pass on what is typed; true when the shell has ended by itself.
    fn relay(
        &self,
        keyboard: BorrowedFd<'_>,
        ended: BorrowedFd<'_>,
        console: &mut impl Write,
        shell: Pending,
    ) -> Result<bool> {
        let mut typed = [0; 1024];
        loop {
            let mut fds = [
                PollFd::from_borrowed_fd(keyboard, PollFlags::IN),
                PollFd::from_borrowed_fd(ended, PollFlags::IN),
            ];
            match poll(&mut fds, Some(&LOOK_EVERY)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("wait for the keyboard"),
            }
            if !fds[1].revents().is_empty() {
                return Ok(false);
            }
            if !fds[0].revents().is_empty() {
                let count = rustix::io::read(keyboard, &mut typed).context("read the keyboard")?;
                let bytes = &typed[..count];
                let until = bytes.iter().position(|byte| *byte == DETACH);
                console
                    .write_all(&bytes[..until.unwrap_or(count)])
                    .context("type on the guest's console")?;
                if until.is_some() || count == 0 {
                    return Ok(false);
                }
            }
            if self.session.guest().answered(shell)?.is_some() {
                return Ok(true);
            }
        }
    }

    /// Unmount everything and power off.
    ///
    /// # Errors
    /// When something that has left its session or group still uses the
    /// filesystem, its server ended badly, or the guest did.
    pub fn close(self) -> Result<()> {
        self.session
            .power_off()
            .map(drop)
            .context("end the guest cleanly")
    }
}

/// A terminal that hands over every key as it is; as it was before when this is
/// dropped, also by a panic.
struct RawMode<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> RawMode<'a> {
    fn enter(terminal: BorrowedFd<'a>) -> Result<Self> {
        let before = tcgetattr(terminal).context("standard input is no terminal")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(terminal, OptionalActions::Flush, &raw)
            .context("switch the terminal to raw mode")?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawMode<'_> {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(self.terminal.as_fd(), OptionalActions::Drain, &self.before) {
            tracing::warn!(%error, "the terminal stays in raw mode: type `reset`");
        }
    }
}
