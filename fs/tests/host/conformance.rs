//! The conformance suite on real mounts: random calls, named checks and fsx, in every
//! I/O mode, and on every lower filesystem that this host can make.
//!
//! The suite runs inside this process, by its command line: a test can build no other
//! package's binary, and everything it does goes through paths all the same.

use std::fs;
use std::path::{Path, PathBuf};

use plugpull_conformance::client::Client;
use plugpull_conformance::{check, differential};
use rustix::mount::{UnmountFlags, unmount};

use crate::harness::{Sandbox, Server, open_to_all, run_ok};

/// Every I/O mode; `auto` is one of them, chosen at start.
const MODES: &[&str] = &["cached", "direct", "writeback", "passthrough"];

/// Sequences per mode: a few seconds. The nightly run takes more by the command.
const SEQUENCES: u64 = 60;

/// Operations of fsx under [`SEED`] whose loss shows: writes, one in the first of its
/// rounds and one in the second.
const INJECTED: [u64; 2] = [3, 20_002];

/// Every sequence follows from this.
const SEED: u64 = 1;

/// How the kernel's client works in an I/O mode.
fn client(mode: &str) -> Client {
    match mode {
        "direct" => Client::Direct,
        "writeback" => Client::Writeback,
        "passthrough" => Client::Passthrough,
        _ => Client::Requests,
    }
}

/// As the plain directory: device nodes work, and so do set-id programs.
fn arguments(mode: &str) -> [&str; 4] {
    ["--io", mode, "-o", "dev,suid"]
}

fn serve(source: &Path, mountpoint: &Path, mode: &str) -> Server {
    Server::start(source, mountpoint, &arguments(mode))
}

fn compare(source: &Path, mount: &Path, plain: &Path, mode: &str, cases: u64) {
    let server = serve(source, mount, mode);
    run_sequences(source, mount, plain, mode, cases);
    server.unmount();
}

fn run_sequences(source: &Path, mount: &Path, plain: &Path, mode: &str, cases: u64) {
    let options = differential::Options {
        mount: mount.to_owned(),
        plain: plain.to_owned(),
        source: Some(source.to_owned()),
        ops: 60,
        cases,
        seed: Some(SEED),
        seconds: None,
        shrink_seconds: 20,
        plant: None,
        fuse: Some(client(mode)),
        without: Vec::new(),
    };
    let report = differential::run(&options).expect("the mount stands");
    if let Some(failure) = report.failure {
        panic!("--io {mode}: {failure}");
    }
    assert!(report.calls > cases * 10, "{} calls", report.calls);
}

fn check(source: &Path, mount: &Path, plain: &Path, mode: &str, except: &[&str]) {
    let server = serve(source, mount, mode);
    run_checks(mount, plain, mode, except);
    server.unmount();
}

fn run_checks(mount: &Path, plain: &Path, mode: &str, except: &[&str]) {
    let options = check::Options {
        mount: Some(mount.to_owned()),
        plain: Some(plain.to_owned()),
        list: false,
        fuse: Some(client(mode)),
        except: except.iter().map(ToString::to_string).collect(),
        names: Vec::new(),
    };
    let verdicts = check::run(&options).expect("the mount stands");
    let failed = |verdict: check::Verdict| Some(format!("{}: {}", verdict.name, verdict.failure?));
    let wrong: Vec<_> = verdicts.into_iter().filter_map(failed).collect();
    assert!(wrong.is_empty(), "--io {mode}: {wrong:#?}");
}

/// All of it once more with requests that come over io_uring.
fn over_io_uring(mode: &str) {
    let sandbox = Sandbox::new();
    let (source, mount) = (sandbox.source(), sandbox.mountpoint());
    let server = Server::start_over_io_uring(&source, &mount, &arguments(mode));
    run_sequences(&source, &mount, &sandbox.native(), mode, SEQUENCES);
    run_checks(&mount, &sandbox.native(), mode, ONCE);
    assert!(run_fsx(&sandbox, mode, 4_000, None), "--io {mode}");
    server.unmount();
}

/// A hundred thousand names cost half a minute and have nothing to do with I/O modes.
const ONCE: &[&str] = &["huge-directory"];

macro_rules! in_every_mode {
    ($($mode:ident),*) => {
        mod sequences {
            $(#[test]
            fn $mode() {
                let sandbox = super::Sandbox::new();
                let (source, mount) = (sandbox.source(), sandbox.mountpoint());
                let mode = stringify!($mode);
                super::compare(&source, &mount, &sandbox.native(), mode, super::SEQUENCES);
            })*
        }
        mod checks {
            $(#[test]
            fn $mode() {
                let sandbox = super::Sandbox::new();
                let (source, mount) = (sandbox.source(), sandbox.mountpoint());
                let mode = stringify!($mode);
                let except = if mode == "cached" { &[][..] } else { super::ONCE };
                super::check(&source, &mount, &sandbox.native(), mode, except);
            })*
        }
        mod over_io_uring {
            $(#[test]
            fn $mode() {
                super::over_io_uring(stringify!($mode));
            })*
        }
        #[test]
        fn every_mode_is_tested() {
            assert_eq!(MODES, [$(stringify!($mode)),*]);
            let help = run_ok("plugpull-fs", &[crate::harness::SERVER, "--help"]);
            for mode in MODES {
                assert!(help.contains(&format!("{mode}: ")), "{mode} is not in {help}");
            }
        }
    };
}

in_every_mode!(cached, direct, writeback, passthrough);

/// A filesystem in a file, mounted in the test's own namespace.
struct Lower {
    root: PathBuf,
}

impl Lower {
    fn new(sandbox: &Sandbox, kind: &str, package: &str) -> Self {
        let mkfs = format!("mkfs.{kind}");
        let (image, root) = (sandbox.path("image"), sandbox.path("lower"));
        fs::File::create(&image).unwrap().set_len(1 << 30).unwrap();
        fs::create_dir(&root).unwrap();
        let (image, at) = (image.to_str().unwrap(), root.to_str().unwrap());
        run_ok(package, &[&mkfs, "-q", image]);
        run_ok("mount", &["mount", "-t", kind, "-o", "loop", image, at]);
        for name in ["source", "native"] {
            fs::create_dir(root.join(name)).unwrap();
            open_to_all(&root.join(name));
        }
        open_to_all(&root);
        Lower { root }
    }
}

impl Drop for Lower {
    fn drop(&mut self) {
        // The loop device goes with its last user.
        let _gone = unmount(&self.root, UnmountFlags::DETACH);
    }
}

fn on_lower(kind: &str, package: &str) {
    let sandbox = Sandbox::new();
    let lower = Lower::new(&sandbox, kind, package);
    let (source, native) = (lower.root.join("source"), lower.root.join("native"));
    for mode in MODES {
        compare(&source, &sandbox.mountpoint(), &native, mode, SEQUENCES / 6);
    }
    check(&source, &sandbox.mountpoint(), &native, "cached", ONCE);
}

#[test]
fn over_ext4() {
    on_lower("ext4", "e2fsprogs");
}

#[test]
fn over_xfs() {
    on_lower("xfs", "xfsprogs");
}

#[test]
fn over_btrfs() {
    on_lower("btrfs", "btrfs-progs");
}

/// Where fsx is: `cargo xtask test` installs it and says where, and does so because a
/// test can install nothing.
fn fsx() -> PathBuf {
    std::env::var_os("PLUGPULL_FSX").map_or_else(|| "fsx".into(), PathBuf::from)
}

fn serve_fsx(mode: &str, ops: u64, inject: Option<u64>) -> bool {
    let sandbox = Sandbox::new();
    let server = serve(&sandbox.source(), &sandbox.mountpoint(), mode);
    let passed = run_fsx(&sandbox, mode, ops, inject);
    server.unmount();
    passed
}

fn run_fsx(sandbox: &Sandbox, mode: &str, ops: u64, inject: Option<u64>) -> bool {
    let program = fsx();
    let options = plugpull_conformance::fsx::Options {
        file: sandbox.mountpoint().join("fsx"),
        ops,
        seed: SEED,
        mmap: true,
        fuse: Some(client(mode)),
        size: 1 << 20,
        artifacts: Some(sandbox.native()),
        program,
        deadline_seconds: 120,
        inject,
    };
    let passed = plugpull_conformance::fsx::run(&options)
        .expect("is fsx there? cargo install fsx --version 0.3.2 --locked");
    if !passed && inject.is_none() {
        let kept = sandbox.native();
        eprintln!("fsx failed, its log and files are in {}", kept.display());
    }
    passed
}

#[test]
fn fsx_finds_nothing_wrong() {
    for mode in MODES {
        assert!(serve_fsx(mode, 8_000, None), "--io {mode}");
    }
}

#[test]
fn fsx_notices_a_corrupted_write() {
    for operation in INJECTED {
        let passed = serve_fsx("passthrough", operation + 200, Some(operation));
        assert!(!passed, "the fault at {operation} went unseen");
    }
}

/// The sequences see what is wrong behind the protocol too, not only planted faults.
#[cfg(feature = "mutants")]
#[test]
fn mutants_are_caught_by_sequences() {
    for mutant in ["rename-flags-ignored", "setattr-truncates-wrong-handle"] {
        let sandbox = Sandbox::new();
        let (source, mount) = (sandbox.source(), sandbox.mountpoint());
        let arguments = ["--io", "direct", "-o", "dev,suid", "--mutant", mutant];
        let server = Server::start(&source, &mount, &arguments);
        let options = differential::Options {
            mount,
            plain: sandbox.native(),
            source: None,
            ops: 60,
            cases: 200,
            seed: Some(SEED),
            seconds: None,
            shrink_seconds: 0,
            plant: None,
            fuse: Some(Client::Direct),
            without: Vec::new(),
        };
        let report = differential::run(&options).expect("the mount stands");
        assert!(report.failure.is_some(), "{mutant} was not caught");
        server.unmount();
    }
}
