//! Writing a capsule: sums first, then everything in one stream, beside its
//! place, and renamed into it.

use std::{
    fs::File,
    io::{BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use flate2::{Compression, write::GzEncoder};
use plugpull_disk::View;
use plugpull_vm::cache::{ContentHash, publish_file};
use tar::{Builder, Header};

use super::{BYTES_MAX, BaseDigest, BaseRef, MANIFEST, Manifest, Member};

/// Most of it is pages of zeros and text; a slower level saves a tenth.
const LEVEL: u32 = 4;

/// Where the bytes of a member are.
pub(crate) enum Source {
    Bytes(Vec<u8>),
    File(PathBuf),
}

/// What goes in beside the manifest: names and bytes, in order.
pub(crate) type Contents = Vec<(String, Source)>;

impl Source {
    fn len(&self) -> Result<u64> {
        Ok(match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(path) => std::fs::metadata(path)
                .with_context(|| format!("read the size of {}", path.display()))?
                .len(),
        })
    }

    fn hash(&self) -> Result<ContentHash> {
        match self {
            Self::Bytes(bytes) => Ok(ContentHash::of(bytes)),
            Self::File(path) => ContentHash::of_file(path),
        }
    }
}

/// Writes a capsule; the manifest's list of members is made here.
///
/// # Errors
/// When it would be too large, or a file cannot be read or written. Nothing is
/// left then.
pub(crate) fn pack(dest: &Path, mut manifest: Manifest, contents: &Contents) -> Result<()> {
    let mut members = Vec::new();
    let mut all = 0;
    for (name, source) in contents {
        let bytes = source.len()?;
        all += bytes;
        members.push((name, source, bytes));
    }
    ensure!(
        all <= BYTES_MAX,
        "the recording, the base disk and what belongs to them have {} MiB, and a capsule takes {}",
        all.div_ceil(1 << 20),
        BYTES_MAX >> 20
    );
    manifest.members.clear();
    for (name, source, bytes) in &members {
        manifest.members.push(Member {
            name: (*name).clone(),
            bytes: *bytes,
            sha256: source.hash()?,
        });
    }
    let manifest = serde_json::to_vec(&manifest)?;
    publish_file(dest, |file| {
        let packed = GzEncoder::new(BufWriter::new(file), Compression::new(LEVEL));
        let mut archive = Builder::new(packed);
        append(&mut archive, MANIFEST, manifest.len() as u64, &*manifest)?;
        for (name, source, bytes) in &members {
            match source {
                Source::Bytes(content) => append(&mut archive, name, *bytes, &**content)?,
                Source::File(path) => {
                    let file =
                        File::open(path).with_context(|| format!("open {}", path.display()))?;
                    append(&mut archive, name, *bytes, file)?;
                }
            }
        }
        Ok(archive.into_inner()?.finish()?.flush()?)
    })
}

/// A member without owner, time or anything else that differs between two
/// writings of the same.
fn append(
    archive: &mut Builder<impl Write>,
    name: &str,
    bytes: u64,
    content: impl Read,
) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o644);
    archive
        .append_data(&mut header, name, content)
        .with_context(|| format!("pack {name}"))
}

/// Writes the data of a base disk to a file, and says what it is.
///
/// # Errors
/// When the base cannot be read or the file cannot be written.
pub(crate) fn write_runs(base: &View, name: &str, dest: &Path) -> Result<BaseRef> {
    let context = || format!("write {}", dest.display());
    let mut out = BufWriter::new(File::create(dest).with_context(context)?);
    let mut digest = BaseDigest::new(base.size().0);
    let mut runs = Vec::new();
    base.for_each_run(|at, data| {
        digest.run(at, data);
        runs.push((at, data.len() as u64));
        out.write_all(data).with_context(context)
    })?;
    out.flush().with_context(context)?;
    Ok(BaseRef {
        name: name.to_owned(),
        size: base.size().0,
        digest: digest.finish(),
        runs,
    })
}
