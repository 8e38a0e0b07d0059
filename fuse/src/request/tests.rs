//! The parser on messages as the kernel writes them, and on others.

use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;
use crate::abi::{ForgetOne, MknodIn, SetattrIn, WriteIn};

/// Bytes at an address that the parser can take.
struct Message {
    words: Vec<u64>,
    length: usize,
}

impl Message {
    fn raw(bytes: &[u8]) -> Self {
        let mut words = vec![0; bytes.len().div_ceil(8)];
        words.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        Message {
            words,
            length: bytes.len(),
        }
    }

    fn new(opcode: u32, parts: &[&[u8]]) -> Self {
        let body: Vec<u8> = parts.concat();
        let header = InHeader {
            len: (size_of::<InHeader>() + body.len()) as u32,
            opcode,
            unique: 7,
            nodeid: 1,
            ..InHeader::default()
        };
        Self::raw(&[header.as_bytes(), &body].concat())
    }

    fn bytes(&self) -> &[u8] {
        &self.words.as_bytes()[..self.length]
    }

    fn operation(&self) -> Result<Operation<'_>, Malformed> {
        Request::parse(self.bytes(), true).map(|request| request.operation)
    }
}

#[test]
fn names_and_arguments_are_found() {
    let arg = MknodIn {
        mode: 0o10644,
        rdev: 3,
        umask: 0o22,
        padding: 0,
    };
    let message = Message::new(opcode::MKNOD, &[arg.as_bytes(), b"a\xff b\0"]);
    let name = OsStr::from_bytes(b"a\xff b");
    assert_eq!(
        message.operation(),
        Ok(Operation::Mknod { name, arg: &arg })
    );

    let message = Message::new(opcode::SYMLINK, &[b"link\0../target\0"]);
    let (name, target) = (OsStr::new("link"), OsStr::new("../target"));
    assert_eq!(message.operation(), Ok(Operation::Symlink { name, target }));

    let arg = WriteIn {
        fh: 9,
        offset: 1 << 40,
        size: 3,
        ..WriteIn::default()
    };
    let message = Message::new(opcode::WRITE, &[arg.as_bytes(), b"abc"]);
    assert_eq!(
        message.operation(),
        Ok(Operation::Write {
            arg: &arg,
            data: b"abc"
        })
    );

    let nodes = [
        ForgetOne {
            nodeid: 4,
            nlookup: 2,
        },
        ForgetOne {
            nodeid: 5,
            nlookup: 1,
        },
    ];
    let message = Message::new(
        opcode::BATCH_FORGET,
        &[&[2, 0, 0, 0, 0, 0, 0, 0], nodes.as_bytes()],
    );
    assert_eq!(
        message.operation(),
        Ok(Operation::BatchForget { nodes: &nodes })
    );
}

#[test]
fn both_forms_of_setxattr_are_read() {
    let long = Message::new(
        opcode::SETXATTR,
        &[[2_u32, 1, 1, 0].as_bytes(), b"user.a\0xy"],
    );
    let (name, value) = (OsStr::new("user.a"), b"xy".as_slice());
    let expected = Operation::Setxattr {
        name,
        value,
        flags: 1,
        kill_sgid: true,
    };
    assert_eq!(long.operation(), Ok(expected));
    let short = Message::new(opcode::SETXATTR, &[[2_u32, 1].as_bytes(), b"user.a\0xy"]);
    let read = Request::parse(short.bytes(), false).unwrap().operation;
    let expected = Operation::Setxattr {
        name,
        value,
        flags: 1,
        kill_sgid: false,
    };
    assert_eq!(read, expected);
}

#[test]
fn times_are_the_kernels_own() {
    let valid = fattr::ATIME | fattr::MTIME | fattr::MTIME_NOW;
    let arg = SetattrIn {
        valid,
        atime: (-2_i64).cast_unsigned(),
        atimensec: 800_000_000,
        ..SetattrIn::default()
    };
    let message = Message::new(opcode::SETATTR, &[arg.as_bytes()]);
    let Ok(Operation::Setattr(change)) = message.operation() else {
        panic!()
    };
    assert_eq!(
        change.atime(),
        SetTime::At {
            seconds: -2,
            nanoseconds: 800_000_000
        }
    );
    assert_eq!(change.mtime(), SetTime::Now);
    assert_eq!(
        (change.size(), change.mode(), change.fh()),
        (None, None, None)
    );
}

#[test]
fn what_is_cut_short_is_malformed() {
    for (code, body) in [
        (opcode::LOOKUP, b"no end".as_slice()),
        (opcode::RENAME2, &[0; 16]),
        (opcode::READ, &[0; 39]),
        (opcode::WRITE, &[0xff; 40]),
        (opcode::BATCH_FORGET, &[0xff; 8]),
        (opcode::SETXATTR, &[0xff; 24]),
        (opcode::IOCTL, &[0xff; 32]),
    ] {
        let message = Message::new(code, &[body]);
        assert_eq!(message.operation(), Err(Malformed::Arguments(code)));
    }
    let whole = Message::new(opcode::LOOKUP, &[b"name\0"]);
    let cut = &whole.bytes()[..whole.length - 1];
    assert_eq!(
        Request::parse(cut, true),
        Err(Malformed::Length { said: 45, has: 44 })
    );
    assert_eq!(
        Request::parse(&cut[..39], true),
        Err(Malformed::NoHeader(39))
    );
}

#[test]
fn extensions_are_no_arguments() {
    let mut message = Message::new(opcode::LOOKUP, &[b"name\0\0\0\0", &[0xee; 8]]);
    // total_extlen, in units of 8 bytes.
    message.words.as_mut_bytes()[36] = 1;
    assert_eq!(
        message.operation(),
        Ok(Operation::Lookup {
            name: OsStr::new("name")
        })
    );
    message.words.as_mut_bytes()[36] = 3;
    assert_eq!(message.operation(), Err(Malformed::Extensions(24)));
}

proptest! {
    /// Whatever arrives, the parser answers.
    #[test]
    fn no_message_panics(
        opcode in 0_u32..60,
        extensions in prop_oneof![4 => Just(0_u16), 1 => any::<u16>()],
        body in prop::collection::vec(any::<u8>(), 0..200),
        ext in any::<bool>(),
    ) {
        let mut message = Message::new(opcode, &[&body]);
        message.words.as_mut_bytes()[36..38].copy_from_slice(extensions.as_bytes());
        let parsed = Request::parse(message.bytes(), ext);
        if opcode == opcode::LOOKUP && extensions == 0 {
            prop_assert_eq!(parsed.is_ok(), body.contains(&0));
        }
    }
}
