//! What a user writes wrongly ends with 2 and says where; what a host lacks
//! ends with 69 and is named.

use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use plugpull_vm::{
    cache::Home,
    process::{Cmd, RunError},
};

use crate::{Test, runs::xtask};

pub(crate) const TESTS: &[Test] = &[
    ("malformed_scenario", malformed_scenario),
    ("missing_program", missing_program),
    ("unknown_mount_names", unknown_mount_names),
    ("unknown_filter", unknown_filter),
    ("bad_calls", bad_calls),
    ("malformed_image", malformed_image),
    ("missing_tools", missing_tools),
    ("full_disk", full_disk),
];

/// None of these prepares more than static binaries, which the run that these
/// tests belong to has built.
const DEADLINE: Duration = Duration::from_secs(60);

fn malformed_scenario() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("mine.toml");
    let text = "about = \"x\"\n\n[matrix]\nimage = [\"debian13\"]\nlower = [\"ext5\"]\n\
                mount = [\"native\"]\n\n[disk]\nsize = \"64 MiB\"\ncahce = \"volatile\"\n\n\
                [workload]\nbuiltin = \"page-fsync\"\n\n[power-cut]\nstates = 30\n";
    fs::write(&file, text)?;
    let path = file.display().to_string();
    let args = ["test-vm", "--scenario", &path];
    expect(xtask_with(&args), 2, &["mine.toml:10:1", "cache"])?;
    // The next complaint, once the first is mended.
    fs::write(&file, text.replace("cahce", "cache"))?;
    expect(xtask_with(&args), 2, &["mine.toml:5:10", "ext4"])?;
    fs::write(&file, b"about = \"\xff\"")?;
    expect(xtask_with(&args), 2, &["mine.toml:1:10", "UTF-8"])?;
    fs::write(&file, "about = ")?;
    expect(xtask_with(&args), 2, &["mine.toml:1:"])?;
    let nowhere = dir.path().join("nowhere.toml").display().to_string();
    let args = ["test-vm", "--scenario", &nowhere];
    expect(xtask_with(&args), 2, &["nowhere.toml", "No such file"])?;
    // Whole, it is listed: the refusals above were about the mistakes.
    fs::write(
        &file,
        text.replace("cahce", "cache").replace("ext5", "ext4"),
    )?;
    let listed = xtask_with(&["test-vm", "--list", "--scenario", &path]).run(DEADLINE)?;
    ensure!(listed.stdout_text() == "mine::debian13::ext4::native\n");
    Ok(())
}

/// A program that is not built yet: said with its place in the file, before
/// anything else is done.
fn missing_program() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("mine.toml");
    let text = "about = \"x\"\n[matrix]\nimage = [\"debian13\"]\nlower = [\"ext4\"]\n\
                mount = [\"native\"]\n[workload]\nfiles = [\"target/my store\"]\n\
                run = [\"./my store\", \"{dir}\"]\n[power-cut]\nstates = 30\n";
    fs::write(&file, text)?;
    let path = file.display().to_string();
    let words = [
        "mine.toml:7:10",
        "target/my store: No such file",
        "is it built?",
    ];
    expect(xtask_with(&["test-vm", "--scenario", &path]), 2, &words)?;
    let odd = dir.path().join(OsStr::from_bytes(b"\xff"));
    fs::create_dir(&odd)?;
    fs::copy(&file, odd.join("mine.toml"))?;
    let call = Cmd::new(xtask()).args(["test-vm", "--scenario"]);
    expect(
        call.arg(odd.join("mine.toml")),
        2,
        &["not UTF-8", "another directory"],
    )
}

/// Names that only plugpull-fs knows: it is asked before a guest starts.
fn unknown_mount_names() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("mine.toml");
    let path = file.display().to_string();
    let write = |key: &str| {
        let text = format!(
            "about = \"x\"\n[matrix]\nimage = [\"debian13\"]\nlower = [\"ext4\"]\n\
             mount = [\"m\"]\n[mount.m]\n{key}\n[workload]\nbuiltin = \"writers\"\n"
        );
        fs::write(&file, text)
    };
    let args = ["test-vm", "--scenario", &path];
    write("mutant = \"fd-as-handel\"")?;
    let words = ["`[mount.m]`", "`mine`", "fd-as-handel", "fd-as-handle,"];
    expect(xtask_with(&args), 2, &words)?;
    write("io = \"drect\"")?;
    expect(xtask_with(&args), 2, &["`[mount.m]`", "drect", "direct"])
}

fn unknown_filter() -> Result<()> {
    let args = ["test-vm", "page-powr-cut"];
    expect(xtask_with(&args), 2, &["page-powr-cut", "page-power-cut"])
}

fn bad_calls() -> Result<()> {
    for (args, words) in [
        (&["test-vm", "--shard", "9/2"][..], &["9/2", "M/N"][..]),
        (&["test-vm", "--shard", "x"], &["`x`", "M/N"]),
        (
            &["test-vm", "--image", "debain13"],
            &["debain13", "debian13"],
        ),
        (&["test-vm", "--profile", "smok"], &["smok", "smoke"]),
        (&["test-vm", "--seed", "-1"], &["-1"]),
        (&["image", "build", "debian99"], &["debian99", "debian12"]),
        (&["shell", "--lower", "ext3"], &["ext3", "ext4"]),
        (&["shell", "--image", "debian99"], &["debian99", "debian12"]),
        (&["test-wm"], &["test-wm", "test-vm"]),
    ] {
        expect(xtask_with(args), 2, words).with_context(|| args.join(" "))?;
    }
    Ok(())
}

fn malformed_image() -> Result<()> {
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("Cargo.toml"), "[workspace]\n")?;
    let recipes = dir.path().join("vm-images");
    fs::create_dir(&recipes)?;
    let good = Home::find()?.recipes.join("debian13.toml");
    let text = fs::read_to_string(&good)?;
    let line = 1 + text
        .lines()
        .take_while(|line| !line.starts_with("packages"))
        .count();
    fs::write(
        recipes.join("mine.toml"),
        text.replacen("packages", "pakages", 1),
    )?;
    let build = xtask_with(&["image", "build", "mine"]).env("CARGO_MANIFEST_DIR", dir.path());
    expect(
        build,
        2,
        &[&format!("mine.toml:{line}:1"), "pakages", "`packages`"],
    )
}

/// Neither root nor the programs: said with the command that installs them.
fn missing_tools() -> Result<()> {
    let empty = tempfile::tempdir()?;
    let path = format!("PATH={}", empty.path().display());
    // In a user namespace without a mapping even root is nobody, and may not
    // install anything.
    let command = match rustix::process::geteuid().is_root() {
        true => Cmd::new("unshare").args(["--user", "/usr/bin/env", &path]),
        false => Cmd::new("/usr/bin/env").arg(&path),
    };
    let build = command.arg(xtask()).args(["image", "build", "debian13"]);
    expect(build, 69, &["mmdebstrap", "install"])
}

/// A cache on a file system that holds less than one of the guest's binaries.
fn full_disk() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let place = dir.path().display().to_string();
    let home = Home::find()?;
    // QEMU and the images are there; what is new does not fit.
    let mount = format!(
        "mount -t tmpfs -o size=256k none {place} && \
         ln -s {0}/tools {0}/images {place}/ && exec \"$@\"",
        home.cache.display()
    );
    let run = namespace(&mount)
        .arg(xtask())
        .args(["test-vm", "page-power-cut*native"])
        .env("PLUGPULL_STATE", dir.path().join("state"))
        .env("PLUGPULL_CACHE", &place);
    expect(run, 69, &["No space left on device", &place])
}

/// Root of a mount namespace of its own, where `script` prepares the ground.
fn namespace(script: &str) -> Cmd {
    let root: &[&str] = match rustix::process::geteuid().is_root() {
        true => &[],
        false => &["--map-root-user"],
    };
    Cmd::new("unshare")
        .args(["--mount"])
        .args(root)
        .args(["/bin/sh", "-c", script, "sh"])
}

fn xtask_with(args: &[&str]) -> Cmd {
    Cmd::new(xtask()).args(args)
}

/// It ends with this code, and its message holds all of these words.
fn expect(command: Cmd, code: i32, words: &[&str]) -> Result<()> {
    let xtask = xtask();
    ensure!(
        Path::new(&xtask).exists(),
        "{} is missing: `cargo build --package xtask` makes it",
        xtask.display()
    );
    let line = command.line();
    let (status, said) = match command.run(DEADLINE * 5) {
        Ok(output) => (output.status, output.stderr_text()),
        Err(RunError::Failed { status, output, .. }) => (status, output.stderr_text()),
        Err(error) => return Err(error.into()),
    };
    ensure!(
        status.code() == Some(code),
        "{line}: {status} instead of {code}: {said}"
    );
    for word in words {
        ensure!(said.contains(word), "{line}: {word:?} is not in: {said}");
    }
    Ok(())
}
