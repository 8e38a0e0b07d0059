//! Whether docs/semantics.md and docs/mutants.md point at tests that exist.
//!
//! A test is named there as `KIND:NAME`; [`known_tests`] says which kinds there are and
//! where their names come from. Every row of a table must name one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use plugpull_conformance::{check, known};
use plugpull_fs::mutant::Mutant;

const SEMANTICS: &str = "docs/semantics.md";
const MUTANTS: &str = "docs/mutants.md";

fn in_the_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(in_the_repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_documents_name_tests_that_exist() {
    let tests = known_tests();
    for document in [SEMANTICS, MUTANTS] {
        let wrong = mistakes(&read(document), &tests);
        assert!(wrong.is_empty(), "{document}: {wrong:#?}");
    }
}

#[test]
fn a_name_that_does_not_exist_is_reported() {
    let tests = known_tests();
    let table = |cell: &str| format!("| what | test |\n|---|---|\n| rename | {cell} |\n");
    let wrong = |cell: &str| mistakes(&table(cell), &tests);
    assert_eq!(wrong("`check:rename`"), [""; 0]);
    assert_eq!(wrong("`check:renaming`"), ["no such test: check:renaming"]);
    // Functions that are no tests, and tests that another kind has, do not count.
    for name in ["host:run_ok", "relay:every_sync_arrives", "tests:rename"] {
        let text = format!("`check:rename`, `{name}`");
        assert_eq!(wrong(&text), [format!("no such test: {name}")]);
    }
    assert_eq!(
        wrong("none"),
        ["a row without a test: | rename | none |"],
        "a row must have one"
    );
}

#[test]
fn every_check_and_every_known_difference_has_its_place() {
    let named = names(&read(SEMANTICS));
    let checks = check::all()
        .into_iter()
        .map(|check| format!("check:{}", check.name));
    let differences = known::KNOWN
        .iter()
        .map(|known| format!("known:{}", known.name));
    let missing: Vec<_> = checks
        .chain(differences)
        .filter(|name| !named.contains(name))
        .collect();
    assert!(missing.is_empty(), "not in {SEMANTICS}: {missing:?}");
}

#[test]
fn every_mutant_has_its_row() {
    let text = read(MUTANTS);
    let rows: Vec<_> = rows(&text)
        .filter_map(|row| row.strip_prefix("| `")?.split('`').next())
        .collect();
    let mutants: Vec<_> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
    assert_eq!(
        rows, mutants,
        "the rows of {MUTANTS}, in the order of --mutant"
    );
}

/// Every test that may be named, as `KIND:NAME`.
fn known_tests() -> BTreeSet<String> {
    let mut known: BTreeSet<String> = BTreeSet::new();
    // `plugpull-conformance check --list` and `plugpull-conformance known`.
    known.extend(
        check::all()
            .iter()
            .map(|check| format!("check:{}", check.name)),
    );
    known.extend(
        known::KNOWN
            .iter()
            .map(|line| format!("known:{}", line.name)),
    );
    for (kind, folder) in [
        ("host", "fs/tests/host"),
        ("relay", "fs/tests/relay"),
        ("unit", "fs/src"),
        ("unit", "fuse/src"),
    ] {
        for file in files(&in_the_repository(folder), "rs") {
            let text = fs::read_to_string(file).unwrap();
            known.extend(test_functions(&text).map(|name| format!("{kind}:{name}")));
        }
    }
    for (kind, folder, ending) in [
        ("scenario", "tests/scenarios", "toml"),
        ("fuzz", "fs/fuzz/fuzz_targets", "rs"),
    ] {
        for file in files(&in_the_repository(folder), ending) {
            known.insert(format!("{kind}:{}", file.file_stem().unwrap().display()));
        }
    }
    known
}

/// The files below a folder whose names end so.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}")) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.extension().is_some_and(|found| found == ending) {
            found.push(path);
        }
    }
    found
}

/// Names of functions that have the attribute `#[test]`.
fn test_functions(source: &str) -> impl Iterator<Item = &str> {
    let mut is_test = false;
    source.lines().filter_map(move |line| {
        let line = line.trim();
        if line == "#[test]" {
            is_test = true;
        } else if !line.starts_with("#[") {
            let name = line.strip_prefix("fn ").filter(|_| is_test);
            is_test = false;
            return name?.split('(').next();
        }
        None
    })
}

/// What a document has in backquotes that looks like the name of a test.
fn names(text: &str) -> BTreeSet<String> {
    let quoted = text.split('`').skip(1).step_by(2);
    let plain = |part: &str| {
        let mut chars = part.chars();
        !part.is_empty() && chars.all(|char| char.is_ascii_alphanumeric() || "_-.".contains(char))
    };
    quoted
        .filter(|quoted| {
            let parts = quoted.split_once(':');
            parts.is_some_and(|(kind, name)| plain(kind) && plain(name))
        })
        .map(str::to_owned)
        .collect()
}

/// The rows of a document's tables, without their heads.
fn rows(text: &str) -> impl Iterator<Item = &str> {
    let mut in_body = false;
    text.lines().filter(move |line| {
        let is_rule = line.starts_with("|--");
        in_body = line.starts_with('|') && (in_body || is_rule);
        in_body && !is_rule
    })
}

fn mistakes(text: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let unknown = names(text).into_iter().filter(|name| !tests.contains(name));
    let bare = rows(text).filter(|row| names(row).is_empty());
    unknown
        .map(|name| format!("no such test: {name}"))
        .chain(bare.map(|row| format!("a row without a test: {row}")))
        .collect()
}
