//! Nothing that a mount waits for can hold it up for ever: programs in the place of
//! fusermount3 that hang, and a source that does not answer.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::time::Instant;

use plugpull_fuse::readable_before;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};

use crate::harness::{DEADLINE, SERVER, Sandbox, Server, run};
use crate::ordinary_user::{Home, USER, signal};

/// A directory with a fusermount3 of our own. It belongs to the user, and what the
/// program leaves behind is told by a file `pid` in it.
fn in_its_place(home: &Home, script: &str) -> PathBuf {
    let dir = home.sandbox.path("bin");
    fs::create_dir(&dir).unwrap();
    chown(&dir, Some(USER), None).unwrap();
    let program = dir.join("fusermount3");
    let script = format!("#!/bin/sh\ncd '{}'\n{script}\n", dir.display());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn pid(text: &str) -> Pid {
    Pid::from_raw(text.trim().parse().unwrap()).unwrap()
}

/// Not for children of this process, which end when they have been waited for.
fn wait_for_the_end_of(process: Pid) {
    match pidfd_open(process, PidfdFlags::empty()) {
        Ok(ended) => assert!(
            readable_before(&ended, Instant::now() + DEADLINE).unwrap(),
            "{process} still lives"
        ),
        Err(error) => assert_eq!(error, Errno::SRCH),
    }
}

/// What an ordinary user is told who mounts with a second's patience.
fn complaint(home: &Home, arguments: &str) -> String {
    let path = home.sandbox.path("bin");
    let (code, said) = home.script(&format!(
        "PATH='{}':$PATH; $SERVER --timeout 1 {arguments} $SOURCE $MOUNT",
        path.display()
    ));
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(home.mounted(), None);
    said
}

#[test]
fn a_fusermount3_that_hangs_is_killed_and_named() {
    let home = Home::new("");
    let dir = in_its_place(&home, "echo $$ > pid; exec tail -f /dev/null");
    for arguments in ["--foreground", ""] {
        let said = complaint(&home, arguments);
        assert!(said.contains("\"fusermount3\" \"-o\""), "{said}");
        assert!(said.contains("did not end in 1s"), "{said}");
        wait_for_the_end_of(pid(&fs::read_to_string(dir.join("pid")).unwrap()));
    }
}

#[test]
fn a_device_that_never_comes_is_missed() {
    let home = Home::new("");
    // Ends well, and leaves somebody behind who holds the socket.
    let dir = in_its_place(&home, "tail -f /dev/null > /dev/null 2>&1 & echo $! > pid");
    let said = complaint(&home, "");
    let holder = pid(&fs::read_to_string(dir.join("pid")).unwrap());
    kill_process(holder, Signal::KILL).expect("it still holds the socket");
    assert!(said.contains("sent no device in 1s"), "{said}");
}

#[test]
fn a_socket_that_is_closed_ends_the_wait() {
    let home = Home::new("");
    in_its_place(&home, "exit 0");
    let said = complaint(&home, "");
    assert!(said.contains("sent no descriptor"), "{said}");
}

#[test]
fn a_server_goes_on_when_fusermount3_hangs_as_it_unmounts() {
    let home = Home::new("");
    let dir = in_its_place(
        &home,
        "case $1 in -u) echo $$ > pid; exec tail -f /dev/null;; esac
         PATH=/usr/bin:/bin exec fusermount3 \"$@\"",
    );
    let path = format!("PATH={}:/usr/bin:/bin", dir.display());
    let setpriv = ["--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let setpriv = [&setpriv[..], &["env", &path, &home.server]].concat();
    let (source, mountpoint) = (home.sandbox.source(), home.sandbox.mountpoint());
    let arguments = ["--timeout", "1"];
    let mut server = Server::start_by(&setpriv, "info", &source, &mountpoint, &arguments);
    signal(&server, Signal::TERM);
    server.wait_for_line("did not end in 1s");
    assert!(home.mounted().is_some());
    assert_eq!(
        home.script_ok("echo served > $MOUNT/f; cat $MOUNT/f"),
        "served\n"
    );
    kill_process(
        pid(&fs::read_to_string(dir.join("pid")).unwrap()),
        Signal::KILL,
    )
    .expect("it was left alone");
    home.script_ok("fusermount3 -u $MOUNT");
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log:#?}");
}

#[test]
fn a_source_that_does_not_answer_ends_the_wait_for_the_background() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.source().join("dir")).unwrap();
    let server = sandbox.serve(&[]);
    signal(&server, Signal::STOP);
    let stopped = Pid::from_raw(server.pid().cast_signed());
    waitpid(stopped, WaitOptions::UNTRACED).unwrap();

    let (source, over) = (sandbox.mountpoint().join("dir"), sandbox.native());
    // The server in the background would hold our pipes open.
    let script = format!(
        "{SERVER} --timeout 1 '{}' '{}' > '{}' 2>&1",
        source.display(),
        over.display(),
        sandbox.path("said").display()
    );
    let output = run("dash", &["sh", "-c", &script]);
    assert_eq!(output.status.code(), Some(1));
    let said = fs::read_to_string(sandbox.path("said")).unwrap();
    assert!(said.contains("did not mount"), "{said}");
    assert!(said.contains("in 1s"), "{said}");

    // It mounts after all, and takes the mount off again.
    signal(&server, Signal::CONT);
    let (_, number) = said.split_once("process ").unwrap();
    wait_for_the_end_of(pid(number.split(',').next().unwrap()));
    let table = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    assert!(!table.contains(over.to_str().unwrap()), "{table}");
    let late = fs::read_to_string(sandbox.path("said")).unwrap();
    assert!(late.contains(" mounted "), "{late}");
    server.unmount();
}
