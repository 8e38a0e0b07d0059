//! Files that are right, and what they mean.

use std::{num::NonZeroU32, path::Path, sync::Arc};

use plugpull_disk::explore::{Class, Classes};

use super::{GOOD, parse, with};
use crate::scenario::*;

fn n(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).expect("not zero")
}

#[test]
fn a_file_means_what_it_says() {
    let scenario = parse(GOOD).expect("right");
    assert_eq!(scenario.name.as_str(), "s");
    assert_eq!(scenario.disk.size, ByteCount(1 << 30));
    assert_eq!(scenario.disk.bus, Bus::Virtio);
    assert_eq!(scenario.expect, Expect::Pass);
    let profiles: Vec<_> = scenario.profiles().collect();
    assert_eq!(profiles, [Profile::Smoke, Profile::Full]);
    let story = Story::PowerCut(
        Cuttable::PostgresLedger(LedgerLoad {
            connections: Connections(n(4)),
            wal_sync: WalSync::Fdatasync,
            full_page_writes: true,
        }),
        PowerCut {
            cuts: Cuts::Seeded(n(10)),
            states: n(30),
            fsck: true,
            nested: 0,
            prune: true,
            kinds: Classes::ALL,
            reruns: 24,
        },
    );
    assert_eq!(scenario.story(Profile::Full), Some(&story));
    assert_eq!(scenario.story(Profile::Nightly), None);
}

#[test]
fn how_commits_reach_the_disk_is_a_setting_of_the_server() {
    let text = with(
        "\"postgres-ledger\"",
        "\"postgres-ledger\"\nwal_sync_method = \"open_datasync\"",
    );
    let settings = |text: &str| match parse(text).expect("right").story(Profile::Full) {
        Some(Story::PowerCut(Cuttable::PostgresLedger(load), _)) => load.settings(),
        other => panic!("{other:?}"),
    };
    let last = |text: &str| settings(text).pop();
    assert_eq!(last(GOOD).as_deref(), Some("wal_sync_method=fdatasync"));
    assert_eq!(
        last(&text).as_deref(),
        Some("wal_sync_method=open_datasync")
    );
    let text = with(
        "\"postgres-ledger\"",
        "\"postgres-ledger\"\nfull_page_writes = false",
    );
    let pages = |text: &str| {
        let mut settings = settings(text).into_iter();
        settings.rfind(|line| line.starts_with("full_page_writes"))
    };
    assert_eq!(pages(GOOD).as_deref(), Some("full_page_writes=on"));
    assert_eq!(pages(&text).as_deref(), Some("full_page_writes=off"));
}

#[test]
fn a_control_can_name_its_door_and_a_guest_be_mistaken_about_its_disk() {
    let text = with(
        "cache = \"volatile\"",
        "cache = \"volatile\"\ntaken_for = \"write-through\"",
    );
    let control = "[expect]\nverdict = \"fail\"\ncaught_by = \"ledger\"\ndoor = \"block-layer\"\n";
    let scenario = parse(&format!("{text}{control}")).expect("right");
    assert_eq!(scenario.taken_for, Some(TakenFor::WriteThrough));
    assert_eq!(scenario.door, Some(Door::BlockLayer));
    let plain = parse(GOOD).expect("right");
    assert_eq!((plain.taken_for, plain.door), (None, None));
}

#[test]
fn a_profile_changes_sizes_and_thresholds_with_them() {
    let text = format!(
        "{GOOD}[smoke.power-cut]\ncuts = 4\nstates = 12\n[full.workload]\nconnections = 8\n"
    );
    let scenario = Arc::new(parse(&text).expect("right"));
    let shown = |profile| {
        let thresholds = scenario.thresholds(profile);
        let lines = thresholds
            .iter()
            .map(|t| format!("{t} (floor {})", t.floor));
        lines.collect::<Vec<_>>()
    };
    assert_eq!(
        shown(Profile::Full),
        [
            "oracle checks ≥ 1 (floor 1)",
            "runs of fsck ≥ 1 (floor 1)",
            "power cuts ≥ 10 (floor 4)",
            "crash states ≥ 30 (floor 12)",
            "cuts that dropped a completed write ≥ 8 (floor 3)",
            "acknowledgements ≥ 1 (floor 1)",
            "values served to readers ≥ 1 (floor 1)",
            "checkpoints ≥ 1 (floor 1)",
            "recycled WAL segments ≥ 1 (floor 1)",
            "cuts inside a checkpoint ≥ 1 (floor 1)",
        ]
    );
    assert!(shown(Profile::Smoke).contains(&"power cuts ≥ 4 (floor 4)".to_owned()));
    let connections = |profile| match scenario.story(profile) {
        Some(Story::PowerCut(Cuttable::PostgresLedger(load), _)) => load.connections.0.get(),
        other => panic!("{other:?}"),
    };
    assert_eq!(connections(Profile::Smoke), 4);
    assert_eq!(connections(Profile::Full), 8);
}

#[test]
fn names_of_a_matrix_stand_for_what_tables_say() {
    let text = with(
        "lower = [\"ext4\", \"xfs\"]\nmount = [\"plugpull-fs\", \"native\"]",
        r#"lower = ["nojournal"]
mount = ["bindfs", "mutant"]
[lower.nojournal]
fs = "ext4"
mkfs = ["-O", "^has_journal"]
options = "commit=1"
[mount.bindfs]
run = ["bindfs", "-f", "{lower}", "{mount}"]
packages = ["bindfs"]
[mount.mutant]
mutant = "fd-as-handle"
threads = 8
io = "direct""#,
    );
    let matrix = parse(&text).expect("right").matrix;
    assert_eq!(
        matrix.lowers,
        [Lower {
            name: "nojournal".into(),
            fs: Fs::Ext4,
            mkfs: vec!["-O".into(), "^has_journal".into()],
            options: "commit=1".into(),
            mounted: true,
        }]
    );
    let [bindfs, mutant] = &matrix.mounts[..] else {
        panic!("{:?}", matrix.mounts);
    };
    let Server::Program { run, packages } = &bindfs.server else {
        panic!("{bindfs:?}");
    };
    let paths = [("lower", "/lower"), ("mount", "/mnt")];
    assert_eq!(run.filled(&paths), ["bindfs", "-f", "/lower", "/mnt"]);
    assert_eq!(packages, &["bindfs"]);
    assert_eq!(
        mutant.server,
        Server::PlugpullFs {
            mutant: Some(Mutant::new("fd-as-handle")),
            threads: Some(n(8)),
            io: Some(IoMode::new("direct")),
            options: String::new(),
        }
    );
}

#[test]
fn a_stranger_brings_ten_lines() {
    let text = r#"about = "My store keeps what it acknowledged"
[matrix]
image = ["debian13"]
lower = ["ext4", "xfs"]
mount = ["native"]
[disk]
size = "320 MiB"
cache = "volatile"
[workload]
files = ["target/release/mystore"]
run = ["./mystore", "fill", "{dir}", "--seed", "{seed}"]
[check]
run = ["./mystore", "verify", "{dir}", "{ledger}"]
[power-cut]
states = 2000
"#;
    let scenario = parse(text).expect("right");
    let Some(Story::PowerCut(Cuttable::Program(program), cut)) = scenario.story(Profile::Smoke)
    else {
        panic!("{scenario:?}");
    };
    let names: Vec<_> = program.files.iter().map(|f| f.written.as_str()).collect();
    assert_eq!(names, ["target/release/mystore"]);
    assert!(matches!(program.judge, Judge::Check { .. }));
    assert_eq!((&cut.cuts, cut.states.get()), (&Cuts::Everywhere, 2000));

    let counted = text
        .replace("\"{seed}\"", "\"{operations}\"")
        .replace("[check]", "operations = 9\n[check]");
    match parse(&counted).expect("right").story(Profile::Smoke) {
        Some(Story::PowerCut(Cuttable::Program(program), _)) => {
            assert_eq!(program.all_operations().to_string(), "1-9");
        }
        other => panic!("{other:?}"),
    }

    let files = text.replace(
        "[check]\nrun = [\"./mystore\", \"verify\", \"{dir}\", \"{ledger}\"]\n",
        "",
    );
    let scenario = parse(&files).expect("right");
    let oracles = scenario.story(Profile::Smoke).expect("runs").oracles();
    let expected = [OracleName::Recovery, OracleName::Files, OracleName::Fsck];
    assert_eq!(oracles, expected);
    let without = parse(&format!("{files}fsck = false\n")).expect("right");
    let oracles = without.story(Profile::Smoke).expect("runs").oracles();
    assert_eq!(oracles, expected[..2]);
    let prunes = |text: &str| match parse(text).expect("right").story(Profile::Smoke) {
        Some(Story::PowerCut(_, cut)) => cut.prune,
        other => panic!("{other:?}"),
    };
    let kinds = |text: &str| match parse(text).expect("right").story(Profile::Smoke) {
        Some(Story::PowerCut(_, cut)) => cut.kinds,
        other => panic!("{other:?}"),
    };
    assert_eq!(kinds(&files), Classes::ALL);
    let torn = format!("{files}kinds = [\"torn\", \"none\"]\n");
    assert_eq!(kinds(&torn), Classes::of([Class::None, Class::Torn]));
    let reruns = |text: &str| match parse(text).expect("right").story(Profile::Smoke) {
        Some(Story::PowerCut(_, cut)) => cut.reruns,
        other => panic!("{other:?}"),
    };
    assert_eq!(reruns(&files), 24);
    assert_eq!(reruns(&format!("{files}reruns = 0\n")), 0);
    let smoke = format!("{files}[smoke.power-cut]\nreruns = 3\n");
    assert_eq!(reruns(&smoke), 3);
    assert!(prunes(&files) && !prunes(&format!("{files}prune = false\n")));
}

#[test]
fn a_built_in_store_is_a_program_of_the_payload_disk() {
    let program = |lines: &str| {
        let text = with("builtin = \"postgres-ledger\"", lines);
        match parse(&text).expect("right").story(Profile::Full) {
            Some(story @ Story::PowerCut(Cuttable::Program(program), _)) => {
                let run = program.run.words()[1..].join(" ");
                (run, story.oracles(), program.is_built_in())
            }
            other => panic!("{other:?}"),
        }
    };
    use OracleName as O;
    let files = program("builtin = \"files\"\nfsync = false\nsequences = 9");
    let run = "files run {dir} --seed {seed} --sequences 9 --no-fsync --only {operations}";
    let oracles = vec![O::Recovery, O::Files, O::Fsck];
    assert_eq!(files, (run.into(), oracles, true));
    let log = program("builtin = \"log-store\"\nfsync_on_open = false");
    let run = "log run {dir} --seed {seed} --rounds 12 --no-fsync-on-open --only {operations}";
    let oracles = vec![O::Recovery, O::Ledger, O::Served, O::Fsck];
    assert_eq!(log, (run.into(), oracles, true));
    let run = |lines: &str| program(lines).0;
    assert_eq!(
        run("builtin = \"redb-ledger\""),
        "redb run {dir} --seed {seed} --transactions 60 --durability immediate --only {operations}"
    );
    // What SQLite calls durable depends on the journal.
    for (lines, settings) in [
        ("", "--journal wal --synchronous full"),
        (
            "journal = \"delete\"",
            "--journal delete --synchronous extra",
        ),
        ("synchronous = \"off\"", "--journal wal --synchronous off"),
    ] {
        let said = run(&format!("builtin = \"sqlite-ledger\"\n{lines}"));
        let start = "sqlite run {dir} --seed {seed} --transactions 60";
        assert_eq!(said, format!("{start} {settings} --only {{operations}}"));
    }
}

#[test]
fn cut_points_are_read() {
    for (text, point) in [
        ("request 7", CutPoint::Request(7)),
        ("flush 12", CutPoint::Flush(12)),
        ("mark after load", CutPoint::Mark("after load".into())),
        ("time 1.5 s", CutPoint::TimeMs(1500)),
    ] {
        let scenario = parse(&with("cuts = 10", &format!("cut = \"{text}\""))).expect(text);
        match scenario.story(Profile::Smoke) {
            Some(Story::PowerCut(_, cut)) => assert_eq!(cut.cuts, Cuts::At(point)),
            other => panic!("{other:?}"),
        }
    }
}

/// The suite's own files: every one is right, and together they hold what the
/// suite promises.
#[test]
fn the_suite_is_whole() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios");
    let images = ["debian12", "debian13", "debian13-backports"].map(ImageName::new);
    let mut lines = Vec::new();
    for loaded in load_dir(&dir, &images).expect("readable") {
        let scenario = Arc::new(loaded.scenario.unwrap_or_else(|bad| panic!("{bad}")));
        let cases = Profile::ALL.iter().map(|p| scenario.cases(*p).len());
        let cases = cases.map(|n| n.to_string()).collect::<Vec<_>>().join("/");
        let by = match scenario.expect {
            Expect::Pass => "pass".into(),
            Expect::Caught(by) => format!("caught by {by}"),
        };
        lines.push(format!("{} {cases} {by}", scenario.name));
    }
    assert_eq!(
        lines,
        [
            "conformance-io-uring 3/9/9 pass",
            "conformance-passthrough 3/6/6 pass",
            "conformance 4/12/36 pass",
            "control-bindfs 0/2/2 caught by files",
            "control-conformance 1/1/1 caught by conformance",
            "control-dsync-dropped 1/1/1 caught by ledger",
            "control-enosys-fsync 0/1/1 caught by ledger",
            "control-fd-as-handle 1/1/1 caught by exit",
            "control-files-no-fsync 1/1/1 caught by files",
            "control-fsck 1/1/1 caught by fsck",
            "control-fsx 1/1/1 caught by fsx",
            "control-fsync-ignored 1/1/1 caught by ledger",
            "control-fuse2fs 0/2/2 caught by recovery",
            "control-git-damaged 1/1/1 caught by repository",
            "control-log-store-no-fsync 0/1/1 caught by ledger",
            "control-log-store-served 1/1/1 caught by served",
            "control-lying-disk 1/1/1 caught by ledger",
            "control-named-checks 0/3/3 caught by checks",
            "control-nested 0/1/1 caught by check",
            "control-no-barriers 1/1/1 caught by ledger",
            "control-notes-check 1/1/1 caught by check",
            "control-notes 1/1/1 caught by files",
            "control-page-lying-disk 1/1/1 caught by ledger",
            "control-redb-none 1/1/1 caught by ledger",
            "control-sqlite-damaged 1/1/1 caught by database",
            "control-sqlite-journal-full 0/1/1 caught by ledger",
            "control-sqlite-off 1/1/1 caught by ledger",
            "control-tar-damaged 1/1/1 caught by archive",
            "control-torn-pages 0/1/1 caught by ledger",
            "control-write-through 1/1/1 caught by ledger",
            "files 3/9/18 pass",
            "git-clone 3/9/9 pass",
            "log-store 3/9/18 pass",
            "named-checks-passthrough 0/6/6 pass",
            "named-checks 0/12/36 pass",
            "nested-power-cut 0/1/1 pass",
            "notes-check 2/2/2 pass",
            "notes 2/4/4 pass",
            "page-power-cut 2/2/2 pass",
            "postgres-everywhere 0/2/2 pass",
            "postgres-flakey 3/9/18 pass",
            "postgres-initdb 3/9/18 pass",
            "postgres-load 3/9/18 pass",
            "postgres-open-datasync 0/3/3 pass",
            "postgres-power-cut 3/9/18 pass",
            "redb-ledger 3/9/18 pass",
            "sqlite-ledger-journal 0/9/18 pass",
            "sqlite-ledger-wal 3/9/18 pass",
            "sqlite 3/9/9 pass",
            "tar-kernel-tree 0/3/3 pass",
            "tar-round-trip 3/9/9 pass",
            "writers-250 3/9/18 pass",
        ]
    );
}

#[test]
fn a_bad_file_does_not_hide_the_others() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("good.toml"), GOOD).expect("written");
    std::fs::write(dir.path().join("bad.toml"), "about = ").expect("written");
    std::fs::write(dir.path().join("bytes.toml"), b"about = \"\xff\"\n").expect("written");
    std::fs::write(dir.path().join("notes.txt"), "not a scenario").expect("written");
    let loaded = load_dir(dir.path(), &super::images()).expect("readable");
    let shown: Vec<_> = loaded
        .iter()
        .map(|l| (l.name.as_str(), l.scenario.is_ok()))
        .collect();
    assert_eq!(shown, [("bad", false), ("bytes", false), ("good", true)]);
    let bytes = loaded[1].scenario.as_ref().expect_err("bad").to_string();
    assert!(
        bytes.contains("bytes.toml:1:10") && bytes.contains("not UTF-8"),
        "{bytes}"
    );
}
