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
use std::time::Duration;

use plugpull_lab::oracle::{self, Finding, Ledger};
use plugpull_lab::scenario::Named as _;
use plugpull_protocol::workload::{LEDGER_CONF, LedgerRun, Recovered, plan};
use plugpull_protocol::{Exited, Observation, Promise, WorkloadRequest};
use rustix::process::{Pid, Signal};

use super::Sound;
use super::server::Server;
use crate::workload::{Env, Promises, run};

const TIMEOUT_MS: u64 = 60_000;
const TIMEOUT: Duration = Duration::from_millis(TIMEOUT_MS);
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
    sound: Sound,
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
            sound: Sound::default(),
        }
    }

    fn data(&self) -> String {
        self.dir.path().join("data").display().to_string()
    }

    fn env(&self) -> Env<'_> {
        let id = |flag| {
            let id = crate::process::Spec::new(["id", flag, "postgres"]);
            let id = id.run(TIMEOUT).expect("id runs");
            id.stdout.trim().parse().expect("a number")
        };
        Env {
            promises: &self.host,
            postgres_bin: self.bin.clone(),
            postgres_uid: id("-u"),
            postgres_gid: id("-g"),
            run_dir: self.dir.path().to_owned(),
            sound: &self.sound,
        }
    }

    fn run(&self, request: WorkloadRequest) -> Observation {
        run(request, &self.env()).expect("carried out")
    }

    /// Ask the stopped cluster's server one thing and stop it again.
    fn sql(&self, sql: &str) -> Option<String> {
        let dir = self.data();
        let server = Server::must_start(&self.env(), Path::new(&dir), &[], TIMEOUT);
        let server = server.expect("it starts");
        let mut client = server.connect(TIMEOUT).expect("connected");
        let rows = client.simple_query(sql).expect("done");
        drop(client);
        server.stop(TIMEOUT).expect("stopped");
        rows.iter().find_map(|message| match message {
            postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
    }

    /// Where a relation lies.
    fn relation(&self, name: &str) -> PathBuf {
        let path = self.sql(&format!("SELECT pg_relation_filepath('{name}')"));
        Path::new(&self.data()).join(path.expect("a path"))
    }

    /// What the oracles say of a recovered state, after all that was heard.
    fn judged(&self, recovered: &Recovered) -> Vec<Finding> {
        let heard = self.host.heard.lock().expect("no panic");
        let ledger = Ledger::at((1..).zip(heard.iter()), u64::MAX).expect("a ledger");
        assert!(ledger.acked() > 50);
        let mut found = oracle::transactions::judge(&ledger, SEED, 3, recovered);
        found.extend(oracle::postgres::server(&recovered.server));
        let amcheck = recovered.amcheck.iter();
        found.extend(amcheck.flat_map(oracle::postgres::amcheck));
        let checksums = recovered.checksums.iter();
        found.extend(checksums.flat_map(oracle::postgres::checksums));
        found
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
    assert_eq!(oracle::postgres::known_answers(&load, &seen), []);
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
    assert_eq!(bench.judged(&recovered), []);
    let state = recovered.tables.iter().flatten().map(|rows| rows.state);
    for (state, acked) in state.zip(&seen.acked) {
        let last = state.expect("a row").0;
        assert!(last == *acked || last == *acked + 1, "{last} {acked}");
    }
    assert!(recovered.amcheck.is_some() && recovered.checksums.is_some());
}

/// Kill one of a server's children, as a crash would.
fn kill_backend(data: &Path) {
    let pid = std::fs::read_to_string(data.join("postmaster.pid")).expect("a pid file");
    let pid = pid.lines().next().expect("a line");
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.expect("children");
    let child = children.split_whitespace().last().expect("a child");
    let child = Pid::from_raw(child.parse().expect("a pid")).expect("not zero");
    rustix::process::kill_process(child, Signal::KILL).expect("killed");
}

#[test]
#[ignore = "needs PostgreSQL: see the head of this file"]
fn a_server_that_goes_down_by_itself_is_reported_and_its_log_says_why() {
    let bench = Bench::new(900, kill_backend);
    bench.prepare();
    let seen = bench.ledger(100_000, 30_000);
    assert!(
        seen.server_stopped && seen.server.log.crashes == 1,
        "{seen:?}"
    );
    assert_eq!(oracle::postgres::stopped(&seen), []);
    assert!(!oracle::postgres::server(&seen.server).is_empty());
    assert_eq!(bench.judged(&bench.recover()), []);
}

#[test]
#[ignore = "needs PostgreSQL: see the head of this file"]
fn two_clusters_differ_only_where_chance_is_at_work() {
    let tree = || {
        let bench = Bench::new(0, |_| ());
        bench.initdb();
        let tree = bench.run(WorkloadRequest::Tree {
            dir: bench.data(),
            after: None,
            contents: true,
        });
        match tree {
            Observation::Tree {
                entries,
                next: None,
            } => entries,
            other => panic!("{other:?}"),
        }
    };
    let (one, two) = (tree(), tree());
    assert!(one.len() > 900, "{}", one.len());
    let random = oracle::files::Contents::Except(oracle::files::INITDB_RANDOM);
    assert_eq!(oracle::files::tree_equal(&one, &two, random), []);
    let all = oracle::files::tree_equal(&one, &two, oracle::files::Contents::Except(&[]));
    eprintln!("{all:#?}");
    assert!(!all.is_empty());
}

/// The oracles that complain, each once.
fn names(found: &[Finding]) -> Vec<&'static str> {
    let mut names: Vec<_> = found.iter().map(|f| f.oracle.name()).collect();
    names.dedup();
    names
}

#[test]
#[ignore = "needs PostgreSQL: see the head of this file"]
fn planted_losses_are_seen_by_the_oracles() {
    let bench = Bench::new(0, |_| ());
    bench.prepare();
    let seen = bench.ledger(200, 60_000);
    assert_eq!(seen.acked, [200, 200, 200]);
    assert_eq!(bench.judged(&bench.recover()), []);
    // The first look has left hints in pages; since the second nothing is new.
    bench.recover();
    let known = bench.recover().amcheck.expect("asked");
    assert!(known.stdout.contains("found sound"), "{known:?}");

    bench.sql("DELETE FROM ledger_a WHERE conn = 1 AND n = 77");
    let found = bench.judged(&bench.recover());
    assert_eq!(names(&found), ["ledger"], "{found:#?}");
    assert!(found[0].detail.contains("connection 1, transaction 77, "));

    // A page that never reached the disk: zeros, which no checksum minds.
    let index = bench.relation("ledger_b_pkey");
    let whole = std::fs::read(&index).expect("read");
    let mut holed = whole.clone();
    holed[8192..2 * 8192].fill(0);
    std::fs::write(&index, &holed).expect("written");
    let found = bench.judged(&bench.recover());
    assert!(names(&found).contains(&"amcheck"), "{found:#?}");
    std::fs::write(&index, &whole).expect("written");

    // One flipped bit of a table.
    let table = bench.relation("ledger_b");
    let whole = std::fs::read(&table).expect("read");
    let mut flipped = whole.clone();
    flipped[8192 + 8000] ^= 4;
    std::fs::write(&table, &flipped).expect("written");
    let found = bench.judged(&bench.recover());
    for needed in ["ledger", "log", "checksums"] {
        assert!(names(&found).contains(&needed), "{needed}: {found:#?}");
    }

    // A table that lost its end.
    std::fs::write(&table, &whole[..8192]).expect("written");
    let found = bench.judged(&bench.recover());
    assert!(names(&found).contains(&"ledger"), "{found:#?}");

    // A server that does not start.
    let control = Path::new(&bench.data()).join("global/pg_control");
    std::fs::write(control, [0; 8192]).expect("written");
    let found = bench.judged(&bench.recover());
    assert_eq!(names(&found), ["ledger", "log"], "{found:#?}");
    assert!(found[0].detail.contains("600 promised transactions"));
}

/// How many files were read for `pg_checksums`, and how many of them it was not given.
fn left_out(recovered: &Recovered) -> (usize, usize) {
    let checksums = recovered.checksums.as_ref().expect("asked");
    let first = checksums.exited.stdout.lines().next().expect("a line");
    let counts = first.split_once(" files were read; left out, as they were found sound: ");
    let (read, out) = counts.unwrap_or_else(|| panic!("{first}"));
    let number = |text: &str| text.parse().expect("a number");
    (number(read), number(out))
}

#[test]
#[ignore = "needs PostgreSQL: see the head of this file"]
fn a_file_that_was_sound_is_checked_again_once_it_is_another() {
    let bench = Bench::new(0, |_| ());
    bench.prepare();
    bench.ledger(60, 60_000);
    let first = bench.recover();
    assert_eq!(bench.judged(&first), []);
    let (read, out) = left_out(&first);
    assert!(read > 900 && out == 0, "{first:?}");
    // Each start of a server writes a few files; the second also the hints of the first's look.
    bench.recover();
    let known = bench.recover();
    let (read, out) = left_out(&known);
    assert!(out < read && out > read - 30, "{known:?}");
    let scanned = known
        .checksums
        .as_ref()
        .expect("asked")
        .exited
        .stdout
        .contains("Files scanned:");
    assert!(scanned, "{known:?}");

    let table = bench.relation("ledger_b");
    let template = Path::new(&bench.data()).join("base/1/1255");
    for (victim, oracles) in [
        (table, &["log", "checksums"][..]),
        (template, &["checksums"]),
    ] {
        let whole = std::fs::read(&victim).expect("read");
        let mut flipped = whole.clone();
        flipped[8192 + 8000] ^= 4;
        std::fs::write(&victim, &flipped).expect("written");
        for again in 0..2 {
            let recovered = bench.recover();
            let (_, out) = left_out(&recovered);
            assert!(out > 0, "{recovered:?}");
            let found = bench.judged(&recovered);
            let found = oracles.iter().filter(|name| names(&found).contains(name));
            assert_eq!(found.count(), oracles.len(), "{again}: {recovered:?}");
            let bad = &recovered.checksums.expect("asked").bad;
            let bad: Vec<_> = bad.iter().map(|b| (Path::new(&b.file), b.block)).collect();
            assert_eq!(bad, [(&*victim, 1)]);
        }
        // Half a page more.
        let longer = [&whole[..], &[0; 4096]].concat();
        std::fs::write(&victim, longer).expect("written");
        let seen = bench.recover().checksums.expect("asked");
        let named = format!("in file \"{}\": read 4096 of 8192", victim.display());
        assert!(
            seen.complaints.iter().any(|c| c.contains(&named)),
            "{seen:?}"
        );
        std::fs::write(&victim, &whole).expect("written");
        assert_eq!(bench.judged(&bench.recover()), []);
    }

    // Tables that cannot be hashed are read and looked through all the same.
    let large_objects = bench.relation("pg_largeobject");
    let aside = bench.dir.path().join("aside");
    std::fs::rename(&large_objects, &aside).expect("moved");
    let seen = bench.recover();
    assert!(
        seen.tables.is_some() && seen.read_error.is_none(),
        "{seen:?}"
    );
    assert_eq!(names(&bench.judged(&seen)), ["log", "amcheck"], "{seen:?}");
    std::fs::rename(&aside, &large_objects).expect("moved");

    // A directory elsewhere is for pg_checksums to follow.
    std::os::unix::fs::symlink("/nowhere", Path::new(&bench.data()).join("pg_tblspc/16999"))
        .expect("linked");
    let seen = bench.recover().checksums.expect("asked");
    assert!(
        seen.exited.stdout.starts_with("there are tablespaces"),
        "{seen:?}"
    );
    assert!(!seen.exited.success(), "{seen:?}");
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
    assert_eq!(bench.judged(&seen_state), []);
    let encoded = serde_json::to_vec(&seen_state).expect("encoded").len();
    eprintln!("{:?} transactions, {encoded} bytes", seen.acked);
    assert!(encoded < 1 << 19);
}
