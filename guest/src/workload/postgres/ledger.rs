//! Commits transactions that the host keeps a ledger of.
//!
//! Every transaction is announced before its first statement is sent, and
//! acknowledged after COMMIT has returned. Beside the committing connections,
//! a reader says what it was served, and a checkpointer keeps data files and
//! WAL in motion and marks where its checkpoints begin and end.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use plugpull_protocol::Promise;
use plugpull_protocol::workload::plan::{self, row_a, row_b, stamp, transaction};
use plugpull_protocol::workload::{
    LedgerRun, MARK_CHECKPOINT_BEGIN, MARK_CHECKPOINT_END, MARK_LOAD_BEGIN, MARK_LOAD_END,
    ServerRun,
};
use postgres::Client;

use super::server::{Server, Started};
use crate::workload::{Env, Promises};

/// How many client errors are described.
const ERRORS: usize = 20;

/// A connection gives up after this many errors: a server that only refuses
/// does not get better.
const PATIENCE: u32 = 50;

/// Pause before a refused transaction is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// The log line of a checkpoint comes through a pipe, after the answer.
const LOG_LAG: Duration = Duration::from_secs(2);

/// Long values leave the table's pages uncompressed, and versions are indexed
/// so that rewriting a row touches indexes too.
const SCHEMA: &str = "
    CREATE EXTENSION amcheck;
    CREATE TABLE conn_state (conn int PRIMARY KEY, last bigint NOT NULL, total bigint NOT NULL);
    CREATE TABLE ledger_a (conn int, n bigint, version bigint NOT NULL, value text NOT NULL,
                           PRIMARY KEY (conn, n));
    ALTER TABLE ledger_a ALTER value SET STORAGE EXTERNAL;
    CREATE INDEX ON ledger_a (version);
    CREATE TABLE ledger_b (conn int, n bigint, part int, value text NOT NULL,
                           PRIMARY KEY (conn, n, part));
";

/// What a ledger run does.
pub(super) struct Plan {
    pub(super) connections: u32,
    pub(super) seed: u64,
    pub(super) transactions: u64,
    pub(super) load: Duration,
    pub(super) checkpoint_every: Duration,
    pub(super) reader_every: Duration,
    pub(super) timeout: Duration,
}

/// Make the tables, checkpoint and stop.
pub(super) fn prepare(
    env: &Env,
    dir: &Path,
    connections: u32,
    timeout: Duration,
) -> anyhow::Result<()> {
    let server = Server::must_start(env, dir, &[], timeout)?;
    let mut client = server.connect(timeout)?;
    client.batch_execute(SCHEMA).context("make the tables")?;
    let rows = format!(
        "INSERT INTO conn_state SELECT conn, 0, 0 FROM generate_series(0, {}) AS conn",
        i64::from(connections) - 1
    );
    for sql in [rows.as_str(), "VACUUM ANALYZE", "CHECKPOINT"] {
        client.batch_execute(sql).context(sql.to_owned())?;
    }
    drop(client);
    let run = server.stop(timeout)?;
    anyhow::ensure!(
        run.exit == Some(0),
        "the server did not stop cleanly: {run:?}"
    );
    Ok(())
}

/// Run the load. A server that stops or refuses is part of what is seen.
pub(super) fn run(
    env: &Env,
    dir: &Path,
    conf: &[String],
    plan: &Plan,
) -> anyhow::Result<LedgerRun> {
    anyhow::ensure!(plan.connections > 0, "a ledger of no connections");
    let server = match Server::start(env, dir, conf, plan.timeout)? {
        Started::Ready(server) => server,
        Started::Ended(server) => return Ok(Tally::new(plan).into_run(true, server)),
    };
    // The host chooses cuts between these two marks: all clients are there
    // before the first and gone after the second.
    let connect = || server.connect(plan.timeout);
    let clients = (0..plan.connections).map(|_| connect());
    let clients: Vec<Client> = clients.collect::<anyhow::Result<_>>()?;
    let (reader, checkpointer) = (connect()?, connect()?);
    mark(env.promises, MARK_LOAD_BEGIN.into())?;
    let tally = Mutex::new(Tally::new(plan));
    let stop = Stop::new(plan.load);
    let of = Run {
        plan,
        server: &server,
        promises: env.promises,
        tally: &tally,
        stop: &stop,
    };
    // Only the host's absence gets here as an error.
    of.drive(clients, reader, checkpointer)?;
    mark(env.promises, MARK_LOAD_END.into())?;
    let tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    // A server that panics closes connections first and is gone a little
    // later.
    let patience = if tally.closed == plan.connections {
        plan.timeout
    } else {
        Duration::ZERO
    };
    let stopped = server.exits_within(patience)?;
    let mut server = server.stop(plan.timeout)?;
    server.answered = tally.acked.iter().any(|n| *n > 0);
    Ok(tally.into_run(stopped, server))
}

fn mark(promises: &dyn Promises, text: String) -> anyhow::Result<()> {
    promises.record(Promise::Mark { text })
}

/// What has happened so far.
struct Tally {
    acked: Vec<u64>,
    served: u64,
    checkpoints: u64,
    errors: Vec<String>,
    error_count: u64,
    /// Committing connections that the server closed.
    closed: u32,
}

impl Tally {
    fn new(plan: &Plan) -> Self {
        Self {
            acked: vec![0; plan.connections as usize],
            served: 0,
            checkpoints: 0,
            errors: Vec::new(),
            error_count: 0,
            closed: 0,
        }
    }

    fn error(&mut self, told: String) {
        self.error_count += 1;
        if self.errors.len() < ERRORS {
            self.errors.push(told);
        }
    }

    fn into_run(self, server_stopped: bool, server: ServerRun) -> LedgerRun {
        LedgerRun {
            acked: self.acked,
            served: self.served,
            checkpoints: self.checkpoints,
            errors: self.errors,
            error_count: self.error_count,
            server_stopped,
            server,
        }
    }
}

/// When to stop; waiting for it is how the threads pause.
struct Stop {
    told: Mutex<bool>,
    changed: Condvar,
    end: Instant,
}

impl Stop {
    fn new(after: Duration) -> Self {
        Self {
            told: Mutex::new(false),
            changed: Condvar::new(),
            end: Instant::now() + after,
        }
    }

    fn now(&self) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Pause; true when it is time to stop.
    fn pause(&self, pause: Duration) -> bool {
        let pause = pause.min(self.end.saturating_duration_since(Instant::now()));
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(told, pause, |told| !*told);
        let told = *waited.unwrap_or_else(PoisonError::into_inner).0;
        told || Instant::now() >= self.end
    }
}

/// What the threads of a run share. Their errors mean that the host is gone;
/// what the server says goes to the tally.
struct Run<'a> {
    plan: &'a Plan,
    server: &'a Server,
    promises: &'a dyn Promises,
    tally: &'a Mutex<Tally>,
    stop: &'a Stop,
}

impl Run<'_> {
    /// Run all threads until every committing connection has ended.
    fn drive(
        &self,
        clients: Vec<Client>,
        reader: Client,
        checkpointer: Client,
    ) -> anyhow::Result<()> {
        std::thread::scope(|scope| {
            let (ended, ends) = mpsc::channel();
            let mut threads = Vec::new();
            for (conn, client) in (0..).zip(clients) {
                let ended = ended.clone();
                threads.push(scope.spawn(move || {
                    let end = self.commit(conn, client);
                    let _ = ended.send(());
                    end
                }));
            }
            threads.push(scope.spawn(|| self.read(reader)));
            threads.push(scope.spawn(|| self.checkpoint(checkpointer)));
            // A connection ends by itself at the end of the load, give or take
            // a transaction; one that hangs is freed by ending the server.
            let patience = Instant::now() + self.plan.load + self.plan.timeout;
            for _ in 0..self.plan.connections {
                let left = patience.saturating_duration_since(Instant::now());
                if ends.recv_timeout(left).is_err() {
                    let told = "a connection was busy long after the end of the load, \
                                and the server was aborted";
                    self.tally().error(told.into());
                    self.server.abort();
                    break;
                }
            }
            self.stop.now();
            let ends = threads.into_iter().map(|thread| {
                let end = thread.join();
                end.map_err(|_| anyhow::anyhow!("a thread of the ledger panicked"))?
            });
            // All are joined before the first error is returned.
            ends.collect::<Vec<_>>().into_iter().collect()
        })
    }

    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commit transactions in order. One that is refused is announced and
    /// tried again, so that what a connection has committed stays a prefix.
    fn commit(&self, conn: u32, mut client: Client) -> anyhow::Result<()> {
        let mut n = 1;
        let mut refused = 0;
        while n <= self.plan.transactions && !self.stop.pause(Duration::ZERO) {
            let tx = transaction(self.plan.seed, conn, n);
            let sql = statements(self.plan.seed, &tx);
            self.promises.record(Promise::Begin {
                conn,
                key: tx.key(),
                value: Some(tx.value(self.plan.seed)),
            })?;
            match client.batch_execute(&sql) {
                Ok(()) => {
                    self.tally().acked[conn as usize] = n;
                    let key = tx.key();
                    self.promises.record(Promise::Ack { conn, key })?;
                    n += 1;
                }
                Err(e) => {
                    let e = anyhow::Error::from(e);
                    self.tally().error(format!("{}: {e:#}", tx.key()));
                    if client.is_closed() {
                        self.tally().closed += 1;
                        return Ok(());
                    }
                    refused += 1;
                    // An aborted transaction block has to be left first.
                    let _ = client.batch_execute("ROLLBACK");
                    if refused >= PATIENCE || self.stop.pause(RETRY) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Say of every connection what its latest committed row is, as served.
    fn read(&self, mut client: Client) -> anyhow::Result<()> {
        let sql = "SELECT s.conn, s.last, a.version, a.value FROM conn_state s \
                   LEFT JOIN ledger_a a ON a.conn = s.conn AND a.n = s.last WHERE s.last > 0";
        let mut served = vec![0; self.plan.connections as usize];
        while !self.stop.pause(self.plan.reader_every) {
            let rows = match client.query(sql, &[]) {
                Ok(rows) => rows,
                Err(e) => {
                    let e = anyhow::Error::from(e);
                    self.tally().error(format!("the reader: {e:#}"));
                    if client.is_closed() {
                        return Ok(());
                    }
                    continue;
                }
            };
            for row in rows {
                let (conn, n) = (row.get::<_, i32>(0) as u32, row.get::<_, i64>(1) as u64);
                match served.get_mut(conn as usize) {
                    Some(last) if *last < n => *last = n,
                    _ => continue,
                }
                let value = match (row.get::<_, Option<i64>>(2), row.get(3)) {
                    (Some(version), Some(value)) => {
                        self.served_value(conn, n, version as u64, value)
                    }
                    _ => "(no row in ledger_a)".into(),
                };
                let key = transaction(self.plan.seed, conn, n).key();
                self.promises.record(Promise::Served { key, value })?;
                self.tally().served += 1;
            }
        }
        Ok(())
    }

    /// The value as the ledger writes it, if the whole row is right.
    fn served_value(&self, conn: u32, n: u64, version: u64, value: &str) -> String {
        if version == n && value == row_a(self.plan.seed, conn, n, n) {
            stamp(value).to_owned()
        } else {
            format!("(version {version}, {}…)", stamp(value))
        }
    }

    /// Checkpoint again and again, with marks around each.
    fn checkpoint(&self, mut client: Client) -> anyhow::Result<()> {
        let mut number = 0_u64;
        while !self.stop.pause(self.plan.checkpoint_every) {
            number += 1;
            let before = self.server.log().checkpoints;
            mark(self.promises, format!("{MARK_CHECKPOINT_BEGIN} {number}"))?;
            if let Err(e) = client.batch_execute("CHECKPOINT") {
                let e = anyhow::Error::from(e);
                self.tally().error(format!("CHECKPOINT {number}: {e:#}"));
                if client.is_closed() {
                    return Ok(());
                }
                continue;
            }
            self.tally().checkpoints += 1;
            let lag = Instant::now() + LOG_LAG;
            self.server.wait_log(lag, |log| log.checkpoints > before);
            let recycled = self.server.log().recycled;
            let text = format!("{MARK_CHECKPOINT_END} {number} recycled {recycled}");
            mark(self.promises, text)?;
        }
        Ok(())
    }
}

/// The transaction's statements, sent as one message: over an emulated
/// processor every round trip counts. All text is hexadecimal.
fn statements(seed: u64, tx: &plan::Transaction) -> String {
    let plan::Transaction { conn, n, .. } = *tx;
    let value = row_a(seed, conn, n, n);
    let mut sql = format!("BEGIN; INSERT INTO ledger_a VALUES ({conn},{n},{n},'{value}');");
    // Writing to a String cannot fail.
    if let Some(m) = tx.rewrites {
        let value = row_a(seed, conn, m, n);
        let _ = write!(
            sql,
            "UPDATE ledger_a SET version={n},value='{value}' WHERE conn={conn} AND n={m};"
        );
    }
    for part in 0..tx.parts {
        let value = row_b(seed, conn, n, part);
        let _ = write!(
            sql,
            "INSERT INTO ledger_b VALUES ({conn},{n},{part},'{value}');"
        );
    }
    if let Some(m) = tx.deletes {
        let _ = write!(sql, "DELETE FROM ledger_b WHERE conn={conn} AND n={m};");
    }
    let _ = write!(
        sql,
        "UPDATE conn_state SET last={n},total=total+({}) WHERE conn={conn}; COMMIT",
        tx.amount
    );
    sql
}
