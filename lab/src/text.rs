//! Plain text for a terminal of 80 columns.

use std::fmt::Write as _;

/// Columns of a terminal.
pub(crate) const WIDTH: usize = 80;

/// Break text between words; a word longer than a line stays whole, and so
/// does a line that fits, with its blanks (a caret stands below its word).
pub(crate) fn push_wrapped(out: &mut String, text: &str, first: &str, next: &str) {
    if first.chars().count() + text.chars().count() <= WIDTH {
        let _ = writeln!(out, "{first}{}", text.trim_end());
        return;
    }
    let mut line = first.to_owned();
    let mut empty = true;
    // Leading blanks of the text are part of its layout.
    let lead = text.len() - text.trim_start().len();
    line.push_str(&text[..lead]);
    for word in text.split_whitespace() {
        if !empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(out, "{line}");
            line = next.to_owned();
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    let _ = writeln!(out, "{line}");
}
