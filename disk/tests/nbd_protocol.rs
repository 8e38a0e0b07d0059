//! The wire, byte by byte: FUA, pipelining, and what a server must survive.

mod common;

use std::io::{Read, Write};

use common::client::{
    Client, DISCONNECT, FLUSH, FUA, READ, TRIM, WRITE, WRITE_ZEROES, dial, greet, is_disconnected,
};
use common::{Rig, noise};
use plugpull_disk::{ByteCount, Disk, Entry, Honesty, Operation, View};

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const SIZE: ByteCount = ByteCount::mib(4);

#[test]
fn the_old_way_to_choose_the_export_works() {
    let rig = Rig::new(SIZE, Honesty::Volatile);
    let client = rig.connect();
    assert_eq!(client.size, SIZE.0);
    assert_eq!(client.flags, 0b110_1101, "flags, flush, fua, trim, zeroes");
}

#[test]
fn fua_is_recorded_on_the_request_that_carried_it() {
    let rig = Rig::new(SIZE, Honesty::Volatile);
    let mut client = rig.connect();
    client.write(0, &noise(1, 4096));
    client.write_fua(4096, &noise(2, 512));
    assert_eq!(client.call(WRITE_ZEROES, FUA, 8192, 4096, &[]), 0);
    assert_eq!(client.call(TRIM, 0, 12288, 4096, &[]), 0);
    client.flush();
    assert_eq!(client.read(4096, 512), noise(2, 512));
    let recording = rig.disk.finish().expect("a recording");
    let seen: Vec<_> = recording
        .entries()
        .iter()
        .filter_map(|entry| match entry {
            Entry::Submit(submit) => Some((submit.operation, submit.at.0, submit.fua)),
            _ => None,
        })
        .collect();
    assert_eq!(
        seen,
        [
            (Operation::Write, 0, false),
            (Operation::Write, 8, true),
            (Operation::WriteZeroes, 16, true),
            (Operation::Trim, 24, false),
            (Operation::Flush, 0, false),
        ]
    );
}

#[test]
fn pipelined_requests_are_seen_to_overlap_and_answered_in_order() {
    let rig = Rig::new(SIZE, Honesty::Volatile);
    let mut client = rig.connect();
    let mut writer = client.stream.try_clone().expect("a second handle");
    // One burst, so that the server's reader has many requests before its executor can answer
    // the first; and more of them than it lets be under way at once.
    let mut burst = Vec::new();
    for number in 0..600_u64 {
        burst.extend(0x2560_9513_u32.to_be_bytes());
        burst.extend([0, 0, 0, WRITE as u8]);
        burst.extend(number.to_be_bytes());
        burst.extend((number % 64 * 4096).to_be_bytes());
        burst.extend(4096_u32.to_be_bytes());
        burst.extend([number as u8; 4096]);
    }
    std::thread::scope(|scope| {
        scope.spawn(move || writer.write_all(&burst).expect("the burst"));
        for number in 0..600 {
            assert_eq!(client.answer(), (number, 0));
        }
    });
    assert_eq!(client.read(63 * 4096, 4096), [(575 % 256) as u8; 4096]);
    let recording = rig.disk.finish().expect("a recording");
    let mut outstanding = 0_i32;
    let mut most = 0;
    for entry in recording.entries() {
        match entry {
            Entry::Submit(_) => outstanding += 1,
            Entry::Complete(_) => outstanding -= 1,
            _ => {}
        }
        most = most.max(outstanding);
    }
    assert!((2..=256).contains(&most), "{most} were under way at once");
}

#[test]
fn bad_requests_are_answered_with_the_protocols_errors() {
    let rig = Rig::new(SIZE, Honesty::Volatile);
    let mut client = rig.connect();
    let end = SIZE.0;
    let block = [7; 4096];
    type Case<'a> = (u16, u16, u64, u32, &'a [u8], u32);
    let cases: &[Case<'_>] = &[
        (READ, 0, end, 512, &[], EINVAL),
        (READ, 0, u64::MAX - 511, 512, &[], EINVAL),
        (READ, 0, 0, (32 << 20) + 512, &[], EINVAL),
        (WRITE, 0, end - 512, 4096, &block, ENOSPC),
        (WRITE, 0, u64::MAX, 4096, &block, ENOSPC),
        (WRITE_ZEROES, 0, end, 512, &[], ENOSPC),
        (TRIM, 0, end, 512, &[], EINVAL),
        (WRITE, 0, 1, 512, &block[..512], EINVAL),
        (WRITE, 0, 0, 513, &block[..513], EINVAL),
        (READ, 0, 0, 0, &[], EINVAL),
        (FLUSH, 0, 512, 0, &[], EINVAL),
        (WRITE, 1 << 9, 0, 512, &block[..512], EINVAL),
        (99, 0, 0, 512, &[], EINVAL),
    ];
    for (command, flags, offset, length, data, error) in cases {
        let got = client.call(*command, *flags, *offset, *length, data);
        assert_eq!(got, *error, "command {command} at {offset} for {length}");
    }
    assert_eq!(rig.disk.counts().rejected, cases.len() as u64);
    client.write(0, &block);
    assert_eq!(
        client.read(0, 4096),
        block,
        "the connection is as good as ever"
    );
    let recording = rig.disk.finish().expect("a recording");
    assert_eq!(
        recording.entries().len(),
        2,
        "only the good write is recorded"
    );
}

#[test]
fn a_write_longer_than_any_payload_is_read_over_and_refused() {
    let rig = Rig::new(ByteCount::mib(64), Honesty::Volatile);
    let mut client = rig.connect();
    let data = vec![1; 33 << 20];
    assert_eq!(client.call(WRITE, 0, 0, 33 << 20, &data), EINVAL);
    assert_eq!(client.read(0, 512), [0; 512]);
}

#[test]
fn a_read_only_disk_refuses_what_writes() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = Disk::read_only(View::zeros(SIZE).expect("a size"));
    let socket = dir.path().join("nbd.sock");
    let _server = disk.serve(&socket).expect("server");
    let mut client = Client::connect(&socket);
    assert_eq!(client.call(WRITE, 0, 0, 512, &[1; 512]), EPERM);
    assert_eq!(client.call(TRIM, 0, 0, 512, &[]), EPERM);
    assert_eq!(client.read(0, 512), [0; 512]);
}

#[test]
fn a_client_that_breaks_the_framing_is_disconnected_and_others_are_not() {
    let rig = Rig::new(SIZE, Honesty::Volatile);
    let mut good = rig.connect();
    let mut wrong_magic = rig.connect();
    wrong_magic.stream.write_all(&[0x25; 28]).expect("nonsense");
    assert!(wrong_magic.is_disconnected());

    let mut half = rig.connect();
    half.stream
        .write_all(&[0x25, 0x60, 0x95])
        .expect("a beginning");
    half.stream
        .shutdown(std::net::Shutdown::Write)
        .expect("a hang-up");
    assert!(half.is_disconnected());

    let mut polite = rig.connect();
    polite.send(DISCONNECT, 0, 0, 0, &[]);
    assert!(polite.is_disconnected());

    good.write(0, &[3; 512]);
    assert_eq!(good.read(0, 512), [3; 512]);
}

#[test]
fn nonsense_in_the_handshake_is_refused_or_ends_it() {
    let rig = Rig::new(SIZE, Honesty::Volatile);
    let socket = rig.path("nbd.sock");
    let option = |number: u32, data: &[u8]| {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(number.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes
    };
    // Refused, and the handshake goes on: unknown option, unknown name, data that does not parse.
    let mut stream = dial(&socket);
    greet(&mut stream);
    let go_elsewhere = [&4_u32.to_be_bytes()[..], b"else", &[0, 0]].concat();
    let refusals: [(u32, &[u8], u32); 5] = [
        (5, &[], 1),
        (8, &[], 1),
        (7, &go_elsewhere, 6),
        (6, &[0, 0, 0, 9, 1], 3),
        (6, &[0, 0, 0, 0, 0, 9], 3),
    ];
    for (number, data, error) in refusals {
        stream.write_all(&option(number, data)).expect("an option");
        let mut reply = [0; 20];
        stream.read_exact(&mut reply).expect("a reply");
        assert_eq!(reply[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
        assert_eq!(
            reply[12..16],
            ((1 << 31) | error).to_be_bytes(),
            "option {number}"
        );
    }
    // Ended: a wrong magic, flags nobody knows, an export that is not there, a huge option.
    let mut huge = b"IHAVEOPT\0\0\0\x07".to_vec();
    huge.extend(u32::MAX.to_be_bytes());
    for bytes in [
        b"IHAVENOT\0\0\0\x01\0\0\0\0".to_vec(),
        option(1, b"else"),
        huge,
    ] {
        let mut stream = dial(&socket);
        greet(&mut stream);
        stream.write_all(&bytes).expect("nonsense");
        assert!(is_disconnected(&mut stream), "{bytes:?}");
    }
    let mut stream = dial(&socket);
    stream.read_exact(&mut [0; 18]).expect("the greeting");
    stream.write_all(&0x80_u32.to_be_bytes()).expect("flags");
    assert!(is_disconnected(&mut stream));
    rig.connect().write(0, &[1; 512]);
}

#[test]
fn random_bytes_never_stop_the_server() {
    let rig = Rig::new(SIZE, Honesty::Volatile);
    for seed in 0..60 {
        let mut bytes = noise(seed, 2000);
        let mut client = rig.connect();
        if seed % 2 == 0 {
            // Heads that are nearly good take the bytes further in.
            for start in (0..bytes.len() - 28).step_by(28) {
                bytes[start..start + 4].copy_from_slice(&0x2560_9513_u32.to_be_bytes());
                let command = bytes[start + 7] % 9;
                bytes[start + 4..start + 8].copy_from_slice(&[0, command & 1, 0, command]);
                bytes[start + 16..start + 22].fill(0);
                bytes[start + 24..start + 26].fill(0);
            }
        }
        // The server may hang up in the middle of it.
        let _ = client.stream.write_all(&bytes);
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        let _ = client.stream.read_to_end(&mut Vec::new());
    }
    rig.connect().flush();
}

#[test]
fn a_dropped_server_hangs_up_and_frees_its_socket() {
    let mut rig = Rig::new(SIZE, Honesty::Volatile);
    let mut client = rig.connect();
    client.write(0, &[1; 512]);
    let busy = rig
        .disk
        .serve(&rig.path("nbd.sock"))
        .err()
        .expect("an error");
    assert!(busy.to_string().contains("listens"), "{busy:#}");
    drop(rig.server.take());
    assert!(client.is_disconnected());
    assert!(!rig.path("nbd.sock").exists());
    rig.server = Some(rig.disk.serve(&rig.path("nbd.sock")).expect("again"));
    assert_eq!(rig.connect().read(0, 512), [1; 512]);
}

#[test]
fn the_socket_of_a_killed_run_is_taken_over() {
    let rig = Rig::new(SIZE, Honesty::Volatile);
    let path = rig.path("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
    assert!(path.exists());
    let _server = rig.disk.serve(&path).expect("server");
    Client::connect(&path).flush();
}
