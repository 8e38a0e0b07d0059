//! The command by itself, ended in good order and by SIGKILL.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};

use common::client::{Client, FLUSH, WRITE};
use common::{command, noise};
use plugpull_disk::{End, Entry, Recording};

/// A `plugpull-disk serve` that has said where it listens.
struct Served {
    child: Child,
    output: BufReader<ChildStdout>,
    dir: tempfile::TempDir,
}

impl Served {
    fn start(more: &[&str]) -> Served {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = dir.path().join("log");
        let socket = dir.path().join("sock");
        let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        let (log, socket) = (text(&log), text(&socket));
        let mut arguments = vec!["serve", "--size", "8", "--log", &log, "--socket", &socket];
        arguments.extend(more);
        let mut child = command(Path::new(env!("CARGO_BIN_EXE_plugpull-disk")), &arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("plugpull-disk starts");
        let mut output = BufReader::new(child.stdout.take().expect("its output"));
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        assert!(line.starts_with("serving on "), "{line}");
        Served { child, output, dir }
    }

    fn connect(&self) -> Client {
        Client::connect(&self.dir.path().join("sock"))
    }

    fn recording(&self) -> Recording {
        Recording::open(&self.dir.path().join("log")).expect("a recording")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended long ago; a test that failed must not leave it behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn after_sigkill_every_answered_write_is_in_the_log_and_the_end_is_known() {
    let mut served = Served::start(&[]);
    let mut client = served.connect();
    for number in 0..200 {
        client.write(number * 4096, &noise(number, 4096));
    }
    client.flush();
    // And some whose answers nobody waits for, so that it dies at work.
    for number in 0..200 {
        client.send(WRITE, 0, number * 4096, 4096, &noise(number, 4096));
    }
    served.child.kill().expect("SIGKILL");
    served.child.wait().expect("its end");

    let recording = served.recording();
    let End::Truncated { last_seq, .. } = recording.end() else {
        panic!("a killed recorder's log passes for whole");
    };
    assert_eq!(*last_seq, recording.last_seq());
    let answered = |entry: &&Entry| matches!(entry, Entry::Complete(done) if done.errno == 0);
    assert!(recording.entries().iter().filter(answered).count() >= 201);
    let state = recording
        .at(plugpull_disk::CutPoint(*last_seq))
        .expect("a state");
    assert!(
        state.durable.len() >= 200,
        "{} are durable",
        state.durable.len()
    );
}

#[test]
fn the_command_serves_cuts_lists_and_writes_a_crash_state() {
    let mut served = Served::start(&["--cut-at-flush", "2", "--seed", "5"]);
    let mut client = served.connect();
    client.write(0, &[1; 512]);
    client.flush();
    client.write(0, &[2; 512]);
    client.send(FLUSH, 0, 0, 0, &[]);
    assert!(client.is_silent());
    drop(served.child.stdin.take());
    let mut rest = String::new();
    served.output.read_to_string(&mut rest).expect("its output");
    assert_eq!(
        rest,
        "the power was cut at event 8\n8 events are recorded\n"
    );
    assert!(served.child.wait().expect("its end").success());

    let program = Path::new(env!("CARGO_BIN_EXE_plugpull-disk"));
    let log = served.dir.path().join("log");
    let out = served.dir.path().join("image");
    let (log, image) = (log.to_str().expect("UTF-8"), out.to_str().expect("UTF-8"));
    let listing = command(program, &["log", log])
        .output()
        .expect("a listing")
        .stdout;
    let listing = String::from_utf8_lossy(&listing);
    assert!(
        listing.ends_with("7 submit 3 Flush at sector 0 for 0 bytes\n8 cut\n"),
        "{listing}"
    );
    for (keep, expected) in [("none", 1), ("all", 2)] {
        let arguments = [
            "crash", "--size", "8", "--log", log, "--keep", keep, "--out", image,
        ];
        let status = command(program, &arguments)
            .status()
            .expect("plugpull-disk runs");
        assert!(status.success());
        assert_eq!(
            std::fs::read(&out).expect("the image")[..512],
            [expected; 512]
        );
    }
}
