//! What is wrong with a file that a user wrote, and where.
//!
//! One voice for all complaints: the place, the line with a caret, what was
//! expected, the nearest name.

use std::{ops::Range, path::PathBuf};

/// One complaint about a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Bytes of the file it is about.
    pub span: Range<usize>,
    /// What is wrong, in one line.
    pub message: String,
    /// What was expected there.
    pub expected: Option<String>,
    /// The name that was probably meant.
    pub nearest: Option<String>,
}

/// A file that cannot be used, with every complaint that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadFile {
    /// The file, as it is shown.
    pub path: PathBuf,
    /// Its content.
    pub text: String,
    /// In the order of the file.
    pub problems: Vec<Problem>,
}

impl std::error::Error for BadFile {}

impl std::fmt::Display for BadFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            if n > 0 {
                writeln!(f, "\n")?;
            }
            self.show(f, problem)?;
        }
        Ok(())
    }
}

impl BadFile {
    fn show(&self, f: &mut std::fmt::Formatter<'_>, problem: &Problem) -> std::fmt::Result {
        let place = Place::of(&self.text, &problem.span);
        let (line, column) = (place.line, place.column);
        let margin = " ".repeat(line.to_string().len());
        writeln!(f, "error: {}", problem.message)?;
        writeln!(f, "{margin}--> {}:{line}:{column}", self.path.display())?;
        writeln!(f, "{margin} |")?;
        writeln!(f, "{line} | {}", place.source)?;
        write!(f, "{margin} | {}{}", place.indent, place.carets)?;
        if let Some(nearest) = &problem.nearest {
            write!(f, " did you mean `{nearest}`?")?;
        }
        if let Some(expected) = &problem.expected {
            write!(f, "\n{margin} = expected {expected}")?;
        }
        Ok(())
    }
}

/// A span as people see it.
struct Place<'a> {
    /// From 1.
    line: usize,
    /// In characters, from 1.
    column: usize,
    source: &'a str,
    /// What stands before the span, as blanks of the same width.
    indent: String,
    carets: String,
}

impl<'a> Place<'a> {
    fn of(text: &'a str, span: &Range<usize>) -> Self {
        let start = floor(text, span.start);
        let begin = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let stop = floor(text, span.end).clamp(start, end);
        // A tab stays a tab, so that the caret stands below its character
        // whatever width the terminal gives it.
        let indent = text[begin..start]
            .chars()
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        Self {
            line: text[..begin].matches('\n').count() + 1,
            column: text[begin..start].chars().count() + 1,
            source: text[begin..end].trim_end_matches('\r'),
            indent,
            carets: "^".repeat(text[start..stop].chars().count().max(1)),
        }
    }
}

/// The last character boundary at or before a byte.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// The name among `known` that `written` was probably meant to be.
pub fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(written, name), name))
        // A third of the letters wrong is a slip; more is another word.
        .filter(|(distance, name)| *distance <= name.chars().count().div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name.to_owned())
}

/// Names as a message lists them: `a`, `b` or `c`.
pub(crate) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<_> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        None => "nothing".into(),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, span: Range<usize>) -> String {
        let problem = Problem {
            span,
            message: "no".into(),
            expected: None,
            nearest: None,
        };
        BadFile {
            path: "f.toml".into(),
            text: text.into(),
            problems: vec![problem],
        }
        .to_string()
    }

    #[test]
    fn tabs_wide_letters_and_line_ends_do_not_move_the_caret() {
        let text = "a = 1\n\té = \"x\"\r\nb";
        let at = text.find("\"x\"").expect("there");
        let expected = concat!(
            "error: no\n --> f.toml:2:6\n  |\n",
            "2 | \té = \"x\"\n  | \t    ^^^"
        );
        assert_eq!(shown(text, at..at + 3), expected);
    }

    #[test]
    fn no_span_is_out_of_reach() {
        let text = "é\nb";
        for start in 0..8 {
            for end in 0..8 {
                assert!(shown(text, start..end).contains('^'));
            }
        }
        assert_eq!(
            shown("", 0..0),
            "error: no\n --> f.toml:1:1\n  |\n1 | \n  | ^"
        );
    }

    #[test]
    fn a_slip_is_recognised_and_another_word_is_not() {
        let known = ["ext4", "xfs", "btrfs"];
        assert_eq!(nearest("xsf", known).as_deref(), Some("xfs"));
        assert_eq!(nearest("etx4", known).as_deref(), Some("ext4"));
        assert_eq!(nearest("zfs", known).as_deref(), Some("xfs"));
        assert_eq!(nearest("reiserfs", known), None);
    }

    #[test]
    fn lists_read_as_sentences() {
        assert_eq!(listed([]), "nothing");
        assert_eq!(listed(["a"]), "`a`");
        assert_eq!(listed(["a", "b", "c"]), "`a`, `b` or `c`");
    }
}
