//! Delta debugging: the smallest part of something that still fails.
//!
//! After Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input" (IEEE
//! Transactions on Software Engineering 28, 2002), `ddmin`.

use anyhow::Result;

/// A part of `items` that still fails and of which, if `tries` sufficed, no single item can be
/// taken away; in the order of `items`. All of them must fail.
///
/// # Errors
/// Those of `fails`.
pub(crate) fn smallest<T: Clone>(
    items: &[T],
    tries: &mut u32,
    mut fails: impl FnMut(&[T]) -> Result<bool>,
) -> Result<Vec<T>> {
    let mut left = items.to_vec();
    let mut pieces = 2;
    while !left.is_empty() {
        pieces = pieces.min(left.len());
        let mut shorter = None;
        for piece in 0..pieces {
            let (start, end) = (
                left.len() * piece / pieces,
                left.len() * (piece + 1) / pieces,
            );
            if *tries == 0 {
                return Ok(left);
            }
            *tries -= 1;
            let rest = [&left[..start], &left[end..]].concat();
            if fails(&rest)? {
                shorter = Some(rest);
                break;
            }
        }
        match shorter {
            Some(rest) => {
                left = rest;
                pieces = (pieces - 1).max(2);
            }
            None if pieces == left.len() => break,
            None => pieces *= 2,
        }
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(items: u32, tries: u32, fails: impl Fn(&[u32]) -> bool) -> (Vec<u32>, u32) {
        let all: Vec<u32> = (0..items).collect();
        let mut left = tries;
        let smallest = smallest(&all, &mut left, |some| Ok(fails(some))).expect("no error");
        (smallest, tries - left)
    }

    #[test]
    fn what_matters_is_left() {
        for wanted in [
            vec![],
            vec![0],
            vec![99],
            vec![3, 57],
            vec![0, 1, 2, 97, 98, 99],
        ] {
            let (smallest, _) = found(100, 10_000, |some| wanted.iter().all(|w| some.contains(w)));
            assert_eq!(smallest, wanted);
        }
    }

    #[test]
    fn what_is_left_fails_and_nothing_can_be_taken_away() {
        // Any three of the even ones: many answers, each of three items.
        let fails = |some: &[u32]| some.iter().filter(|item| **item % 2 == 0).count() >= 3;
        let (smallest, tries) = found(1000, 10_000, fails);
        assert_eq!(smallest.len(), 3, "{smallest:?}");
        assert!(tries < 200, "{tries}");
    }

    #[test]
    fn it_stops_when_it_has_tried_enough() {
        let (smallest, tries) = found(64, 5, |some| some.contains(&1) && some.contains(&60));
        assert_eq!(tries, 5);
        assert!(
            smallest.contains(&1) && smallest.contains(&60),
            "{smallest:?}"
        );
    }
}
