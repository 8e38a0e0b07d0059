//! Which of its operations a workload carries out. A failure is told with as few of them as show
//! it, so a workload that can leave some out is run again with fewer.

use std::{collections::BTreeSet, fmt, str::FromStr};

/// Numbers of operations, from 1; in text `1-3,7`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Operations(BTreeSet<u32>);

impl Operations {
    /// The first `count` operations.
    pub fn all(count: u32) -> Self {
        Self((1..=count).collect())
    }

    /// Whether it is carried out.
    pub fn contains(&self, number: u64) -> bool {
        u32::try_from(number).is_ok_and(|number| self.0.contains(&number))
    }

    /// In ascending order.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<u32> for Operations {
    fn from_iter<T: IntoIterator<Item = u32>>(numbers: T) -> Self {
        Self(numbers.into_iter().collect())
    }
}

impl fmt::Display for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut numbers = self.numbers().peekable();
        let mut comma = "";
        while let Some(first) = numbers.next() {
            let mut last = first;
            while let Some(next) = numbers.next_if(|next| *next == last + 1) {
                last = next;
            }
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
            comma = ",";
        }
        Ok(())
    }
}

const MARK: &str = "operation ";

/// The text of a mark that says: now this operation begins, which does that.
pub fn mark(number: u64, what: &str) -> String {
    match what {
        "" => format!("{MARK}{number}"),
        what => format!("{MARK}{number}: {what}"),
    }
}

/// The number of the operation that a mark begins, and what it does.
pub fn begun(mark: &str) -> Option<(u32, &str)> {
    let rest = mark.strip_prefix(MARK)?;
    let (number, what) = rest.split_once(": ").unwrap_or((rest, ""));
    Some((number.parse().ok()?, what))
}

/// What is no list of operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoOperations(String);

impl fmt::Display for NoOperations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is no list of operations such as `1-3,7`", self.0)
    }
}

impl std::error::Error for NoOperations {}

impl FromStr for Operations {
    type Err = NoOperations;

    fn from_str(text: &str) -> Result<Self, NoOperations> {
        let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number > 0);
        let stretch = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(first..=last)
        };
        let stretches: Option<Vec<_>> = text.split(',').map(stretch).collect();
        let stretches = stretches.ok_or_else(|| NoOperations(text.to_owned()))?;
        Ok(stretches.into_iter().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_numbers_are_the_same() {
        for (text, numbers) in [
            ("1", vec![1]),
            ("1-3", vec![1, 2, 3]),
            ("2,4-5,9", vec![2, 4, 5, 9]),
        ] {
            let operations: Operations = text.parse().expect("a list");
            assert_eq!(operations.numbers().collect::<Vec<_>>(), numbers);
            assert_eq!(operations.to_string(), text);
        }
        assert_eq!(Operations::all(4).to_string(), "1-4");
        assert_eq!("3,1-2".parse(), Ok(Operations::all(3)));
    }

    #[test]
    fn marks_say_what_begins() {
        assert_eq!(begun(&mark(7, "")), Some((7, "")));
        assert_eq!(begun(&mark(12, "a: b")), Some((12, "a: b")));
        assert_eq!(begun("operation theatre"), None);
        assert_eq!(begun("load-begin"), None);
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "0", "1-", "-3", "3-1", "1,,2", "a", "1 2"] {
            assert!(text.parse::<Operations>().is_err(), "{text}");
        }
    }
}
