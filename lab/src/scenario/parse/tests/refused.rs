//! Files that are wrong, each with the exact text that a user gets.

use insta::assert_snapshot;

use super::{GOOD, parse, with};

/// Everything that is said about each of these files, in one snapshot.
fn said(files: impl IntoIterator<Item = String>) -> String {
    let texts = files.into_iter().map(|text| match parse(&text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(said) => said,
    });
    texts.collect::<Vec<_>>().join("\n---\n")
}

fn replaced(lines: &[(&str, &str)]) -> String {
    said(lines.iter().map(|(line, by)| with(line, by)))
}

#[test]
fn the_reader_of_toml() {
    let said = said([
        String::new(),
        "about = \n".into(),
        "about = \"x\nprofile = []".into(),
        with("[power-cut]", "[powercut]"),
        with("cache = \"volatile\"", "cash = \"volatile\""),
        with("size = \"1 GiB\"", "size = 1024"),
        with("cuts = 10", "cuts = -1"),
        with("cuts = 10", "cuts = \"ten\""),
        with("[disk]", "[matrix]"),
        with("cuts = 10", "cuts = 10\ncuts = 11"),
    ]);
    assert_snapshot!(said);
}

#[test]
fn names() {
    let said = replaced(&[
        ("\"ext4\", \"xfs\"", "\"ext4\", \"xsf\""),
        ("\"ext4\", \"xfs\"", "\"reiserfs\""),
        ("\"debian12\", \"debian13\"", "\"debian31\""),
        ("\"native\"", "\"nativ\""),
        ("\"native\"", "\"native\", \"native\""),
        ("[\"ext4\", \"xfs\"]", "[]"),
        ("mount = [\"plugpull-fs\", \"native\"]\n", ""),
        ("\"postgres-ledger\"", "\"postgres-leger\""),
        ("\"volatile\"", "\"volatil\""),
        ("[\"smoke\", \"full\"]", "[\"smoke\", \"ful\"]"),
    ]);
    assert_snapshot!(said);
}

#[test]
fn tables_of_names() {
    let lower = |table: &str| with("[disk]", &format!("{table}\n[disk]"));
    let said = said([
        lower("[lower.xfs]\nfs = \"xfs\""),
        lower("[lower.exf4]\nfs = \"ext4\""),
        lower("[lower.\"a b\"]\nfs = \"ext4\""),
        with("\"xfs\"]", "\"nobarrier\"]").replace("[disk]", "[lower.nobarrier]\n[disk]"),
        with("\"native\"", "\"b\"").replace(
            "[disk]",
            "[mount.b]\nrun = [\"b\", \"{lowr}\", \"{mount}\"]\n[disk]",
        ),
        with("\"native\"", "\"b\"")
            .replace("[disk]", "[mount.b]\nrun = [\"b\", \"{mount}\"]\n[disk]"),
        with("\"native\"", "\"b\"").replace("[disk]", "[mount.b]\nrun = []\n[disk]"),
        with("\"native\"", "\"b\"").replace(
            "[disk]",
            "[mount.b]\nrun = [\"b\", \"{lower}\", \"{mount}\"]\npackages = [\"Bind FS\"]\n[disk]",
        ),
        with("\"native\"", "\"b\"").replace(
            "[disk]",
            "[mount.b]\nrun = [\"b\", \"{device}\", \"{mount}\"]\nthreads = 2\n[disk]",
        ),
        with("\"native\"", "\"b\"").replace(
            "[disk]",
            "[mount.b]\nmutant = \"fd as handle\"\nio = \"Direct\"\n[disk]",
        ),
        with("\"native\"", "\"b\"").replace("[disk]", "[mount.b]\nthreads = 0\n[disk]"),
        with("\"xfs\"]", "\"raw\"]").replace(
            "[disk]",
            "[lower.raw]\nfs = \"ext4\"\nmounted = false\n[disk]",
        ),
    ]);
    assert_snapshot!(said);
}

#[test]
fn disks() {
    let said = replaced(&[
        ("size = \"1 GiB\"", "size = \"1 GB\""),
        ("size = \"1 GiB\"", "size = \"big\""),
        ("size = \"1 GiB\"", "size = \"1 KiB\""),
        ("size = \"1 GiB\"", "size = \"64 MiB\""),
        ("size = \"1 GiB\"", "unit = 1024"),
        ("size = \"1 GiB\"", "bus = \"nvm\""),
        ("size = \"1 GiB\"", "taken_for = \"write through\""),
    ]);
    assert_snapshot!(said);
}

#[test]
fn combinations_that_mean_nothing() {
    let cut = "[power-cut]\ncuts = 10\nstates = 30\n";
    let said = said([
        with("\"postgres-ledger\"", "\"writers\""),
        with(cut, ""),
        with(cut, "[full.power-cut]\ncuts = 3\n").replace("postgres-ledger", "postgres-load"),
        with(cut, "")
            .replace("postgres-ledger", "postgres-load")
            .replace("volatile", "lies-on-flush"),
        with("\"postgres-ledger\"", "\"postgres-ledger\"\nrows = 5"),
        with(
            "\"postgres-ledger\"",
            "\"postgres-ledger\"\nconnections = 0",
        ),
        with("\"postgres-ledger\"", "\"postgres-ledger\"\nrun = [\"x\"]"),
        with("builtin = \"postgres-ledger\"", ""),
        with(
            "builtin = \"postgres-ledger\"",
            "run = [\"./x\", \"{dri}\"]",
        ),
        with("builtin = \"postgres-ledger\"", "run = [\"./x\"]\nrows = 7"),
        with(cut, &format!("{cut}[check]\nrun = [\"./x\"]")),
        with("cuts = 10", "cuts = 10\ncut = \"flush 12\""),
        with("cuts = 10", "cut = \"flush twelve\""),
        with("cuts = 10", "cuts = 11"),
        with("states = 30", "").replace("cuts = 10", ""),
        format!("{GOOD}[nightly.power-cut]\ncuts = 100\n"),
        format!("{GOOD}[full.power-cut]\ncut = \"flush 12\"\nfsck = false\n"),
        with("states = 30", "states = 30\nnested = 1"),
        with("cuts = 10", "nested = 9"),
        with("states = 30", "states = 30\nkinds = [\"torn\"]"),
        with("cuts = 10", "kinds = [\"tron\", \"none\", \"none\"]"),
        with("cuts = 10", "kinds = []"),
        format!("{GOOD}[full.workload]\nbuiltin = \"page-fsync\"\n"),
        with("\"postgres-ledger\"", "\"writers\"\ndamage = true").replace(cut, ""),
        with("\"postgres-ledger\"", "\"sqlite\"\ndamage = true").replace(cut, ""),
        with(
            "\"postgres-ledger\"",
            "\"page-fsync\"\nwal_sync_method = \"open_sync\"",
        ),
        with(
            "\"postgres-ledger\"",
            "\"postgres-ledger\"\nwal_sync_method = \"open-sync\"",
        ),
        format!("{GOOD}[full.workload]\nwal_sync_method = \"fsync\"\n"),
        with("\"postgres-ledger\"", "\"log-store\"\njournal = \"wal\""),
        with("\"postgres-ledger\"", "\"redb-ledger\"\nfsync = false"),
        with(
            "\"postgres-ledger\"",
            "\"sqlite-ledger\"\njournal = \"wall\"",
        ),
        with("\"postgres-ledger\"", "\"files\"").replace(cut, ""),
    ]);
    assert_snapshot!(said);
}

#[test]
fn programs_and_their_files() {
    let program = |lines: &str| with("builtin = \"postgres-ledger\"", lines);
    let check =
        |lines: &str| program("files = [\"a/x\"]\nrun = [\"./x\"]") + "[check]\n" + lines + "\n";
    let said = said([
        program("files = [\"target/my-store\", \"x\"]\nrun = [\"./my-stor\"]"),
        program("files = [\"a/x\", \"b/x\"]\nrun = [\"./x\"]"),
        program("files = [\"a/..\", \"\"]\nrun = [\"/bin/true\"]"),
        check("run = [\"./y\"]"),
        check("files = [\"b/x\"]\nrun = [\"./x\"]"),
        check("files = [\"y\"]"),
        program("files = [\"x\"]\nrun = [\"./x\", \"{operations}\"]"),
        program("files = [\"x\"]\nrun = [\"./x\"]\noperations = 9"),
    ]);
    assert_snapshot!(said);
}

#[test]
fn expectations() {
    let expect = |lines: &str| format!("{GOOD}[expect]\n{lines}\n");
    let said = said([
        expect("verdict = \"fail\""),
        expect("verdict = \"fail\"\ncaught_by = \"ledgr\""),
        expect("verdict = \"fail\"\ncaught_by = \"tree\""),
        expect("verdict = \"pass\"\ncaught_by = \"ledger\""),
        expect("verdict = \"pass\"\ndoor = \"device\""),
        expect("verdict = \"fail\"\ncaught_by = \"ledger\"\ndoor = \"dvice\""),
        expect("verdict = \"maybe\""),
        expect(""),
    ]);
    assert_snapshot!(said);
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let text = with("\"xfs\"", "\"xsf\"")
        .replace("volatile", "volatil")
        .replace("postgres-ledger", "postgres-leger")
        .replace("It keeps what it acknowledged", "");
    let said = parse(&text).expect_err("wrong");
    assert_snapshot!(said);
}

#[test]
fn a_file_name_is_a_name() {
    let path = std::path::Path::new("tests/My Scenario.toml");
    let bad = crate::scenario::Scenario::parse(path, GOOD, &super::images()).expect_err("wrong");
    let said = bad.to_string();
    assert_snapshot!(said);
}
