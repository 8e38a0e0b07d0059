//! Tells plugpull what a program promises. One file, nothing but the standard
//! library.
//!
//! ```ignore
//! mod plugpull;
//!
//! let mut promises = plugpull::Promises::connect()?;  // one for each thread
//! promises.begin("notes/1", Some(&value))?;           // before it begins to write
//! // write, sync, whatever makes it durable
//! promises.ack("notes/1")?;                           // after it gave its word
//! ```
//!
//! Each call returns when plugpull has recorded it; an error means that it was
//! not, and that the test run is void. Outside a test, where the environment
//! has no PLUGPULL, the calls do nothing.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
};

/// A connection to the promise socket.
#[derive(Debug)]
pub struct Promises(Option<BufReader<UnixStream>>);

impl Promises {
    /// Connect to the socket that PLUGPULL names, if there is one.
    pub fn connect() -> io::Result<Self> {
        match std::env::var_os("PLUGPULL") {
            Some(path) => Self::connect_to(path),
            None => Ok(Self(None)),
        }
    }

    /// Connect to a socket by its path.
    pub fn connect_to(path: impl AsRef<std::path::Path>) -> io::Result<Self> {
        Ok(Self(Some(BufReader::new(UnixStream::connect(path)?))))
    }

    /// The key is about to get this value; without one, to be removed.
    pub fn begin<V: AsRef<[u8]> + ?Sized>(
        &mut self,
        key: impl AsRef<[u8]>,
        value: Option<&V>,
    ) -> io::Result<()> {
        let value = value.map(|value| format!(" {}", encoded(value.as_ref())));
        let key = encoded(key.as_ref());
        self.say(&format!("begin {key}{}", value.unwrap_or_default()))
    }

    /// The program now promises the latest `begin` of the key on this value.
    pub fn ack(&mut self, key: impl AsRef<[u8]>) -> io::Result<()> {
        self.say(&format!("ack {}", encoded(key.as_ref())))
    }

    /// A reader was given this value of the key.
    pub fn served(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> io::Result<()> {
        let (key, value) = (encoded(key.as_ref()), encoded(value.as_ref()));
        self.say(&format!("served {key} {value}"))
    }

    /// Name this moment, in one line; a scenario can cut the power there.
    pub fn mark(&mut self, text: &str) -> io::Result<()> {
        if text.contains('\n') {
            return Err(io::Error::other("a mark is one line"));
        }
        self.say(&format!("mark {text}"))
    }

    fn say(&mut self, line: &str) -> io::Result<()> {
        let Some(stream) = &mut self.0 else {
            return Ok(());
        };
        stream.get_mut().write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_line(&mut answer)?;
        match answer.trim_end() {
            "ok" => Ok(()),
            "" => Err(io::Error::other("plugpull hung up")),
            why => Err(io::Error::other(why)),
        }
    }
}

fn encoded(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"._-/".contains(&byte) {
            out.push(byte.into());
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
