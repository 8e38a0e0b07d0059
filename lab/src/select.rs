//! Which cases are run: a filter, an image, a shard.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::scenario::{Case, CaseName};

/// One of several machines that share a run. A name always goes to the same
/// shard, whatever other names there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Shard {
    /// From 1.
    index: u32,
    count: u32,
}

impl Shard {
    /// The only shard.
    pub const ALL: Self = Self { index: 1, count: 1 };

    /// Whether this shard runs what has this name.
    pub fn contains(self, name: &str) -> bool {
        self.holds(&Sha256::digest(name.as_bytes()))
    }

    /// Whether this shard explores the crash state with this hash; the hash is
    /// taken as it is, so it must be one already.
    pub fn holds(self, hash: &[u8]) -> bool {
        let mut first = [0; 8];
        for (to, from) in first.iter_mut().zip(hash) {
            *to = *from;
        }
        u64::from_be_bytes(first) % u64::from(self.count) == u64::from(self.index - 1)
    }

    /// Which it is, from 1, and of how many.
    pub fn of(self) -> (u32, u32) {
        (self.index, self.count)
    }

    /// Whether it is the only one.
    pub fn is_all(self) -> bool {
        self.count == 1
    }
}

impl Default for Shard {
    fn default() -> Self {
        Self::ALL
    }
}

impl TryFrom<String> for Shard {
    type Error = BadShard;

    fn try_from(text: String) -> Result<Self, BadShard> {
        text.parse()
    }
}

impl From<Shard> for String {
    fn from(shard: Shard) -> Self {
        shard.to_string()
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

/// A shard is `M/N` with 1 ≤ M ≤ N.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no shard: expected M/N with 1 ≤ M ≤ N, as in 2/4")]
pub struct BadShard(String);

impl FromStr for Shard {
    type Err = BadShard;

    fn from_str(text: &str) -> Result<Self, BadShard> {
        let number = |part: &str| part.parse::<u32>().ok();
        let shard = text.split_once('/').and_then(|(index, count)| {
            let (index, count) = (number(index)?, number(count)?);
            (1..=count)
                .contains(&index)
                .then_some(Self { index, count })
        });
        shard.ok_or_else(|| BadShard(text.to_owned()))
    }
}

/// A part of a case's name, or a pattern with `*` and `?` for the whole of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(String);

impl Filter {
    /// Any text is a filter.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether a name is meant.
    pub fn matches(&self, name: &str) -> bool {
        if self.0.contains(['*', '?']) {
            glob(self.0.as_bytes(), name.as_bytes())
        } else {
            name.contains(&self.0)
        }
    }
}

/// Whether a pattern matches a whole text. On a mismatch the last `*` takes
/// one byte more, so the time is at most the product of the lengths.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p, t));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match retry {
                Some((star, from)) => {
                    retry = Some((star, from + 1));
                    p = star + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// What a call asks for.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Only names that match.
    pub filter: Option<Filter>,
    /// Only cases of this image.
    pub image: Option<String>,
    /// Only this shard's part.
    pub shard: Shard,
    /// Cases that every shard runs, each with a part of their states: those whose recordings
    /// were given.
    pub recorded: BTreeSet<CaseName>,
}

/// Nothing matches: a mistake in the call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoMatch {
    /// What was asked for: `filter` or `image`.
    what: &'static str,
    asked: String,
    near: Vec<String>,
    /// Whether `near` are near, or simply all there is.
    alike: bool,
}

impl std::error::Error for NoMatch {}

impl fmt::Display for NoMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no case matches the {} `{}`", self.what, self.asked)?;
        if self.near.is_empty() {
            return Ok(());
        }
        let head = if self.alike {
            "did you mean"
        } else {
            "there are"
        };
        write!(f, "\n{head}:")?;
        for name in &self.near {
            write!(f, "\n  {name}")?;
        }
        Ok(())
    }
}

impl Selection {
    /// The cases that are run here, in their order. A shard may be empty; a
    /// filter or an image that matches nothing is a mistake.
    ///
    /// # Errors
    /// [`NoMatch`] with what there is.
    pub fn of(&self, mut cases: Vec<Case>) -> Result<Vec<Case>, NoMatch> {
        if let Some(image) = &self.image {
            let known: Vec<_> = cases.iter().map(|c| c.image.as_str().to_owned()).collect();
            cases.retain(|case| case.image.as_str() == image);
            if cases.is_empty() {
                return Err(no_match("image", image, known.iter().map(String::as_str)));
            }
        }
        if let Some(filter) = &self.filter {
            let known: Vec<_> = cases.iter().map(|c| c.name.as_str().to_owned()).collect();
            cases.retain(|case| filter.matches(case.name.as_str()));
            if cases.is_empty() {
                let parts = known.iter().flat_map(|name| name.split("::"));
                let whole = known.iter().map(String::as_str);
                return Err(no_match("filter", &filter.0, parts.chain(whole)));
            }
        }
        cases.retain(|case| {
            self.recorded.contains(&case.name) || self.shard.contains(case.name.as_str())
        });
        Ok(cases)
    }
}

/// How many names a message lists.
const NEAR_MAX: usize = 5;

/// Below this Jaro-Winkler similarity two names have nothing to do with each
/// other.
const NEAR_ENOUGH: f64 = 0.82;

fn no_match<'a>(what: &'static str, asked: &str, known: impl Iterator<Item = &'a str>) -> NoMatch {
    let mut scores: BTreeMap<&str, f64> = BTreeMap::new();
    let mut all = Vec::new();
    for name in known {
        if scores
            .insert(name, strsim::jaro_winkler(asked, name))
            .is_none()
        {
            all.push(name);
        }
    }
    let mut near: Vec<_> = all.iter().filter(|n| scores[*n] >= NEAR_ENOUGH).collect();
    near.sort_by(|a, b| scores[**b].total_cmp(&scores[**a]));
    let alike = !near.is_empty();
    let shown: Vec<_> = match alike {
        true => near
            .into_iter()
            .take(NEAR_MAX)
            .map(|n| (*n).to_owned())
            .collect(),
        // First parts of names are the scenarios; whole names would be a flood.
        false => all
            .into_iter()
            .filter(|n| !n.contains("::"))
            .map(str::to_owned)
            .collect(),
    };
    NoMatch {
        what,
        asked: asked.to_owned(),
        near: shown,
        alike,
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use proptest::prelude::*;

    use super::*;
    use crate::scenario::{ImageName, Profile, Scenario};

    fn cases() -> Vec<Case> {
        let images = ["debian12", "debian13"].map(ImageName::new);
        let text = |builtin: &str| {
            format!(
                "about = \"x\"\n[matrix]\nimage = [\"debian12\", \"debian13\"]\n\
                 lower = [\"ext4\"]\nmount = [\"native\"]\n[workload]\nbuiltin = \"{builtin}\"\n"
            )
        };
        ["postgres-load", "postgres-initdb", "writers"]
            .into_iter()
            .flat_map(|name| {
                let path = format!("{name}.toml");
                let scenario = Scenario::parse(Path::new(&path), &text(name), &images);
                Arc::new(scenario.expect("right")).cases(Profile::Full)
            })
            .collect()
    }

    fn selected(filter: Option<&str>, image: Option<&str>) -> Result<Vec<String>, String> {
        let selection = Selection {
            filter: filter.map(Filter::new),
            image: image.map(str::to_owned),
            shard: Shard::ALL,
            recorded: BTreeSet::new(),
        };
        let cases = selection.of(cases()).map_err(|none| none.to_string())?;
        Ok(cases
            .into_iter()
            .map(|case| case.name.as_str().to_owned())
            .collect())
    }

    #[test]
    fn a_filter_is_a_part_or_a_pattern() {
        assert_eq!(selected(None, None).expect("all").len(), 6);
        assert_eq!(
            selected(Some("load::debian12"), None).expect("one"),
            ["postgres-load::debian12::ext4::native"]
        );
        assert_eq!(
            selected(Some("postgres-*::debian13::*"), None)
                .expect("two")
                .len(),
            2
        );
        assert_eq!(
            selected(Some("writers*"), Some("debian12"))
                .expect("one")
                .len(),
            1
        );
        assert!(
            selected(Some("postgres-?"), None).is_err(),
            "a pattern is for the whole name"
        );
    }

    #[test]
    fn what_matches_nothing_is_answered_with_what_is_near() {
        assert_eq!(
            selected(Some("postgres-lod"), None).expect_err("none"),
            "no case matches the filter `postgres-lod`\ndid you mean:\n  postgres-load\n  \
             postgres-initdb\n  postgres-load::debian12::ext4::native\n  \
             postgres-load::debian13::ext4::native"
        );
        assert_eq!(
            selected(Some("zzz"), None).expect_err("none"),
            "no case matches the filter `zzz`\nthere are:\n  postgres-load\n  debian12\n  ext4\n  \
             native\n  debian13\n  postgres-initdb\n  writers"
        );
        assert_eq!(
            selected(None, Some("debian31")).expect_err("none"),
            "no case matches the image `debian31`\ndid you mean:\n  debian13\n  debian12"
        );
    }

    #[test]
    fn shards_are_read_or_refused() {
        assert_eq!(
            "2/4".parse::<Shard>().map(|s| s.to_string()),
            Ok("2/4".into())
        );
        for bad in [
            "", "0/4", "5/4", "2", "2/", "/4", "a/b", "1/0", "-1/4", "1/2/3",
        ] {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_keeps_its_shard() {
        // Frozen, and checked against sha256sum: machines of one run may be of
        // two builds.
        let shard = |name: &str| {
            (1..=4).find(|m| {
                Shard {
                    index: *m,
                    count: 4,
                }
                .contains(name)
            })
        };
        assert_eq!(shard("postgres-load::debian12::ext4::native"), Some(4));
        assert_eq!(shard("writers-250::debian13::xfs::plugpull-fs"), Some(1));
    }

    /// What a pattern means, said the slow way.
    fn slow_glob(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                slow_glob(rest, text) || !text.is_empty() && slow_glob(pattern, &text[1..])
            }
            (Some((p, ps)), Some((t, ts))) => (*p == b'?' || p == t) && slow_glob(ps, ts),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn every_name_is_in_exactly_one_shard(name in ".{0,40}", count in 1..20_u32) {
            let holders = (1..=count).filter(|index| Shard { index: *index, count }.contains(&name));
            prop_assert_eq!(holders.count(), 1);
        }

        #[test]
        fn patterns_mean_what_the_slow_way_says(pattern in "[ab*?]{0,8}", text in "[ab]{0,8}") {
            prop_assert_eq!(
                glob(pattern.as_bytes(), text.as_bytes()),
                slow_glob(pattern.as_bytes(), text.as_bytes())
            );
        }
    }
}
