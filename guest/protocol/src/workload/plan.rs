//! What the workloads write, as functions of their seed.
//!
//! The guest writes by these and the host judges by them. They are plain
//! integer arithmetic: the same on every machine and in every build.

mod archive;
mod database;
mod repository;

pub use archive::{Archive, Member, MemberKind};
pub use database::{Database, JOURNAL_MODES};
pub use repository::{Change, Repository};
use serde::{Deserialize, Serialize};

/// Mix numbers into one (SplitMix64's finaliser over a running sum); good
/// spread, no secrecy.
pub fn mix(parts: &[u64]) -> u64 {
    parts.iter().fold(0x9e37_79b9_7f4a_7c15, |acc, part| {
        let mut z = acc.wrapping_add(*part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// Text of hexadecimal digits that does not compress to nothing.
fn text(parts: &[u64], len: usize) -> String {
    let start = mix(parts);
    let words = (0..len.div_ceil(16) as u64).map(|word| hex(mix(&[start, word])));
    let digits = words.flatten().take(len);
    digits.map(char::from).collect()
}

/// Sixteen hexadecimal digits. By hand, because the formatting machinery is
/// most of a workload's own time on an emulated processor.
fn hex(word: u64) -> [u8; 16] {
    std::array::from_fn(|i| b"0123456789abcdef"[(word >> (60 - 4 * i)) as usize & 15])
}

/// A transaction of the ledger workload: number `n` (from 1) of a connection.
///
/// In one transaction: a row into `ledger_a`, one to three rows into
/// `ledger_b`, the connection's row of `conn_state` brought up to date, and
/// for some an older row of `ledger_a` rewritten or the `ledger_b` rows of an
/// older transaction deleted. A connection touches only rows of its own, in
/// order, so what it has committed is always a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// The connection, from 0.
    pub conn: u32,
    /// The number, from 1.
    pub n: u64,
    /// How many rows go into `ledger_b`.
    pub parts: u32,
    /// The older row of `ledger_a` that it rewrites.
    pub rewrites: Option<u64>,
    /// The older transaction whose `ledger_b` rows it deletes.
    pub deletes: Option<u64>,
    /// What it adds to the connection's sum.
    pub amount: i64,
}

/// The transaction with this number.
pub fn transaction(seed: u64, conn: u32, n: u64) -> Transaction {
    let dice = |what: u64| mix(&[seed, conn.into(), n, what]);
    let older = |what: u64| (n > 1).then(|| 1 + dice(what) % (n - 1));
    Transaction {
        conn,
        n,
        parts: 1 + (dice(1) % 3) as u32,
        // Rewriting far-off rows dirties pages all over the table, which is
        // what makes evictions, full-page images and recycled WAL.
        rewrites: older(2).filter(|_| dice(3).is_multiple_of(2)),
        deletes: older(4).filter(|_| dice(5).is_multiple_of(6)),
        amount: (dice(6) % 1_000) as i64 - 300,
    }
}

impl Transaction {
    /// The ledger's key for it.
    pub fn key(&self) -> String {
        format!("tx/{}/{}", self.conn, self.n)
    }

    /// The ledger's value for it: the stamp of its row in `ledger_a`.
    pub fn value(&self, seed: u64) -> String {
        stamp(&row_a(seed, self.conn, self.n, self.n)).to_owned()
    }
}

/// Connection and number in a transaction's key.
pub fn parse_key(key: &str) -> Option<(u32, u64)> {
    let (conn, n) = key.strip_prefix("tx/")?.split_once('/')?;
    Some((conn.parse().ok()?, n.parse().ok()?))
}

/// What a row of `ledger_a` holds after transaction `version` wrote it. One
/// in sixteen is long enough to leave the table's own pages (TOAST).
pub fn row_a(seed: u64, conn: u32, n: u64, version: u64) -> String {
    let parts = [seed, conn.into(), n, version, 0xa];
    let dice = mix(&[0x1e4, mix(&parts)]);
    let len = if dice.is_multiple_of(16) {
        2_500 + dice / 16 % 2_000
    } else {
        32 + dice / 16 % 400
    };
    text(&parts, len as usize)
}

/// What part `part` (from 0) of a transaction's rows in `ledger_b` holds.
pub fn row_b(seed: u64, conn: u32, n: u64, part: u32) -> String {
    let parts = [seed, conn.into(), n, part.into(), 0xb];
    text(&parts, 24 + (mix(&parts) % 100) as usize)
}

/// The start of a row's text, which is enough to tell rows apart.
pub fn stamp(text: &str) -> &str {
    text.get(..16).unwrap_or(text)
}

/// A table to load, with answers that are known beforehand.
///
/// Row `id` gets its value by insertion; then updates add to rows. Additions
/// commute, so the order in which connections come does not change the
/// answers, and a lost or doubled update does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Rows, with ids from 0.
    pub rows: u32,
    /// Concurrent connections.
    pub connections: u32,
    /// What rows and updates derive from.
    pub seed: u64,
}

/// A row of the loaded table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadRow {
    /// Primary key.
    pub id: u32,
    /// Which group it is counted in.
    pub grp: u32,
    /// Its value before any update.
    pub val: i64,
    /// Filling.
    pub pad: String,
}

/// The answer to a question whose answer is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The question.
    pub name: String,
    /// The answer, as the server prints it.
    pub value: String,
}

impl Load {
    /// How many rows are there before the load, for all connections to update.
    pub fn hot(&self) -> u32 {
        self.rows.clamp(1, 64)
    }

    /// How many updates there are.
    pub fn updates(&self) -> u32 {
        self.rows / 3
    }

    /// The row with this id.
    pub fn row(&self, id: u32) -> LoadRow {
        let dice = mix(&[self.seed, id.into(), 0x10ad]);
        LoadRow {
            id,
            grp: id % 7,
            val: (dice % 10_000) as i64,
            pad: text(&[dice], 8 + (dice >> 32) as usize % 60),
        }
    }

    /// Update `u`: the row it goes to, and what it adds. All go to the hot
    /// rows, so that connections meet there.
    pub fn update(&self, u: u32) -> (u32, i64) {
        let dice = mix(&[self.seed, u.into(), 0x0bda]);
        (
            (dice % u64::from(self.hot())) as u32,
            1 + (dice >> 32) as i64 % 500,
        )
    }

    /// The answers: rows, their sum, the sum of the hot rows, the bytes of
    /// filling, and rows and sum by group.
    pub fn answers(&self) -> Vec<Answer> {
        let mut vals: Vec<LoadRow> = (0..self.rows).map(|id| self.row(id)).collect();
        for u in 0..self.updates() {
            let (id, add) = self.update(u);
            vals[id as usize].val += add;
        }
        let sum = |rows: &mut dyn Iterator<Item = &LoadRow>| rows.map(|r| r.val).sum::<i64>();
        let hot = self.hot();
        let mut out = vec![
            answer("rows", vals.len()),
            answer("sum", sum(&mut vals.iter())),
            answer("hot", sum(&mut vals.iter().filter(|r| r.id < hot))),
            answer("pad", vals.iter().map(|r| r.pad.len()).sum::<usize>()),
        ];
        for grp in 0..7.min(self.rows) {
            let mut of = vals.iter().filter(|r| r.grp == grp);
            out.push(answer(
                format!("group {grp}"),
                format!("{} {}", of.clone().count(), sum(&mut of)),
            ));
        }
        out
    }
}

fn answer(name: impl Into<String>, value: impl ToString) -> Answer {
    Answer {
        name: name.into(),
        value: value.to_string(),
    }
}

/// The files of the writers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Writers {
    /// Concurrent writers.
    pub writers: u32,
    /// Rounds; all writers begin a round together.
    pub rounds: u32,
    /// Files per writer and round.
    pub files: u32,
    /// The longest file, in bytes; lengths are unaligned and some are zero.
    pub max_bytes: u32,
    /// What the files hold derives from it.
    pub seed: u64,
}

/// Bytes of a record of a writer's file.
pub const RECORD: usize = 32;

impl Writers {
    /// How many files there are.
    pub fn count(&self) -> u64 {
        u64::from(self.writers) * u64::from(self.rounds) * u64::from(self.files)
    }

    /// A file's path below the workload's directory. The files of a round
    /// share a directory, so that creations meet there.
    pub fn path(&self, writer: u32, round: u32, file: u32) -> String {
        format!("round-{round}/w{writer}-f{file}")
    }

    /// A file's content: records that each name writer, round, file, offset
    /// and seed, so that a foreign byte names its owner.
    pub fn content(&self, writer: u32, round: u32, file: u32) -> Vec<u8> {
        let dice = mix(&[self.seed, writer.into(), round.into(), file.into()]);
        let len = match dice % 16 {
            0 => 0,
            _ => (dice >> 8) % (u64::from(self.max_bytes) + 1),
        } as usize;
        let tag = self.seed as u32;
        let record = format!("W{writer:04}R{round:03}F{file:03}@00000000#{tag:08x}\n");
        let mut record = record.into_bytes();
        let offset = record.len() - 18..record.len() - 10;
        let mut out = Vec::with_capacity(len + RECORD);
        while out.len() < len {
            record[offset.clone()].copy_from_slice(&hex(out.len() as u64)[8..]);
            out.extend_from_slice(&record);
        }
        out.truncate(len);
        out
    }
}

/// Bytes of a page of the page workload.
pub const PAGE: usize = 4096;

/// The ledger's key for a page.
pub fn page_key(page: u32) -> String {
    format!("page/{page}")
}

/// What write `write` puts on its page.
pub fn page(seed: u64, write: u32) -> Vec<u8> {
    text(&page_parts(seed, write), PAGE).into_bytes()
}

/// How that begins: enough to tell which write it may be, for less than making
/// the whole page.
pub fn page_begins(seed: u64, write: u32) -> [u8; 16] {
    hex(mix(&[mix(&page_parts(seed, write)), 0]))
}

fn page_parts(seed: u64, write: u32) -> [u64; 3] {
    [seed, write.into(), 0x9a6e]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_begins_as_is_said() {
        for write in 0..50 {
            assert!(page(7, write).starts_with(&page_begins(7, write)));
            assert_ne!(page_begins(7, write), page_begins(7, write + 1));
        }
    }

    #[test]
    fn transactions_touch_older_rows_only_and_all_kinds_occur() {
        let all: Vec<_> = (1..200).map(|n| transaction(7, 1, n)).collect();
        for t in &all {
            assert!(t.rewrites.is_none_or(|m| m >= 1 && m < t.n));
            assert!(t.deletes.is_none_or(|m| m >= 1 && m < t.n));
            assert!((1..=3).contains(&t.parts));
            assert_eq!(parse_key(&t.key()), Some((1, t.n)));
        }
        assert!(all.iter().any(|t| t.rewrites.is_some()));
        assert!(all.iter().any(|t| t.deletes.is_some()));
        assert!((1..200).any(|n| row_a(7, 1, n, n).len() > 2_400));
    }

    #[test]
    fn a_record_is_whole_and_names_its_owner() {
        let w = Writers {
            writers: 250,
            rounds: 10,
            files: 4,
            max_bytes: 9_000,
            seed: 3,
        };
        let (file, content) = (0..100)
            .map(|f| (f, w.content(249, 9, f)))
            .find(|(_, c)| c.len() > 2 * RECORD)
            .expect("a long one");
        let record = format!("W0249R009F{file:03}@00000020#00000003\n");
        assert_eq!(&content[RECORD..2 * RECORD], record.as_bytes());
        assert_ne!(w.content(1, 1, 1), w.content(2, 1, 1));
    }

    #[test]
    fn a_lost_update_changes_the_answers() {
        let load = Load {
            rows: 300,
            connections: 3,
            seed: 5,
        };
        assert!((0..load.updates()).all(|u| load.update(u).1 > 0));
        assert_eq!(load.answers()[0].value, "300");
    }
}
