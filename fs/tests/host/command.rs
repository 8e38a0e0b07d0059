//! The command itself: its exit codes, its life in the background, its end.

use std::fs::{self, File};
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{SERVER, Sandbox, run, run_ok};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn mounted_as(mountpoint: &Path) -> Option<String> {
    // Not /proc/self: the namespace is this thread's own.
    let table = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    let line = table
        .lines()
        .rfind(|line| line.contains(text(mountpoint)))?;
    Some(line.to_owned())
}

#[test]
fn mistakes_in_the_call_are_named_and_exit_2() {
    let sandbox = Sandbox::new();
    let (source, mountpoint) = (sandbox.source(), sandbox.mountpoint());
    let cases: [(&[&str], &str); 5] = [
        (&["-o", "ro,bogus=7"], "bogus=7"),
        (&["-o", "allow_othr"], "allow_othr"),
        (&["--io", "fast"], "fast"),
        (&["--threads", "0"], "threads"),
        (&["--nonsense"], "--nonsense"),
    ];
    for (arguments, named) in cases {
        let mut argv = vec![SERVER];
        argv.extend(arguments);
        argv.extend([text(&source), text(&mountpoint)]);
        let output = run("plugpull-fs", &argv);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(named), "{message}");
    }
    assert_eq!(run("plugpull-fs", &[SERVER]).status.code(), Some(2));
    assert_eq!(mounted_as(&mountpoint), None);
}

#[cfg(not(feature = "mutants"))]
#[test]
fn an_honest_build_knows_no_mutants() {
    let sandbox = Sandbox::new();
    let (source, mountpoint) = (sandbox.source(), sandbox.mountpoint());
    let argv = [
        SERVER,
        "--mutant",
        "fsync-ignored",
        text(&source),
        text(&mountpoint),
    ];
    let output = run("plugpull-fs", &argv);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--mutant"));
}

#[cfg(feature = "mutants")]
#[test]
fn an_unknown_mutant_is_refused_with_the_known_ones() {
    let sandbox = Sandbox::new();
    let (source, mountpoint) = (sandbox.source(), sandbox.mountpoint());
    let argv = [
        SERVER,
        "--mutant",
        "no-such",
        text(&source),
        text(&mountpoint),
    ];
    let output = run("plugpull-fs", &argv);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("fsync-ignored"));
}

#[test]
fn what_cannot_be_mounted_is_named_and_exits_1() {
    let sandbox = Sandbox::new();
    let absent = sandbox.path("absent");
    for extra in [None, Some("--foreground")] {
        let mut argv = vec![SERVER, text(&absent)];
        let mountpoint = sandbox.mountpoint();
        argv.push(text(&mountpoint));
        argv.extend(extra);
        let output = run("plugpull-fs", &argv);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains("absent"), "{message}");
    }
}

#[test]
fn in_the_background_it_returns_mounted_and_ends_with_umount() {
    let sandbox = Sandbox::new();
    let (source, mountpoint) = (sandbox.source(), sandbox.mountpoint());
    // As mount(8) calls a helper: options last.
    let options = "rw,noexec,fsname=a name,relatime,x-test";
    let argv = [
        SERVER,
        text(&source),
        text(&mountpoint),
        "-v",
        "-o",
        options,
    ];
    // Returns although the server lives, with nothing of it on our pipes.
    run_ok("plugpull-fs", &argv);
    let shown = mounted_as(&mountpoint).expect("mounted when it returns");
    assert!(shown.starts_with("a\\040name "), "{shown}");
    assert!(
        shown.contains(" fuse.plugpull-fs rw,nosuid,nodev,noexec,"),
        "{shown}"
    );
    assert!(shown.contains("default_permissions,allow_other"), "{shown}");
    fs::write(mountpoint.join("f"), "x").unwrap();
    run_ok("mount", &["umount", text(&mountpoint)]);
    assert_eq!(fs::read(source.join("f")).unwrap(), b"x");
}

#[test]
fn a_read_only_mount_refuses_writes() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve(&["-o", "ro"]);
    let error = fs::write(sandbox.mountpoint().join("f"), "").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    server.unmount();
}

#[test]
fn it_exits_0_after_umount_and_touches_no_other_mount() {
    let sandbox = Sandbox::new();
    // Something else is mounted at the mount point, and shows again afterwards.
    let (mountpoint, flags) = (sandbox.mountpoint(), MountFlags::empty());
    mount("below", &mountpoint, "tmpfs", flags, None).unwrap();
    fs::write(mountpoint.join("below"), "").unwrap();
    let server = sandbox.serve(&[]);
    assert!(!mountpoint.join("below").exists());
    let (status, log) = server.unmount();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert!(mountpoint.join("below").exists());
    unmount(&mountpoint, UnmountFlags::empty()).unwrap();
}

#[test]
fn it_unmounts_itself_on_sigterm_and_sigint() {
    for signal in [Signal::TERM, Signal::INT] {
        let sandbox = Sandbox::new();
        let server = sandbox.serve(&[]);
        let pid = Pid::from_raw(server.pid().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
        let (status, log) = server.wait();
        assert_eq!(status.code(), Some(0), "{log:#?}");
        assert_eq!(mounted_as(&sandbox.mountpoint()), None);
    }
}

#[test]
fn a_file_in_use_is_served_to_its_end_after_sigterm() {
    let sandbox = Sandbox::new();
    let mut server = sandbox.serve(&[]);
    let file = File::create(sandbox.mountpoint().join("f")).unwrap();
    let pid = Pid::from_raw(server.pid().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    server.wait_for_line("in use");
    std::io::Write::write_all(&mut &file, b"last words").unwrap();
    file.sync_all().unwrap();
    drop(file);
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert_eq!(fs::read(sandbox.source().join("f")).unwrap(), b"last words");
}

#[test]
fn a_mount_over_its_own_source_shows_the_source() {
    let sandbox = Sandbox::new();
    let source = sandbox.source();
    fs::write(source.join("f"), "x").unwrap();
    let server = crate::harness::Server::start(&source, &source, &[]);
    assert_eq!(fs::read(source.join("f")).unwrap(), b"x");
    fs::write(source.join("g"), "y").unwrap();
    let (status, _) = server.unmount();
    assert_eq!(status.code(), Some(0));
    assert_eq!(fs::read(source.join("g")).unwrap(), b"y");
}

#[test]
fn mounts_below_the_source_are_refused_with_exdev() {
    let sandbox = Sandbox::new();
    let below = |name: &str| sandbox.source().join(name);
    for name in ["other", "same", "dir"] {
        fs::create_dir(below(name)).unwrap();
    }
    mount("other", below("other"), "tmpfs", MountFlags::empty(), None).unwrap();
    // The same device, so the number of its inode is one of the source's.
    mount_bind(below("dir"), below("same")).unwrap();
    let server = sandbox.serve(&[]);
    for name in ["other", "same"] {
        let error = fs::metadata(sandbox.mountpoint().join(name)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EXDEV), "{name}");
    }
    fs::metadata(sandbox.mountpoint().join("dir")).unwrap();
    server.unmount();
    for name in ["other", "same"] {
        unmount(below(name), UnmountFlags::empty()).unwrap();
    }
}

#[test]
fn the_manual_page_says_what_the_help_says() {
    let page = run_ok("plugpull-fs", &[SERVER, "--manual"]);
    for text in [
        ".TH plugpull-fs 8",
        "passthrough",
        "writeback",
        "cache",
        "SIGTERM",
    ] {
        assert!(page.contains(text), "{text} in\n{page}");
    }
}
