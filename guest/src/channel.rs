//! The guest's end of the channel: two virtio-serial ports, one per direction.
//!
//! virtio-console loses wake-ups when a port is polled while another thread
//! writes to it, so both ports are blocking and each has one direction.

use std::{
    collections::HashMap,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use plugpull_protocol::{
    PORT_TO_GUEST, PORT_TO_HOST, Promise, ToGuest, ToHost, frame, syncs::Note,
};

use crate::{syncs::Syncs, workload::Promises};

/// How long the host may take to record one promise. A host that has pulled
/// the plug never answers; this guest is dead by then.
const RECORD_DEADLINE: Duration = Duration::from_secs(60);

/// The writing side, shared by all threads.
pub(crate) struct Channel {
    to_host: Mutex<File>,
    next_promise: AtomicU64,
    waiting: Mutex<HashMap<u64, mpsc::SyncSender<()>>>,
    /// Asked before each promise. Held until the promise is sent, so that what
    /// was called before it is noted before it.
    syncs: Mutex<Option<Syncs>>,
}

impl Channel {
    /// Open both ports; the file is the one to read [`ToGuest`] from.
    pub(crate) fn open() -> Result<(Self, File)> {
        let to_host = fs::OpenOptions::new()
            .write(true)
            .open(port(PORT_TO_HOST)?)?;
        let to_guest = File::open(port(PORT_TO_GUEST)?)?;
        let channel = Self {
            to_host: Mutex::new(to_host),
            next_promise: AtomicU64::new(1),
            waiting: Mutex::default(),
            syncs: Mutex::default(),
        };
        Ok((channel, to_guest))
    }

    /// Send one message.
    pub(crate) fn send(&self, message: &ToHost) -> Result<()> {
        let mut port = self.to_host.lock().unwrap_or_else(PoisonError::into_inner);
        frame::write(&mut *port, message).context("send to the host")
    }

    /// Read the next message; blocks for as long as the host says nothing.
    pub(crate) fn receive(from: &mut File) -> Result<ToGuest> {
        frame::read(from).context("receive from the host")
    }

    /// Note from here on what is synced.
    pub(crate) fn note_syncs(&self, syncs: Syncs, write_through: bool) -> Result<()> {
        self.record(Note::Watching { write_through }.mark())?;
        *self.syncs.lock().unwrap_or_else(PoisonError::into_inner) = Some(syncs);
        Ok(())
    }

    /// Send what was synced since the promise before. Nobody waits until it
    /// has its place: the promise comes behind it on the same stream.
    fn send_news(&self, syncs: &mut Option<Syncs>) -> Result<()> {
        let note = match syncs.as_mut().map(Syncs::news) {
            Some(Ok(news)) if !news.is_empty() => Note::Synced(news),
            Some(Err(error)) => {
                *syncs = None;
                Note::Blind {
                    why: format!("{error:#}"),
                }
            }
            _ => return Ok(()),
        };
        let id = self.next_promise.fetch_add(1, Ordering::Relaxed);
        let event = note.mark();
        self.send(&ToHost::Promise { id, event })
    }

    /// Wake the thread whose promise the host has recorded.
    pub(crate) fn recorded(&self, id: u64) {
        let waiting = self
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
        if let Some(waiting) = waiting {
            // A receiver that gave up has reported its own error.
            let _ = waiting.send(());
        }
    }
}

impl Promises for Channel {
    fn record(&self, event: Promise) -> Result<()> {
        let id = self.next_promise.fetch_add(1, Ordering::Relaxed);
        let (done, wait) = mpsc::sync_channel(1);
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, done);
        {
            let mut syncs = self.syncs.lock().unwrap_or_else(PoisonError::into_inner);
            self.send_news(&mut syncs)?;
            self.send(&ToHost::Promise { id, event })?;
        }
        wait.recv_timeout(RECORD_DEADLINE).with_context(|| {
            format!("the host did not record a promise within {RECORD_DEADLINE:?}")
        })
    }
}

/// The device node of a virtio-serial port.
fn port(name: &str) -> Result<PathBuf> {
    let mut seen = Vec::new();
    for entry in fs::read_dir("/sys/class/virtio-ports").context("list virtio-serial ports")? {
        let entry = entry?;
        let found = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if found.trim() == name {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
        seen.push(found.trim().to_owned());
    }
    bail!("no virtio-serial port is called {name:?}; there are {seen:?}")
}
