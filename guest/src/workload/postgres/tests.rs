//! The workloads on the host's own PostgreSQL.
//!
//! Ignored unless asked for: a fresh machine has no PostgreSQL, and the
//! scenarios run the same workloads in guests. As root, with the directory of
//! the programs named:
//!
//! `PLUGPULL_TEST_POSTGRES=/usr/lib/postgresql/15/bin cargo nextest run -p plugpull-guest --run-ignored only`

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use plugpull_protocol::workload::{LEDGER_CONF, LedgerRun, LoadRun, Recovered, plan};
use plugpull_protocol::{Exited, Observation, Promise, WorkloadRequest};
use rustix::process::{Pid, Signal};

use crate::workload::{Env, Promises, run};

const TIMEOUT_MS: u64 = 60_000;
const SEED: u64 = 42;

/// Records promises; may do something at the n-th.
struct Host {
    heard: Mutex<Vec<Promise>>,
    at: usize,
    act: Box<dyn Fn() + Sync>,
}

impl Promises for Host {
    fn record(&self, event: Promise) -> anyhow::Result<()> {
        let mut heard = self.heard.lock().expect("no panic");
        heard.push(event);
        if heard.len() == self.at {
            (self.act)();
        }
        Ok(())
    }
}

struct Bench {
    dir: tempfile::TempDir,
    bin: PathBuf,
    host: Host,
}

impl Bench {
    fn new(at: usize, act: impl Fn(&Path) + Sync + 'static) -> Self {
        let bin = std::env::var_os("PLUGPULL_TEST_POSTGRES").expect("PLUGPULL_TEST_POSTGRES");
        let dir = tempfile::tempdir().expect("a directory");
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(dir.path(), open).expect("opened up");
        let pgdata = dir.path().join("data");
        let act = Box::new(move || act(&pgdata));
        let heard = Mutex::default();
        Self {
            dir,
            bin: bin.into(),
            host: Host { heard, at, act },
        }
    }

    fn data(&self) -> String {
        self.dir.path().join("data").display().to_string()
    }

    fn run(&self, request: WorkloadRequest) -> Observation {
        let id = |flag| {
            let id = crate::process::Spec::new(["id", flag, "postgres"]);
            let id = id.run(std::time::Duration::from_secs(5)).expect("id runs");
            id.stdout.trim().parse().expect("a number")
        };
        let env = Env {
            promises: &self.host,
            postgres_bin: self.bin.clone(),
            postgres_uid: id("-u"),
            postgres_gid: id("-g"),
            run_dir: self.dir.path().to_owned(),
        };
        run(request, &env).expect("carried out")
    }

    fn initdb(&self) {
        let exited = self.run(WorkloadRequest::PostgresInitdb {
            dir: self.data(),
            args: vec!["--wal-segsize=1".into()],
            timeout_ms: TIMEOUT_MS,
        });
        assert!(
            matches!(&exited, Observation::Tool(Exited { code: 0, .. })),
            "{exited:?}"
        );
    }

    fn prepare(&self) {
        self.initdb();
        let prepared = self.run(WorkloadRequest::PostgresLedgerPrepare {
            dir: self.data(),
            connections: 3,
            timeout_ms: TIMEOUT_MS,
        });
        assert_eq!(prepared, Observation::Prepared);
    }

    fn ledger(&self, transactions: u64, load_ms: u64) -> LedgerRun {
        let seen = self.run(WorkloadRequest::PostgresLedger {
            dir: self.data(),
            connections: 3,
            seed: SEED,
            conf: conf(),
            transactions,
            load_ms,
            checkpoint_every_ms: 300,
            reader_every_ms: 20,
            timeout_ms: TIMEOUT_MS,
        });
        match seen {
            Observation::Ledger(seen) => *seen,
            other => panic!("{other:?}"),
        }
    }

    fn recover(&self) -> Recovered {
        let seen = self.run(WorkloadRequest::PostgresRecover {
            dir: self.data(),
            seed: SEED,
            full: true,
            conf: conf(),
            timeout_ms: TIMEOUT_MS,
        });
        match seen {
            Observation::Recover(seen) => *seen,
            other => panic!("{other:?}"),
        }
    }
}

fn conf() -> Vec<String> {
    LEDGER_CONF.iter().map(|s| (*s).to_owned()).collect()
}

/// Kill a server without a word, as its pid file names it.
fn kill_server(data: &Path) {
    let pid = std::fs::read_to_string(data.join("postmaster.pid")).expect("a pid file");
    let pid = pid.lines().next().expect("a line").parse().expect("a pid");
    let pid = Pid::from_raw(pid).expect("not zero");
    rustix::process::kill_process(pid, Signal::KILL).expect("killed");
}

#[test]
#[ignore = "needs PostgreSQL: see the head of this file"]
fn a_new_cluster_starts_and_has_good_checksums() {
    let bench = Bench::new(0, |_| ());
    bench.initdb();
    let started = bench.run(WorkloadRequest::PgFirstStart {
        dir: bench.data(),
        timeout_ms: TIMEOUT_MS,
    });
    let Observation::FirstStart(started) = started else {
        panic!("{started:?}")
    };
    assert!(started.started && started.answered, "{started:?}");
    assert_eq!(started.exit, Some(0));
    let checked = || {
        let checked = bench.run(WorkloadRequest::PgChecksums {
            dir: bench.data(),
            timeout_ms: TIMEOUT_MS,
        });
        match checked {
            Observation::Checksums(checked) => *checked,
            other => panic!("{other:?}"),
        }
    };
    let clean = checked();
    assert!(clean.exited.success() && clean.bad.is_empty(), "{clean:?}");
    assert!(clean.complaints.is_empty(), "{clean:?}");

    let victim = Path::new(&bench.data()).join("base/1/1255");
    let mut bytes = std::fs::read(&victim).expect("pg_proc is there");
    bytes[8192 + 4000] ^= 1;
    std::fs::write(&victim, bytes).expect("written");
    let dirty = checked();
    assert_eq!((dirty.bad.len(), dirty.bad[0].block), (1, 1), "{dirty:?}");
    assert!(dirty.bad[0].file.ends_with("base/1/1255"));
}

#[test]
#[ignore = "needs PostgreSQL: see the head of this file"]
fn a_load_has_the_known_answers_before_and_after() {
    let bench = Bench::new(0, |_| ());
    bench.initdb();
    let load = plan::Load {
        rows: 3_000,
        connections: 4,
        seed: SEED,
    };
    let seen = bench.run(WorkloadRequest::PostgresLoad {
        dir: bench.data(),
        load,
        batch: Some(50),
        conf: Vec::new(),
        timeout_ms: TIMEOUT_MS,
    });
    let Observation::Load(seen) = seen else {
        panic!("{seen:?}")
    };
    let LoadRun { before, after, .. } = &*seen;
    assert_eq!(before, &load.answers(), "{seen:?}");
    assert_eq!(after, &load.answers());
    assert!(seen.amcheck.as_ref().is_some_and(Exited::success));
    assert!(seen.errors.is_empty(), "{seen:?}");
    assert_eq!(seen.first.log.panics, 0);
}

#[test]
#[ignore = "needs PostgreSQL: see the head of this file"]
fn a_ledger_checkpoints_and_a_server_killed_under_it_is_reported() {
    let bench = Bench::new(900, kill_server);
    bench.prepare();
    let seen = bench.ledger(100_000, 30_000);
    assert!(seen.server_stopped && seen.error_count >= 3, "{seen:?}");
    assert!(seen.acked.iter().all(|n| *n > 20), "{seen:?}");
    assert!(seen.served > 0, "{seen:?}");
    let recovered = bench.recover();
    assert!(recovered.server.log.recovered, "{recovered:?}");
    assert_eq!(recovered.server.exit, Some(0));
    let tables = recovered.tables.as_ref().expect("read");
    for (rows, acked) in tables.iter().zip(&seen.acked) {
        let last = rows.state.expect("a row").0;
        assert!(last == *acked || last == *acked + 1, "{rows:?} {acked}");
        assert!(rows.bad.is_empty(), "{rows:?}");
    }
    assert!(recovered.amcheck.as_ref().is_some_and(Exited::success));
    assert!(
        recovered
            .checksums
            .as_ref()
            .is_some_and(|c| c.exited.success())
    );
}

#[test]
#[ignore = "needs PostgreSQL: see the head of this file"]
fn a_ledger_left_alone_runs_to_its_end_and_recycles_its_wal() {
    let bench = Bench::new(0, |_| ());
    bench.prepare();
    let seen = bench.ledger(100_000, 6_000);
    assert_eq!(seen.error_count, 0, "{seen:?}");
    assert!(!seen.server_stopped);
    assert!(seen.checkpoints >= 3, "{seen:?}");
    assert!(seen.server.log.recycled > 0, "{seen:?}");
    let seen_state = bench.recover();
    let encoded = serde_json::to_vec(&seen_state).expect("encoded").len();
    eprintln!("{:?} transactions, {encoded} bytes", seen.acked);
    assert!(encoded < 1 << 19);
}
