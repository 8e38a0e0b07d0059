//! Starts a server on what a power cut left, and says what it holds.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use plugpull_protocol::workload::plan::{self, row_a, row_b};
use plugpull_protocol::workload::{BadRow, ConnRows, Recovered, ServerRun};
use postgres::Client;

use super::server::{Server, Started};
use super::sound::Table;
use super::{check, checksums, sound};
use crate::workload::Env;

/// How many bad rows of a connection are described.
const BAD_ROWS: usize = 100;

/// Heap order only: whether the indexes agree with it is `pg_amcheck`'s
/// question, and a lost row must not be hidden by a stale index.
const SESSION: &str = "SET enable_indexscan = off; SET enable_indexonlyscan = off; \
                       SET enable_bitmapscan = off";

/// Recover, read, check, stop, check.
pub(super) fn run(
    env: &Env,
    dir: &Path,
    seed: u64,
    full: bool,
    conf: &[String],
    timeout: Duration,
) -> anyhow::Result<Recovered> {
    let mut seen = Recovered {
        server: ServerRun::default(),
        tables: None,
        read_error: None,
        amcheck: None,
        checksums: None,
        took_ms: BTreeMap::new(),
    };
    let mut since = Instant::now();
    let mut lap = |took: &mut BTreeMap<String, u64>, part: &str| {
        let now = Instant::now();
        took.insert(part.into(), (now - since).as_millis() as u64);
        since = now;
    };
    let server = match Server::start(env, dir, conf, timeout)? {
        Started::Ready(server) => server,
        Started::Ended(run) => {
            seen.server = run;
            return Ok(seen);
        }
    };
    lap(&mut seen.took_ms, "start");
    let mut known = None;
    if full {
        known = hashed(&server, dir, timeout).ok();
        lap(&mut seen.took_ms, "hash");
    }
    // A session that could list the tables reads them too.
    let (client, known) = known.unzip();
    let client = client.map_or_else(|| server.connect(timeout), Ok);
    match client.and_then(|client| tables(client, seed)) {
        Ok(tables) => seen.tables = Some(tables),
        Err(e) => seen.read_error = Some(format!("{e:#}")),
    }
    lap(&mut seen.took_ms, "read");
    if full {
        seen.amcheck = Some(check::amcheck(env, &server, known.as_deref(), timeout)?);
        lap(&mut seen.took_ms, "amcheck");
    }
    seen.server = server.stop(timeout)?;
    lap(&mut seen.took_ms, "stop");
    seen.server.answered = seen.tables.is_some();
    // It refuses a cluster that was not shut down.
    if full && seen.server.exit == Some(0) {
        seen.checksums = Some(checksums::changed(env, dir, timeout)?);
        lap(&mut seen.took_ms, "checksums");
    }
    Ok(seen)
}

/// The tables as they are before anything is read, because reading leaves hints in pages; and a
/// session that could list them. Where that fails, `pg_amcheck` says what is wrong.
fn hashed(server: &Server, dir: &Path, timeout: Duration) -> anyhow::Result<(Client, Vec<Table>)> {
    let mut client = server.connect(timeout)?;
    let tables = sound::tables(&mut client, dir)?;
    Ok((client, tables))
}

/// Read the ledger's tables and compare every row with what its transaction
/// wrote.
fn tables(mut client: Client, seed: u64) -> anyhow::Result<Vec<ConnRows>> {
    client
        .batch_execute(SESSION)
        .context("set up the session")?;
    let mut conns: BTreeMap<u32, Rows> = BTreeMap::new();
    let sql = "SELECT conn, last, total FROM conn_state";
    for row in client.query(sql, &[]).context("read conn_state")? {
        let rows = conns.entry(row.try_get::<_, i32>(0)? as u32).or_default();
        let state = (row.try_get::<_, i64>(1)? as u64, row.try_get(2)?);
        if rows.state.replace(state).is_some() {
            rows.bad("conn_state", state.0, state.0, "is there twice");
        }
    }
    let sql = "SELECT conn, n, version, value FROM ledger_a";
    for row in client.query(sql, &[]).context("read ledger_a")? {
        let conn = row.try_get::<_, i32>(0)? as u32;
        let (n, version) = (
            row.try_get::<_, i64>(1)? as u64,
            row.try_get::<_, i64>(2)? as u64,
        );
        let rows = conns.entry(conn).or_default();
        if rows.a.insert(n, version).is_some() {
            rows.bad("ledger_a", n, version, "is there twice");
        }
        let value: &str = row.try_get(3)?;
        if value != row_a(seed, conn, n, version) {
            rows.bad("ledger_a", n, version, &holds(value));
        }
    }
    let sql = "SELECT conn, n, part, value FROM ledger_b";
    for row in client.query(sql, &[]).context("read ledger_b")? {
        let conn = row.try_get::<_, i32>(0)? as u32;
        let (n, part) = (
            row.try_get::<_, i64>(1)? as u64,
            row.try_get::<_, i32>(2)? as u32,
        );
        let rows = conns.entry(conn).or_default();
        let parts = rows.b.entry(n).or_default();
        let twice = parts.contains(&part);
        parts.push(part);
        if twice {
            rows.bad("ledger_b", n, n, &format!("part {part} is there twice"));
        }
        let value: &str = row.try_get(3)?;
        if part >= plan::transaction(seed, conn, n).parts || value != row_b(seed, conn, n, part) {
            rows.bad("ledger_b", n, n, &format!("part {part} {}", holds(value)));
        }
    }
    let compact = conns
        .into_iter()
        .map(|(conn, rows)| rows.compact(seed, conn));
    Ok(compact.collect())
}

fn holds(value: &str) -> String {
    let start: String = value.chars().take(60).collect();
    format!("holds {} characters from {start:?}", value.chars().count())
}

/// A connection's rows while they are read.
#[derive(Default)]
struct Rows {
    state: Option<(u64, i64)>,
    /// Version by number.
    a: BTreeMap<u64, u64>,
    /// Parts by number.
    b: BTreeMap<u64, Vec<u32>>,
    bad: Vec<BadRow>,
}

impl Rows {
    fn bad(&mut self, table: &str, n: u64, version: u64, detail: &str) {
        if self.bad.len() < BAD_ROWS {
            self.bad.push(BadRow {
                table: table.into(),
                n,
                version,
                detail: detail.into(),
            });
        }
    }

    fn compact(self, seed: u64, conn: u32) -> ConnRows {
        let mut out = ConnRows {
            conn,
            state: self.state,
            bad: self.bad,
            ..ConnRows::default()
        };
        for (n, version) in self.a {
            if version == n {
                extend(&mut out.a_own, n);
            } else {
                out.a_updated.push((n, version));
            }
        }
        for (n, mut parts) in self.b {
            parts.sort_unstable();
            parts.dedup();
            let present = parts.len() as u32;
            if present >= plan::transaction(seed, conn, n).parts {
                extend(&mut out.b_whole, n);
            } else {
                out.b_partial.push((n, present));
            }
        }
        out
    }
}

/// Add a number, larger than all before, to inclusive ranges.
fn extend(ranges: &mut Vec<(u64, u64)>, n: u64) {
    match ranges.last_mut() {
        Some((_, last)) if *last + 1 == n => *last = n,
        _ => ranges.push((n, n)),
    }
}
