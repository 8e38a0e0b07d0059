//! A request that takes for ever is in nobody else's way.
//!
//! The kernel is the other end of a socket here; the session and its threads are real.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use plugpull_fuse::{Device, Filesystem, Offer, Operation, Reply, Request, Session, Wanted};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

const DEADLINE: Duration = Duration::from_secs(30);

const LOOKUP: u32 = 1;
const STATFS: u32 = 17;
const INIT: u32 = 26;

/// Answers STATFS at once, and LOOKUP when the test says so.
struct Slow {
    release: Mutex<Receiver<()>>,
}

impl Filesystem for Slow {
    fn init(&mut self, _offer: &Offer) -> Wanted {
        Wanted {
            flags: 0,
            max_background: 12,
            max_write: 4096,
            max_stack_depth: 0,
        }
    }

    fn serve(&self, request: &Request<'_>, reply: Reply<'_>) {
        if let Operation::Lookup { .. } = request.operation {
            self.release.lock().unwrap().recv_timeout(DEADLINE).unwrap();
        }
        reply.ok();
    }

    fn forget(&self, _node: u64, _lookups: u64) {}
}

struct Kernel {
    socket: OwnedFd,
}

impl Kernel {
    fn ask(&self, unique: u64, opcode: u32, body: &[u8]) {
        let length = u32::try_from(40 + body.len()).unwrap();
        let mut message = [length, opcode].map(u32::to_ne_bytes).concat();
        message.extend(unique.to_ne_bytes());
        message.extend([0; 24]);
        message.extend(body);
        rustix::io::write(&self.socket, &message).unwrap();
    }

    /// The number of the request that is answered next.
    fn answered(&self, within: Duration) -> Option<u64> {
        let within = Timespec::try_from(within).unwrap();
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        if poll(&mut fds, Some(&within)).unwrap() == 0 {
            return None;
        }
        let mut bytes = [0; 4096];
        assert!(rustix::io::read(&self.socket, &mut bytes).unwrap() >= 16);
        Some(u64::from_ne_bytes(bytes[8..16].try_into().unwrap()))
    }
}

/// A session with so many threads at most, and what lets its LOOKUPs go.
fn session(threads: usize) -> io::Result<(Kernel, Sender<()>)> {
    let (socket, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let (go, release) = channel();
    let kernel = Kernel { socket };
    std::thread::spawn(move || {
        let fs = Slow {
            release: Mutex::new(release),
        };
        let session = Session::new(Device::from(theirs), fs).expect("a handshake");
        session.run(threads).expect("serve until the socket closes");
    });
    let body = [7_u32, 40].map(u32::to_ne_bytes).concat();
    kernel.ask(1, INIT, &[body, vec![0; 56]].concat());
    assert_eq!(kernel.answered(DEADLINE), Some(1));
    Ok((kernel, go))
}

#[test]
fn others_are_answered_while_one_request_hangs() {
    let (kernel, go) = session(4).unwrap();
    kernel.ask(2, LOOKUP, b"slow\0");
    for unique in 3..50 {
        kernel.ask(unique, STATFS, &[]);
        assert_eq!(kernel.answered(DEADLINE), Some(unique));
    }
    go.send(()).unwrap();
    assert_eq!(kernel.answered(DEADLINE), Some(2));
}

/// The control: with one thread at most the others do wait.
#[test]
fn with_a_single_thread_all_wait() {
    let (kernel, go) = session(1).unwrap();
    kernel.ask(2, LOOKUP, b"slow\0");
    kernel.ask(3, STATFS, &[]);
    assert_eq!(kernel.answered(Duration::from_millis(200)), None);
    go.send(()).unwrap();
    assert_eq!(kernel.answered(DEADLINE), Some(2));
    assert_eq!(kernel.answered(DEADLINE), Some(3));
}
