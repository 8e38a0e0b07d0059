//! Text that others wrote, made harmless for a page.

use std::fmt::{self, Write as _};

/// Displays text with what means something in HTML escaped, in content and in quoted attributes
/// alike; a control character other than a line's end is shown as what it is: nothing to be read.
pub(super) struct Escaped<T>(pub(super) T);

impl<T: fmt::Display> fmt::Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

struct Escaping<'f, 'g>(&'f mut fmt::Formatter<'g>);

impl fmt::Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '<' => self.0.write_str("&lt;")?,
                '>' => self.0.write_str("&gt;")?,
                '&' => self.0.write_str("&amp;")?,
                '"' => self.0.write_str("&quot;")?,
                '\'' => self.0.write_str("&#39;")?,
                '\n' | '\t' => self.0.write_char(c)?,
                c if is_hidden(c) => self.0.write_char('\u{fffd}')?,
                c => self.0.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Controls, and what turns the direction of the text that follows: a name must not be able to
/// rearrange the sentence that it stands in.
fn is_hidden(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// With a comma after every three digits.
pub(super) struct Grouped(pub(super) u64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (n, digit) in digits.chars().enumerate() {
            if n > 0 && (digits.len() - n).is_multiple_of(3) {
                f.write_char(',')?;
            }
            f.write_char(digit)?;
        }
        Ok(())
    }
}

/// A number and what it counts, in the singular where it is one.
pub(super) fn counted(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", Grouped(n), if n == 1 { one } else { many })
}

/// Bytes in the unit that leaves few digits.
pub(super) fn bytes(n: u64) -> String {
    let (mut value, mut unit) = (n as f64, "bytes");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    match unit {
        "bytes" => counted(n, "byte", "bytes"),
        unit => format!("{value:.1} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_others_wrote_is_markup() {
        let escaped = |text: &str| Escaped(text).to_string();
        assert_eq!(
            escaped("<b a='1' c=\"2\">&amp;</b>"),
            "&lt;b a=&#39;1&#39; c=&quot;2&quot;&gt;&amp;amp;&lt;/b&gt;"
        );
        assert_eq!(
            escaped("\u{1b}[31m\0\r\n\ta"),
            "\u{fffd}[31m\u{fffd}\u{fffd}\n\ta"
        );
        assert_eq!(escaped("a\u{202e}b\u{2066}"), "a\u{fffd}b\u{fffd}");
        let not_text = String::from_utf8_lossy(b"na\xffme<\xc3");
        assert_eq!(escaped(&not_text), "na\u{fffd}me&lt;\u{fffd}");
    }

    #[test]
    fn numbers_are_easy_to_read() {
        let shown = [0, 999, 1000, 1_234_567].map(|n| Grouped(n).to_string());
        assert_eq!(shown, ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(counted(1, "state", "states"), "1 state");
        assert_eq!(bytes(1), "1 byte");
        assert_eq!(bytes(1 << 20), "1.0 MiB");
    }
}
