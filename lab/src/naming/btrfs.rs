//! Btrfs: btrfs-inspect-internal(8). Its addresses are logical; the chunk tree says where on the
//! disk they lie. Files of other subvolumes than the first are not looked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use anyhow::{Context, Result};

use super::{LOOKS_MAX, Named, Owner, Tool, blocks_of, in_blocks, rooted};

/// Where the copies of the superblock are (btrfs(5)), each of 4 KiB.
const SUPERBLOCKS: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
/// The root directory of a subvolume.
const ROOT: u64 = 256;
const BLOCK_BYTES: u64 = 4096;

/// The extents of all files that touch the ranges of logical addresses in RANGES, a line each:
/// inode, place in the file, address, length.
const EXTENTS: &str = r#"btrfs inspect-internal dump-tree -t 5 "$1" | awk -v ranges="RANGES" '
BEGIN { count = split(ranges, range, " ") }
/^\titem/ { inode = substr($4, 2); place = $6; sub(/\)$/, "", place) }
/(extent|prealloc) data disk byte/ { disk = $5 }
/(extent|prealloc) data offset/ {
    if (disk == 0) next
    start = disk + $4; end = start + $6
    for (i = 1; i <= count; i++) {
        split(range[i], of, "-")
        if (start < of[2] + 0 && of[1] + 0 < end) {
            printf "%s %s %.0f %.0f\n", inode, place, start, $6
            break
        }
    }
}'"#;

/// The name of every file and directory, a line each: inode, its directory's inode, name.
const NAMES: &str = r#"btrfs inspect-internal dump-tree -t 5 "$1" | awk '
/^\titem/ { inode = substr($4, 2); kind = $5; dir = $6; sub(/\)$/, "", dir) }
$1 == "index" && kind == "INODE_REF" {
    name = $0; sub(/.* name: /, "", name)
    print inode, dir, name
}'"#;

pub(super) fn owners(places: &[Range<u64>], tool: &mut Tool<'_>) -> Result<Vec<Vec<Named>>> {
    let chunks = chunks(&tool("btrfs inspect-internal dump-tree -t chunk \"$1\"")?)?;
    let node_bytes = node_bytes(&tool("btrfs inspect-internal dump-super \"$1\"")?)?;
    let blocks = blocks_of(places, BLOCK_BYTES);
    let asked: BTreeSet<u64> = blocks.iter().copied().collect();
    let in_chunk = |block: u64| {
        let byte = block * BLOCK_BYTES;
        let chunk = chunks.iter().find(|chunk| chunk.disk.contains(&byte))?;
        Some((chunk, chunk.logical + (byte - chunk.disk.start)))
    };
    let (mut data, mut nodes) = (Vec::new(), BTreeSet::new());
    for (chunk, logical) in blocks.iter().filter_map(|block| in_chunk(*block)) {
        match chunk.holds_data() {
            true => data.push(logical..logical + BLOCK_BYTES),
            false => {
                nodes.insert(logical - logical % node_bytes);
            }
        }
    }
    let extents = extents(&data, tool)?;
    let names = match extents.is_empty() {
        true => BTreeMap::new(),
        false => names(&tool(NAMES)?),
    };
    let mut trees = BTreeMap::new();
    for node in nodes.into_iter().take(LOOKS_MAX) {
        // A block that no tree uses any more may hold anything.
        let asked = format!("btrfs inspect-internal dump-tree -b {node} \"$1\" | head -n 2; true");
        trees.insert(node, tree(&tool(&asked)?));
    }
    Ok(in_blocks(places, BLOCK_BYTES, |block, within| {
        let byte = block * BLOCK_BYTES + within.start;
        if !asked.contains(&block) {
            return Owner::NotAsked;
        }
        if SUPERBLOCKS.contains(&(block * BLOCK_BYTES)) {
            return Owner::Part(String::from("superblock"));
        }
        let Some((chunk, logical)) = in_chunk(block) else {
            return Owner::Nobody;
        };
        if !chunk.holds_data() {
            let node = logical - logical % node_bytes;
            return match trees.get(&node) {
                Some(Some(tree)) => Owner::Part(format!("{tree}, at the address {node}")),
                Some(None) => Owner::Nobody,
                None => Owner::NotAsked,
            };
        }
        let logical = chunk.logical + (byte - chunk.disk.start);
        let Some(extent) = extents.iter().find(|of| of.logical.contains(&logical)) else {
            return Owner::Nobody;
        };
        Owner::File {
            path: path_of(extent.inode, &names),
            inode: extent.inode,
            at: extent.at + (logical - extent.logical.start),
        }
    }))
}

/// A stretch of the disk that logical addresses lie on.
#[derive(Debug)]
struct OnDisk {
    logical: u64,
    disk: Range<u64>,
    kind: String,
}

impl OnDisk {
    fn holds_data(&self) -> bool {
        self.kind.contains("DATA") && !self.kind.contains("METADATA")
    }
}

fn chunks(said: &str) -> Result<Vec<OnDisk>> {
    let mut chunks = Vec::new();
    let (mut logical, mut length, mut kind) = (0, 0, String::new());
    for line in said.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [
                "item",
                ..,
                "CHUNK_ITEM",
                address,
                "itemoff",
                _,
                "itemsize",
                _,
            ] => {
                logical = address.trim_end_matches(')').parse()?;
            }
            ["length", bytes, .., "type", of] => {
                length = bytes.parse()?;
                kind = of.to_owned();
            }
            ["stripe", _, "devid", _, "offset", at] => {
                let start: u64 = at.parse()?;
                chunks.push(OnDisk {
                    logical,
                    disk: start..start + length,
                    kind: kind.clone(),
                });
            }
            _ => {}
        }
    }
    anyhow::ensure!(!chunks.is_empty(), "the chunk tree has no chunks");
    Ok(chunks)
}

fn node_bytes(said: &str) -> Result<u64> {
    let line = said.lines().find_map(|line| line.strip_prefix("nodesize"));
    let value = line.context("dump-super did not say nodesize")?.trim();
    value.parse().with_context(|| format!("nodesize {value:?}"))
}

/// A part of a file on the disk.
struct Extent {
    inode: u64,
    at: u64,
    logical: Range<u64>,
}

fn extents(data: &[Range<u64>], tool: &mut Tool<'_>) -> Result<Vec<Extent>> {
    if data.is_empty() {
        return Ok(Vec::new());
    }
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for range in data {
        match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range.clone()),
        }
    }
    let list = ranges.iter().map(|of| format!("{}-{}", of.start, of.end));
    let list = list.collect::<Vec<_>>().join(" ");
    let said = tool(&EXTENTS.replace("RANGES", &list))?;
    let read = |line: &str| {
        let numbers: Vec<u64> = line
            .split_whitespace()
            .map_while(|word| word.parse().ok())
            .collect();
        let [inode, at, start, length] = numbers[..] else {
            return None;
        };
        Some(Extent {
            inode,
            at,
            logical: start..start + length,
        })
    };
    Ok(said.lines().filter_map(read).collect())
}

/// A directory's inode and a name in it, of each inode.
fn names(said: &str) -> BTreeMap<u64, (u64, String)> {
    let read = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let (inode, dir) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((inode, (dir, words.next()?.to_owned())))
    };
    said.lines().filter_map(read).collect()
}

fn path_of(inode: u64, names: &BTreeMap<u64, (u64, String)>) -> String {
    let mut path = String::new();
    let mut at = inode;
    // Deeper than any path may be, were the tree a circle.
    for _ in 0..2048 {
        if at == ROOT {
            return rooted(&path);
        }
        let Some((dir, name)) = names.get(&at) else {
            break;
        };
        path = format!("/{name}{path}");
        at = *dir;
    }
    format!("inode {inode}, which has no name")
}

/// `leaf 30441472 items 20 free space 14564 generation 7 owner FS_TREE`: what a block of a tree
/// says of itself.
fn tree(said: &str) -> Option<String> {
    let line = said
        .lines()
        .find(|line| line.starts_with("leaf ") || line.starts_with("node "))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let after = |name: &str| {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at + 1).copied()
    };
    let owner = after("owner")?.to_lowercase().replace('_', " ");
    Some(format!(
        "{} of the {owner}, generation {}",
        words.first()?,
        after("generation")?
    ))
}
