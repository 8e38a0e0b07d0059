//! What a workload had promised by the time the power went.

use std::collections::BTreeMap;

use plugpull_protocol::Promise;

/// A ledger as of a cut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    keys: BTreeMap<String, Key>,
    marks: Vec<(u64, String)>,
}

/// What happened to a key, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Key {
    /// What was begun.
    pub attempts: Vec<Attempt>,
    /// What readers were served, and when.
    pub served: Vec<(u64, String)>,
}

/// One `begin` and perhaps its `ack`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The connection.
    pub conn: u32,
    /// The value it gives the key; none is removal.
    pub value: Option<String>,
    /// The sequence number of its begin.
    pub begun: u64,
    /// The sequence number of its acknowledgement.
    pub acked: Option<u64>,
}

/// A recording that is no ledger: an infrastructure error, because a verdict
/// from it would mean nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLedger {
    /// Sequence numbers go backwards.
    #[error("the ledger's entry at seq {seq} comes after the one at seq {after}")]
    Order {
        /// This one's number.
        seq: u64,
        /// The one before.
        after: u64,
    },
    /// The workload broke the rules of the promise socket.
    #[error("the workload said something that is no promise: {why}")]
    Garbled {
        /// What was refused.
        why: String,
    },
    /// An acknowledgement of nothing.
    #[error("seq {seq} acknowledges {key}, which connection {conn} never began")]
    NeverBegun {
        /// Its number.
        seq: u64,
        /// The connection.
        conn: u32,
        /// The key.
        key: String,
    },
}

impl Ledger {
    /// The ledger of everything recorded up to and including sequence number
    /// `cut`.
    ///
    /// # Errors
    /// [`BadLedger`], even for what comes after the cut.
    pub fn at<'a>(
        records: impl IntoIterator<Item = (u64, &'a Promise)>,
        cut: u64,
    ) -> Result<Self, BadLedger> {
        let mut ledger = Self::default();
        let mut whole = Self::default();
        let mut last = 0;
        for (seq, promise) in records {
            if seq < last {
                return Err(BadLedger::Order { seq, after: last });
            }
            last = seq;
            whole.take(seq, promise)?;
            if seq <= cut {
                ledger.take(seq, promise)?;
            }
        }
        Ok(ledger)
    }

    fn take(&mut self, seq: u64, promise: &Promise) -> Result<(), BadLedger> {
        match promise {
            Promise::Begin { conn, key, value } => {
                let key = self.keys.entry(key.clone()).or_default();
                key.attempts.push(Attempt {
                    conn: *conn,
                    value: value.clone(),
                    begun: seq,
                    acked: None,
                });
            }
            Promise::Ack { conn, key } => {
                let attempts = self.keys.get_mut(key).map(|k| k.attempts.iter_mut().rev());
                let latest = attempts.and_then(|mut all| all.find(|a| a.conn == *conn));
                let latest = latest.ok_or_else(|| BadLedger::NeverBegun {
                    seq,
                    conn: *conn,
                    key: key.clone(),
                })?;
                // Said twice is promised since the first time.
                latest.acked.get_or_insert(seq);
            }
            Promise::Served { key, value } => {
                let key = self.keys.entry(key.clone()).or_default();
                key.served.push((seq, value.clone()));
            }
            Promise::Mark { text } => self.marks.push((seq, text.clone())),
            Promise::Garbled { why } => return Err(BadLedger::Garbled { why: why.clone() }),
        }
        Ok(())
    }

    /// Every key that was begun or served, by name.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &Key)> {
        self.keys.iter().map(|(name, key)| (name.as_str(), key))
    }

    /// One key.
    pub fn key(&self, name: &str) -> Option<&Key> {
        self.keys.get(name)
    }

    /// The marks and their places.
    pub fn marks(&self) -> &[(u64, String)] {
        &self.marks
    }

    /// How many attempts were acknowledged.
    pub fn acked(&self) -> usize {
        let attempts = self.keys.values().flat_map(|key| &key.attempts);
        attempts.filter(|a| a.acked.is_some()).count()
    }

    /// True between a mark that starts with `begin` and the next one that
    /// starts with `end`: whether the cut fell inside a checkpoint.
    pub fn inside(&self, begin: &str, end: &str) -> bool {
        let texts = self.marks.iter().rev().map(|(_, text)| text);
        let mut relevant = texts.filter(|t| t.starts_with(begin) || t.starts_with(end));
        relevant.next().is_some_and(|t| t.starts_with(begin))
    }
}

impl Key {
    /// The first promise that the key's latest value was given: by an
    /// acknowledgement or by serving it.
    pub fn promised(&self) -> Option<(u64, &'static str)> {
        let acked = self.attempts.iter().filter_map(|a| a.acked).min();
        let served = self.served.first().map(|(seq, _)| *seq);
        match (acked, served) {
            (Some(acked), Some(served)) if served < acked => Some((served, "served")),
            (Some(acked), _) => Some((acked, "acknowledged")),
            (None, Some(served)) => Some((served, "served")),
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn begin(conn: u32, key: &str, value: &str) -> Promise {
        Promise::Begin {
            conn,
            key: key.into(),
            value: Some(value.into()),
        }
    }

    fn ack(conn: u32, key: &str) -> Promise {
        Promise::Ack {
            conn,
            key: key.into(),
        }
    }

    #[test]
    fn an_ack_belongs_to_its_connections_latest_begin_and_the_cut_counts() {
        let all = [
            begin(1, "k", "a"),
            begin(2, "k", "b"),
            ack(1, "k"),
            Promise::Served {
                key: "k".into(),
                value: "b".into(),
            },
            ack(2, "k"),
        ];
        let at = |cut| Ledger::at((10..).step_by(10).zip(&all), cut).expect("a ledger");
        let acked = |cut| -> Vec<_> {
            let key = at(cut).key("k").cloned().expect("begun");
            key.attempts.iter().map(|a| a.acked).collect()
        };
        assert_eq!(acked(29), [None, None]);
        assert_eq!(acked(30), [Some(30), None]);
        assert_eq!(acked(99), [Some(30), Some(50)]);
        assert_eq!(at(9), Ledger::default());
        let promised = |cut| at(cut).key("k").expect("begun").promised();
        assert_eq!(promised(20), None);
        assert_eq!(promised(50), Some((30, "acknowledged")));
        assert_eq!((at(30).acked(), at(50).acked()), (1, 2));
    }

    #[test]
    fn nonsense_is_an_error_wherever_it_stands() {
        let stray = [begin(1, "k", "a"), ack(2, "k")];
        let never = Ledger::at((1..).zip(&stray), 1).expect_err("never begun");
        assert!(matches!(never, BadLedger::NeverBegun { conn: 2, .. }));
        let why = String::from("`nonsense` is no promise");
        let garbled = Promise::Garbled { why: why.clone() };
        let spoilt = Ledger::at([(1, &stray[0]), (2, &garbled)], 1);
        assert_eq!(spoilt, Err(BadLedger::Garbled { why }));
        let order = Ledger::at([(5, &stray[0]), (4, &stray[0])], 9);
        assert_eq!(order, Err(BadLedger::Order { seq: 4, after: 5 }));
    }

    #[test]
    fn inside_a_checkpoint_is_between_its_marks() {
        let texts = ["load-begin", "checkpoint-begin 1", "checkpoint-end 1", "x"];
        let marks = texts.map(|text| Promise::Mark { text: text.into() });
        let inside = |cut| {
            let ledger = Ledger::at((1..).zip(&marks), cut).expect("a ledger");
            ledger.inside("checkpoint-begin", "checkpoint-end")
        };
        assert_eq!([1, 2, 3, 4].map(inside), [false, true, false, false]);
    }
}
