//! The mount of an ordinary user, who needs fusermount3 for it.
//!
//! In the test's own mount namespace /dev/fuse is open to all, as udev has it, and
//! /etc/fuse.conf says what the test wants.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, chmod, mknodat};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{SERVER, Sandbox, Server, open_to_all, run, run_ok};

pub(crate) const USER: u32 = 65_534;
const SETPRIV: [&str; 5] = ["--reuid=65534", "--regid=65534", "--clear-groups", "--", ""];

pub(crate) struct Home {
    pub(crate) sandbox: Sandbox,
    pub(crate) server: String,
}

impl Home {
    /// `source` and `mount` belong to the user.
    pub(crate) fn new(fuse_conf: &str) -> Self {
        let sandbox = Sandbox::new();
        open_dev_fuse(&sandbox.path("dev"));
        let conf = sandbox.path("fuse.conf");
        fs::write(&conf, fuse_conf).unwrap();
        open_to_all(&conf);
        mount_bind(&conf, "/etc/fuse.conf").expect("/etc/fuse.conf is missing: install fuse3");
        for dir in [sandbox.source(), sandbox.mountpoint()] {
            chown(dir, Some(USER), Some(USER)).unwrap();
        }
        // The build may lie where the user cannot go.
        let server = sandbox.path("plugpull-fs");
        fs::copy(SERVER, &server).unwrap();
        Home {
            server: server.to_str().unwrap().to_owned(),
            sandbox,
        }
    }

    fn setpriv<'a>(&self, program: &'a str) -> [&'a str; 5] {
        let mut arguments = SETPRIV;
        arguments[4] = program;
        arguments
    }

    fn serve(&self, arguments: &[&str]) -> Server {
        let (source, mountpoint) = (self.sandbox.source(), self.sandbox.mountpoint());
        let setpriv = self.setpriv(&self.server);
        Server::start_by(
            &setpriv,
            "plugpull_fs=info",
            &source,
            &mountpoint,
            arguments,
        )
    }

    /// A shell script of the user, in which `$SERVER`, `$SOURCE` and `$MOUNT` are known:
    /// its exit code, and what it printed and complained.
    pub(crate) fn script(&self, script: &str) -> (Option<i32>, String) {
        let script = format!(
            "exec 2>&1; SERVER='{}' SOURCE='{}' MOUNT='{}'; {script}",
            self.server,
            self.sandbox.source().display(),
            self.sandbox.mountpoint().display()
        );
        let mut argv = vec!["setpriv"];
        argv.extend(self.setpriv("sh"));
        argv.extend(["-c", &script]);
        let output = run("util-linux", &argv);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), text)
    }

    pub(crate) fn script_ok(&self, script: &str) -> String {
        let (code, text) = self.script(&format!("set -eu; {script}"));
        assert_eq!(code, Some(0), "{script}: {text}");
        text
    }

    fn mountpoint(&self) -> PathBuf {
        self.sandbox.mountpoint()
    }

    pub(crate) fn mounted(&self) -> Option<String> {
        // Not /proc/self: the namespace is this thread's own.
        let table = fs::read_to_string("/proc/thread-self/mounts").unwrap();
        let on = format!(" {} ", self.mountpoint().display());
        table
            .lines()
            .find(|line| line.contains(&on))
            .map(str::to_owned)
    }
}

impl Drop for Home {
    /// The file of another home, mounted on this one's, would keep it from being removed.
    fn drop(&mut self) {
        let _ended = unmount("/etc/fuse.conf", UnmountFlags::DETACH);
    }
}

fn open_dev_fuse(dir: &Path) {
    fs::create_dir(dir).unwrap();
    mount("dev", dir, "tmpfs", MountFlags::empty(), None).unwrap();
    let (node, number) = (dir.join("fuse"), fs::metadata("/dev/fuse").unwrap().rdev());
    mknodat(CWD, &node, FileType::CharacterDevice, Mode::empty(), number).unwrap();
    chmod(&node, Mode::from_raw_mode(0o666)).unwrap();
    mount_bind(&node, "/dev/fuse").unwrap();
}

pub(crate) fn signal(server: &Server, signal: Signal) {
    let pid = Pid::from_raw(server.pid().cast_signed()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn an_ordinary_user_mounts_uses_and_unmounts() {
    let home = Home::new("");
    for mode in ["auto", "cached", "writeback", "direct"] {
        let server = home.serve(&["--io", mode]);
        let shown = home.mounted().expect("it stands");
        assert!(shown.contains("user_id=65534,group_id=65534"), "{shown}");
        assert!(!shown.contains("allow_other"), "{shown}");
        let printed = home.script_ok(
            "cd $MOUNT; echo one > a; mkdir d; mv a d/b; ln d/b c; ln -s c l; echo two >> l
             cat d/b; truncate -s 1 c; cat d/b; chmod 600 c; stat -c '%u %g %a %h' c
             echo 1 > w; chmod 200 w; echo 22 > w; chmod 600 w; cat w
             rm -r d w; ls; rm c l",
        );
        assert_eq!(
            printed, "one\ntwo\no65534 65534 600 2\n22\nc\nl\n",
            "--io {mode}"
        );
        // Nobody else comes in, root least of all.
        let error = fs::read_dir(home.mountpoint()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
        signal(&server, Signal::TERM);
        let (status, log) = server.wait();
        let log = log.join("\n");
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("in use"), "{log}");
        assert_eq!(home.mounted(), None);
        if mode == "auto" {
            assert!(log.contains("cached"), "{log}");
        }
    }
}

#[test]
fn a_file_that_an_ordinary_user_has_open_is_served_after_sigterm() {
    let home = Home::new("");
    let mut server = home.serve(&[]);
    let go_on = home.sandbox.path("go-on");
    run_ok(
        "coreutils",
        &["mkfifo", "-m", "666", go_on.to_str().unwrap()],
    );
    let script = format!(
        "exec 3> $MOUNT/f; kill {}; read line < {}; echo $line >&3",
        server.pid(),
        go_on.display()
    );
    let log = std::thread::scope(|scope| {
        let holder = scope.spawn(|| home.script_ok(&script));
        server.wait_for_line("in use");
        assert_eq!(home.mounted(), None);
        fs::write(go_on, "last words\n").unwrap();
        holder.join().unwrap();
        let (status, log) = server.wait();
        assert_eq!(status.code(), Some(0), "{log:#?}");
        log
    });
    assert!(
        log.iter().any(|line| line.contains("unmounted")),
        "{log:#?}"
    );
    let written = fs::read(home.sandbox.source().join("f")).unwrap();
    assert_eq!(written, b"last words\n");
}

#[test]
fn allow_other_needs_the_leave_of_fuse_conf() {
    let home = Home::new("");
    let (code, said) = home.script("$SERVER -o allow_other $SOURCE $MOUNT");
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("/mount: fusermount3: option allow_other"),
        "{said}"
    );
    assert!(said.contains("/etc/fuse.conf"), "{said}");
    assert_eq!(home.mounted(), None);

    let home = Home::new("user_allow_other\n");
    let server = home.serve(&["-o", "allow_other"]);
    let shown = home.mounted().expect("it stands");
    assert!(shown.contains("default_permissions,allow_other"), "{shown}");
    // The server has no rights to give: what root makes is the user's.
    fs::write(home.mountpoint().join("f"), "root's").unwrap();
    assert_eq!(
        fs::metadata(home.mountpoint().join("f")).unwrap().uid(),
        USER
    );
    assert_eq!(home.script_ok("cat $MOUNT/f"), "root's");
    server.unmount();
}

#[test]
fn passthrough_is_refused_to_an_ordinary_user() {
    let home = Home::new("");
    let (code, said) = home.script("$SERVER --io passthrough $SOURCE $MOUNT");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("passthrough needs root"), "{said}");
    assert_eq!(home.mounted(), None, "what was mounted is taken off again");
}

#[test]
fn the_mount_of_a_killed_server_is_named_and_taken_off_by_fusermount3() {
    let home = Home::new("");
    let server = home.serve(&[]);
    home.script_ok("echo kept > $MOUNT/f");
    signal(&server, Signal::KILL);
    let (status, _) = server.wait();
    assert!(!status.success());
    assert!(home.mounted().is_some());
    let (_, said) = home.script("export LC_ALL=C; ls $MOUNT");
    assert!(said.contains("not connected"), "{said}");

    let (code, said) = home.script("$SERVER $SOURCE $MOUNT");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("whose server is gone"), "{said}");
    assert!(said.contains("fusermount3 -u"), "{said}");

    home.script_ok("fusermount3 -u $MOUNT");
    assert_eq!(home.mounted(), None);
    // In the background, and ended by fusermount3.
    let printed =
        home.script_ok("$SERVER $SOURCE $MOUNT 2> /dev/null; cat $MOUNT/f; fusermount3 -u $MOUNT");
    assert_eq!(printed, "kept\n");
    assert_eq!(home.mounted(), None);
}

#[test]
fn without_fusermount3_the_package_is_named() {
    let home = Home::new("");
    let (code, said) = home.script("PATH=/nonexistent $SERVER $SOURCE $MOUNT");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("install the package fuse3"), "{said}");
}
