//! XFS: xfs_db(8), which walks everything there is and then knows whose a block is.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use anyhow::{Context, Result, ensure};

use super::{LOOKS_MAX, Named, Owner, Tool, blocks_of, in_blocks, inodes, rooted};

/// What the first sectors of an allocation group are, in order.
const HEADERS: [&str; 4] = [
    "superblock",
    "free space header",
    "inode header",
    "free list",
];

pub(super) fn owners(places: &[Range<u64>], tool: &mut Tool<'_>) -> Result<Vec<Vec<Named>>> {
    let shape = Shape::read(&tool("xfs_db -r -c 'sb 0' -c print \"$1\"")?)?;
    let asked: BTreeSet<u64> = blocks_of(places, shape.block_bytes).into_iter().collect();
    let uses = uses(&shape, &asked, tool)?;
    let mut numbers: BTreeSet<u64> = BTreeSet::new();
    let of_blocks = uses.iter().filter(|(_, of)| of.kind == "inode");
    for (block, _) in of_blocks.take(LOOKS_MAX) {
        numbers.extend(shape.inodes_in(*block));
    }
    let paths = names(&numbers, tool)?;
    let contents = uses.values().filter(|of| of.kind == "data");
    let files: BTreeSet<u64> = contents.filter_map(|of| of.inode).collect();
    let runs = runs(&shape, files.into_iter().take(LOOKS_MAX), tool)?;
    Ok(in_blocks(places, shape.block_bytes, |block, within| {
        if !asked.contains(&block) {
            return Owner::NotAsked;
        }
        let (group, of_group) = (block / shape.group_blocks, block % shape.group_blocks);
        if of_group == 0 {
            return Owner::Part(shape.headers(group, &within));
        }
        let Some(of) = uses.get(&block) else {
            return Owner::Nobody;
        };
        let path = match (&of.path, of.inode) {
            (Some(path), _) => rooted(path),
            (None, Some(inode)) => format!("inode {inode}, which has no name"),
            (None, None) => String::new(),
        };
        match (of.kind.as_str(), of.inode) {
            ("free1" | "free2" | "unknown" | "missing", _) => Owner::Nobody,
            ("log", _) => Owner::Part(String::from("log")),
            ("inode", _) => {
                let of = inodes(shape.inodes_in(block), &paths);
                Owner::Part(format!("inode chunk, {of}"))
            }
            ("data", Some(inode)) => {
                let run = runs
                    .iter()
                    .find(|run| run.inode == inode && run.blocks.contains(&block));
                match run {
                    Some(run) => Owner::File {
                        path,
                        inode,
                        at: (run.first + block - run.blocks.start) * shape.block_bytes
                            + within.start,
                    },
                    None => Owner::Part(format!("a part of {path}")),
                }
            }
            ("dir", Some(inode)) => {
                Owner::Part(format!("directory {path}, which is inode {inode}"))
            }
            (kind, Some(_)) => Owner::Part(format!("{} of {path}", part(kind))),
            (kind, None) => Owner::Part(format!("{} of group {group}", part(kind))),
        }
    }))
}

/// A name of xfs_db in words.
fn part(kind: &str) -> &str {
    match kind {
        "btbno" => "free space tree by place",
        "btcnt" => "free space tree by size",
        "btino" => "inode tree",
        "btfino" => "free inode tree",
        "btrmap" => "reverse mapping tree",
        "btrefcnt" => "reference count tree",
        "btbmapd" => "extent tree",
        "btbmapa" => "extent tree of the attributes",
        "attr" => "attributes",
        "symlink" => "target of the link",
        "freelist" => "free list",
        other => other,
    }
}

/// What the superblock says. Blocks are counted from the disk's beginning here; XFS writes the
/// group into the upper bits of a number instead.
#[derive(Debug)]
struct Shape {
    block_bytes: u64,
    sector_bytes: u64,
    group_blocks: u64,
    group_log: u64,
    inodes_per_block: u64,
    inodes_log: u64,
}

impl Shape {
    fn read(said: &str) -> Result<Self> {
        let number = |name: &str| -> Result<u64> {
            let value = said.lines().find_map(|line| {
                let (key, value) = line.split_once(" = ")?;
                (key == name).then_some(value)
            });
            let value = value.with_context(|| format!("xfs_db did not say {name}"))?;
            value.parse().with_context(|| format!("{name} {value:?}"))
        };
        Ok(Self {
            block_bytes: number("blocksize")?,
            sector_bytes: number("sectsize")?,
            group_blocks: number("agblocks")?,
            group_log: number("agblklog")?,
            inodes_per_block: number("inopblock")?,
            inodes_log: number("inopblog")?,
        })
    }

    /// A block from a number as XFS writes it.
    fn block(&self, number: u64) -> u64 {
        let mask = (1 << self.group_log) - 1;
        (number >> self.group_log) * self.group_blocks + (number & mask)
    }

    fn inodes_in(&self, block: u64) -> Range<u64> {
        let (group, of_group) = (block / self.group_blocks, block % self.group_blocks);
        let first = ((group << self.group_log) | of_group) << self.inodes_log;
        first..first + self.inodes_per_block
    }

    /// What a part of a group's first block holds.
    fn headers(&self, group: u64, within: &Range<u64>) -> String {
        let sectors = within.start / self.sector_bytes..within.end.div_ceil(self.sector_bytes);
        let named = HEADERS.iter().enumerate();
        let named: Vec<&str> = named
            .filter(|(at, _)| sectors.contains(&(*at as u64)))
            .map(|(_, name)| *name)
            .collect();
        format!("{} of group {group}", named.join(", "))
    }
}

/// What xfs_db says of a block.
#[derive(Debug)]
struct Use {
    kind: String,
    inode: Option<u64>,
    path: Option<String>,
}

/// `block 32792 (1/24) type data inode 262273 work/a` for each block.
fn uses(shape: &Shape, blocks: &BTreeSet<u64>, tool: &mut Tool<'_>) -> Result<BTreeMap<u64, Use>> {
    let mut script = String::from("xfs_db -r -c 'blockget -n'");
    for block in blocks {
        let sector = block * shape.block_bytes / 512;
        script.push_str(&format!(" -c 'daddr {sector}' -c 'blockuse -n'"));
    }
    let said = tool(&format!("{script} \"$1\""))?;
    let mut uses = BTreeMap::new();
    for line in said.lines() {
        let Some(rest) = line.strip_prefix("block ") else {
            continue;
        };
        let read = || {
            let (number, rest) = rest.split_once(" (")?;
            let (_, rest) = rest.split_once(") type ")?;
            let (kind, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            let of = rest.strip_prefix("inode ").unwrap_or("");
            let (inode, path) = of.split_once(' ').unwrap_or((of, ""));
            let found = Use {
                kind: kind.to_owned(),
                inode: inode.parse().ok(),
                path: (!path.is_empty()).then(|| path.to_owned()),
            };
            Some((shape.block(number.parse().ok()?), found))
        };
        uses.extend(read());
    }
    ensure!(
        uses.len() == blocks.len(),
        "xfs_db told {} of {} blocks: {}",
        uses.len(),
        blocks.len(),
        said.lines().next().unwrap_or("nothing")
    );
    Ok(uses)
}

/// The path of each inode that has one.
fn names(inodes: &BTreeSet<u64>, tool: &mut Tool<'_>) -> Result<BTreeMap<u64, String>> {
    if inodes.is_empty() {
        return Ok(BTreeMap::new());
    }
    let list: Vec<String> = inodes.iter().map(|inode| format!("-i {inode}")).collect();
    let list = list.join(" ");
    let said = tool(&format!(
        "xfs_db -r -c 'blockget -n' -c 'ncheck {list}' \"$1\""
    ))?;
    let pair = |line: &str| {
        let (inode, path) = line.trim().split_once(' ')?;
        Some((inode.parse().ok()?, rooted(path)))
    };
    Ok(said.lines().filter_map(pair).collect())
}

/// Some blocks of a file that follow each other on the disk.
struct Run {
    inode: u64,
    blocks: Range<u64>,
    /// Which block of the file is the first.
    first: u64,
}

/// `data offset 0 startblock 32792 (1/24) count 74 flag 0`, for each file.
fn runs(shape: &Shape, files: impl Iterator<Item = u64>, tool: &mut Tool<'_>) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    for inode in files {
        let said = tool(&format!("xfs_db -r -c 'inode {inode}' -c bmap \"$1\""))?;
        for line in said.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let after = |name: &str| -> Option<u64> {
                let at = words.iter().position(|word| *word == name)?;
                words.get(at + 1)?.parse().ok()
            };
            let read = || {
                let start = shape.block(after("startblock")?);
                Some(Run {
                    inode,
                    blocks: start..start + after("count")?,
                    first: after("offset")?,
                })
            };
            runs.extend(read());
        }
    }
    Ok(runs)
}
