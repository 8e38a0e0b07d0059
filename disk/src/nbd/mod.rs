//! An NBD server on a UNIX socket, for QEMU's client and any other that speaks newstyle.
//!
//! Spoken: the fixed newstyle handshake with `EXPORT_NAME`, `INFO`, `GO`, `LIST`, `ABORT`; one
//! export, the default one (the empty name); `READ`, `WRITE`, `FLUSH`, `TRIM`, `WRITE_ZEROES`,
//! `DISC`; FUA; simple replies. Everything else is refused the way the protocol asks for. A client
//! that breaks the framing is disconnected.
//!
//! Each connection has a reader that records submissions as fast as they arrive; one executor for
//! the whole disk carries requests out in order of submission and answers them. A client that
//! stops reading its answers therefore holds up the others.
//!
//! Source: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.

mod connection;
mod handshake;
mod protocol;
mod server;

pub use server::Server;
