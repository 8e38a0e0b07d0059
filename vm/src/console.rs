//! The console watch: keeps what the guest prints, and recognises trouble.
//!
//! A guest that powers off after a panic looks like one that powered off
//! cleanly, so the console is one of the three witnesses of every verdict.

use std::{
    fmt,
    fs::File,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    sync::Arc,
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

/// Read the console to its end into a file and the monitor.
pub(crate) fn watch(console: UnixStream, mut log: File, monitor: &Arc<Monitor>) {
    let mut reader = BufReader::new(console);
    let mut raw = Vec::new();
    loop {
        raw.clear();
        match reader.read_until(b'\n', &mut raw) {
            Ok(0) => return,
            Err(error) => {
                tracing::debug!(%error, "the console broke off");
                return;
            }
            Ok(_) => {}
        }
        if let Err(error) = log.write_all(&raw) {
            // The watch must go on draining, or the guest stops at its next line.
            tracing::warn!(%error, "the console's log cannot be written");
        }
        let line = String::from_utf8_lossy(&raw).trim_end().to_owned();
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
