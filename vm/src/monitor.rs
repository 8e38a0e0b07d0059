//! What is known of a running guest, from all its sources together.
//!
//! Three threads report here: the channel's reader, the console watch and the
//! QMP reader. Whoever waits for one of them is woken by any, so that a panic
//! on the console ends the wait for an answer that will never come.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use plugpull_protocol::{Failure, Hello, Phase, Reply};

use crate::console::Fault;

/// How many of the console's last lines an error carries.
const TAIL_LINES: usize = 12;

/// Why a guest did not do what was waited for. None of these is a pass.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The deadline passed.
    #[error("the guest hung in phase {phase}: no {waited_for} within {after:.1?}{}", tail(.console))]
    Hung {
        /// How far it had come.
        phase: Phase,
        /// What was waited for.
        waited_for: String,
        /// For how long.
        after: Duration,
        /// The console's last lines.
        console: Vec<String>,
    },
    /// The guest's kernel is in trouble.
    #[error("the guest's kernel failed in phase {phase}: {fault}{}", tail(.console))]
    Kernel {
        /// How far the guest had come.
        phase: Phase,
        /// What the console, or the panic device, said.
        fault: Fault,
        /// The console's last lines.
        console: Vec<String>,
    },
    /// QEMU ended, or the guest powered off, without the answer.
    #[error("the guest ended in phase {phase} while {waited_for} was awaited: {reason}{}", tail(.console))]
    Ended {
        /// How far it had come.
        phase: Phase,
        /// What was waited for.
        waited_for: String,
        /// QMP's reason, or what closed.
        reason: String,
        /// The console's last lines.
        console: Vec<String>,
    },
    /// The guest answered that it could not.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// QEMU's monitor refused a command.
    #[error("QEMU refused {command}: {message}")]
    Qmp {
        /// The command.
        command: String,
        /// QEMU's words.
        message: String,
    },
    /// The host's side failed.
    #[error("{0}")]
    Host(String),
}

fn tail(lines: &[String]) -> String {
    if lines.is_empty() {
        return String::from("\n  the console is empty");
    }
    let mut text = String::from("\n  the console's last lines:");
    for line in lines {
        text.push_str("\n  | ");
        text.push_str(line);
    }
    text
}

/// The state that the readers fill in.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) phase: Phase,
    pub(crate) hello: Option<Hello>,
    pub(crate) replies: HashMap<u64, Result<Reply, Failure>>,
    pub(crate) qmp_answers: HashMap<u64, Result<serde_json::Value, String>>,
    pub(crate) migration: Option<String>,
    /// We have asked QEMU to stop the machine.
    pub(crate) stopping: bool,
    /// What the guest depends on has failed on the host's side.
    pub(crate) host: Option<String>,
    pub(crate) fault: Option<Fault>,
    pub(crate) warnings: Vec<String>,
    pub(crate) ended: Option<String>,
    pub(crate) channel_error: Option<String>,
    pub(crate) console: VecDeque<String>,
}

/// The state with its wake-ups.
#[derive(Debug)]
pub(crate) struct Monitor {
    state: Mutex<State>,
    changed: Condvar,
}

impl Monitor {
    pub(crate) fn new(phase: Phase) -> Self {
        Self {
            state: Mutex::new(State {
                phase,
                hello: None,
                replies: HashMap::new(),
                qmp_answers: HashMap::new(),
                migration: None,
                stopping: false,
                host: None,
                fault: None,
                warnings: Vec::new(),
                ended: None,
                channel_error: None,
                console: VecDeque::new(),
            }),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A reader that panicked has left a state that is still readable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Change the state and wake who waits.
    pub(crate) fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Whether the guest's kernel has been well so far.
    pub(crate) fn check(&self) -> Result<(), Trouble> {
        self.lock().check()
    }

    /// Wait until `found` finds something, the guest is in trouble, or the
    /// deadline passes.
    pub(crate) fn wait<T>(
        &self,
        waited_for: &str,
        timeout: Duration,
        mut found: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, Trouble> {
        let start = Instant::now();
        let mut state = self.lock();
        loop {
            // What was waited for wins over trouble that came with it: an
            // answer is an answer, and the trouble is found by the next wait.
            if let Some(value) = found(&mut state) {
                return Ok(value);
            }
            state.check()?;
            let console = || state.console.iter().cloned().collect::<Vec<_>>();
            if let Some(reason) = state.ended.clone().or_else(|| state.channel_error.clone()) {
                let (phase, waited_for) = (state.phase, waited_for.to_owned());
                return Err(Trouble::Ended {
                    phase,
                    waited_for,
                    reason,
                    console: console(),
                });
            }
            let Some(left) = timeout
                .checked_sub(start.elapsed())
                .filter(|left| !left.is_zero())
            else {
                let (phase, waited_for) = (state.phase, waited_for.to_owned());
                return Err(Trouble::Hung {
                    phase,
                    waited_for,
                    after: timeout,
                    console: console(),
                });
            };
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl State {
    fn check(&self) -> Result<(), Trouble> {
        // The cause of what the guest does then, so it comes first.
        if let Some(failure) = &self.host {
            return Err(Trouble::Host(failure.clone()));
        }
        match self.fault.clone().filter(Fault::is_fatal) {
            Some(fault) => Err(Trouble::Kernel {
                phase: self.phase,
                fault,
                console: self.console.iter().cloned().collect(),
            }),
            None => Ok(()),
        }
    }

    pub(crate) fn reached(&mut self, phase: Phase) {
        self.phase = self.phase.max(phase);
    }

    pub(crate) fn console_line(&mut self, line: String) {
        if self.console.len() == TAIL_LINES {
            // What ended the kernel stays, however long its backtrace is.
            let fatal = self.fault.as_ref().filter(|fault| fault.is_fatal());
            let stays = fatal.is_some_and(|fault| self.console.front() == Some(&fault.line));
            self.console.remove(usize::from(stays));
        }
        self.console.push_back(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::FaultKind;

    #[test]
    fn the_line_that_ended_the_kernel_stays_whatever_follows() {
        let monitor = Monitor::new(Phase::Kernel);
        let mut state = monitor.state.lock().expect("nobody panicked");
        for number in 0..3 * TAIL_LINES {
            if number == 20 {
                let line = String::from("Kernel panic");
                state.console_line(line.clone());
                let kind = FaultKind::Panic;
                state.fault = Some(Fault { kind, line });
            }
            state.console_line(number.to_string());
        }
        let console: Vec<&str> = state.console.iter().map(String::as_str).collect();
        assert_eq!(console.len(), TAIL_LINES);
        assert_eq!((console[0], console[1]), ("Kernel panic", "25"));
        assert_eq!(console[TAIL_LINES - 1], "35");
    }
}
