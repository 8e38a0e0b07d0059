//! The console watch: keeps what the guest prints, and recognises trouble.
//!
//! A guest that powers off after a panic looks like one that powered off
//! cleanly, so the console is one of the three witnesses of every verdict.

use std::{
    fmt,
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, PoisonError},
};

use plugpull_protocol::Phase;

use crate::monitor::Monitor;

/// A kind of trouble of the guest's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// `WARNING:`, with a stack trace; the guest goes on.
    Warning,
    /// RCU grace period not ending; on an emulated processor often only slow.
    RcuStall,
    /// A processor that did not schedule for 20 s; often only slow, too.
    SoftLockup,
    /// A task in uninterruptible sleep for the hung-task timeout.
    HungTask,
    /// The kernel killed a process for want of memory.
    OutOfMemory,
    /// `BUG:`, bad page state, a list corrupted.
    Bug,
    /// An oops: bad memory access or invalid instruction in the kernel.
    Oops,
    /// The kernel gave up.
    Panic,
}

/// Trouble of the guest's kernel, with the line that said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What kind.
    pub kind: FaultKind,
    /// The console's line.
    pub line: String,
}

impl Fault {
    /// True when no answer of this guest can be trusted any more.
    pub fn is_fatal(&self) -> bool {
        self.kind > FaultKind::SoftLockup
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            FaultKind::Warning => "warning",
            FaultKind::RcuStall => "RCU stall",
            FaultKind::SoftLockup => "soft lockup",
            FaultKind::HungTask => "hung task",
            FaultKind::OutOfMemory => "out of memory",
            FaultKind::Bug => "BUG",
            FaultKind::Oops => "oops",
            FaultKind::Panic => "panic",
        };
        write!(f, "{kind}: {}", self.line)
    }
}

/// What kernels print, most specific first: `BUG: soft lockup` is no bug.
///
/// Sources: kernel/panic.c, kernel/hung_task.c, kernel/watchdog.c,
/// kernel/rcu/tree_stall.h, mm/oom_kill.c, arch/x86/kernel/dumpstack.c,
/// arch/x86/mm/fault.c.
const PATTERNS: &[(&str, FaultKind)] = &[
    ("Kernel panic - not syncing", FaultKind::Panic),
    ("soft lockup - CPU#", FaultKind::SoftLockup),
    ("rcu_sched self-detected stall", FaultKind::RcuStall),
    ("rcu_preempt self-detected stall", FaultKind::RcuStall),
    ("detected stalls on CPUs/tasks", FaultKind::RcuStall),
    ("detected expedited stalls", FaultKind::RcuStall),
    ("blocked for more than", FaultKind::HungTask),
    ("Out of memory: Killed process", FaultKind::OutOfMemory),
    ("Memory cgroup out of memory", FaultKind::OutOfMemory),
    ("Oops: ", FaultKind::Oops),
    ("general protection fault", FaultKind::Oops),
    ("BUG: ", FaultKind::Bug),
    ("kernel BUG at", FaultKind::Bug),
    ("WARNING: CPU:", FaultKind::Warning),
    ("WARNING: at ", FaultKind::Warning),
];

/// Recognise trouble in one line of the console.
pub fn recognise(line: &str) -> Option<Fault> {
    // Programs may print anything; kernel messages carry a time stamp.
    let after_stamp = line
        .trim_start()
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "));
    let (stamp, message) = after_stamp?;
    stamp.trim().parse::<f64>().ok()?;
    let kind = PATTERNS
        .iter()
        .find(|(pattern, _)| message.contains(pattern))?
        .1;
    Some(Fault {
        kind,
        line: line.trim().to_owned(),
    })
}

/// A line without end is taken for one at this length, so that no output,
/// however odd, takes more memory.
const LINE_MAX: usize = 64 << 10;

/// Where the console's output goes beside the log, while a person has it.
#[derive(Default)]
pub(crate) struct Tap(Mutex<Option<Box<dyn Write + Send>>>);

impl Tap {
    fn copy(&self, bytes: &[u8]) {
        let mut out = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let copied = out
            .as_mut()
            .map(|out| out.write_all(bytes).and_then(|()| out.flush()));
        if let Some(Err(error)) = copied {
            tracing::debug!(%error, "whoever looked at the console has gone");
            *out = None;
        }
    }

    fn set(&self, out: Option<Box<dyn Write + Send>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = out;
    }
}

/// The console in a person's hands: what is written to it is typed there, and
/// what it shows is copied until this is dropped.
pub struct Attached {
    input: UnixStream,
    tap: Arc<Tap>,
}

impl Attached {
    pub(crate) fn new(
        console: &UnixStream,
        tap: &Arc<Tap>,
        screen: Box<dyn Write + Send>,
    ) -> io::Result<Self> {
        let input = console.try_clone()?;
        tap.set(Some(screen));
        Ok(Self {
            input,
            tap: Arc::clone(tap),
        })
    }
}

impl Write for Attached {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.input.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.input.flush()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.tap.set(None);
    }
}

/// Read the console to its end into a file, the monitor, and whoever looks.
pub(crate) fn watch(mut console: UnixStream, mut log: File, tap: &Tap, monitor: &Arc<Monitor>) {
    let mut buffer = [0; 4096];
    let mut line = Vec::new();
    loop {
        let bytes = match console.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => &buffer[..count],
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::debug!(%error, "the console broke off");
                break;
            }
        };
        if let Err(error) = log.write_all(bytes) {
            // The watch must go on draining, or the guest stops at its next line.
            tracing::warn!(%error, "the console's log cannot be written");
        }
        tap.copy(bytes);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(piece);
            if line.ends_with(b"\n") || line.len() >= LINE_MAX {
                take_line(&line, monitor);
                line.clear();
            }
        }
    }
    if !line.is_empty() {
        take_line(&line, monitor);
    }
}

fn take_line(raw: &[u8], monitor: &Monitor) {
    let line = String::from_utf8_lossy(raw).trim_end().to_owned();
    monitor.update(|state| {
        state.reached(if line.starts_with("plugpull-init:") {
            Phase::Init
        } else {
            Phase::Kernel
        });
        if let Some(fault) = recognise(&line) {
            tracing::warn!(%fault, "console");
            // The first fatal fault is the cause; the worst one otherwise.
            let keep = state
                .fault
                .as_ref()
                .is_some_and(|old| old.is_fatal() || old.kind >= fault.kind);
            if !keep {
                state.fault = Some(fault.clone());
            }
            state.warnings.push(fault.to_string());
        }
        state.console_line(line);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expect: Option<FaultKind>) {
        assert_eq!(recognise(line).map(|fault| fault.kind), expect, "{line}");
    }

    #[test]
    fn kernel_trouble_is_recognised() {
        check(
            "[    5.1] Kernel panic - not syncing: sysrq triggered crash",
            Some(FaultKind::Panic),
        );
        check(
            "[  130.9] INFO: task sync:99 blocked for more than 60 seconds.",
            Some(FaultKind::HungTask),
        );
        check(
            "[   50.0] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [x:1]",
            Some(FaultKind::SoftLockup),
        );
        check(
            "[   21.3] rcu: INFO: rcu_preempt self-detected stall on CPU",
            Some(FaultKind::RcuStall),
        );
        check(
            "[    9.9] Out of memory: Killed process 87 (hog) total-vm:1",
            Some(FaultKind::OutOfMemory),
        );
        check(
            "[    3.0] Oops: 0002 [#1] PREEMPT SMP NOPTI",
            Some(FaultKind::Oops),
        );
        check(
            "[    3.0] BUG: kernel NULL pointer dereference, address: 0",
            Some(FaultKind::Bug),
        );
        check(
            "[    3.0] WARNING: CPU: 0 PID: 1 at fs/x.c:1 f+0x1/0x2",
            Some(FaultKind::Warning),
        );
    }

    #[test]
    fn what_programs_print_is_not_the_kernel() {
        check("a test prints: Kernel panic - not syncing", None);
        check("[not a stamp] BUG: in my parser", None);
        check("[    1.0] EXT4-fs (vdb): mounted filesystem", None);
    }

    #[test]
    fn lines_are_whole_however_they_come_and_a_tap_sees_every_byte() {
        let (mut guest, host) = UnixStream::pair().expect("a pair");
        let log = tempfile::tempfile().expect("a file");
        let monitor = Arc::new(Monitor::new(Phase::Firmware));
        let tap = Arc::new(Tap::default());
        let (screen, mut seen) = UnixStream::pair().expect("a pair");
        let mut attached = Attached::new(&host, &tap, Box::new(screen)).expect("attached");
        attached.write_all(b"ls\n").expect("typed");
        let (theirs, watched) = (Arc::clone(&tap), Arc::clone(&monitor));
        let watcher = std::thread::spawn(move || watch(host, log, &theirs, &watched));
        let mut typed = [0; 3];
        guest.read_exact(&mut typed).expect("read");
        assert_eq!(&typed, b"ls\n");
        for piece in [
            "[    5.1] Kernel pa",
            "nic - not syncing: x\r\n",
            "prompt$ ",
        ] {
            guest.write_all(piece.as_bytes()).expect("written");
        }
        let mut shown = [0; 49];
        seen.read_exact(&mut shown).expect("copied");
        assert!(shown.ends_with(b": x\r\nprompt$ "), "{shown:?}");
        drop(attached);
        assert_eq!(seen.read(&mut shown).expect("the end"), 0, "detached");
        drop(guest);
        watcher.join().expect("it ends with the console");
        let state = monitor.lock();
        assert_eq!(state.fault.as_ref().map(|f| f.kind), Some(FaultKind::Panic));
        assert_eq!(state.console.len(), 2, "{:?}", state.console);
    }

    #[test]
    fn slowness_is_not_fatal() {
        let fault = |kind| Fault {
            kind,
            line: String::new(),
        };
        assert!(!fault(FaultKind::RcuStall).is_fatal());
        assert!(!fault(FaultKind::SoftLockup).is_fatal());
        assert!(fault(FaultKind::HungTask).is_fatal());
        assert!(fault(FaultKind::Panic).is_fatal());
    }
}
