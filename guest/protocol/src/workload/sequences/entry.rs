//! What is found at a path of a sequence, as one short line: the remains of
//! hundreds of sequences have to fit into one answer.

use super::{CELL, cell_bytes};

/// What a cell of a file holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cell {
    /// What this step of the file's own sequence wrote there.
    Step(usize),
    /// Zeros.
    Zero,
    /// Anything else, by its beginning.
    Other(String),
}

/// What is found at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Dir,
    /// A file.
    File {
        /// Its inode: names with one number are links of one file.
        inode: u64,
        /// Its size in bytes.
        size: u64,
        /// What its cells hold; the last may be short.
        cells: Vec<Cell>,
    },
    /// Neither, or it cannot be read.
    Odd(String),
}

impl Cell {
    /// What these bytes, a cell or the beginning of one, are in a sequence that
    /// has so many steps.
    pub fn read(bytes: &[u8], number: u64, steps: usize, cell: u64) -> Self {
        if bytes.iter().all(|byte| *byte == 0) {
            return Self::Zero;
        }
        let step = (0..=steps).find(|step| {
            let written = cell_bytes(number, *step, cell);
            written.starts_with(bytes)
        });
        match step {
            Some(step) => Self::Step(step),
            None => {
                let start = &bytes[..bytes.len().min(12)];
                Self::Other(start.escape_ascii().to_string().replace([' ', ','], "_"))
            }
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Step(step) => step.to_string(),
            Self::Zero => "z".to_owned(),
            Self::Other(start) => format!("?{start}"),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "z" => Some(Self::Zero),
            _ => match text.strip_prefix('?') {
                Some(start) => Some(Self::Other(start.to_owned())),
                None => text.parse().ok().map(Self::Step),
            },
        }
    }
}

impl Entry {
    /// A file with this content.
    pub fn file(inode: u64, content: &[u8], number: u64, steps: usize) -> Self {
        let cells = (0..).zip(content.chunks(CELL as usize));
        let cells = cells.map(|(at, bytes)| Cell::read(bytes, number, steps, at));
        Self::File {
            inode,
            size: content.len() as u64,
            cells: cells.collect(),
        }
    }

    /// One line.
    pub fn text(&self) -> String {
        match self {
            Self::Dir => "d".to_owned(),
            Self::Odd(why) => format!("o {why}"),
            Self::File { inode, size, cells } => {
                let cells: Vec<_> = cells.iter().map(Cell::text).collect();
                format!("f {inode} {size} {}", cells.join(","))
            }
        }
    }

    /// From its line.
    pub fn parse(line: &str) -> Option<Self> {
        if line == "d" {
            return Some(Self::Dir);
        }
        if let Some(why) = line.strip_prefix("o ") {
            return Some(Self::Odd(why.to_owned()));
        }
        let mut words = line.strip_prefix("f ")?.split(' ');
        let (inode, size) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let cells = words.next()?.split(',').filter(|cell| !cell.is_empty());
        Some(Self::File {
            inode,
            size,
            cells: cells.map(Cell::parse).collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_travels_as_one_line() {
        let mut content = cell_bytes(7, 2, 0);
        content.extend([0; CELL as usize]);
        content.extend(cell_bytes(8, 2, 2));
        content.extend(&cell_bytes(7, 0, 3)[..100]);
        let file = Entry::file(5, &content, 7, 3);
        let cells = vec![
            Cell::Step(2),
            Cell::Zero,
            Cell::Other("s8/2/2_s8/2/".into()),
            Cell::Step(0),
        ];
        let size = 3 * CELL + 100;
        let expected = Entry::File {
            inode: 5,
            size,
            cells,
        };
        assert_eq!(file, expected);
        let empty = Entry::file(6, &[], 7, 3);
        for entry in [file, empty, Entry::Dir, Entry::Odd("a pipe".into())] {
            assert_eq!(Entry::parse(&entry.text()), Some(entry));
        }
        assert_eq!(Entry::parse("f 1 2"), None);
    }

    #[test]
    fn a_cell_in_the_wrong_place_is_not_what_was_written() {
        let written = cell_bytes(7, 1, 4);
        assert_eq!(Cell::read(&written, 7, 3, 4), Cell::Step(1));
        assert!(matches!(Cell::read(&written, 7, 3, 5), Cell::Other(_)));
    }
}
