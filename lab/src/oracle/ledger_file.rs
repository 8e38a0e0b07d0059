//! The ledger as a user's check reads it: JSON lines.

use std::collections::HashMap;

use plugpull_protocol::{Promise, workload::user::decode};
use serde::Serialize;

/// One line. The order of fields is the order in the file.
#[derive(Serialize)]
struct Line<'a> {
    key: String,
    /// Absent where the promise is a removal.
    value: Option<String>,
    state: &'a str,
}

/// Everything promised up to and including sequence number `cut`, in order,
/// every line with its value. Marks are no promises.
pub fn json_lines<'a>(records: impl IntoIterator<Item = (u64, &'a Promise)>, cut: u64) -> String {
    let mut latest: HashMap<(u32, &str), Option<&str>> = HashMap::new();
    let mut out = String::new();
    for (_, promise) in records.into_iter().take_while(|(seq, _)| *seq <= cut) {
        let (key, value, state) = match promise {
            Promise::Begin { conn, key, value } => {
                latest.insert((*conn, key), value.as_deref());
                (key, value.as_deref(), "begun")
            }
            Promise::Ack { conn, key } => {
                let value = latest.get(&(*conn, key.as_str())).copied().flatten();
                (key, value, "acked")
            }
            Promise::Served { key, value } => (key, Some(value.as_str()), "served"),
            Promise::Mark { .. } | Promise::Garbled { .. } => continue,
        };
        let line = Line {
            key: plain(key),
            value: value.map(plain),
            state,
        };
        // A struct of texts has no way not to be JSON.
        out.push_str(&serde_json::to_string(&line).unwrap_or_default());
        out.push('\n');
    }
    out
}

/// As the program wrote it before it was encoded. The socket takes nothing
/// that is no UTF-8 where a check judges.
fn plain(encoded: &str) -> String {
    let bytes = decode(encoded.as_bytes()).unwrap_or_else(|_| encoded.as_bytes().to_vec());
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_its_value_and_the_cut_ends_the_file() {
        let begin = |conn, value: Option<&str>| Promise::Begin {
            conn,
            key: "a%20%22b%22".into(),
            value: value.map(str::to_owned),
        };
        let ack = |conn| Promise::Ack {
            conn,
            key: "a%20%22b%22".into(),
        };
        let served = Promise::Served {
            key: "k".into(),
            value: "%0A".into(),
        };
        let mark = Promise::Mark { text: "x".into() };
        let all = [
            begin(1, Some("1")),
            begin(2, Some("2")),
            ack(1),
            mark,
            ack(2),
            begin(1, None),
            ack(1),
            served,
            begin(1, Some("late")),
        ];
        let lines = json_lines((10..).zip(&all), 17);
        let key = r#"{"key":"a \"b\"","value":"#;
        let expected = [
            format!(r#"{key}"1","state":"begun"}}"#),
            format!(r#"{key}"2","state":"begun"}}"#),
            format!(r#"{key}"1","state":"acked"}}"#),
            format!(r#"{key}"2","state":"acked"}}"#),
            format!(r#"{key}null,"state":"begun"}}"#),
            format!(r#"{key}null,"state":"acked"}}"#),
            r#"{"key":"k","value":"\n","state":"served"}"#.to_owned(),
        ];
        assert_eq!(lines.lines().collect::<Vec<_>>(), expected);
    }
}
