//! A side at work: a thread with its own working directory, umask and identity.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::op::Op;
use crate::outcome::Outcome;
use crate::sys::private_directory_and_umask;
use crate::world::World;

/// How long one system call may take before the filesystem counts as hanging.
const DEADLINE: Duration = Duration::from_secs(60);

/// See the module. Dropping it closes every descriptor and mapping of the side.
pub(crate) struct Side {
    calls: Option<Sender<Op>>,
    outcomes: Receiver<Outcome>,
    thread: Option<JoinHandle<()>>,
}

impl Side {
    /// # Errors
    /// If the directory cannot be opened or entered.
    pub(crate) fn start(root: &Path) -> Result<Self> {
        let (calls, todo) = channel::<Op>();
        let (answer, outcomes) = channel();
        let root_path = root.to_owned();
        let thread = std::thread::spawn(move || {
            let world = private_directory_and_umask().and_then(|()| World::new(&root_path));
            let mut world = match world {
                Ok(world) => world,
                Err(error) => return drop(answer.send(Err(error))),
            };
            // The first answer says that the side stands.
            let mut outcome = Ok(crate::outcome::Value::Done);
            while answer.send(outcome).is_ok() {
                let Ok(call) = todo.recv() else { break };
                outcome = world.apply(&call);
            }
        });
        let side = Side {
            calls: Some(calls),
            outcomes,
            thread: Some(thread),
        };
        side.outcome()?
            .with_context(|| format!("enter {}", root.display()))?;
        Ok(side)
    }

    /// Carries out one call and waits for its answer.
    ///
    /// # Errors
    /// If there is no answer before the deadline.
    pub(crate) fn apply(&self, op: &Op) -> Result<Outcome> {
        let calls = self.calls.as_ref().context("the side has ended")?;
        calls
            .send(op.clone())
            .map_err(|_| anyhow!("the side has ended"))?;
        self.outcome().with_context(|| format!("{op:?}"))
    }

    fn outcome(&self) -> Result<Outcome> {
        let answer = self.outcomes.recv_timeout(DEADLINE);
        answer.map_err(|error| anyhow!("no answer in {DEADLINE:?}: {error}"))
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.calls = None;
        // A thread that hangs in a call is left behind; the process ends without it.
        let ended = matches!(self.outcomes.recv_timeout(DEADLINE), Err(error)
            if error == std::sync::mpsc::RecvTimeoutError::Disconnected);
        if let Some(thread) = self.thread.take()
            && ended
        {
            let _joined = thread.join();
        }
    }
}
