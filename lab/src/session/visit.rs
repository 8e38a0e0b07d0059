//! A visit to what the disk holds: mounted, looked at, unmounted and forgotten,
//! without a pause for the host's next question in between.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use plugpull_disk::Reads;
use plugpull_protocol::{Observation, Reply, Request, WorkloadRequest};
use plugpull_vm::Trouble;

use super::{LOWER, MOUNT, MOUNT_TIMEOUT, QUICK, Session, UNMOUNT_TIMEOUT};
use crate::scenario::{Fs, Lower, Mount, Server};

/// How much of a visit one message carries; see [`plugpull_protocol::frame::MAX_LEN`].
const MESSAGE: usize = 512 << 10;

/// Where the superblock of ext4 says by how much its blocks are larger than the
/// smallest (Documentation/filesystems/ext4/super.rst).
const EXT4_LOG_BLOCK_SIZE: u64 = 1024 + 24;
const EXT4_SMALLEST_BLOCK: u32 = 1024;
/// Above this the mounts read so different places that reading all of them is
/// no gain.
const MOST_AHEAD: u64 = 16 << 20;

/// What came of a visit.
pub struct Visit {
    /// What was seen, in the order of the questions.
    pub observations: Vec<Observation>,
    /// How long each phase took, by its name.
    pub took: Vec<(&'static str, Duration)>,
}

/// A request of a visit and how long the answer may take.
struct Step {
    phase: Phase,
    request: Request,
    timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    ReadAhead,
    Mount,
    Serve,
    Look,
    Unmount,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::ReadAhead => "read ahead",
            Self::Mount => "mount",
            Self::Serve => "serve",
            Self::Look => "look",
            Self::Unmount => "unmount",
        }
    }
}

/// Where programs find the filesystem under test.
pub fn seen_at(mount: &Mount) -> &'static str {
    match mount.server {
        Server::Native => LOWER,
        _ => MOUNT,
    }
}

impl Session<'_> {
    /// Mount, carry out these workloads, unmount, and forget the disk's cached
    /// blocks. After an error the guest is not fit for another visit.
    ///
    /// # Errors
    /// The guest's refusal or trouble, as a [`Trouble`].
    pub fn visit(
        &mut self,
        lower: &Lower,
        mount: &Mount,
        looks: Vec<(WorkloadRequest, Duration)>,
    ) -> Result<Visit> {
        let step = |phase, request, timeout| Step {
            phase,
            request,
            timeout,
        };
        let mut steps = Vec::new();
        let mut mounted = Vec::new();
        if let Some(ahead) = self.read_ahead(lower)? {
            steps.push(step(Phase::ReadAhead, ahead, QUICK));
        }
        if lower.mounted {
            let mount_lower = self.lower_request(lower);
            steps.push(step(Phase::Mount, mount_lower, MOUNT_TIMEOUT));
            mounted.push(LOWER);
        }
        let serve = self.serve_request(mount);
        if let Some(serve) = serve {
            steps.push(step(Phase::Serve, serve, MOUNT_TIMEOUT * 2));
            mounted.push(MOUNT);
        }
        for (look, timeout) in looks {
            steps.push(step(Phase::Look, Request::Workload(look), timeout));
        }
        for at in mounted.into_iter().rev() {
            let request = self.unmount_request(at);
            steps.push(step(Phase::Unmount, request, UNMOUNT_TIMEOUT * 2));
        }
        let forget = Request::FlushDevice {
            device: self.device.clone(),
        };
        steps.push(step(Phase::Unmount, forget, QUICK));
        self.carry_out(steps)
    }

    /// What mounts have read so far, to be read at once: a journal is replayed
    /// a few blocks at a time, and each waits for the disk.
    ///
    /// Only ext4 reads its journal through the disk's own cache, and with any
    /// other block than the smallest it begins by dropping that.
    fn read_ahead(&self, lower: &Lower) -> Result<Option<Request>> {
        if lower.fs != Fs::Ext4 || self.read_by_mounts.bytes() == 0 {
            return Ok(None);
        }
        let mut log_block_size = [0; 4];
        let view = self.disk.view();
        view.read_at(EXT4_LOG_BLOCK_SIZE, &mut log_block_size)?;
        if u32::from_le_bytes(log_block_size) != 0 {
            return Ok(None);
        }
        let stretches = self.read_by_mounts.ranges();
        Ok(Some(Request::ReadAhead {
            device: self.device.clone(),
            block_bytes: EXT4_SMALLEST_BLOCK,
            stretches: stretches
                .map(|read| (read.start, read.end - read.start))
                .collect(),
        }))
    }

    fn note_reads(&mut self) {
        let reads = self.disk.reads();
        if self.read_by_mounts.bytes() + reads.bytes() > MOST_AHEAD {
            self.read_by_mounts = Reads::default();
        }
        self.read_by_mounts.extend(&reads);
    }

    fn carry_out(&mut self, steps: Vec<Step>) -> Result<Visit> {
        let mut visit = Visit {
            observations: Vec::new(),
            took: Vec::new(),
        };
        let mut since = Instant::now();
        for message in messages(steps)? {
            let asked = message
                .iter()
                .map(|(step, _)| (step.phase, step.timeout))
                .collect::<Vec<_>>();
            let whats = message
                .iter()
                .map(|(_, what)| what.clone())
                .collect::<Vec<_>>();
            let requests = message.into_iter().map(|(step, _)| step.request).collect();
            let pending = self.guest.send_in_order(requests)?;
            for ((pending, what), (phase, timeout)) in pending.into_iter().zip(whats).zip(asked) {
                let timeout = self.bed.scale(timeout);
                let reply = self
                    .guest
                    .answer(pending, &what, timeout)
                    .map_err(|trouble| told(phase, trouble))?;
                visit.take(phase, reply)?;
                if phase == Phase::Mount {
                    self.note_reads();
                }
                let now = Instant::now();
                visit.took.push((phase.name(), now - since));
                since = now;
            }
        }
        Ok(visit)
    }
}

impl Visit {
    fn take(&mut self, phase: Phase, reply: Reply) -> Result<()> {
        match (phase, reply) {
            (Phase::Look, Reply::Observed(observation)) => self.observations.push(observation),
            (Phase::Look, other) => bail!("the guest answered a workload with {other:?}"),
            _ => {}
        }
        Ok(())
    }
}

/// Say that it was the end of the visit that went wrong.
fn told(phase: Phase, trouble: Trouble) -> anyhow::Error {
    let error = anyhow::Error::new(trouble);
    match phase {
        Phase::Unmount => error.context("unmount after the check"),
        _ => error,
    }
}

/// The steps in as many messages as they need, each with its beginning in words.
fn messages(steps: Vec<Step>) -> Result<Vec<Vec<(Step, String)>>> {
    let mut messages = vec![Vec::new()];
    let mut bytes = 0;
    for step in steps {
        let json = serde_json::to_string(&step.request).context("write a request as JSON")?;
        if bytes > 0 && bytes + json.len() > MESSAGE {
            messages.push(Vec::new());
            bytes = 0;
        }
        bytes += json.len();
        let what = json.chars().take(120).collect();
        if let Some(message) = messages.last_mut() {
            message.push((step, what));
        }
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(length: usize) -> Step {
        Step {
            phase: Phase::Look,
            request: Request::DmRemove {
                name: "x".repeat(length),
            },
            timeout: QUICK,
        }
    }

    #[test]
    fn what_does_not_fit_into_one_message_goes_into_the_next() {
        let lengths = [1, MESSAGE / 2, MESSAGE / 2, MESSAGE / 2 - 100, MESSAGE, 1];
        let messages = messages(lengths.map(step).into()).expect("written");
        let counts: Vec<usize> = messages.iter().map(Vec::len).collect();
        assert_eq!(counts, [2, 2, 1, 1]);
        let longest = plugpull_protocol::frame::MAX_LEN as usize;
        for message in messages {
            let requests: Vec<Request> =
                message.into_iter().map(|(step, _)| step.request).collect();
            let bytes = serde_json::to_vec(&requests).expect("written").len();
            assert!(bytes < longest);
        }
    }
}
