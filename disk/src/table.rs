//! The copy-on-write table that says, for each sector, where its content lies.
//!
//! Two levels of shared nodes: cloning a table copies one pointer, and a later change copies only
//! the nodes on its path. A node covers 64 KiB (a chunk) or 64 MiB (a group) of disk.

use std::sync::{Arc, OnceLock};

use crate::units::{SECTOR_BYTES, Sector};

pub(crate) const CHUNK_SECTORS: u64 = 128;
pub(crate) const CHUNK_BYTES: u64 = CHUNK_SECTORS * SECTOR_BYTES;
const GROUP_CHUNKS: u64 = 1024;
const OFFSET_BITS: u32 = 48;

/// Which of a view's data files a slot points into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SourceId(pub(crate) u16);

/// Where one sector's content lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Base,
    Zero,
    Data { source: SourceId, offset: u64 },
}

impl Place {
    /// Where the content `sectors` further on lies, if it follows this one without a break.
    pub(crate) fn advance(self, sectors: u64) -> Place {
        match self {
            Place::Data { source, offset } => Place::Data {
                source,
                offset: offset + sectors * SECTOR_BYTES,
            },
            other => other,
        }
    }
}

/// A [`Place`] in eight bytes: 0 is the base, 1 is zeros, else source + 1 above a 48-bit offset.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Slot(u64);

impl Slot {
    const BASE: Slot = Slot(0);
    const ZERO: Slot = Slot(1);

    fn pack(place: Place) -> Slot {
        match place {
            Place::Base => Slot::BASE,
            Place::Zero => Slot::ZERO,
            Place::Data { source, offset } => {
                Slot(((u64::from(source.0) + 1) << OFFSET_BITS) | offset)
            }
        }
    }

    fn unpack(self) -> Place {
        match self {
            Slot::BASE => Place::Base,
            Slot::ZERO => Place::Zero,
            Slot(packed) => Place::Data {
                source: SourceId(((packed >> OFFSET_BITS) - 1) as u16),
                offset: packed & ((1 << OFFSET_BITS) - 1),
            },
        }
    }
}

/// The digest of what a chunk holds that its base does not; `None` where they are equal.
pub(crate) type ChunkDigest = Option<[u8; 32]>;

pub(crate) struct Chunk {
    slots: [Slot; CHUNK_SECTORS as usize],
    /// Filled on first use; belongs to exactly these slots, so a changed chunk forgets it.
    digest: OnceLock<ChunkDigest>,
}

impl Chunk {
    fn untouched() -> Chunk {
        Chunk {
            slots: [Slot::BASE; CHUNK_SECTORS as usize],
            digest: OnceLock::new(),
        }
    }

    pub(crate) fn digest(&self) -> &OnceLock<ChunkDigest> {
        &self.digest
    }

    /// Whether the chunk says something of its own about this sector (counted within the chunk).
    pub(crate) fn is_overlaid(&self, sector_in_chunk: usize) -> bool {
        self.slots[sector_in_chunk] != Slot::BASE
    }
}

impl Clone for Chunk {
    fn clone(&self) -> Chunk {
        Chunk {
            slots: self.slots,
            digest: OnceLock::new(),
        }
    }
}

#[derive(Clone)]
struct Group {
    chunks: Vec<Option<Arc<Chunk>>>,
}

#[derive(Clone)]
pub(crate) struct Table {
    groups: Arc<Vec<Option<Arc<Group>>>>,
}

impl Table {
    pub(crate) fn new(sectors: u64) -> Table {
        let groups = sectors.div_ceil(CHUNK_SECTORS * GROUP_CHUNKS);
        Table {
            groups: Arc::new(vec![None; groups as usize]),
        }
    }

    pub(crate) fn chunk(&self, index: u64) -> Option<&Arc<Chunk>> {
        let group = self.groups[(index / GROUP_CHUNKS) as usize].as_ref()?;
        group.chunks[(index % GROUP_CHUNKS) as usize].as_ref()
    }

    /// Every chunk that says something of its own, in order, with its index.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = (u64, &Arc<Chunk>)> {
        self.groups
            .iter()
            .enumerate()
            .filter_map(|(index, group)| Some((index as u64, group.as_ref()?)))
            .flat_map(|(group_index, group)| {
                group
                    .chunks
                    .iter()
                    .enumerate()
                    .filter_map(move |(index, chunk)| {
                        Some((group_index * GROUP_CHUNKS + index as u64, chunk.as_ref()?))
                    })
            })
    }

    /// Where `at` lies, and for how many of the next `limit` sectors it goes on without a break.
    pub(crate) fn run(&self, at: Sector, limit: u64) -> (Place, u64) {
        let first = self.place(at);
        let mut length = 1;
        while length < limit {
            let next = at.0 + length;
            if next.is_multiple_of(CHUNK_SECTORS) && first == Place::Base {
                // A whole untouched chunk is one step: most of a disk is its base.
                if self.chunk(next / CHUNK_SECTORS).is_none() {
                    length += CHUNK_SECTORS;
                    continue;
                }
            }
            if self.place(Sector(next)) != first.advance(length) {
                break;
            }
            length += 1;
        }
        (first, length.min(limit))
    }

    /// Where the content of a sector lies.
    pub(crate) fn place(&self, at: Sector) -> Place {
        match self.chunk(at.0 / CHUNK_SECTORS) {
            Some(chunk) => chunk.slots[(at.0 % CHUNK_SECTORS) as usize].unpack(),
            None => Place::Base,
        }
    }

    /// Points `sectors` sectors from `at` on to `place` and what follows it.
    pub(crate) fn set(&mut self, at: Sector, sectors: u64, place: Place) {
        let mut done = 0;
        while done < sectors {
            let sector = at.0 + done;
            let first = sector % CHUNK_SECTORS;
            let count = (CHUNK_SECTORS - first).min(sectors - done);
            if place != Place::Base || self.chunk(sector / CHUNK_SECTORS).is_some() {
                let chunk = self.chunk_mut(sector / CHUNK_SECTORS);
                for step in 0..count {
                    chunk.slots[(first + step) as usize] = Slot::pack(place.advance(done + step));
                }
            }
            done += count;
        }
    }

    fn chunk_mut(&mut self, index: u64) -> &mut Chunk {
        let groups = Arc::make_mut(&mut self.groups);
        let group = groups[(index / GROUP_CHUNKS) as usize].get_or_insert_with(|| {
            Arc::new(Group {
                chunks: vec![None; GROUP_CHUNKS as usize],
            })
        });
        let chunks = &mut Arc::make_mut(group).chunks;
        let chunk = chunks[(index % GROUP_CHUNKS) as usize]
            .get_or_insert_with(|| Arc::new(Chunk::untouched()));
        let chunk = Arc::make_mut(chunk);
        chunk.digest.take();
        chunk
    }
}
