//! A capsule goes through the world and comes back the same, or is refused by
//! name.

use std::io::Read;

use anyhow::Error;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use plugpull_disk::{
    ByteCount, End, PowerCut, RequestId, Survivors, View,
    interop::{self, Count},
};
use tar::{Archive, Builder, Header};

use super::*;

const DISK: u64 = 64 << 10;
/// A scenario with a larger disk than that: what judges it looks for this.
const TEXT: &str = r#"
about = "Notes are there after a power cut"
[matrix]
image = ["debian13", "of-somebody-else"]
lower = ["ext4"]
mount = ["native"]
[disk]
size = "64 MiB"
[workload]
files = ["programs/größe"]
run = ["./größe", "{dir}"]
[power-cut]
states = 30
"#;

/// A log of dm-log-writes with two writes of a sector, to be imported: the same
/// on every host.
fn foreign_log() -> Vec<u8> {
    let words = |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|w| w.to_le_bytes()).collect() };
    let sector = |mut bytes: Vec<u8>| {
        bytes.resize(512, 0);
        bytes
    };
    let mut first = words(&[0x006a_7366_7773_6872, 1, 2]);
    first.extend(512_u32.to_le_bytes());
    let mut log = sector(first);
    for (at, byte) in [(8, b'a'), (16, b'b')] {
        log.extend(sector(words(&[at, 1, 0, 0])));
        log.extend([byte; 512]);
    }
    log
}

/// Writes a capsule of one state below `dir`: of two pending writes the second
/// survived.
pub(crate) fn made(dir: &Path) -> PathBuf {
    let (image, foreign, log) = (dir.join("base"), dir.join("foreign"), dir.join("log"));
    let mut content = vec![0; DISK as usize];
    content[..600].fill(b'x');
    content[40_000..40_100].fill(b'y');
    std::fs::write(&image, content).expect("written");
    std::fs::write(&foreign, foreign_log()).expect("written");
    let recording = interop::import(&foreign, ByteCount(DISK), Count::AsWritten, &log);
    let recording = recording.expect("imported");
    let view = View::from_image(&image).expect("an image");
    let keep = Keep::Exactly(Survivors::whole([RequestId(1)]));
    let cut = CutPoint(recording.last_seq());
    let state = PowerCut::new(&view, &recording, cut).and_then(|cut| cut.crash_state(&keep));
    let state = state.expect("a state");
    let data = dir.join("data");
    let base = write_runs(&view, "debian13-ext4-1a2b", &data).expect("written");
    let manifest = Manifest {
        schema: SCHEMA,
        versions: Versions {
            plugpull: "0.1.0".into(),
            qemu: "10.0".into(),
            accel: "tcg".into(),
        },
        seed: 1,
        case_seed: 2,
        profile: Profile::Smoke,
        case: CaseName::new("notes::debian13::ext4::native"),
        scenario: ScenarioName::new("notes"),
        images: ["debian13", "of-somebody-else"].map(ImageName::new).into(),
        image: ImageRef {
            name: ImageName::new("debian13"),
            kernel: "6.12".into(),
            packages_hash: "ab12".into(),
        },
        base,
        members: Vec::new(),
        states: vec![State {
            id: state.id,
            cut,
            keep,
            promised_by: cut.0.0,
            content: state.view.digest().expect("read").to_string(),
            findings: vec![Words {
                oracle: OracleName::Files,
                detail: "note-1: is absent".into(),
            }],
            story: vec!["it is enough to lose one".into()],
        }],
    };
    let contents = vec![
        (SCENARIO.to_owned(), Source::Bytes(TEXT.into())),
        (IMAGE.to_owned(), Source::Bytes(b"{}".into())),
        (BASE.to_owned(), Source::File(data)),
        (LOG.to_owned(), Source::File(log)),
        ("files/größe".to_owned(), Source::Bytes(b"#!/bin/sh".into())),
        (
            "console/load.log".to_owned(),
            Source::Bytes(b"login:".into()),
        ),
    ];
    let path = dir.join(FILE);
    pack(&path, manifest, &contents).expect("packed");
    path
}

/// What every reader does: all of it, or why not.
fn read(path: &Path) -> Result<Unpacked, Error> {
    let dir = tempfile::tempdir()?;
    let capsule = Capsule::open(path)?;
    let unpacked = capsule.unpack(dir.path())?;
    let state = unpacked.manifest().states[0].clone();
    unpacked.crash_state(&state)?;
    Ok(unpacked)
}

/// It is refused as the user's file, in these words.
fn refused(path: &Path, words: &[&str]) {
    let error = read(path).err().expect("refused");
    let said = format!("{error:#}");
    assert!(error.is::<BadCapsule>(), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

pub(crate) type Members = Vec<(String, Vec<u8>)>;

/// Take a capsule apart with nothing but tar and gzip, change it, and put it
/// together again, with no sums but those of the stream.
pub(crate) fn forged(path: &Path, change: impl FnOnce(&mut Members)) -> PathBuf {
    let packed = std::fs::File::open(path).expect("opened");
    let mut archive = Archive::new(GzDecoder::new(packed));
    let mut members = Members::new();
    for entry in archive.entries().expect("entries") {
        let mut entry = entry.expect("an entry");
        let name = entry.path().expect("a name").display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("read");
        members.push((name, bytes));
    }
    change(&mut members);
    let mut archive = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, bytes) in &members {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        // Not by `append_data`, which would refuse a name such as `../x`.
        header.as_gnu_mut().expect("gnu").name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_mode(0o644);
        header.set_cksum();
        archive.append(&header, &**bytes).expect("appended");
    }
    let packed = archive.into_inner().and_then(GzEncoder::finish);
    let forged = path.with_extension("forged");
    std::fs::write(&forged, packed.expect("finished")).expect("written");
    forged
}

fn member<'a>(members: &'a mut Members, name: &str) -> &'a mut Vec<u8> {
    let found = members.iter_mut().find(|(has, _)| has == name);
    &mut found.expect("a member").1
}

/// Change the manifest, and bring its list of members up to date.
pub(crate) fn with_manifest(members: &mut Members, change: impl FnOnce(&mut Manifest)) {
    let mut manifest: Manifest =
        serde_json::from_slice(member(members, MANIFEST)).expect("a manifest");
    manifest.members = members[1..]
        .iter()
        .map(|(name, bytes)| Member {
            name: name.clone(),
            bytes: bytes.len() as u64,
            sha256: ContentHash::of(bytes),
        })
        .collect();
    change(&mut manifest);
    *member(members, MANIFEST) = serde_json::to_vec(&manifest).expect("encoded");
}

#[test]
fn what_goes_in_comes_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = made(dir.path());
    let to = tempfile::tempdir().expect("a directory");
    let capsule = Capsule::open(&path).expect("opened");
    // It may go as soon as it is open: a run is forgotten.
    std::fs::remove_file(&path).expect("removed");
    let unpacked = capsule.unpack(to.path()).expect("unpacked");
    assert_eq!(unpacked.scenario().expect("text"), TEXT);
    let program = std::fs::read_to_string(unpacked.file("größe"));
    assert_eq!(program.expect("read"), "#!/bin/sh");
    assert_eq!(*unpacked.recording().end(), End::Complete);
    let state = unpacked.crash_state(&unpacked.manifest().states[0]);
    let mut bytes = vec![0; DISK as usize];
    state
        .expect("built")
        .view
        .read_at(0, &mut bytes)
        .expect("read");
    let at = |sector: usize| bytes[sector * 512];
    assert_eq!([at(0), at(8), at(16)], [b'x', 0, b'b']);
    assert_eq!(bytes[40_050], b'y');
}

#[test]
fn two_writings_of_the_same_are_the_same() {
    let (one, two) = (tempfile::tempdir(), tempfile::tempdir());
    let bytes = |dir: std::io::Result<tempfile::TempDir>| {
        std::fs::read(made(dir.expect("a directory").path())).expect("read")
    };
    assert_eq!(bytes(one), bytes(two));
}

#[test]
fn a_capsule_cut_short_anywhere_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = made(dir.path());
    let whole = std::fs::read(&path).expect("read");
    let last = whole.len() - 40;
    for length in (0..last).step_by(9).chain(last..whole.len()) {
        std::fs::write(&path, &whole[..length]).expect("written");
        refused(&path, &["breaks off"]);
    }
    std::fs::write(&path, [&*whole, b"x"].concat()).expect("written");
    refused(&path, &["follows its end"]);
}

#[test]
fn a_flipped_bit_is_refused_or_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = made(dir.path());
    let whole = std::fs::read(&path).expect("read");
    let plain = |packed: &[u8]| {
        let mut plain = Vec::new();
        GzDecoder::new(packed)
            .read_to_end(&mut plain)
            .map(|_| plain)
    };
    let content = plain(&whole).expect("whole");
    for at in (0..20).chain((20..whole.len()).step_by(3)) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bytes).expect("written");
        match read(&path) {
            // Time and system in the header of gzip, and bits that fill up its last byte.
            Ok(_) => assert_eq!(plain(&bytes).expect("whole"), content, "byte {at}"),
            Err(error) => assert!(error.is::<BadCapsule>(), "byte {at}: {error:#}"),
        }
    }
}

#[test]
fn what_is_no_capsule_is_said_to_be_none() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x");
    refused(&path, &["x: No such file"]);
    refused(dir.path(), &["directory"]);
    std::fs::write(&path, "about = \"x\"\n".repeat(99)).expect("written");
    refused(&path, &["no capsule"]);
    let path = made(dir.path());
    let other = forged(&path, |members| {
        members.retain(|(name, _)| name != MANIFEST)
    });
    refused(&other, &["no capsule", "begins with scenario.toml"]);
    let later = forged(&path, |members| {
        let text = b"{\"schema\": 2, \"all\": \"else differs\"}";
        *member(members, MANIFEST) = text.to_vec();
    });
    refused(&later, &["version 2", "reads 1"]);
    let empty = forged(&path, |members| {
        with_manifest(members, |manifest| manifest.states.clear());
    });
    refused(&empty, &["no state in it"]);
}

#[test]
fn a_wrong_checksum_and_another_base_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = made(dir.path());
    let log = forged(&path, |members| {
        *member(members, LOG).last_mut().expect("bytes") ^= 1
    });
    refused(&log, &["checksum of load.disklog", "instead of"]);
    let gone = forged(&path, |members| members.retain(|(name, _)| name != LOG));
    refused(
        &gone,
        &["files/größe is in it where load.disklog should be"],
    );
    let base = forged(&path, |members| {
        member(members, BASE)[0] ^= 1;
        with_manifest(members, |_| {});
    });
    refused(&base, &["debian13-ext4-1a2b is another than the one"]);
    let moved = forged(&path, |members| {
        with_manifest(members, |manifest| manifest.base.runs[0].0 = DISK);
    });
    refused(&moved, &["impossible place"]);
    let size = forged(&path, |members| {
        with_manifest(members, |manifest| manifest.base.size *= 2);
    });
    refused(&size, &["is another than the one"]);
}

#[test]
fn another_state_than_the_one_that_failed_is_not_shown() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = made(dir.path());
    let kept = forged(&path, |members| {
        with_manifest(members, |manifest| {
            manifest.states[0].keep = Keep::Everything
        });
    });
    refused(&kept, &["it is another"]);
    let content = forged(&path, |members| {
        with_manifest(members, |manifest| manifest.states[0].content = "00".into());
    });
    refused(&content, &["another than the one that failed"]);
    let no_write = forged(&path, |members| {
        let keep = Keep::Exactly(Survivors::whole([RequestId(7)]));
        with_manifest(members, |manifest| manifest.states[0].keep = keep);
    });
    refused(&no_write, &["cannot be built", "request 7"]);
    let capsule = Capsule::open(&path).expect("opened");
    let said = capsule.state(Some("e9-00")).expect_err("none").to_string();
    assert!(
        said.contains("no state e9-00") && said.contains("1 states: e0-"),
        "{said}"
    );
}

/// A log that breaks off proves nothing, and is no mistake of the caller's: its
/// states are built as far as it goes.
#[test]
fn of_a_log_cut_short_the_prefix_can_be_looked_at() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = made(dir.path());
    let cut_by = |bytes: usize| {
        forged(&path, |members| {
            let log = member(members, LOG);
            log.truncate(log.len() - bytes);
            with_manifest(members, |_| {});
        })
    };
    // The trailer alone.
    let unpacked = read(&cut_by(10)).expect("all events are whole");
    assert!(matches!(unpacked.recording().end(), End::Truncated { .. }));
    let error = read(&cut_by(100)).err().expect("the cut is beyond the end");
    let said = format!("{error:#}");
    assert!(!error.is::<BadCapsule>(), "{said}");
    assert!(said.contains("breaks off after event"), "{said}");
}

#[test]
fn nothing_is_written_outside_the_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = made(dir.path());
    for name in [
        "../x",
        "/tmp/x",
        "files/../../x",
        "files/",
        "console/a/b",
        "other",
    ] {
        let odd = forged(&path, |members| {
            members.push((name.to_owned(), b"x".to_vec()));
            with_manifest(members, |_| {});
        });
        refused(&odd, &["cannot be a part of it"]);
    }
    let hidden = forged(&path, |members| {
        members.push((String::from("../x"), b"x".to_vec()));
    });
    refused(&hidden, &["../x is in it and not in its list"]);
    let bomb = forged(&path, |members| {
        with_manifest(members, |manifest| {
            manifest.members[0].bytes = BYTES_MAX + 1
        });
    });
    refused(&bomb, &["more than 2048 MiB"]);
}

#[test]
fn what_is_too_large_is_not_packed() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = made(dir.path());
    let manifest = Capsule::open(&path).expect("opened").manifest().clone();
    let huge = dir.path().join("huge");
    let file = std::fs::File::create(&huge).expect("made");
    file.set_len(BYTES_MAX + 1).expect("set");
    let contents = vec![(LOG.to_owned(), Source::File(huge))];
    let dest = dir.path().join("large.capsule");
    let said = format!(
        "{:#}",
        pack(&dest, manifest, &contents).expect_err("too large")
    );
    assert!(
        said.contains("2049 MiB") && said.contains("takes 2048"),
        "{said}"
    );
    assert!(!dest.exists());
}

#[test]
fn a_state_is_found_in_the_newest_run_by_the_parts_of_its_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = made(dir.path());
    let id = Capsule::open(&path).expect("opened").manifest().states[0]
        .id
        .clone();
    let runs = dir.path().join("runs");
    for run in ["20260101T000000Z-1", "20260102T000000Z-1"] {
        let test = runs.join(run).join("tests/notes__debian13__ext4__native");
        std::fs::create_dir_all(&test).expect("made");
        std::fs::copy(&path, test.join(FILE)).expect("copied");
    }
    std::os::unix::fs::symlink("20260101T000000Z-1", runs.join("latest")).expect("linked");
    let found = |word: &str| find(&Wanted::of(word), &runs);
    for of in [
        "",
        "notes@",
        "notes/ext4@",
        "notes::debian13::ext4::native@",
        "ext4@",
    ] {
        let (capsule, state) = found(&format!("{of}{id}")).expect("found");
        assert!(capsule.path().starts_with(runs.join("20260102T000000Z-1")));
        assert_eq!(state.as_ref(), Some(&id));
    }
    let near = format!(
        "{}{}",
        &id[..id.len() - 1],
        if id.ends_with('0') { '1' } else { '0' }
    );
    for (word, said) in [
        (format!("notes/xfs@{id}"), "of notes/xfs"),
        (format!("ext4/notes@{id}"), "of ext4/notes"),
        (near, "did you mean"),
    ] {
        let error = found(&word).expect_err("none");
        assert!(
            error.is::<NoSuchState>() && error.to_string().contains(said),
            "{error}"
        );
    }
    // One that is damaged does not hide the others.
    std::fs::write(
        runs.join("20260102T000000Z-1/tests/notes__debian13__ext4__native")
            .join(FILE),
        "x",
    )
    .expect("written");
    let (capsule, _) = found(&id).expect("found");
    assert!(capsule.path().starts_with(runs.join("20260101T000000Z-1")));
}
