//! Frames: JSON behind a little-endian `u32` length.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// The longest message, in bytes without its length.
pub const MAX_LEN: u32 = 1 << 20;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream ended between two frames.
    #[error("the channel is closed")]
    Closed,
    /// The stream failed, or ended inside a frame.
    #[error("the channel failed: {0}")]
    Io(#[from] io::Error),
    /// A frame is longer than [`MAX_LEN`].
    #[error("a message of {0} bytes is over the limit of {MAX_LEN}")]
    TooLong(u64),
    /// A frame holds no message of this protocol.
    #[error("a message is malformed: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// Write one message and flush it.
///
/// # Errors
/// [`Error::TooLong`] before anything is written; [`Error::Io`].
pub fn write<T: Serialize>(to: &mut impl Write, message: &T) -> Result<(), Error> {
    // One buffer and one write: a frame is never torn by another writer's
    // lock being taken in between, and a serial port sees one transfer.
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let len = frame.len() as u64 - 4;
    let short = u32::try_from(len)
        .ok()
        .filter(|len| *len <= MAX_LEN)
        .ok_or(Error::TooLong(len))?;
    frame[..4].copy_from_slice(&short.to_le_bytes());
    to.write_all(&frame)?;
    to.flush()?;
    Ok(())
}

/// Read one message.
///
/// # Errors
/// [`Error::Closed`] when the stream ended before a frame began.
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> Result<T, Error> {
    let mut len = [0; 4];
    let mut have = 0;
    while have < len.len() {
        match from.read(&mut len[have..]) {
            Ok(0) if have == 0 => return Err(Error::Closed),
            Ok(0) => return Err(Error::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let len = u32::from_le_bytes(len);
    if len > MAX_LEN {
        return Err(Error::TooLong(len.into()));
    }
    let mut body = vec![0; len as usize];
    from.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_the_trip() {
        let mut bytes = Vec::new();
        write(&mut bytes, &"héllo").expect("written");
        write(&mut bytes, &7_u32).expect("written");
        let mut from = bytes.as_slice();
        assert_eq!(read::<String>(&mut from).expect("read"), "héllo");
        assert_eq!(read::<u32>(&mut from).expect("read"), 7);
        assert!(matches!(read::<u32>(&mut from), Err(Error::Closed)));
    }

    #[test]
    fn a_torn_or_oversized_frame_is_an_error() {
        let mut bytes = Vec::new();
        write(&mut bytes, &"whole").expect("written");
        for cut in 1..bytes.len() {
            assert!(
                matches!(read::<String>(&mut &bytes[..cut]), Err(Error::Io(_))),
                "cut at {cut}"
            );
        }
        let huge = (MAX_LEN + 1).to_le_bytes();
        assert!(matches!(
            read::<String>(&mut huge.as_slice()),
            Err(Error::TooLong(_))
        ));
        assert!(matches!(
            read::<String>(&mut [2, 0, 0, 0, b'{', b'x'].as_slice()),
            Err(Error::Malformed(_))
        ));
    }

    #[test]
    fn nothing_of_an_oversized_message_is_written() {
        let mut bytes = Vec::new();
        let long = "x".repeat(MAX_LEN as usize);
        assert!(matches!(write(&mut bytes, &long), Err(Error::TooLong(_))));
        assert!(bytes.is_empty());
    }
}
