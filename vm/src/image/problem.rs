//! Messages about files that a user wrote: file, line, column, what was
//! expected, and the nearest name.

use std::ops::Range;
use std::path::{Path, PathBuf};

/// A mistake in a file that a user wrote (exit code 2).
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{}:{line}:{column}: {message}", file.display())]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What is wrong and what was expected.
    pub message: String,
}

/// The text of a user's file, to tell the place of a mistake in it.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The file.
    pub file: &'a Path,
    /// All of it.
    pub text: &'a str,
}

impl Source<'_> {
    /// A mistake at a range of bytes.
    pub fn problem(&self, span: Range<usize>, message: impl Into<String>) -> Problem {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Problem {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: message.into(),
        }
    }

    /// Parses TOML, adding a suggestion where a name is misspelt.
    ///
    /// # Errors
    /// On any mistake in the file.
    pub fn parse<T: serde::de::DeserializeOwned>(&self) -> Result<T, Problem> {
        toml::from_str(self.text).map_err(|error| {
            let message = error.message().trim_end().replace('\n', ", ");
            self.problem(error.span().unwrap_or_default(), with_suggestion(&message))
        })
    }
}

/// serde's "unknown field `x`, expected one of `a`, `b`" with the nearest of
/// the expected names.
fn with_suggestion(message: &str) -> String {
    let mut names = message.split('`').skip(1).step_by(2);
    let unknown = names.next().filter(|_| message.starts_with("unknown "));
    match unknown.and_then(|unknown| nearest(unknown, names)) {
        Some(near) => format!("{message}; did you mean `{near}`?"),
        None => message.to_owned(),
    }
}

/// The candidate that `name` is most likely a misspelling of.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate));
    let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (best.0 > 0.8).then_some(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_in_lines_and_characters() {
        let source = Source {
            file: Path::new("x.toml"),
            text: "a = 1\nü = \"é\" b\n",
        };
        let at = source.text.find('b').unwrap();
        let problem = source.problem(at..at + 1, "no b here");
        assert_eq!(problem.to_string(), "x.toml:2:9: no b here");
    }

    #[test]
    fn only_near_names_are_suggested() {
        let names = ["debian12", "debian13", "debian13-backports"];
        assert_eq!(nearest("debain13", names), Some("debian13"));
        assert_eq!(
            nearest("debian13-backport", names),
            Some("debian13-backports")
        );
        assert_eq!(nearest("fedora", names), None);
    }
}
