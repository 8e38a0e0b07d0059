//! The kernel's end of a FUSE connection that is a socket.
//!
//! Simulated is the device alone: packets, their order and their numbers. The server
//! behind it is the real one, on a real directory. Nothing of the kernel's caches
//! or checks is here, so any request can be made, also those that no kernel makes.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use plugpull_fs::adapter::Adapter;
use plugpull_fs::passthrough::{IoMode, Passthrough, Settings, Transport};
use plugpull_fuse::{Device, Session};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// How long a server may take for an answer on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

const HEADER_BYTES: usize = 40;
const FORGET: u32 = 2;
const INIT: u32 = 26;
const BATCH_FORGET: u32 = 42;

/// The socket, and the directory that the server on the other end shows.
pub struct Kernel {
    socket: OwnedFd,
    unique: u64,
    buffer: Vec<u8>,
    /// Removed after the mount on it has gone with the thread's namespace.
    dir: tempfile::TempDir,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// 0, or what went wrong.
    pub errno: i32,
    /// What follows the header.
    pub body: Vec<u8>,
}

impl Kernel {
    /// Starts a server of a small tmpfs, in a mount namespace of the calling thread.
    pub fn with_server() -> Self {
        enter_private_namespace();
        let dir = tempfile::tempdir().expect("a temporary directory");
        mount(
            "small",
            dir.path(),
            "tmpfs",
            MountFlags::empty(),
            c"size=16m",
        )
        .expect("a tmpfs");
        let (socket, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("a pair of sockets");
        let settings = Settings {
            io: IoMode::Direct,
            // A socket has no io_uring commands, and rings that are tried and closed
            // again would change which descriptor the next file gets.
            transport: Transport::Device,
            ..Settings::default()
        };
        let fs = Passthrough::new(dir.path(), settings).expect("open the source");
        let mut kernel = Kernel {
            socket,
            unique: 0,
            // More than a socket of default size takes at once.
            buffer: vec![0; 1 << 20],
            dir,
        };
        let starter = std::thread::spawn(move || {
            Session::new(Device::from(theirs), Adapter::new(fs)).expect("a handshake")
        });
        // Version 7.40 and every capability.
        let init = [7_u32, 40, 1 << 20, u32::MAX, u32::MAX]
            .map(u32::to_ne_bytes)
            .concat();
        let answer = kernel.ask(INIT, 0, &[init, vec![0; 44]].concat());
        assert_eq!(answer.map(|answer| answer.errno), Some(0));
        let session = starter.join().expect("the session's start");
        std::thread::spawn(move || session.run(4).expect("serve until the socket closes"));
        kernel
    }

    /// The directory that the server shows.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Sends one request as root and waits for its answer, which is none for FORGET.
    ///
    /// Panics when the answer is missing, comes twice or is another request's.
    pub fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Option<Answer> {
        self.unique += 2;
        let length = u32::try_from(HEADER_BYTES + body.len()).expect("a short body");
        let mut message = [length, opcode].map(u32::to_ne_bytes).concat();
        message.extend(self.unique.to_ne_bytes());
        message.extend(node.to_ne_bytes());
        // User, group, process, length of extensions and padding.
        message.extend([0; 16]);
        message.extend(body);
        rustix::io::write(&self.socket, &message).expect("send a request");
        if matches!(opcode, FORGET | BATCH_FORGET) {
            // An answer to it would be taken for the next request's, and found out.
            return None;
        }
        let answer = self
            .receive(DEADLINE)
            .expect("an answer within the deadline");
        assert_eq!(answer.0, self.unique, "an answer to another request");
        Some(answer.1)
    }

    /// One answer with its number; notifications have none and are passed over.
    fn receive(&mut self, within: Duration) -> Option<(u64, Answer)> {
        loop {
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
            let within = Timespec::try_from(within).expect("a short time");
            if poll(&mut fds, Some(&within)).expect("poll") == 0 {
                return None;
            }
            let length = rustix::io::read(&self.socket, &mut self.buffer).expect("receive");
            let bytes = &self.buffer[..length];
            let field = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four"));
            assert_eq!(field(0) as usize, length, "the length in an answer");
            let unique = u64::from_ne_bytes(bytes[8..16].try_into().expect("eight"));
            if unique != 0 {
                let errno = -field(4).cast_signed();
                return Some((
                    unique,
                    Answer {
                        errno,
                        body: bytes[16..].to_vec(),
                    },
                ));
            }
        }
    }
}

#[expect(unsafe_code, reason = "unshare(2) of a thread's mount namespace")]
fn enter_private_namespace() {
    // SAFETY: CLONE_FILES is not among the flags, so no descriptor changes its meaning.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
        .expect("unshare -m (needs root)");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).expect("mount --make-rprivate /");
}
