//! From a matrix of names to cases: each value once, each pair, or all.

use std::{collections::BTreeSet, sync::Arc};

use super::{CaseName, ImageName, Lower, Mount, Profile, Scenario, Server, Story, Threshold};

/// One run: a scenario on one image, lower filesystem and mount.
#[derive(Debug, Clone)]
pub struct Case {
    /// `scenario::image::lower::mount`.
    pub name: CaseName,
    /// What it is a case of.
    pub scenario: Arc<Scenario>,
    /// The profile, which decides the sizes.
    pub profile: Profile,
    /// The guest image.
    pub image: ImageName,
    /// The image that its guests run: that one, with the packages that the
    /// mount needs.
    pub guest: ImageName,
    /// The filesystem on the disk.
    pub lower: Lower,
    /// What is mounted over it.
    pub mount: Mount,
    /// What happens, at the profile's size.
    pub story: Story,
    /// What must have happened before the verdict counts.
    pub thresholds: Vec<Threshold>,
}

impl Mount {
    /// The Debian packages that it needs in the guest.
    pub fn packages(&self) -> &[String] {
        match &self.server {
            Server::Program { packages, .. } => packages,
            Server::Native | Server::PlugpullFs { .. } => &[],
        }
    }
}

/// The name of an image with packages added: `debian13+bindfs`.
fn with_packages(image: &ImageName, packages: &[String]) -> ImageName {
    let parts = std::iter::once(image.as_str()).chain(packages.iter().map(String::as_str));
    ImageName::new(parts.collect::<Vec<_>>().join("+"))
}

impl Scenario {
    /// The cases of a profile, always in the same order; none where the
    /// scenario does not run in it.
    pub fn cases(self: &Arc<Self>, profile: Profile) -> Vec<Case> {
        let Some(story) = self.story(profile) else {
            return Vec::new();
        };
        let axes = &self.matrix;
        let sizes = [axes.images.len(), axes.lowers.len(), axes.mounts.len()];
        let case = |[i, l, m]: [usize; 3]| {
            let (image, lower, mount) = (&axes.images[i], &axes.lowers[l], &axes.mounts[m]);
            Case {
                name: CaseName::new(format!(
                    "{}::{image}::{}::{}",
                    self.name, lower.name, mount.name
                )),
                scenario: Arc::clone(self),
                profile,
                image: image.clone(),
                guest: with_packages(image, mount.packages()),
                lower: lower.clone(),
                mount: mount.clone(),
                story: story.clone(),
                thresholds: self.thresholds(profile),
            }
        };
        combine(profile, sizes).into_iter().map(case).collect()
    }
}

/// Indices into three axes of these sizes.
fn combine(profile: Profile, sizes: [usize; 3]) -> Vec<[usize; 3]> {
    match profile {
        Profile::Smoke => each_once(sizes),
        Profile::Full => each_pair(sizes),
        Profile::Nightly => product(sizes),
    }
}

/// Every value at least once, in as many rows as the longest axis has values.
fn each_once(sizes: [usize; 3]) -> Vec<[usize; 3]> {
    if sizes.contains(&0) {
        return Vec::new();
    }
    let rows = sizes.into_iter().max().unwrap_or(0);
    (0..rows).map(|row| sizes.map(|size| row % size)).collect()
}

/// Every row, the last axis fastest.
fn product([a, b, c]: [usize; 3]) -> Vec<[usize; 3]> {
    let rows = (0..a).flat_map(move |i| (0..b).map(move |j| (i, j)));
    rows.flat_map(|(i, j)| (0..c).map(move |k| [i, j, k]))
        .collect()
}

/// Every pair of values of two axes at least once: a covering array of
/// strength two, by the greedy choice of AETG (Cohen et al., 1997) over all
/// rows. Ties go to the first row, so the result never changes.
fn each_pair(sizes: [usize; 3]) -> Vec<[usize; 3]> {
    let all = product(sizes);
    let mut open: BTreeSet<_> = all.iter().flat_map(pairs).collect();
    let mut rows = Vec::new();
    while !open.is_empty() {
        let news = |row: &[usize; 3]| pairs(row).iter().filter(|pair| open.contains(pair)).count();
        // `max_by_key` takes the last of equals; reversed it is the first.
        let Some(best) = all.iter().rev().max_by_key(|row| news(row)) else {
            break;
        };
        for pair in pairs(best) {
            open.remove(&pair);
        }
        rows.push(*best);
    }
    rows.sort_unstable();
    rows
}

/// The pairs a row covers: which two axes, and the value on each.
fn pairs(row: &[usize; 3]) -> [(usize, usize, usize, usize); 3] {
    [(0, 1), (0, 2), (1, 2)].map(|(a, b)| (a, b, row[a], row[b]))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn axes() -> impl Strategy<Value = [usize; 3]> {
        [1..7_usize, 1..7, 1..7]
    }

    proptest! {
        #[test]
        fn smoke_takes_every_value_in_as_few_rows_as_can_be(sizes in axes()) {
            let rows = each_once(sizes);
            prop_assert_eq!(rows.len(), *sizes.iter().max().expect("three"));
            for axis in 0..3 {
                let seen: BTreeSet<_> = rows.iter().map(|row| row[axis]).collect();
                prop_assert_eq!(seen, (0..sizes[axis]).collect());
            }
        }

        #[test]
        fn full_takes_every_pair_and_no_row_in_vain(sizes in axes()) {
            let rows = each_pair(sizes);
            let covered: BTreeSet<_> = rows.iter().flat_map(pairs).collect();
            let wanted: BTreeSet<_> = product(sizes).iter().flat_map(pairs).collect();
            prop_assert_eq!(&covered, &wanted);
            let distinct: BTreeSet<_> = rows.iter().collect();
            prop_assert_eq!(distinct.len(), rows.len());
            let mut two = sizes;
            two.sort_unstable();
            prop_assert!(rows.len() >= two[1] * two[2], "fewer than the largest pair of axes has");
            prop_assert!(rows.len() <= product(sizes).len());
        }

        #[test]
        fn full_has_what_smoke_has_and_nightly_all(sizes in axes()) {
            let all: BTreeSet<_> = product(sizes).into_iter().collect();
            prop_assert_eq!(all.len(), sizes.iter().product::<usize>());
            prop_assert!(each_pair(sizes).iter().all(|row| all.contains(row)));
            prop_assert!(each_once(sizes).iter().all(|row| all.contains(row)));
        }
    }

    #[test]
    fn the_matrix_of_the_suite() {
        let sizes = [3, 3, 2];
        assert_eq!(each_once(sizes), [[0, 0, 0], [1, 1, 1], [2, 2, 0]]);
        assert_eq!(each_pair(sizes).len(), 9, "{:?}", each_pair(sizes));
        assert_eq!(product(sizes).len(), 18);
    }
}
