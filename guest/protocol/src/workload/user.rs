//! A program that somebody else wrote: run, heard on its promise socket,
//! checked.
//!
//! Keys and values travel percent-encoded in one form, see [`encode`], so that
//! any bytes fit into JSON and one key has one name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Exited;

/// The variable of the workload's environment that names the promise socket.
pub const SOCKET_VARIABLE: &str = "PLUGPULL";

/// The longest line on the promise socket, in bytes without its end.
pub const LINE_MAX: usize = 64 << 10;

/// The mark before the program is started, when its directory is durable.
pub const MARK_START: &str = "program-begin";

/// What the guest is asked to do about a user's program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "kebab-case")]
pub enum UserRequest {
    /// Make the directory durable, then run the program to its end while
    /// taking its promises. Answered with [`UserSeen::Ran`].
    Run {
        /// The directory on the mount that is the program's own; must not
        /// exist.
        dir: String,
        /// The program and how it is called.
        program: Call,
        /// What the promise socket takes.
        socket: SocketRules,
    },
    /// Put a part of the ledger into the file that a check reads. Answered
    /// with [`UserSeen::Written`].
    Ledger {
        /// The file; in memory.
        path: String,
        /// Whole lines.
        text: String,
        /// Whether this is the first part: the file is made anew.
        first: bool,
    },
    /// Run the check to its end. Answered with [`UserSeen::Checked`].
    Check {
        /// The check and how it is called.
        program: Call,
    },
    /// Look at these files below a directory. Answered with
    /// [`UserSeen::Files`].
    Files {
        /// The directory.
        dir: String,
        /// Their paths below it, encoded.
        keys: Vec<String>,
    },
}

/// How a program is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Where it is run.
    pub cwd: String,
    /// Program and arguments, with nothing left to fill in.
    pub argv: Vec<String>,
    /// Killed, with its whole process group, after this time.
    pub timeout_ms: u64,
}

/// What the promise socket takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketRules {
    /// What keys and values are.
    pub keys: Keys,
    /// More promises than this are a flood.
    pub promises_max: u64,
    /// And so are more bytes of lines than this.
    pub bytes_max: u64,
}

/// What keys and values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keys {
    /// Text: a check reads them from JSON.
    Text,
    /// Keys are paths below the directory, values SHA-256 in hexadecimal
    /// digits.
    Files,
}

/// What was seen of a user's program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "user", rename_all = "kebab-case")]
pub enum UserSeen {
    /// It ran.
    Ran(Box<UserRan>),
    /// A part of the ledger is in its file.
    Written,
    /// The check ran.
    Checked {
        /// How it ended.
        ended: Ended,
    },
    /// Files were looked at.
    Files {
        /// What each path holds, by its key.
        files: BTreeMap<String, UserFile>,
    },
}

/// How a user's program ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRan {
    /// How it ended.
    pub ended: Ended,
    /// Connections that it made to the promise socket.
    pub connections: u64,
    /// What the socket refused first, if anything.
    pub refused: Option<String>,
}

/// How a user's program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// It exited, or a signal ended it.
    Exited(Exited),
    /// It had to be killed.
    Hung {
        /// After this time.
        after_ms: u64,
        /// The last that it said, standard output first.
        said: String,
    },
    /// It could not be started at all.
    NotStarted {
        /// Why.
        why: String,
    },
}

/// What a path holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UserFile {
    /// Nothing is there.
    Absent,
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// SHA-256 of its content, in small hexadecimal digits.
        sha256: String,
    },
    /// Something that is no regular file.
    Other {
        /// What it is.
        kind: String,
    },
    /// It cannot be read.
    Unreadable {
        /// The error.
        why: String,
    },
}

/// Bytes as text of one form: every byte outside `[A-Za-z0-9._/-]`
/// percent-encoded, with capital digits.
pub fn encode(bytes: &[u8]) -> String {
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

/// The bytes that percent-encoded text stands for.
///
/// # Errors
/// A byte that must have been encoded, or an escape that is none.
pub fn decode(text: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            if !byte.is_ascii_graphic() {
                return Err(format!("the byte 0x{byte:02X} must be written %{byte:02X}"));
            }
            out.push(byte);
            continue;
        }
        let digits = rest
            .get(..2)
            .filter(|d| d.iter().all(u8::is_ascii_hexdigit));
        let value = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let Some(value) = value else {
            return Err(format!(
                "a `%` without two hexadecimal digits in `{}`; `%` itself is written %25",
                shown(text)
            ));
        };
        out.push(value);
        rest = &rest[2..];
    }
    Ok(out)
}

/// The start of bytes that somebody wrote, for a message.
pub fn shown(bytes: &[u8]) -> String {
    const SHOWN: usize = 80;
    let more = if bytes.len() > SHOWN { "…" } else { "" };
    format!("{}{more}", bytes[..bytes.len().min(SHOWN)].escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_make_the_trip_and_one_form_comes_out() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(encode(&all).as_bytes()).expect("decoded"), all);
        assert_eq!(
            encode(&decode(b"%61%2fb%c3!").expect("decoded")),
            "a/b%C3%21"
        );
    }

    #[test]
    fn what_is_not_encoded_is_named() {
        for (text, word) in [
            (&b"a b"[..], "%20"),
            (b"\xff", "%FF"),
            (b"a\r", "%0D"),
            (b"50%", "%25"),
            (b"%4", "two hexadecimal"),
            (b"%+4", "two hexadecimal"),
            (b"%zz", "two hexadecimal"),
        ] {
            let why = decode(text).expect_err("refused");
            assert!(why.contains(word), "{why}");
        }
    }
}
