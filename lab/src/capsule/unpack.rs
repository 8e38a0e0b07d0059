//! Reading a capsule: nothing in it is used before it has been checked, and
//! what is wrong is named.

use std::{
    fs::{self, File},
    io::{self, BufReader, ErrorKind, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use flate2::bufread::GzDecoder;
use plugpull_disk::{CrashState, End, PowerCut, Recording, View};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tar::{Archive, Entry};

use super::{
    BASE, BYTES_MAX, BadCapsule, BaseDigest, CONSOLE, FILES, IMAGE, LOG, MANIFEST, MANIFEST_MAX,
    Manifest, Member, SCENARIO, SCHEMA, State, id,
};

type Packed = GzDecoder<BufReader<File>>;

/// How much is copied at a time.
const STEP: usize = 256 << 10;

/// A capsule of which the manifest has been read.
#[derive(Debug)]
pub struct Capsule {
    path: PathBuf,
    /// Open, so that it may be removed meanwhile.
    file: File,
    manifest: Manifest,
}

/// A capsule that was taken apart into a directory, every sum of it checked.
pub struct Unpacked {
    path: PathBuf,
    dir: PathBuf,
    manifest: Manifest,
    base: View,
    recording: Recording,
}

/// What every manifest has, of whichever version.
#[derive(Deserialize)]
struct Schema {
    schema: u32,
}

impl Capsule {
    /// Opens a capsule and reads its manifest.
    ///
    /// # Errors
    /// [`BadCapsule`] when the file is none or is of another version; another
    /// error when it cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let bad = |why: String| BadCapsule::new(path, why);
        let file = File::open(path).map_err(|error| bad(error.to_string()))?;
        let again = file.try_clone().map_err(|error| bad(error.to_string()))?;
        let mut archive = archive(again)?;
        let mut entries = archive
            .entries()
            .map_err(|error| bad(broken(MANIFEST, &error)))?;
        let entry = entries.next().transpose();
        let Some(entry) = entry.map_err(|error| bad(no_capsule(&error)))? else {
            return Err(bad(String::from("it is empty")).into());
        };
        let name = name_of(&entry);
        if name != MANIFEST {
            let why = format!("it is no capsule: it begins with {name}, not with {MANIFEST}");
            return Err(bad(why).into());
        }
        let mut text = Vec::new();
        let read = entry.take(MANIFEST_MAX).read_to_end(&mut text);
        read.map_err(|error| bad(broken(MANIFEST, &error)))?;
        let malformed =
            |error: serde_json::Error| bad(format!("{MANIFEST} in it is malformed: {error}"));
        let Schema { schema } = serde_json::from_slice(&text).map_err(malformed)?;
        if schema != SCHEMA {
            let why = format!("it is of version {schema}, and this build reads {SCHEMA}");
            return Err(bad(why).into());
        }
        let manifest: Manifest = serde_json::from_slice(&text).map_err(malformed)?;
        check(&manifest).map_err(bad)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            manifest,
        })
    }

    /// What it says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The state of this name, or the first that the report told of.
    ///
    /// # Errors
    /// [`BadCapsule`] where there is none; those that there are, are named.
    pub fn state(&self, wanted: Option<&str>) -> Result<State, BadCapsule> {
        let states = &self.manifest.states;
        let found = match wanted {
            None => states.first(),
            Some(wanted) => states.iter().find(|state| state.id == wanted),
        };
        found.cloned().ok_or_else(|| {
            let ids: Vec<&str> = states.iter().take(8).map(|state| &*state.id).collect();
            let wanted = wanted.unwrap_or("any");
            let why = format!(
                "there is no state {wanted} in it; it has {} states: {}",
                states.len(),
                ids.join(", ")
            );
            BadCapsule::new(&self.path, why)
        })
    }

    /// Takes it apart into an empty directory.
    ///
    /// # Errors
    /// [`BadCapsule`] for all that is wrong with it; another error when the
    /// directory cannot be written.
    pub fn unpack(self, dir: &Path) -> Result<Unpacked> {
        let Self {
            path,
            file,
            manifest,
        } = self;
        let bad = |why: String| BadCapsule::new(&path, why);
        for place in [FILES, CONSOLE] {
            fs::create_dir(dir.join(place))
                .with_context(|| format!("make {}", dir.join(place).display()))?;
        }
        let mut archive = archive(file)?;
        let mut entries = archive
            .entries()
            .map_err(|error| bad(broken(MANIFEST, &error)))?;
        let mut before = MANIFEST;
        // The manifest has been read; its sum is that of the whole stream.
        let skipped = entries.next().transpose();
        skipped.map_err(|error| bad(broken(MANIFEST, &error)))?;
        for member in &manifest.members {
            let entry = entries.next().transpose();
            let entry = entry.map_err(|error| bad(broken(before, &error)))?;
            let entry = entry.ok_or_else(|| bad(format!("{} is not in it", member.name)))?;
            let name = name_of(&entry);
            if name != member.name {
                let why = format!("{name} is in it where {} should be", member.name);
                return Err(bad(why).into());
            }
            unpack_member(&path, entry, member, dir)?;
            before = &member.name;
        }
        if let Some(entry) = entries
            .next()
            .transpose()
            .map_err(|e| bad(broken(before, &e)))?
        {
            let why = format!("{} is in it and not in its list", name_of(&entry));
            return Err(bad(why).into());
        }
        ended(archive.into_inner()).map_err(bad)?;
        let base = unpack_base(&path, &manifest, dir)?;
        let log = dir.join(LOG);
        let recording = Recording::open(&log).map_err(|error| bad(format!("{error:#}")))?;
        if recording.size().0 != manifest.base.size {
            let why = format!(
                "its recording is of a disk of {} bytes, and its base disk has {}",
                recording.size(),
                manifest.base.size
            );
            return Err(bad(why).into());
        }
        Ok(Unpacked {
            path,
            dir: dir.to_owned(),
            manifest,
            base,
            recording,
        })
    }
}

impl Unpacked {
    /// What it says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The base disk.
    pub fn base(&self) -> &View {
        &self.base
    }

    /// The recording.
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    /// The scenario file's text.
    ///
    /// # Errors
    /// [`BadCapsule`] when it is no text.
    pub fn scenario(&self) -> Result<String> {
        let path = self.dir.join(SCENARIO);
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(String::from_utf8(bytes).map_err(|_| self.bad(format!("{SCENARIO} is no text")))?)
    }

    /// Where a host file of that name is now.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(FILES).join(name)
    }

    /// Builds a state again, and makes sure that it is the one that failed.
    ///
    /// # Errors
    /// [`BadCapsule`] when it is another; another error when the recording breaks
    /// off before its cut.
    pub fn crash_state(&self, state: &State) -> Result<CrashState> {
        if let End::Truncated { last_seq, why, .. } = self.recording.end() {
            ensure!(
                state.cut.0 <= *last_seq,
                "{}: its recording breaks off after event {last_seq} ({why}), before the cut of {}",
                self.path.display(),
                state.id
            );
        }
        let built = PowerCut::new(&self.base, &self.recording, state.cut)
            .and_then(|cut| cut.crash_state(&state.keep));
        let built = built.map_err(|error| {
            self.bad(format!("the state {} cannot be built: {error:#}", state.id))
        })?;
        let content = built.view.digest()?.to_string();
        let name = id(&self.manifest.case, &state.id);
        if built.id != state.id {
            let why = format!("what is built for {name} is {}: it is another", built.id);
            return Err(self.bad(why).into());
        }
        if content != state.content {
            let why = format!(
                "the disk that is built for {name} is another than the one that failed: {content} \
                 instead of {}",
                state.content
            );
            return Err(self.bad(why).into());
        }
        Ok(built)
    }

    /// A complaint about this capsule.
    pub fn bad(&self, why: impl Into<String>) -> BadCapsule {
        BadCapsule::new(&self.path, why)
    }
}

fn archive(mut file: File) -> Result<Archive<Packed>> {
    io::Seek::rewind(&mut file).context("go to a capsule's beginning")?;
    Ok(Archive::new(GzDecoder::new(BufReader::new(file))))
}

fn name_of(entry: &Entry<'_, Packed>) -> String {
    String::from_utf8_lossy(&entry.path_bytes()).into_owned()
}

fn no_capsule(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof => broken(MANIFEST, error),
        _ => format!("it is no capsule, or it is damaged at its beginning: {error}"),
    }
}

/// What went wrong at a member or right behind it.
fn broken(at: &str, error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof => format!("it breaks off in {at}: the file is not whole"),
        _ => format!("it is damaged in {at}: {error}"),
    }
}

/// What must be so before any of it is unpacked.
fn check(manifest: &Manifest) -> Result<(), String> {
    let mut left = BYTES_MAX;
    for member in &manifest.members {
        let known = [SCENARIO, IMAGE, BASE, LOG].contains(&&*member.name);
        let inside = [FILES, CONSOLE]
            .iter()
            .filter_map(|place| member.name.strip_prefix(place))
            .any(is_file_name);
        if !known && !inside {
            return Err(format!("{:?} cannot be a part of it", member.name));
        }
        left = left
            .checked_sub(member.bytes)
            .ok_or_else(|| format!("it says that it has more than {} MiB", BYTES_MAX >> 20))?;
    }
    for name in [SCENARIO, BASE, LOG] {
        if !manifest.members.iter().any(|member| member.name == name) {
            return Err(format!("{name} is not in it"));
        }
    }
    if manifest.states.is_empty() {
        return Err(String::from("there is no state in it"));
    }
    Ok(())
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

fn unpack_member(
    path: &Path,
    mut entry: Entry<'_, Packed>,
    member: &Member,
    dir: &Path,
) -> Result<()> {
    let bad = |why: String| BadCapsule::new(path, why);
    let name = &member.name;
    if entry.size() != member.bytes {
        let (has, should) = (entry.size(), member.bytes);
        return Err(bad(format!("{name} in it has {has} bytes instead of {should}")).into());
    }
    let dest = dir.join(name);
    let writing = || format!("write {}", dest.display());
    let mut out = File::create_new(&dest).with_context(writing)?;
    let mut sum = Sha256::new();
    let mut buffer = vec![0; STEP];
    loop {
        let read = entry.read(&mut buffer);
        let count = read.map_err(|error| bad(broken(name, &error)))?;
        if count == 0 {
            break;
        }
        sum.update(&buffer[..count]);
        out.write_all(&buffer[..count]).with_context(writing)?;
    }
    let sum: String = sum.finalize().iter().map(|b| format!("{b:02x}")).collect();
    if sum != member.sha256.as_str() {
        let why = format!(
            "the checksum of {name} in it is wrong: {sum} instead of {}",
            member.sha256
        );
        return Err(bad(why).into());
    }
    Ok(())
}

/// The stream's own checksum stands at its end, and nothing behind it.
fn ended(mut packed: Packed) -> Result<(), String> {
    io::copy(&mut packed, &mut io::sink()).map_err(|error| broken("its last bytes", &error))?;
    let mut rest = packed.into_inner();
    match rest.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(String::from("something follows its end")),
        Err(error) => Err(broken("its last bytes", &error)),
    }
}

/// Makes the base disk of its data, and the data goes.
fn unpack_base(path: &Path, manifest: &Manifest, dir: &Path) -> Result<View> {
    let base = &manifest.base;
    let bad = |why: &str| BadCapsule::new(path, format!("its base disk {} {why}", base.name));
    let (from, to) = (dir.join(BASE), dir.join("base.img"));
    let mut data = BufReader::new(File::open(&from).context("open the base's data")?);
    let disk = File::create_new(&to).with_context(|| format!("make {}", to.display()))?;
    disk.set_len(base.size)
        .map_err(|error| bad(&format!("cannot have {} bytes: {error}", base.size)))?;
    let mut digest = BaseDigest::new(base.size);
    let mut end = 0;
    for (at, length) in base.runs.iter().copied() {
        let fits = at >= end
            && length <= BYTES_MAX
            && at.checked_add(length).is_some_and(|end| end <= base.size);
        if !fits {
            return Err(bad("has data at an impossible place").into());
        }
        end = at + length;
        let mut run = vec![0; usize::try_from(length)?];
        data.read_exact(&mut run)
            .map_err(|_| bad("has less data than its list says"))?;
        digest.run(at, &run);
        disk.write_all_at(&run, at)
            .with_context(|| format!("write {}", to.display()))?;
    }
    if data.read(&mut [0]).context("read the base's data")? != 0 {
        return Err(bad("has more data than its list says").into());
    }
    let digest = digest.finish();
    if digest != base.digest {
        let why = format!(
            "is another than the one that was recorded over: {digest} instead of {}",
            base.digest
        );
        return Err(bad(&why).into());
    }
    drop(data);
    fs::remove_file(&from).with_context(|| format!("remove {}", from.display()))?;
    View::from_image(&to).map_err(|error| bad(&format!("is none: {error:#}")).into())
}
