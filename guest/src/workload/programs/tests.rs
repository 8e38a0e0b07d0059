//! The programs of the host on a local filesystem: nothing differs, and each
//! kind of damage is seen.

use plugpull_protocol::workload::plan::{Archive, Database, Repository};

use super::*;

const TIMEOUT: Duration = Duration::from_secs(60);

const GIT: Program = Program::GitClone(Repository {
    files: 64,
    commits: 4,
    seed: 1,
});
const TAR: Program = Program::TarRoundTrip(Archive {
    files: 330,
    seed: 1,
});
const SQLITE: Program = Program::Sqlite(Database {
    writers: 3,
    transactions: 8,
    seed: 1,
});

/// A directory to work in and one for scratch files.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        // Not in memory: that knows neither access lists nor user attributes
        // everywhere.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR"));
        Self {
            dir: dir.expect("a directory"),
        }
    }

    fn act(&self, program: Program, act: Act) -> ProgramRun {
        let at = self.dir.path().join("work");
        match run(&at, program, act, TIMEOUT, self.dir.path()).expect("carried out") {
            Observation::Program(run) => *run,
            other => panic!("{other:?}"),
        }
    }
}

/// Everything that is not as it should be.
fn wrong(run: &ProgramRun) -> Vec<String> {
    let step = |step: &Step| {
        let other = step
            .expected
            .as_ref()
            .is_some_and(|e| *e != step.exited.stdout);
        (other || !step.exited.success()).then(|| format!("{step:?}"))
    };
    let steps = run.steps.iter().filter_map(step);
    steps.chain(run.first.iter().cloned()).collect()
}

fn tell(program: Program) -> (ProgramRun, ProgramRun) {
    let place = Place::new();
    assert_eq!(wrong(&place.act(program, Act::Run)), [""; 0]);
    let whole = place.act(program, Act::Check);
    assert_eq!(wrong(&whole), [""; 0]);
    place.act(program, Act::Damage);
    (whole, place.act(program, Act::Check))
}

#[test]
fn git_clones_and_sees_a_flipped_bit() {
    let (whole, damaged) = tell(GIT);
    assert_eq!(whole.files, 2 * 60);
    let said = wrong(&damaged).join("\n");
    assert!(said.contains("git fsck in clone"), "{said}");
}

#[test]
fn tar_keeps_everything_and_a_flipped_bit_is_seen() {
    let (whole, damaged) = tell(TAR);
    assert_eq!(whole.files, 2 * (330 + 4 + 1));
    assert_eq!((damaged.files, damaged.differences), (whole.files - 1, 1));
}

#[test]
fn sqlite_keeps_every_row_and_sees_a_flipped_bit() {
    let (whole, damaged) = tell(SQLITE);
    assert!(whole.rows > 2 * 3 * 7, "{whole:?}");
    let said = wrong(&damaged).join("\n");
    assert!(
        said.contains("integrity_check with journal_mode=wal"),
        "{said}"
    );
}

#[test]
fn what_is_missing_changed_or_nobodys_is_told() {
    let place = Place::new();
    place.act(TAR, Act::Run);
    let copy = place.dir.path().join("work/copy");
    let dir = copy.join("top-0/dir-0");
    std::fs::write(dir.join("extra"), "").expect("written");
    std::fs::remove_file(dir.join("member-1")).expect("removed");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o1);
    std::fs::set_permissions(dir.join("member-2"), mode).expect("changed");
    let found = place.act(TAR, Act::Check);
    let said = found.first.join("\n");
    // The directory's own time is another now, too.
    assert_eq!(found.differences, 4, "{said}");
    for needed in [
        "extra is nobody's",
        "member-1: stat",
        "mode 1 instead of",
        "dir-0: modified",
    ] {
        assert!(said.contains(needed), "{needed} in {said}");
    }
}
