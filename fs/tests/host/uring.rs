//! The connection over io_uring: its beginning, its end, and requests that take long. What
//! comes over it is tested in `conformance.rs`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::harness::{Sandbox, Server, run, without_io_uring};

#[test]
fn a_connection_over_io_uring_ends_with_its_server() {
    let sandbox = Sandbox::new();
    let (source, mount) = (sandbox.source(), sandbox.mountpoint());
    for signal in ["TERM", "KILL"] {
        let server = Server::start_over_io_uring(&source, &mount, &[]);
        let file = File::create(mount.join("f")).unwrap();
        file.write_all_at(signal.as_bytes(), 0).unwrap();
        let pid = server.pid().to_string();
        if signal == "TERM" {
            drop(file);
            run("procps", &["kill", "-s", signal, &pid]);
            let (status, log) = server.wait();
            assert!(status.success(), "{status}: {log:#?}");
        } else {
            run("procps", &["kill", "-s", signal, &pid]);
            server.wait();
            // Nobody is left to answer; who asks is told so and does not hang. ECANCELED comes
            // from a thread that is about to end (fuse_uring_send_in_task in
            // fs/fuse/dev_uring.c).
            let asked = fs::metadata(mount.join("other")).unwrap_err();
            let gone = [Errno::NOTCONN, Errno::CONNABORTED, Errno::CANCELED].map(Some);
            assert!(gone.contains(&Errno::from_io_error(&asked)), "{asked}");
            drop(file);
            rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH).unwrap();
        }
        let below = fs::read_to_string(source.join("f")).unwrap();
        assert_eq!(below, signal);
    }
}

#[test]
fn io_uring_that_is_switched_off_is_an_error() {
    let sandbox = Sandbox::new();
    let (source, mount) = (sandbox.source(), sandbox.mountpoint());
    let command = [
        crate::harness::SERVER,
        "--foreground",
        "--transport",
        "io-uring",
        source.to_str().unwrap(),
        mount.to_str().unwrap(),
    ];
    let output = without_io_uring(|| run("plugpull-fs", &command));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("enable_uring"), "{said}");
    // Nothing stays mounted.
    fs::write(mount.join("f"), "below").unwrap();
    assert!(!source.join("f").exists());
}

/// One processor's queue has several threads: a copy that takes long is in nobody's way,
/// wherever the clients run.
#[test]
fn a_long_request_over_io_uring_holds_up_no_other() {
    const BIG: u64 = 3 << 29;
    let sandbox = Sandbox::new();
    let (source, mount) = (sandbox.source(), sandbox.mountpoint());
    let server = Server::start_over_io_uring(&source, &mount, &["--io", "direct"]);
    let from = File::create(source.join("from")).unwrap();
    for at in (0..BIG).step_by(1 << 20) {
        from.write_all_at(&[7; 1 << 20], at).unwrap();
    }
    fs::write(mount.join("small"), "small").unwrap();
    let copy = std::thread::spawn({
        let mount = mount.clone();
        move || {
            let begun = Instant::now();
            let (from, to) = (mount.join("from"), mount.join("to"));
            let (from, to) = (File::open(from).unwrap(), File::create(to).unwrap());
            let copied = rustix::fs::copy_file_range(&from, None, &to, None, BIG as usize);
            (copied, begun.elapsed())
        }
    });
    let mut longest = Duration::ZERO;
    let mut done = 0;
    while !copy.is_finished() {
        let begun = Instant::now();
        assert_eq!(fs::read_to_string(mount.join("small")).unwrap(), "small");
        longest = longest.max(begun.elapsed());
        done += 1;
    }
    let (copied, took) = copy.join().unwrap();
    assert_eq!(copied, Ok(BIG as usize));
    assert!(done > 10, "{done} in {took:?}");
    // Who had to wait for the copy would have waited for nearly all of it.
    assert!(longest < took * 3 / 4, "one took {longest:?} of {took:?}");
    server.unmount();
}
