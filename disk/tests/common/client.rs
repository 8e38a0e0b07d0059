//! A client written from the protocol's text, so that the server is not tested against itself.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISCONNECT: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const FUA: u16 = 1;

/// A connection in the transmission phase.
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    pub(crate) size: u64,
    pub(crate) flags: u16,
    next_cookie: u64,
}

impl Client {
    /// Connects and chooses the default export by `EXPORT_NAME`.
    pub(crate) fn connect(socket: &Path) -> Client {
        let mut stream = dial(socket);
        greet(&mut stream);
        stream.write_all(b"IHAVEOPT").expect("option");
        stream.write_all(&1_u32.to_be_bytes()).expect("EXPORT_NAME");
        stream.write_all(&0_u32.to_be_bytes()).expect("length");
        let mut export = [0; 10];
        stream.read_exact(&mut export).expect("the export");
        Client {
            stream,
            size: u64::from_be_bytes(export[..8].try_into().expect("eight bytes")),
            flags: u16::from_be_bytes([export[8], export[9]]),
            next_cookie: 1,
        }
    }

    /// Sends a request without waiting; returns its cookie.
    pub(crate) fn send(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u32,
        data: &[u8],
    ) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(data);
        self.stream.write_all(&bytes).expect("send a request");
        cookie
    }

    /// The next answer: cookie and error. Data, if any, is for the caller to read.
    pub(crate) fn answer(&mut self) -> (u64, u32) {
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply).expect("an answer");
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes(), "a simple reply");
        (
            u64::from_be_bytes(reply[8..].try_into().expect("eight bytes")),
            u32::from_be_bytes(reply[4..8].try_into().expect("four bytes")),
        )
    }

    /// Sends a request and returns the error it is answered with.
    pub(crate) fn call(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u32,
        data: &[u8],
    ) -> u32 {
        let cookie = self.send(command, flags, offset, length, data);
        let (answered, error) = self.answer();
        assert_eq!(answered, cookie);
        error
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        assert_eq!(self.call(WRITE, 0, offset, data.len() as u32, data), 0);
    }

    pub(crate) fn write_fua(&mut self, offset: u64, data: &[u8]) {
        assert_eq!(self.call(WRITE, FUA, offset, data.len() as u32, data), 0);
    }

    pub(crate) fn flush(&mut self) {
        assert_eq!(self.call(FLUSH, 0, 0, 0, &[]), 0);
    }

    pub(crate) fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        assert_eq!(self.call(READ, 0, offset, length, &[]), 0);
        let mut data = vec![0; length as usize];
        self.stream.read_exact(&mut data).expect("the data");
        data
    }

    /// Whether the server has hung up, within the stream's deadline.
    pub(crate) fn is_disconnected(&mut self) -> bool {
        is_disconnected(&mut self.stream)
    }

    /// Whether nothing at all comes for a while: neither an answer nor a hang-up.
    pub(crate) fn is_silent(&mut self) -> bool {
        let quick = Some(Duration::from_millis(200));
        self.stream.set_read_timeout(quick).expect("a deadline");
        match self.stream.read(&mut [0; 1]) {
            Ok(0 | 1) => false,
            Ok(more) => unreachable!("{more} bytes in a buffer of one"),
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}

pub(crate) fn is_disconnected(stream: &mut UnixStream) -> bool {
    match stream.read(&mut [0; 1]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// Connects, with a deadline on everything that is read.
pub(crate) fn dial(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).expect("connect");
    let deadline = Some(Duration::from_secs(10));
    stream.set_read_timeout(deadline).expect("a deadline");
    stream
}

/// Takes the server's greeting and answers it with both flags.
pub(crate) fn greet(stream: &mut UnixStream) {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).expect("the greeting");
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    assert_eq!(greeting[16..], [0, 3]);
    stream.write_all(&3_u32.to_be_bytes()).expect("flags");
}
