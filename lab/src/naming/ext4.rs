//! ext4: dumpe2fs(8) for the layout, debugfs(8) for files.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use anyhow::{Context, Result};

use super::{LOOKS_MAX, Named, Owner, Tool, blocks_of, in_blocks, inodes, rooted};

/// The inodes that the filesystem keeps for itself (ext4.h, `EXT4_*_INO`).
const RESIZE_INODE: u64 = 7;

pub(super) fn owners(places: &[Range<u64>], tool: &mut Tool<'_>) -> Result<Vec<Vec<Named>>> {
    let layout = Layout::read(&tool("dumpe2fs \"$1\"")?)?;
    let blocks = blocks_of(places, layout.block_bytes);
    let asked: BTreeSet<u64> = blocks.iter().copied().collect();
    let tables: Vec<Range<u64>> = blocks.iter().filter_map(|b| layout.inodes_in(*b)).collect();
    let unknown: Vec<u64> = blocks
        .into_iter()
        .filter(|block| layout.part(*block).is_none())
        .collect();
    let owned = icheck(&unknown, tool)?;
    let mut numbers: BTreeSet<u64> = owned.values().copied().collect();
    let in_tables = tables.into_iter().take(LOOKS_MAX).flatten();
    numbers.extend(in_tables.filter(|inode| *inode >= layout.first_inode));
    let paths = ncheck(&numbers, tool)?;
    let owners: BTreeSet<u64> = owned.values().copied().collect();
    let mut files = BTreeMap::new();
    for inode in owners.into_iter().take(LOOKS_MAX) {
        let said = tool(&format!("debugfs -R 'stat <{inode}>' \"$1\""))?;
        files.insert(inode, File::read(&said));
    }
    Ok(in_blocks(places, layout.block_bytes, |block, within| {
        if !asked.contains(&block) {
            return Owner::NotAsked;
        }
        if let Some(table) = layout.inodes_in(block) {
            return Owner::Part(format!("inode table, {}", inodes(table, &paths)));
        }
        if let Some(part) = layout.part(block) {
            return Owner::Part(part);
        }
        let Some(inode) = owned.get(&block).copied() else {
            return Owner::Nobody;
        };
        if inode == layout.journal {
            return Owner::Part(String::from("journal"));
        }
        if inode == RESIZE_INODE {
            return Owner::Part(String::from("reserved group descriptors"));
        }
        let path = paths.get(&inode).cloned();
        let path = path.unwrap_or_else(|| format!("inode {inode}, which has no name"));
        match files.get(&inode).map(|file| (file, file.place_of(block))) {
            Some((file, Some(_))) if file.directory => {
                Owner::Part(format!("directory {path}, which is inode {inode}"))
            }
            Some((_, Some(place))) => Owner::File {
                path,
                inode,
                at: place * layout.block_bytes + within.start,
            },
            Some((_, None)) => Owner::Part(format!("extent tree or attributes of {path}")),
            None => Owner::Part(format!("a part of {path}")),
        }
    }))
}

/// What dumpe2fs(8) says.
#[derive(Debug, Default)]
struct Layout {
    block_bytes: u64,
    inode_bytes: u64,
    inodes_per_group: u64,
    first_inode: u64,
    journal: u64,
    /// Parts by their blocks, with what they are.
    parts: Vec<(Range<u64>, String)>,
    /// Inode tables by their blocks, with their first inode.
    tables: Vec<(Range<u64>, u64)>,
}

impl Layout {
    fn read(said: &str) -> Result<Self> {
        let number = |name: &str| -> Result<u64> {
            let line = said.lines().find_map(|line| line.strip_prefix(name));
            let value = line.with_context(|| format!("dumpe2fs did not say {name:?}"))?;
            let value = value.trim();
            value.parse().with_context(|| format!("{name} {value:?}"))
        };
        let mut layout = Self {
            block_bytes: number("Block size:")?,
            inode_bytes: number("Inode size:")?,
            inodes_per_group: number("Inodes per group:")?,
            first_inode: number("First inode:")?,
            // There need not be one.
            journal: number("Journal inode:").unwrap_or(0),
            ..Self::default()
        };
        let mut group = 0;
        for line in said.lines() {
            if let Some(rest) = line.strip_prefix("Group ") {
                group = rest
                    .split(':')
                    .next()
                    .and_then(|number| number.parse().ok())
                    .unwrap_or(group);
            }
            for (key, what) in [
                ("rimary superblock at ", "superblock"),
                ("ackup superblock at ", "backup of the superblock"),
                ("Group descriptors at ", "group descriptors"),
                ("Reserved GDT blocks at ", "reserved group descriptors"),
                ("Block bitmap at ", "block bitmap"),
                ("Inode bitmap at ", "inode bitmap"),
            ] {
                if let Some(blocks) = blocks_after(line, key) {
                    let of = match what {
                        "superblock" => String::from(what),
                        _ => format!("{what} of group {group}"),
                    };
                    layout.parts.push((blocks, of));
                }
            }
            if let Some(blocks) = blocks_after(line, "Inode table at ") {
                let first = group * layout.inodes_per_group + 1;
                layout.tables.push((blocks, first));
            }
        }
        Ok(layout)
    }

    /// What a block is by its place alone.
    fn part(&self, block: u64) -> Option<String> {
        if self.inodes_in(block).is_some() {
            return Some(String::from("inode table"));
        }
        let found = self.parts.iter().find(|(at, _)| at.contains(&block));
        found.map(|(_, what)| what.clone())
    }

    /// The inodes in a block of an inode table.
    fn inodes_in(&self, block: u64) -> Option<Range<u64>> {
        let (blocks, first) = self.tables.iter().find(|(at, _)| at.contains(&block))?;
        let each = self.block_bytes / self.inode_bytes;
        let first = first + (block - blocks.start) * each;
        Some(first..first + each)
    }
}

/// `N` or `N-M` behind a text in a line.
fn blocks_after(line: &str, key: &str) -> Option<Range<u64>> {
    range(line.split_once(key)?.1)
}

/// `N` or `N-M` at the start of a text, the end excluded.
fn range(text: &str) -> Option<Range<u64>> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '-');
    let numbers = &text[..end.unwrap_or(text.len())];
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    Some(first.parse().ok()?..last.parse::<u64>().ok()? + 1)
}

/// The inode that has each block; none of those that are free.
fn icheck(blocks: &[u64], tool: &mut Tool<'_>) -> Result<BTreeMap<u64, u64>> {
    if blocks.is_empty() {
        return Ok(BTreeMap::new());
    }
    let list: Vec<String> = blocks.iter().map(u64::to_string).collect();
    let said = tool(&format!("debugfs -R 'icheck {}' \"$1\"", list.join(" ")))?;
    Ok(pairs(&said)
        .filter_map(|(block, inode)| Some((block, inode.parse().ok()?)))
        .collect())
}

/// The path of each inode that has one.
fn ncheck(inodes: &BTreeSet<u64>, tool: &mut Tool<'_>) -> Result<BTreeMap<u64, String>> {
    if inodes.is_empty() {
        return Ok(BTreeMap::new());
    }
    let list: Vec<String> = inodes.iter().map(u64::to_string).collect();
    let said = tool(&format!("debugfs -R 'ncheck {}' \"$1\"", list.join(" ")))?;
    let mut paths: BTreeMap<u64, String> = pairs(&said)
        .map(|(inode, path)| (inode, rooted(path)))
        .collect();
    paths.insert(2, String::from("/"));
    Ok(paths)
}

fn pairs(said: &str) -> impl Iterator<Item = (u64, &str)> {
    said.lines().filter_map(|line| {
        let (number, rest) = line.split_once('\t')?;
        Some((number.trim().parse().ok()?, rest.trim()))
    })
}

/// What `stat` of debugfs(8) says of an inode.
#[derive(Debug)]
struct File {
    directory: bool,
    /// Blocks of the disk, with the first block of the file that they hold.
    runs: Vec<(Range<u64>, u64)>,
}

impl File {
    fn read(said: &str) -> Self {
        let list = ["EXTENTS:", "BLOCKS:"]
            .iter()
            .find_map(|title| said.split_once(title))
            .map_or("", |(_, list)| list);
        // `(0-292):4386-4678`; `(ETB0):4387` and `(IND):4387` are no content.
        let run = |entry: &str| {
            let (of_file, of_disk) = entry.trim().strip_prefix('(')?.split_once("):")?;
            Some((range(of_disk)?, range(of_file)?.start))
        };
        Self {
            directory: said.contains("Type: directory"),
            runs: list.split([',', '\n']).filter_map(run).collect(),
        }
    }

    /// Which block of the file a block of the disk is.
    fn place_of(&self, block: u64) -> Option<u64> {
        let (blocks, first) = self.runs.iter().find(|(at, _)| at.contains(&block))?;
        Some(first + (block - blocks.start))
    }
}
