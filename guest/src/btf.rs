//! Where members lie in the kernel's structures, by the kernel's own description of its types
//! (Documentation/bpf/btf.rst).
//!
//! Only members that are named by their structure itself are found, not those of a nameless one
//! inside it.

use anyhow::{Context, Result, ensure};

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;

/// A description of types.
pub(crate) struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Types<'a> {
    /// Take what `/sys/kernel/btf/vmlinux` holds.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self> {
        let magic = bytes.get(..2).context("no types at all")?;
        ensure!(
            magic == MAGIC.to_le_bytes(),
            "the types begin with {magic:?}"
        );
        let header = word(bytes, 4)?;
        let part = |at: usize| -> Result<&[u8]> {
            let start = header + word(bytes, at)?;
            let length = word(bytes, at + 4)?;
            bytes
                .get(start..start + length)
                .context("the types break off")
        };
        Ok(Self {
            types: part(8)?,
            strings: part(16)?,
        })
    }

    /// The offsets in bytes of these members, each of a structure by its name.
    pub(crate) fn offsets<const N: usize>(&self, wanted: [(&str, &str); N]) -> Result<[usize; N]> {
        let mut found = [None; N];
        let mut at = 0;
        while at < self.types.len() {
            let info = word(self.types, at + 4)? as u32;
            let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            if kind == KIND_STRUCT {
                let name = self.string(word(self.types, at)?);
                for (place, (of, member)) in wanted.iter().enumerate() {
                    if name == of.as_bytes() && found[place].is_none() {
                        found[place] = self.member(at, members, info >> 31 == 1, member)?;
                    }
                }
            }
            at += 12 + trailer(kind, members)?;
        }
        let mut offsets = [0; N];
        for (place, (of, member)) in wanted.iter().enumerate() {
            offsets[place] = found[place]
                .with_context(|| format!("the kernel's types have no {of}.{member}"))?;
        }
        Ok(offsets)
    }

    fn member(
        &self,
        of: usize,
        members: usize,
        with_sizes: bool,
        wanted: &str,
    ) -> Result<Option<usize>> {
        for member in 0..members {
            let at = of + 12 + member * 12;
            if self.string(word(self.types, at)?) == wanted.as_bytes() {
                let bits = word(self.types, at + 8)?;
                let bits = if with_sizes { bits & 0xff_ffff } else { bits };
                return Ok(Some(bits / 8));
            }
        }
        Ok(None)
    }

    fn string(&self, at: usize) -> &[u8] {
        let rest = self.strings.get(at..).unwrap_or_default();
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

/// How many bytes follow a type of this kind.
fn trailer(kind: u32, members: usize) -> Result<usize> {
    Ok(match kind {
        // A number, a variable, a tag.
        1 | 14 | 17 => 4,
        // An array.
        3 => 12,
        // Structures, unions, sections, enums of 64 bits.
        4 | 5 | 15 | 19 => members * 12,
        // Enums, the parameters of functions.
        6 | 13 => members * 8,
        // Pointers, names for types, qualifiers, functions, floats.
        2 | 7..=12 | 16 | 18 => 0,
        other => anyhow::bail!("the kernel's types have the unknown kind {other}"),
    })
}

fn word(bytes: &[u8], at: usize) -> Result<usize> {
    let word = bytes.get(at..at + 4).context("the types break off")?;
    Ok(u32::from_le_bytes(word.try_into()?) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct file { int count; union {…} (nameless); struct inode *f_inode; }` after a pointer
    /// and an enum, whose trailers must be skipped.
    fn example() -> Vec<u8> {
        let strings = b"\0file\0count\0f_inode\0of\0";
        let mut types = Vec::new();
        let mut put = |words: &[u32]| {
            for word in words {
                types.extend(word.to_le_bytes());
            }
        };
        put(&[0, 2 << 24, 1]);
        put(&[20, 6 << 24 | 1, 4, 20, 7]);
        put(&[1, 4 << 24 | 3, 24, 6, 1, 0, 0, 1, 64, 12, 1, 128]);
        let mut all = MAGIC.to_le_bytes().to_vec();
        all.extend([1, 0]);
        let lengths = [types.len(), strings.len()].map(|length| length as u32);
        for word in [24, 0, lengths[0], lengths[0], lengths[1]] {
            all.extend(u32::to_le_bytes(word));
        }
        all.extend(types);
        all.extend(strings);
        all
    }

    #[test]
    fn members_are_found_where_they_are() {
        let bytes = example();
        let types = Types::read(&bytes).expect("types");
        let found = types.offsets([("file", "f_inode"), ("file", "count")]);
        assert_eq!(found.expect("both"), [16, 0]);
        let error = types.offsets([("file", "f_mode")]).expect_err("none");
        assert!(error.to_string().contains("file.f_mode"), "{error}");
        assert!(Types::read(&bytes[..30]).is_err());
        assert!(Types::read(b"garbage, no types").is_err());
    }
}
