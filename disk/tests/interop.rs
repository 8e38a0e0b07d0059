//! A log that QEMU's blklogwrites wrote, imported and explored by the command.

mod common;

use std::path::Path;

use common::run;

const PLUGPULL_DISK: &str = env!("CARGO_BIN_EXE_plugpull-disk");
const SIZE: u64 = 1 << 20;

fn path_of(path: &Path) -> &str {
    path.to_str().expect("a temporary path")
}

#[test]
fn a_log_of_qemu_is_imported_with_what_it_knows() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| dir.path().join(name);
    for (name, bytes) in [("disk", SIZE), ("qemu-log", 8 * SIZE)] {
        let file = std::fs::File::create(path(name)).expect("a file");
        file.set_len(bytes).expect("a size");
    }
    let options = format!(
        "driver=blklogwrites,log-super-update-interval=1,file.driver=file,file.filename={},\
         log.driver=file,log.filename={}",
        path_of(&path("disk")),
        path_of(&path("qemu-log"))
    );
    let commands = [
        "write -P 1 0 4k",
        "flush",
        "write -P 2 4k 8k",
        "discard 0 4k",
    ];
    let mut arguments = vec!["--image-opts", &options];
    for command in &commands {
        arguments.extend(["-c", *command]);
    }
    run("qemu-io", &arguments);

    let (size, log) = (SIZE.to_string(), path("log"));
    let qemu_log = path("qemu-log");
    let import = [
        "import",
        path_of(&qemu_log),
        "--size",
        &size,
        "--out",
        path_of(&log),
    ];
    run(PLUGPULL_DISK, &import);
    let listed = run(PLUGPULL_DISK, &["log", path_of(&log)]);
    for line in [
        "0 Write at sector 0 for 4096 bytes",
        "1 Flush",
        "2 Write at sector 8",
    ] {
        assert!(listed.contains(line), "{line} is not in:\n{listed}");
    }

    let plan = ["plan", "--log", path_of(&log), "--size", "1", "--list"];
    let planned = run(PLUGPULL_DISK, &plan);
    assert!(planned.contains(" none: 0 kept"), "{planned}");
    assert!(planned.contains(" torn: "), "{planned}");

    // The plugpull-disk of the copy holds what the first holds, and QEMU reads what it says.
    let (copy, again, image) = (path("copy"), path("again"), path("image"));
    let disk = path("disk");
    run(
        PLUGPULL_DISK,
        &["export", "--log", path_of(&log), "--out", path_of(&copy)],
    );
    let import = [
        "import",
        path_of(&copy),
        "--size",
        &size,
        "--out",
        path_of(&again),
    ];
    run(PLUGPULL_DISK, &import);
    let crash = [
        "crash",
        "--log",
        path_of(&again),
        "--size",
        "1",
        "--keep",
        "all",
    ];
    run(
        PLUGPULL_DISK,
        &[&crash[..], &["--out", path_of(&image)]].concat(),
    );
    let compared = [
        "compare",
        "-f",
        "raw",
        "-F",
        "raw",
        path_of(&image),
        path_of(&disk),
    ];
    assert!(run("qemu-img", &compared).contains("identical"));
}

#[test]
fn what_is_no_log_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (log, out) = (dir.path().join("a log"), dir.path().join("out"));
    std::fs::write(&log, vec![0; 4096]).expect("a file");
    let import = [
        "import",
        path_of(&log),
        "--size",
        "4096",
        "--out",
        path_of(&out),
    ];
    let output = common::command(Path::new(PLUGPULL_DISK), &import)
        .output()
        .expect("run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("a log is no log of"),
        "{said}"
    );
    assert!(!out.exists());
}
