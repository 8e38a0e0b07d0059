//! What a disk holds at one moment, as a value: a base image below a table of changes.
//!
//! A view never changes and costs next to nothing to clone. Changed sectors point into the log
//! files that first received them, so no data is copied, and crash states by the thousand share
//! one log. The base image and the logs must stay as they are while a view of them lives; the
//! views hold them open, so removing their names does no harm.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::reads::Reads;
use crate::table::{CHUNK_BYTES, CHUNK_SECTORS, Chunk, ChunkDigest, Place, SourceId, Table};
use crate::units::{ByteCount, SECTOR_BYTES, Sector};

/// The largest disk: 16 TiB, far beyond any test, so that sizes from outside cannot exhaust memory.
pub(crate) const MAX_DISK: ByteCount = ByteCount(16 << 40);

/// An immutable content of a whole disk.
#[derive(Clone)]
pub struct View {
    size: ByteCount,
    base: Base,
    sources: Arc<Vec<Arc<File>>>,
    table: Table,
}

#[derive(Clone)]
enum Base {
    Zeros,
    Image(Arc<File>),
}

impl Base {
    /// Whether they are surely the same.
    fn is(&self, other: &Base) -> bool {
        match (self, other) {
            (Base::Zeros, Base::Zeros) => true,
            (Base::Image(ours), Base::Image(theirs)) => Arc::ptr_eq(ours, theirs),
            _ => false,
        }
    }
}

/// A digest of a view's content relative to its base.
///
/// Two views over the same base have equal digests exactly when (up to SHA-256) they hold equal
/// bytes; over different bases the comparison means nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentDigest(pub [u8; 32]);

impl fmt::Display for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentDigest({self})")
    }
}

impl View {
    /// A disk full of zeros.
    ///
    /// # Errors
    /// The size is not a positive multiple of 512 of at most 16 TiB.
    pub fn zeros(size: ByteCount) -> Result<View> {
        View::over(Base::Zeros, size)
    }

    /// The content of a raw image (sparse or not), opened read-only.
    ///
    /// # Errors
    /// The file cannot be opened, or its size is not that of a disk.
    pub fn from_image(path: &Path) -> Result<View> {
        let file =
            File::open(path).with_context(|| format!("open the base image {}", path.display()))?;
        let size = file
            .metadata()
            .with_context(|| format!("read the size of {}", path.display()))?
            .len();
        View::over(Base::Image(Arc::new(file)), ByteCount(size))
            .with_context(|| format!("use {} as a base image", path.display()))
    }

    fn over(base: Base, size: ByteCount) -> Result<View> {
        ensure!(
            size.0 > 0 && size.0.is_multiple_of(SECTOR_BYTES) && size <= MAX_DISK,
            "a disk is a positive multiple of 512 bytes and at most 16 TiB, not {size} bytes"
        );
        Ok(View {
            size,
            base,
            sources: Arc::new(Vec::new()),
            table: Table::new(size.sectors()),
        })
    }

    /// The size of the disk.
    pub fn size(&self) -> ByteCount {
        self.size
    }

    /// Fills `buffer` with what the disk holds from byte `offset` on.
    ///
    /// # Errors
    /// The range is not on the disk, or a file below the view cannot be read.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let length = buffer.len() as u64;
        ensure!(
            offset
                .checked_add(length)
                .is_some_and(|end| end <= self.size.0),
            "{length} bytes at {offset} are not on a disk of {} bytes",
            self.size
        );
        let mut done = 0;
        while done < length {
            let position = offset + done;
            let inside = position % SECTOR_BYTES;
            let left = (inside + length - done).div_ceil(SECTOR_BYTES);
            let (place, sectors) = self.table.run(Sector(position / SECTOR_BYTES), left);
            let bytes = (sectors * SECTOR_BYTES - inside).min(length - done);
            let piece = &mut buffer[done as usize..(done + bytes) as usize];
            match place {
                Place::Zero => piece.fill(0),
                Place::Base => self.read_base(position, piece)?,
                Place::Data { source, offset } => self.sources[usize::from(source.0)]
                    .read_exact_at(piece, offset + inside)
                    .with_context(|| format!("read {bytes} recorded bytes at {offset}"))?,
            }
            done += bytes;
        }
        Ok(())
    }

    fn read_base(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match &self.base {
            Base::Zeros => buffer.fill(0),
            Base::Image(file) => file
                .read_exact_at(buffer, offset)
                .with_context(|| format!("read {} base bytes at {offset}", buffer.len()))?,
        }
        Ok(())
    }

    /// A digest of the whole content, computed from what differs from the base.
    ///
    /// A sector that was overwritten with what the base holds counts as untouched. Digests of
    /// 64 KiB chunks are kept, so a second call, or one on a changed clone, reads only what is new.
    ///
    /// # Errors
    /// A file below the view cannot be read.
    pub fn digest(&self) -> Result<ContentDigest> {
        let mut whole = Sha256::new();
        whole.update(self.size.0.to_le_bytes());
        for (index, chunk) in self.table.chunks() {
            let digest = match chunk.digest().get() {
                Some(known) => *known,
                None => {
                    let fresh = self.chunk_digest(index, chunk)?;
                    *chunk.digest().get_or_init(|| fresh)
                }
            };
            if let Some(digest) = digest {
                whole.update(index.to_le_bytes());
                whole.update(digest);
            }
        }
        Ok(ContentDigest(whole.finalize().into()))
    }

    /// Whether both hold the same bytes wherever `reads` has some: who reads nothing else cannot
    /// tell them apart.
    ///
    /// What both point at in the same place of the same file is not read, so that two crash states
    /// of one recording cost what they differ by.
    ///
    /// # Errors
    /// They are of different sizes, a stretch is not on the disks, or a file below cannot be read.
    pub fn agrees_with(&self, other: &View, reads: &Reads) -> Result<bool> {
        ensure!(
            self.size == other.size,
            "a disk of {} bytes is compared with one of {}",
            self.size,
            other.size
        );
        for read in reads.ranges() {
            ensure!(
                read.end <= self.size.0,
                "bytes {} to {} are not on a disk of {}",
                read.start,
                read.end,
                self.size
            );
            for index in read.start / CHUNK_BYTES..read.end.div_ceil(CHUNK_BYTES) {
                let start = read.start.max(index * CHUNK_BYTES);
                let end = read.end.min((index + 1) * CHUNK_BYTES);
                if !self.agrees_within(other, index, start..end)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// As [`View::agrees_with`], of bytes in one chunk.
    fn agrees_within(&self, other: &View, index: u64, bytes: Range<u64>) -> Result<bool> {
        match (self.table.chunk(index), other.table.chunk(index)) {
            (None, None) if self.base.is(&other.base) => return Ok(true),
            // Whoever shares a chunk shares what is below it.
            (Some(ours), Some(theirs)) if Arc::ptr_eq(ours, theirs) => return Ok(true),
            _ => {}
        }
        let sectors = bytes.start / SECTOR_BYTES..bytes.end.div_ceil(SECTOR_BYTES);
        let sector_bytes = SECTOR_BYTES as usize;
        let (mut ours, mut theirs) = (vec![0; sector_bytes], vec![0; sector_bytes]);
        for sector in sectors.filter(|sector| !self.same_place(other, Sector(*sector))) {
            let start = (sector * SECTOR_BYTES).max(bytes.start);
            let length = ((sector + 1) * SECTOR_BYTES).min(bytes.end) - start;
            let (ours, theirs) = (&mut ours[..length as usize], &mut theirs[..length as usize]);
            self.read_at(start, ours)?;
            other.read_at(start, theirs)?;
            if ours != theirs {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn same_place(&self, other: &View, sector: Sector) -> bool {
        let (ours, theirs) = (self.table.place(sector), other.table.place(sector));
        match (ours, theirs) {
            (Place::Base, Place::Base) => self.base.is(&other.base),
            (Place::Zero, Place::Zero) => true,
            (
                Place::Data { source, offset },
                Place::Data {
                    source: theirs,
                    offset: at,
                },
            ) => {
                let file = &self.sources[usize::from(source.0)];
                let theirs = &other.sources[usize::from(theirs.0)];
                offset == at && Arc::ptr_eq(file, theirs)
            }
            _ => false,
        }
    }

    fn chunk_digest(&self, index: u64, chunk: &Chunk) -> Result<ChunkDigest> {
        let start = index * CHUNK_BYTES;
        let length = CHUNK_BYTES.min(self.size.0 - start) as usize;
        let mut new = vec![0; length];
        let mut old = vec![0; length];
        self.read_at(start, &mut new)?;
        self.read_base(start, &mut old)?;
        let mut hasher = None;
        let sector_bytes = SECTOR_BYTES as usize;
        for sector in 0..length / sector_bytes {
            let range = sector * sector_bytes..(sector + 1) * sector_bytes;
            if chunk.is_overlaid(sector) && new[range.clone()] != old[range.clone()] {
                let hasher = hasher.get_or_insert_with(Sha256::new);
                hasher.update((sector as u64).to_le_bytes());
                hasher.update(&new[range]);
            }
        }
        Ok(hasher.map(|hasher| hasher.finalize().into()))
    }

    /// Whether nothing between `start` and `end` (bytes) can hold anything but zeros.
    pub(crate) fn surely_zeros(&self, start: u64, end: u64) -> bool {
        let untouched = (start / CHUNK_BYTES..end.div_ceil(CHUNK_BYTES))
            .all(|index| self.table.chunk(index).is_none());
        untouched
            && match &self.base {
                Base::Zeros => true,
                Base::Image(file) => {
                    // A filesystem without SEEK_DATA reports data everywhere, which is safe.
                    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(start)) {
                        Ok(data) => data >= end,
                        Err(error) => error == rustix::io::Errno::NXIO,
                    }
                }
            }
    }

    /// Adds a file that slots may point into.
    pub(crate) fn add_source(&mut self, file: Arc<File>) -> Result<SourceId> {
        // The table packs a source's number plus one into 16 bits.
        let Some(id) = u16::try_from(self.sources.len())
            .ok()
            .filter(|id| *id < u16::MAX)
        else {
            bail!("a view over more than {} logs", u16::MAX);
        };
        Arc::make_mut(&mut self.sources).push(file);
        Ok(SourceId(id))
    }

    pub(crate) fn set_data(&mut self, at: Sector, sectors: u64, source: SourceId, offset: u64) {
        self.table.set(at, sectors, Place::Data { source, offset });
    }

    pub(crate) fn set_zeros(&mut self, at: Sector, sectors: u64) {
        let place = match self.base {
            Base::Zeros => Place::Base,
            Base::Image(_) => Place::Zero,
        };
        self.table.set(at, sectors, place);
    }

    /// How many bytes one step of [`View::export_sparse`] looks at.
    pub(crate) const EXPORT_STEP: u64 = 16 * CHUNK_SECTORS * SECTOR_BYTES;
}
