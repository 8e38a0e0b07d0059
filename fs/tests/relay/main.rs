//! The server behind a socket instead of `/dev/fuse`: what it does with requests that
//! no kernel makes. Needs root, for a tmpfs of its own.

mod borders;
mod kernel;

use kernel::Kernel;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const LOOKUP: u32 = 1;
const MKDIR: u32 = 9;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const CREATE: u32 = 35;
const READ: u32 = 15;
const WRITE: u32 = 16;
const GETXATTR: u32 = 22;
const LISTXATTR: u32 = 23;
const SYNCFS: u32 = 50;

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// CREATE of a file for reading and writing; returns its node and handle.
fn create(kernel: &mut Kernel, name: &str) -> (u64, u64) {
    let mut body = [libc::O_RDWR.cast_unsigned(), 0o100_644, 0, 0]
        .map(u32::to_ne_bytes)
        .concat();
    body.extend(format!("{name}\0").bytes());
    let answer = kernel.ask(CREATE, 1, &body).unwrap();
    assert_eq!(answer.errno, 0);
    let word = |at: usize| u64::from_ne_bytes(answer.body[at..at + 8].try_into().unwrap());
    (word(0), word(128))
}

fn write(kernel: &mut Kernel, node: u64, handle: u64) -> i32 {
    let mut body = words(&[handle, 0, 4, 0, 0]);
    body.extend(b"data");
    kernel.ask(WRITE, node, &body).unwrap().errno
}

/// RELEASE, twice as after a resend, and each time a file that may get the descriptor's
/// number.
fn a_second_release_is_harmless(kernel: &mut Kernel) -> bool {
    let (first, handle) = create(kernel, "first");
    let mut fine = write(kernel, first, handle) == 0;
    for name in ["second", "third"] {
        let released = kernel.ask(RELEASE, first, &words(&[handle, 0, 0]));
        fine &= released.is_some_and(|answer| answer.errno == 0);
        let (other_node, other) = create(kernel, name);
        fine &= other != handle
            && write(kernel, first, handle) == libc::EBADF
            && write(kernel, other_node, other) == 0;
    }
    fine
}

#[test]
fn a_release_that_comes_twice_is_harmless() {
    assert!(a_second_release_is_harmless(&mut Kernel::with_server()));
}

#[cfg(feature = "mutants")]
#[test]
fn descriptors_as_handles_are_caught_by_a_second_release() {
    plugpull_fs::mutant::select(plugpull_fs::mutant::Mutant::FdAsHandleBare);
    assert!(!a_second_release_is_harmless(&mut Kernel::with_server()));
}

#[test]
fn names_that_walk_are_refused() {
    let mut kernel = Kernel::with_server();
    for name in ["..", ".", "", "a/b", "/etc", "../../etc/passwd"] {
        let mut body = name.as_bytes().to_vec();
        body.push(0);
        assert_eq!(
            kernel.ask(LOOKUP, 1, &body).unwrap().errno,
            libc::EINVAL,
            "{name}"
        );
        let mut body = [0o755_u32, 0].map(u32::to_ne_bytes).concat();
        body.extend(format!("{name}\0").bytes());
        assert_eq!(
            kernel.ask(MKDIR, 1, &body).unwrap().errno,
            libc::EINVAL,
            "{name}"
        );
    }
}

#[test]
fn absurd_sizes_allocate_nothing_absurd() {
    let mut kernel = Kernel::with_server();
    let (node, handle) = create(&mut kernel, "f");
    let most = u64::from(u32::MAX);
    let getxattr = [words(&[most]), b"user.a\0".to_vec()].concat();
    let read = kernel.ask(READ, node, &words(&[handle, 0, most, 0, 0]));
    assert_eq!(read.unwrap().errno, 0);
    let listed = kernel.ask(LISTXATTR, node, &words(&[most])).unwrap();
    assert!(listed.body.len() <= 65_536);
    assert_ne!(kernel.ask(GETXATTR, node, &getxattr).unwrap().errno, 0);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    let kib: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 512 << 10, "{peak}");
}

/// close(2) of a file whose handle is known says what the filesystem below says.
#[test]
fn flush_asks_the_file_of_the_handle() {
    let mut kernel = Kernel::with_server();
    let (node, handle) = create(&mut kernel, "f");
    for (asked, errno) in [(handle, 0), (handle + 1, libc::EBADF)] {
        let answer = kernel.ask(FLUSH, node, &words(&[asked, 0, 0])).unwrap();
        assert_eq!(answer.errno, errno, "handle {asked} of {handle}");
    }
    assert_eq!(write(&mut kernel, node, handle), 0, "it stays open");
}

/// No kernel sends it yet; whoever does must not be told lies.
#[test]
fn syncfs_is_done_where_it_is_asked_for() {
    let mut kernel = Kernel::with_server();
    let answer = kernel.ask(SYNCFS, 1, &words(&[0])).unwrap();
    assert_eq!(answer.errno, 0);
}

/// Whatever arrives, what wants an answer gets one, and the server lives on.
#[test]
fn no_request_is_left_without_its_answer() {
    let mut kernel = Kernel::with_server();
    let node = prop_oneof![3 => Just(1_u64), 2 => 0_u64..9, 1 => any::<u64>()];
    let word = prop_oneof![4 => 0_u64..4, 1 => any::<u64>()];
    let body = prop::collection::vec(word, 0..12).prop_flat_map(|numbers| {
        let name = "[a-c/.]{0,3}\0([a-c]{0,3}\0)?";
        (Just(words(&numbers)), name, any::<bool>()).prop_map(|(numbers, name, named)| {
            let name = if named { name.into_bytes() } else { Vec::new() };
            [numbers, name].concat()
        })
    });
    let mut runner = TestRunner::new(Config {
        cases: 4000,
        failure_persistence: None,
        ..Config::default()
    });
    let kernel = std::cell::RefCell::new(&mut kernel);
    runner
        .run(&(1_u32..60, node, body), |(opcode, node, body)| {
            kernel.borrow_mut().ask(opcode, node, &body);
            Ok(())
        })
        .unwrap();
    let mut kernel = kernel.borrow_mut();
    let (node, handle) = create(&mut kernel, "still alive");
    assert_eq!(write(&mut kernel, node, handle), 0);
}
