//! The threads of a server: one accepts, one per client reads, one executes.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::device::Disk;
use crate::nbd::connection::{Client, Task, Work, serve};
use crate::nbd::protocol::simple_reply;

/// How long a stopping server waits for its threads.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// More clients at once than anybody needs; beyond that one is turned away.
const MAX_CLIENTS: usize = 64;

/// A disk's NBD export. Dropping it hangs up on every client, joins the threads and removes the
/// socket; the disk stays.
pub struct Server {
    socket: Option<SocketFile>,
    clients: Arc<Clients>,
    stop: Arc<OwnedFd>,
    /// Disconnected when the last thread has ended.
    ended: Receiver<()>,
}

impl Disk {
    /// Exports the disk on a UNIX socket: `nbd+unix:///?socket=PATH`, default export.
    ///
    /// # Errors
    /// Something listens on the socket already, its path is too long (107 bytes), or there are no
    /// descriptors or threads to be had.
    pub fn serve(&self, socket_path: &Path) -> Result<Server> {
        let listener = listen(socket_path)?;
        let socket = SocketFile(socket_path.to_owned());
        let (server, reception) = self.open(Some(socket))?;
        let acceptor = Acceptor {
            listener,
            stop: server.stop.clone(),
            reception,
        };
        let alive = acceptor.reception.alive.clone();
        spawn("nbd-accept", alive, move || acceptor.run())?;
        Ok(server)
    }

    /// Exports the disk to the client at the other end of a connected socket, and to nobody else:
    /// there is no name on the filesystem that a killed process could leave behind.
    ///
    /// # Errors
    /// There are no descriptors or threads to be had.
    pub fn serve_stream(&self, stream: UnixStream) -> Result<Server> {
        let (server, reception) = self.open(None)?;
        reception.welcome(stream)?;
        Ok(server)
    }

    /// A server without clients, its executor running.
    fn open(&self, socket: Option<SocketFile>) -> Result<(Server, Reception)> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .context("create an eventfd")?;
        let clients = Arc::new(Clients::default());
        let (alive, ended) = mpsc::channel();
        let (queue, work) = mpsc::channel();
        let disk = self.clone();
        spawn("nbd-execute", alive.clone(), move || execute(&disk, &work))?;
        let reception = Reception {
            disk: self.clone(),
            clients: clients.clone(),
            queue,
            alive,
        };
        let server = Server {
            socket,
            clients,
            stop: Arc::new(stop),
            ended,
        };
        Ok((server, reception))
    }
}

impl Server {
    /// Where it listens; `None` for one that serves a single connection.
    pub fn socket(&self) -> Option<&Path> {
        self.socket.as_ref().map(|socket| socket.0.as_path())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let stopped = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        self.clients.close();
        self.socket = None;
        let waited = self.ended.recv_timeout(STOP_DEADLINE);
        if stopped.is_err() || waited != Err(RecvTimeoutError::Disconnected) {
            tracing::error!(
                "waited {} s for the threads of an NBD server to end",
                STOP_DEADLINE.as_secs()
            );
        }
    }
}

/// The name of a socket, removed when this goes.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Whoever owns the run directory may have removed it already.
        let _ = fs::remove_file(&self.0);
    }
}

fn listen(path: &Path) -> Result<UnixListener> {
    let shown = path.display();
    match UnixStream::connect(path) {
        Ok(_) => bail!("something listens on {shown} already"),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            // A killed run left its socket behind.
            fs::remove_file(path).with_context(|| format!("remove the stale socket {shown}"))?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listen on {shown}"))?;
    listener
        .set_nonblocking(true)
        .with_context(|| format!("make {shown} non-blocking"))?;
    Ok(listener)
}

/// Starts a thread that holds `alive` for as long as it runs.
fn spawn(name: &str, alive: Sender<()>, body: impl FnOnce() + Send + 'static) -> Result<()> {
    let run = move || {
        body();
        drop(alive);
    };
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .with_context(|| format!("start the thread {name}"))?;
    Ok(())
}

/// The clients that are connected, so that a stopping server can hang up on them.
#[derive(Default)]
struct Clients {
    table: Mutex<ClientTable>,
}

#[derive(Default)]
struct ClientTable {
    closed: bool,
    next: u64,
    connected: HashMap<u64, Arc<Client>>,
}

impl Clients {
    /// `None` when there are too many, or the server stops.
    fn add(&self, client: Arc<Client>) -> Option<u64> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.closed || table.connected.len() >= MAX_CLIENTS {
            return None;
        }
        let key = table.next;
        table.next += 1;
        table.connected.insert(key, client);
        Some(key)
    }

    fn remove(&self, key: u64) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.connected.remove(&key);
    }

    fn close(&self) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.closed = true;
        table
            .connected
            .values()
            .for_each(|client| client.disconnect());
    }
}

struct Acceptor {
    listener: UnixListener,
    stop: Arc<OwnedFd>,
    reception: Reception,
}

/// What a new client needs. The executor ends when the last one of these and the last reader have
/// gone.
struct Reception {
    disk: Disk,
    clients: Arc<Clients>,
    queue: Sender<Work>,
    alive: Sender<()>,
}

impl Acceptor {
    fn run(self) {
        loop {
            let mut watched = [
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::new(&*self.stop, PollFlags::IN),
            ];
            // No deadline: a server waits for clients until it is told to stop.
            match poll(&mut watched, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!("an NBD server stops listening: poll: {error}");
                    return;
                }
            }
            if !watched[1].revents().is_empty() {
                return;
            }
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if let Err(error) = self.reception.welcome(stream) {
                        tracing::warn!("an NBD client was turned away: {error:#}");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::error!("an NBD server stops listening: accept: {error}");
                    return;
                }
            }
        }
    }
}

impl Reception {
    fn welcome(&self, stream: UnixStream) -> Result<()> {
        stream.set_nonblocking(false)?;
        // An answer of up to 1 MiB should not wait for the client to read half of it.
        if let Err(error) = rustix::net::sockopt::set_socket_send_buffer_size(&stream, 1 << 20) {
            tracing::debug!("the socket's buffer stays small: {error}");
        }
        let client = Arc::new(Client::new(stream));
        let key = self
            .clients
            .add(client.clone())
            .context("the server stops, or has too many clients")?;
        let (disk, queue, clients) = (self.disk.clone(), self.queue.clone(), self.clients.clone());
        let started = spawn("nbd-read", self.alive.clone(), move || {
            if let Err(error) = serve(&disk, &client, &queue) {
                tracing::warn!("an NBD client is disconnected: {error:#}");
            }
            client.disconnect();
            clients.remove(key);
        });
        if started.is_err() {
            self.clients.remove(key);
        }
        started
    }
}

/// Carries out what the readers queued, in that order, until the last reader has gone.
fn execute(disk: &Disk, queue: &Receiver<Work>) {
    let mut answer = Vec::new();
    while let Ok(Work {
        client,
        cookie,
        task,
    }) = queue.recv()
    {
        answer.clear();
        answer.extend(simple_reply(0, cookie));
        let error = match task {
            Task::Refuse { error } => disk.end().map_or(Some(error), |_| None),
            // A dead disk answers nobody.
            Task::Execute(job) => disk.execute(&job, &mut answer).ok(),
        };
        if let Some(error) = error {
            answer[..16].copy_from_slice(&simple_reply(error, cookie));
            if let Err(error) = (&client.stream).write_all(&answer) {
                tracing::debug!("an NBD client left before its answer: {error}");
                client.disconnect();
            }
        }
        client.leave();
    }
}
