//! Sizes as people write them: "1 GiB", "320 MiB".

use serde::{Deserialize, Serialize};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteCount(pub u64);

/// One MiB, in bytes.
pub(super) const MIB: u64 = 1 << 20;

const UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", MIB),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl ByteCount {
    /// Read a whole number and a binary unit.
    ///
    /// # Errors
    /// What was expected. Decimal units are refused instead of guessed at,
    /// because `1 GB` means two things.
    pub fn parse(text: &str) -> Result<Self, String> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = (&text[..digits], text[digits..].trim());
        let Ok(number) = number.parse::<u64>() else {
            return Err("a whole number and a unit, as in \"1 GiB\" or \"320 MiB\"".into());
        };
        let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            let hint = match unit {
                "" => "a unit after the number".to_owned(),
                _ => match UNITS.iter().find(|(name, _)| same_letter(name, unit)) {
                    Some((name, _)) => format!("`{name}` instead of `{unit}`"),
                    None => format!("a unit instead of `{unit}`"),
                },
            };
            return Err(format!("{hint}: B, KiB, MiB, GiB or TiB"));
        };
        number
            .checked_mul(*factor)
            .map(Self)
            .ok_or_else(|| "a size below 16 EiB".into())
    }

    /// Whole MiB, rounded down.
    pub fn mib(self) -> u64 {
        self.0 / MIB
    }
}

fn same_letter(a: &str, b: &str) -> bool {
    let first = |s: &str| s.chars().next().map(|c| c.to_ascii_lowercase());
    first(a) == first(b)
}

impl std::fmt::Display for ByteCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let whole = UNITS
            .iter()
            .find(|(_, factor)| self.0.is_multiple_of(*factor));
        match whole {
            Some((name, factor)) if self.0 > 0 => write!(f, "{} {name}", self.0 / factor),
            _ => write!(f, "{} B", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, bytes, shown) in [
            ("1 GiB", 1 << 30, "1 GiB"),
            ("320MiB", 320 << 20, "320 MiB"),
            ("1536 KiB", 1536 << 10, "1536 KiB"),
            ("2048 MiB", 2 << 30, "2 GiB"),
            ("0 B", 0, "0 B"),
        ] {
            let size = ByteCount::parse(text).expect(text);
            assert_eq!((size.0, size.to_string().as_str()), (bytes, shown));
        }
    }

    #[test]
    fn other_sizes_are_refused_with_what_was_expected() {
        for (text, expected) in [
            (
                "",
                "a whole number and a unit, as in \"1 GiB\" or \"320 MiB\"",
            ),
            (
                "-1 GiB",
                "a whole number and a unit, as in \"1 GiB\" or \"320 MiB\"",
            ),
            (
                "1.5 GiB",
                "a unit instead of `.5 GiB`: B, KiB, MiB, GiB or TiB",
            ),
            ("1 GB", "`GiB` instead of `GB`: B, KiB, MiB, GiB or TiB"),
            ("1 gib", "`GiB` instead of `gib`: B, KiB, MiB, GiB or TiB"),
            ("512", "a unit after the number: B, KiB, MiB, GiB or TiB"),
            (
                "1 furlong",
                "a unit instead of `furlong`: B, KiB, MiB, GiB or TiB",
            ),
            ("99999999 TiB", "a size below 16 EiB"),
            ("1 ☃", "a unit instead of `☃`: B, KiB, MiB, GiB or TiB"),
        ] {
            assert_eq!(ByteCount::parse(text), Err(expected.to_owned()), "{text}");
        }
    }
}
