//! The lines of the promise socket: what they say, or why they say nothing.

use std::path::{Component, Path};

use plugpull_protocol::workload::user::{Keys, decode, encode, shown};

/// What a line says, with keys and values encoded in their one form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    Begin { key: String, value: Option<String> },
    Ack { key: String },
    Served { key: String, value: String },
    Mark { text: String },
}

/// The four lines, for messages.
const EXPECTED: &str = "expected `begin KEY VALUE`, `begin KEY`, `ack KEY`, `served KEY VALUE` or \
                        `mark TEXT`, with one blank between the words";

/// Read a line without its end.
pub(super) fn parse(line: &[u8], keys: Keys) -> Result<Said, String> {
    let mut words = line.splitn(2, |byte| *byte == b' ');
    let word = words.next().unwrap_or_default();
    let rest = words.next();
    if word == b"mark" {
        return mark(rest.unwrap_or_default());
    }
    let mut fields = rest.into_iter().flat_map(|rest| rest.split(|b| *b == b' '));
    // A second field that is there may be empty: the empty value.
    let (key, given, more) = (fields.next(), fields.next(), fields.next());
    let (Some(key), None) = (key, more) else {
        return Err(strange(line));
    };
    let key = || self::key(key, keys);
    let value = |value| self::value(value, keys);
    match (word, given) {
        (b"begin", given) => Ok(Said::Begin {
            key: key()?,
            value: given.map(value).transpose()?,
        }),
        (b"ack", None) => Ok(Said::Ack { key: key()? }),
        (b"served", Some(given)) => Ok(Said::Served {
            key: key()?,
            value: value(given)?,
        }),
        _ => Err(strange(line)),
    }
}

fn strange(line: &[u8]) -> String {
    format!("`{}` is no promise: {EXPECTED}", shown(line))
}

fn mark(text: &[u8]) -> Result<Said, String> {
    match std::str::from_utf8(text) {
        Ok("") => Err("`mark` without a text".into()),
        Ok(text) => Ok(Said::Mark { text: text.into() }),
        Err(_) => Err("the text of `mark` is not UTF-8".into()),
    }
}

fn key(written: &[u8], keys: Keys) -> Result<String, String> {
    let bytes = decode(written).map_err(|why| format!("the key: {why}"))?;
    if bytes.is_empty() {
        return Err("the key is empty".into());
    }
    match keys {
        Keys::Text => text("key", &bytes)?,
        Keys::Files => path(&bytes)?,
    }
    Ok(encode(&bytes))
}

fn value(written: &[u8], keys: Keys) -> Result<String, String> {
    let bytes = decode(written).map_err(|why| format!("the value: {why}"))?;
    match keys {
        Keys::Text => text("value", &bytes)?,
        Keys::Files if bytes.len() == 64 && bytes.iter().all(u8::is_ascii_hexdigit) => {
            return Ok(encode(&bytes.to_ascii_lowercase()));
        }
        Keys::Files => {
            return Err(format!(
                "the value `{}` is not the SHA-256 of a content, 64 hexadecimal digits; \
                 values of another kind want a `[check]` in the scenario",
                shown(&bytes)
            ));
        }
    }
    Ok(encode(&bytes))
}

/// The check's ledger is JSON, which is text.
fn text(what: &str, bytes: &[u8]) -> Result<(), String> {
    match std::str::from_utf8(bytes) {
        Ok(_) => Ok(()),
        Err(_) => Err(format!(
            "the {what} `{}` is not UTF-8, and the ledger is JSON; say it in hexadecimal digits",
            shown(bytes)
        )),
    }
}

/// One file has one name, or its promises would be judged apart.
fn path(bytes: &[u8]) -> Result<(), String> {
    use std::os::unix::ffi::OsStrExt;
    let path = Path::new(std::ffi::OsStr::from_bytes(bytes));
    let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
    let whole = path.components().collect::<std::path::PathBuf>();
    if plain && whole.as_os_str().as_bytes() == bytes && !bytes.contains(&0) {
        return Ok(());
    }
    Err(format!(
        "the key `{}` is no plain path below {{dir}}: relative, without `.`, `..`, double or \
         final `/`",
        shown(bytes)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> Result<Said, String> {
        parse(line.as_bytes(), Keys::Text)
    }

    #[test]
    fn every_line_is_read() {
        let begin = |value: Option<&str>| Said::Begin {
            key: "a%20b".into(),
            value: value.map(str::to_owned),
        };
        assert_eq!(said("begin a%20b v"), Ok(begin(Some("v"))));
        assert_eq!(said("begin %61%20b"), Ok(begin(None)));
        assert_eq!(said("begin a%20b "), Ok(begin(Some(""))), "an empty value");
        let key = String::from("k");
        assert_eq!(said("ack k"), Ok(Said::Ack { key: key.clone() }));
        let value = String::from("v");
        assert_eq!(said("served k v"), Ok(Said::Served { key, value }));
        let text = String::from("half way, 50% é");
        assert_eq!(said("mark half way, 50% é"), Ok(Said::Mark { text }));
    }

    #[test]
    fn what_says_nothing_is_refused_with_what_is_expected() {
        for line in [
            "",
            " ",
            "begin",
            "begin ",
            "begin k v w",
            "ack",
            "ack k v",
            "served k",
            "Begin k",
            "beginn k",
            "ack  k",
            "begin k\t",
            "mark",
            "mark ",
            "ack k\r",
            "begin k%2",
            "ack %",
        ] {
            assert!(said(line).is_err(), "{line:?}");
        }
        let why = said("put k v").expect_err("no promise");
        assert!(
            why.contains("`put k v`") && why.contains("`begin KEY VALUE`"),
            "{why}"
        );
        let why = said("begin %ff v").expect_err("not text");
        assert!(
            why.contains("UTF-8") && why.contains("hexadecimal"),
            "{why}"
        );
    }

    #[test]
    fn keys_of_files_are_plain_paths_and_values_hashes() {
        let hash = "Ab".repeat(32);
        let files = |line: String| parse(line.as_bytes(), Keys::Files);
        let good = files(format!("begin d/%FF {hash}")).expect("taken");
        let begun = Said::Begin {
            key: "d/%FF".into(),
            value: Some("ab".repeat(32)),
        };
        assert_eq!(good, begun);
        for key in [
            "/etc/passwd",
            "../x",
            "a/../b",
            "./a",
            "a//b",
            "a/",
            ".",
            "a%00b",
        ] {
            let why = files(format!("begin {key} {hash}")).expect_err(key);
            assert!(why.contains("plain path"), "{why}");
        }
        let why = files("begin a 1234".into()).expect_err("no hash");
        assert!(why.contains("SHA-256") && why.contains("[check]"), "{why}");
    }
}
