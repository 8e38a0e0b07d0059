//! Programs that people use: git, tar and a shell.

use std::fs;

use crate::harness::{Sandbox, run_ok, shell};

#[test]
fn git_works_on_the_mount() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve(&[]);
    let dir = sandbox.mountpoint();
    run_ok("git", &["git", "--version"]);
    shell(
        &dir,
        "export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
         git init -q -b main first
         git -C first config user.name Test
         git -C first config user.email test@example.org
         for i in $(seq 60); do mkdir -p first/d$i; seq $i 2000 > first/d$i/f; done
         ln -s d1/f first/link
         git -C first add -A
         git -C first commit -qm one
         git clone -q --no-local first second
         git -C second gc -q
         git -C second fsck --strict
         test -z \"$(git -C second status --porcelain)\"
         diff -r -x .git first second",
    );
    server.unmount();
    shell(
        &sandbox.source(),
        "git -c safe.directory='*' -C second fsck --strict; diff -r -x .git first second",
    );
}

#[test]
fn tar_brings_back_what_it_took() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve(&[]);
    shell(
        &sandbox.native(),
        "mkdir -p tree/sub; cd tree
         for i in $(seq 300); do echo $i > sub/$i; done
         truncate -s 1M sparse; echo end >> sparse; ln sub/1 hard; ln -s sub/2 soft
         mkfifo fifo; mknod device c 1 3; chmod 4751 sub/3; chown 12:34 sub/4
         touch -d '1960-02-03 04:05:06.789' sub/5",
    );
    run_ok("tar", &["tar", "--version"]);
    let (from, to) = (sandbox.native(), sandbox.mountpoint());
    let compare = |dir: &str| {
        let script = format!("tar --xattrs -dpf '{}'", from.join("t.tar").display());
        shell(&sandbox.path(dir), &script)
    };
    shell(&from, "tar --xattrs -Scpf t.tar tree");
    shell(
        &to,
        &format!("tar --xattrs -xpf '{}'", from.join("t.tar").display()),
    );
    compare("mount");
    // And taken again from the mount.
    shell(&to, "tar -Scpf again.tar tree; tar -dpf again.tar");
    server.unmount();
    compare("source");
    let listing = "find tree -printf '%p %y %m %U:%G %n %l %t\\n' | sort";
    let native = shell(&from, listing);
    assert_eq!(native.lines().count(), 307);
    assert_eq!(shell(&sandbox.source(), listing), native);
    assert!(
        fs::metadata(sandbox.source().join("again.tar"))
            .unwrap()
            .len()
            > 300 * 512
    );
}

#[test]
fn a_shell_works_on_the_mount() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve(&[]);
    let printed = shell(
        &sandbox.mountpoint(),
        "printf '#!/bin/sh\\necho run\\n' > script; chmod +x script; ./script
         echo one > log; echo two >> log; cat log
         exec 3> locked; flock -n 3; ! flock -n locked true
         cp script copy; mv copy moved; cmp script moved; df . > /dev/null
         mkdir -p a/b/c; cd a/b/c; pwd -P > /dev/null; cd ..; rmdir c; ls -A
         (set -C; ! echo x > ../../log) 2> /dev/null",
    );
    assert_eq!(printed, "run\none\ntwo\n");
    server.unmount();
}
