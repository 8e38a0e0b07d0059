//! The promise socket and what becomes of programs, on the host.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Condvar, Mutex};

use plugpull_protocol::workload::user::{Keys, UserFile, encode};

use super::*;

/// Records promises; can be made to wait before it does.
#[derive(Default)]
pub(super) struct Host {
    heard: Mutex<(Vec<Promise>, bool)>,
    changed: Condvar,
}

impl Host {
    pub(super) fn heard(&self) -> Vec<Promise> {
        self.heard.lock().expect("no panic").0.clone()
    }

    fn hold(&self, held: bool) {
        self.heard.lock().expect("no panic").1 = held;
        self.changed.notify_all();
    }
}

impl Promises for Host {
    fn record(&self, event: Promise) -> Result<()> {
        let heard = self.heard.lock().expect("no panic");
        let mut heard = self.changed.wait_while(heard, |h| h.1).expect("no panic");
        heard.0.push(event);
        Ok(())
    }
}

pub(super) const RULES: SocketRules = SocketRules {
    keys: Keys::Text,
    promises_max: 1000,
    bytes_max: 10 << 20,
};

/// Talk to a socket; hand back what the host heard and what was refused.
fn talk(rules: SocketRules, talk: impl FnOnce(&Path)) -> (Vec<Promise>, socket::Heard) {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path().join("promises");
    let host = Host::default();
    let body = |_: &Socket<'_>| {
        talk(&at);
        Ok(())
    };
    let ((), heard) = socket::listening(&at, rules, &host, body).expect("it listens");
    (host.heard(), heard)
}

struct Client(BufReader<UnixStream>);

impl Client {
    fn new(at: &Path) -> Self {
        let stream = UnixStream::connect(at).expect("connected");
        let deadline = Some(Duration::from_secs(20));
        stream.set_read_timeout(deadline).expect("set");
        Self(BufReader::new(stream))
    }

    fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).expect("sent");
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("answered");
        line
    }

    fn say(&mut self, line: &str) -> String {
        self.send(&format!("{line}\n"));
        self.answer()
    }
}

pub(super) fn begin(conn: u32, key: &str, value: Option<&str>) -> Promise {
    Promise::Begin {
        conn,
        key: key.into(),
        value: value.map(str::to_owned),
    }
}

pub(super) fn ack(conn: u32, key: &str) -> Promise {
    Promise::Ack {
        conn,
        key: key.into(),
    }
}

#[test]
fn lines_of_many_connections_become_promises() {
    let (said, heard) = talk(RULES, |at| {
        let (mut one, mut two) = (Client::new(at), Client::new(at));
        assert_eq!(one.say("begin a%20b v"), "ok\n");
        assert_eq!(two.say("begin gone"), "ok\n");
        assert_eq!(one.say("ack a%20b"), "ok\n");
        assert_eq!(two.say("served a%20b v"), "ok\n");
        assert_eq!(two.say("mark half way"), "ok\n");
    });
    assert_eq!((heard.connections, heard.refused), (2, None));
    let numbers = |promise: &Promise| match promise {
        Promise::Begin { conn, .. } | Promise::Ack { conn, .. } => *conn,
        _ => 0,
    };
    // Which connection is accepted first is the kernel's affair.
    let one = numbers(&said[0]);
    let two = 3 - one;
    let served = Promise::Served {
        key: "a%20b".into(),
        value: "v".into(),
    };
    let mark = Promise::Mark {
        text: "half way".into(),
    };
    assert_eq!(
        said,
        [
            begin(one, "a%20b", Some("v")),
            begin(two, "gone", None),
            ack(one, "a%20b"),
            served,
            mark
        ]
    );
}

#[test]
fn many_connections_talk_at_once_and_none_is_mixed_up() {
    const CONNECTIONS: usize = 64;
    let (said, heard) = talk(RULES, |at| {
        let ready = std::sync::Barrier::new(CONNECTIONS);
        std::thread::scope(|scope| {
            for n in 0..CONNECTIONS {
                let ready = &ready;
                scope.spawn(move || {
                    let mut client = Client::new(at);
                    ready.wait();
                    for _ in 0..5 {
                        assert_eq!(client.say(&format!("begin k v{n}")), "ok\n");
                        assert_eq!(client.say("ack k"), "ok\n");
                    }
                });
            }
        });
    });
    assert_eq!((heard.connections, heard.refused), (64, None));
    assert_eq!(said.len(), CONNECTIONS * 10);
    let ledger = plugpull_lab::oracle::Ledger::at((1..).zip(&said), u64::MAX);
    let ledger = ledger.expect("a ledger");
    let attempts = &ledger.key("k").expect("begun").attempts;
    assert!(attempts.iter().all(|attempt| attempt.acked.is_some()));
    // Each connection says one value, whatever its number.
    let pairs: std::collections::BTreeSet<_> =
        attempts.iter().map(|a| (a.conn, a.value.clone())).collect();
    assert_eq!(pairs.len(), CONNECTIONS);
}

#[test]
fn ok_is_said_after_the_host_has_recorded() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path().join("promises");
    let host = Host::default();
    host.hold(true);
    socket::listening(&at, RULES, &host, |_| {
        let mut client = Client::new(&at);
        client.send("begin k v\n");
        let stream = client.0.get_ref();
        stream.set_read_timeout(Some(Duration::from_millis(300)))?;
        let early = client.0.fill_buf().map(<[u8]>::to_vec);
        assert!(early.is_err(), "answered too early: {early:?}");
        host.hold(false);
        let stream = client.0.get_ref();
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        assert_eq!(client.answer(), "ok\n");
        Ok(())
    })
    .expect("it listens");
    assert_eq!(host.heard(), [begin(1, "k", Some("v"))]);
}

#[test]
fn what_was_sent_before_the_end_is_heard_though_nobody_waits_for_the_answer() {
    let (said, heard) = talk(RULES, |at| {
        Client::new(at).send("begin k v\nack k\n");
    });
    assert_eq!(said, [begin(1, "k", Some("v")), ack(1, "k")]);
    assert_eq!(heard.refused, None);
}

#[test]
fn after_a_bad_line_nothing_is_recorded_on_any_connection() {
    let (said, heard) = talk(RULES, |at| {
        let (mut good, mut bad) = (Client::new(at), Client::new(at));
        assert_eq!(good.say("begin k v"), "ok\n");
        let error = bad.say("begin a b c");
        assert!(
            error.starts_with("error connection ") && error.contains("line 1: `begin a b c`"),
            "{error}"
        );
        let late = good.say("ack k");
        assert!(
            late.starts_with("error ") && late.contains("begin a b c"),
            "{late}"
        );
    });
    let why = heard.refused.expect("refused");
    assert!(why.contains("begin a b c"), "{why}");
    assert_eq!(said.len(), 2);
    assert_eq!(said[1], Promise::Garbled { why });
}

#[test]
fn an_acknowledgement_needs_its_begin_on_the_same_connection() {
    let (_, heard) = talk(RULES, |at| {
        assert_eq!(Client::new(at).say("begin k v"), "ok\n");
        assert!(Client::new(at).say("ack k").starts_with("error "));
    });
    let why = heard.refused.expect("refused");
    assert!(why.contains("`ack k` without a `begin k`"), "{why}");
}

#[test]
fn a_line_has_64_kib_and_an_end() {
    let longest = format!(
        "begin k {}",
        "v".repeat(plugpull_protocol::workload::user::LINE_MAX - 8)
    );
    let (said, heard) = talk(RULES, |at| {
        assert_eq!(Client::new(at).say(&longest), "ok\n")
    });
    assert_eq!((said.len(), heard.refused), (1, None));
    let (_, heard) = talk(RULES, |at| {
        assert!(
            Client::new(at)
                .say(&format!("{longest}v"))
                .starts_with("error ")
        );
    });
    assert!(
        heard
            .refused
            .expect("refused")
            .contains("longer than 65536")
    );
    let (_, heard) = talk(RULES, |at| Client::new(at).send("begin k v\nack k"));
    assert!(
        heard
            .refused
            .expect("refused")
            .contains("ended within a line")
    );
}

#[test]
fn a_flood_is_called_one() {
    for rules in [
        SocketRules {
            promises_max: 10,
            ..RULES
        },
        SocketRules {
            bytes_max: 100,
            ..RULES
        },
    ] {
        let (said, heard) = talk(rules, |at| {
            let mut client = Client::new(at);
            let flooded = (0..20).find(|_| client.say("begin k v") != "ok\n");
            assert_eq!(flooded, Some(10));
        });
        let why = heard.refused.expect("refused");
        assert!(why.contains("floods promises"), "{why}");
        assert_eq!(said.len(), 11);
    }
}

/// Run a shell script as the workload.
fn ran(script: &str, timeout_ms: u64) -> (Vec<Promise>, UserRan) {
    let dir = tempfile::tempdir().expect("a directory");
    let host = Host::default();
    let own = dir.path().join("work");
    let request = UserRequest::Run {
        dir: own.display().to_string(),
        program: call(script, &own, timeout_ms),
        socket: RULES,
    };
    match run(request, &host, dir.path()).expect("carried out") {
        UserSeen::Ran(ran) => (host.heard(), *ran),
        other => panic!("{other:?}"),
    }
}

fn call(script: &str, cwd: &Path, timeout_ms: u64) -> Call {
    Call {
        cwd: cwd.display().to_string(),
        argv: ["/bin/sh", "-c", script].map(str::to_owned).into(),
        timeout_ms,
    }
}

#[test]
fn a_program_runs_in_its_place_with_its_socket() {
    let (said, ran) = ran("test -S \"$PLUGPULL\" && pwd && exit 3", 20_000);
    let Ended::Exited(exited) = ran.ended else {
        panic!("{ran:?}");
    };
    assert_eq!(exited.code, 3);
    assert!(exited.stdout.ends_with("/work\n"), "{exited:?}");
    assert_eq!((ran.connections, ran.refused), (0, None));
    let mark = Promise::Mark {
        text: MARK_START.into(),
    };
    assert_eq!(said, [mark]);
}

#[test]
fn a_program_that_hangs_or_cannot_start_is_an_observation() {
    let (_, hung) = ran("echo so far; sleep 1000", 500);
    match hung.ended {
        Ended::Hung { after_ms, said } => {
            assert!((500..5000).contains(&after_ms), "{after_ms}");
            assert_eq!(said, "so far\n");
        }
        other => panic!("{other:?}"),
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mut check = call("", dir.path(), 1000);
    check.argv = vec!["./absent".into()];
    let request = UserRequest::Check { program: check };
    match run(request, &Host::default(), dir.path()).expect("carried out") {
        UserSeen::Checked {
            ended: Ended::NotStarted { why },
        } => {
            assert!(
                why.contains("./absent") && why.contains("No such file"),
                "{why}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_program_that_was_refused_is_not_waited_for() {
    let script = "printf 'nonsense\\n' | perl -MIO::Socket::UNIX -e \
        '$s = IO::Socket::UNIX->new($ENV{PLUGPULL}) or die; print $s <STDIN>; $s->flush; print <$s>'; \
        sleep 1000";
    let (_, ran) = ran(script, 600_000);
    assert!(ran.refused.expect("refused").contains("`nonsense`"));
    match ran.ended {
        Ended::Hung { said, .. } => assert!(said.starts_with("error connection 1"), "{said}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_ledger_arrives_in_parts_and_anew() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("ledger.jsonl");
    let part = |text: &str, first| {
        let request = UserRequest::Ledger {
            path: path.display().to_string(),
            text: text.into(),
            first,
        };
        run(request, &Host::default(), dir.path()).expect("carried out");
        fs::read_to_string(&path).expect("read")
    };
    assert_eq!(part("old\n", true), "old\n");
    assert_eq!(part("one\n", true), "one\n");
    assert_eq!(part("two\n", false), "one\ntwo\n");
}

#[test]
fn files_are_looked_at_by_their_encoded_names() {
    let dir = tempfile::tempdir().expect("a directory");
    let odd = std::ffi::OsStr::from_bytes(b"odd \xff");
    fs::write(dir.path().join(odd), b"abc").expect("written");
    fs::create_dir(dir.path().join("d")).expect("made");
    std::os::unix::fs::symlink("d", dir.path().join("link")).expect("linked");
    let odd = encode(b"odd \xff");
    let below = format!("{odd}/below");
    let keys = [&odd, "d", "link", "none", &below].map(str::to_owned);
    let request = UserRequest::Files {
        dir: dir.path().display().to_string(),
        keys: keys.clone().into(),
    };
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let other = |kind: &str| UserFile::Other { kind: kind.into() };
    let files = [
        UserFile::File {
            size: 3,
            sha256: abc.into(),
        },
        other("a directory"),
        other("a symbolic link"),
        UserFile::Absent,
        UserFile::Absent,
    ];
    let seen = run(request, &Host::default(), dir.path()).expect("carried out");
    let files = keys.into_iter().zip(files).collect();
    assert_eq!(seen, UserSeen::Files { files });
}
