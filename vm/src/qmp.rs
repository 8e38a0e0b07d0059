//! QEMU's machine protocol: commands, answers, and the events that make half
//! of a verdict (docs/interop/qmp-spec.rst).

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    console::{Fault, FaultKind},
    monitor::{Monitor, Trouble},
};

/// How long QEMU may take to answer a command. It answers in milliseconds
/// unless the host is starved.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// The commanding side.
pub(crate) struct Qmp {
    stream: Mutex<UnixStream>,
    next_id: AtomicU64,
    monitor: Arc<Monitor>,
}

impl Qmp {
    pub(crate) fn new(stream: UnixStream, monitor: Arc<Monitor>) -> Self {
        Self {
            stream: Mutex::new(stream),
            next_id: AtomicU64::new(1),
            monitor,
        }
    }

    /// Leave the negotiation mode that QEMU greets with.
    pub(crate) fn handshake(&self) -> Result<(), Trouble> {
        self.command("qmp_capabilities", json!({})).map(drop)
    }

    /// Run a command and wait for its answer.
    pub(crate) fn command(&self, name: &str, arguments: Value) -> Result<Value, Trouble> {
        let id = self.send(name, arguments)?;
        let answer = self.monitor.wait(
            &format!("answer of QEMU to {name}"),
            ANSWER_DEADLINE,
            |state| state.qmp_answers.remove(&id),
        )?;
        answer.map_err(|message| Trouble::Qmp {
            command: name.to_owned(),
            message,
        })
    }

    /// Send a command that ends QEMU, and with it the answer's stream.
    pub(crate) fn send(&self, name: &str, arguments: Value) -> Result<u64, Trouble> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut line = json!({ "execute": name, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        let sent = self
            .stream
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write_all(line.as_bytes());
        sent.map_err(|error| Trouble::Host(format!("send {name} to QEMU: {error}")))?;
        Ok(id)
    }

    /// Wait until a migration, to or from a file, has ended.
    pub(crate) fn migrated(&self, timeout: Duration) -> Result<(), Trouble> {
        let status = self
            .monitor
            .wait("end of the migration", timeout, |state| {
                state.migration.clone().filter(|status| {
                    matches!(status.as_str(), "completed" | "failed" | "cancelled")
                })
            })?;
        if status == "completed" {
            return Ok(());
        }
        let detail = self.command("query-migrate", json!({}))?;
        Err(Trouble::Qmp {
            command: String::from("migrate"),
            message: format!("{status}: {detail}"),
        })
    }
}

/// Read answers and events to the stream's end.
pub(crate) fn watch(stream: UnixStream, monitor: &Arc<Monitor>) {
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { break };
        let Ok(message) = serde_json::from_str::<Value>(&line) else {
            tracing::warn!(line, "QMP sent something that is not JSON");
            continue;
        };
        tracing::trace!(%message, "qmp");
        if let Some(id) = message["id"].as_u64() {
            let answer = match message.get("return") {
                Some(value) => Ok(value.clone()),
                None => Err(message["error"]["desc"]
                    .as_str()
                    .unwrap_or("no reason given")
                    .to_owned()),
            };
            monitor.update(|state| {
                state.qmp_answers.insert(id, answer);
            });
        } else if let Some(event) = message["event"].as_str() {
            take_event(event, &message["data"], monitor);
        }
    }
    monitor.update(|state| {
        state
            .ended
            .get_or_insert_with(|| String::from("QEMU closed its monitor"));
    });
}

fn take_event(event: &str, data: &Value, monitor: &Arc<Monitor>) {
    match event {
        "MIGRATION" => {
            let status = data["status"].as_str().unwrap_or_default().to_owned();
            monitor.update(|state| state.migration = Some(status));
        }
        "GUEST_PANICKED" => monitor.update(|state| {
            // The console usually says more, and has said it before.
            if !state.fault.as_ref().is_some_and(Fault::is_fatal) {
                let line = String::from("reported by the pvpanic device");
                state.fault = Some(Fault {
                    kind: FaultKind::Panic,
                    line,
                });
            }
        }),
        // QEMU stops the machine by itself when KVM cannot go on.
        "STOP" => monitor.update(|state| {
            if !state.stopping {
                state.ended.get_or_insert_with(|| {
                    String::from("QEMU stopped the machine: internal error")
                });
            }
        }),
        "SHUTDOWN" | "RESET" => {
            let reason = data["reason"].as_str().unwrap_or("unknown").to_owned();
            monitor.update(|state| {
                state
                    .ended
                    .get_or_insert(format!("{} ({reason})", event.to_lowercase()));
            });
        }
        _ => {}
    }
}
