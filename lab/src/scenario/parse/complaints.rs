//! Collects complaints, and asks the questions that many keys have in common.

use std::{num::NonZeroU32, ops::Range};

use toml::Spanned;

use super::diagnostic::{Problem, listed, nearest};
use crate::scenario::{
    names::Named,
    raw::{Number, Texts},
    story::Argv,
};

/// What has been found wrong so far.
#[derive(Debug, Default)]
pub(super) struct Complaints(Vec<Problem>);

/// The complaint just made, to say more about it.
pub(super) struct Added<'a>(&'a mut Problem);

impl Added<'_> {
    pub(super) fn expected(self, what: impl Into<String>) -> Self {
        self.0.expected = Some(what.into());
        self
    }

    pub(super) fn nearest(self, name: Option<String>) -> Self {
        self.0.nearest = name;
        self
    }
}

impl Complaints {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.0
    }

    pub(super) fn add(&mut self, span: Range<usize>, message: impl Into<String>) -> Added<'_> {
        self.0.push(Problem {
            span,
            message: message.into(),
            expected: None,
            nearest: None,
        });
        let last = self.0.len() - 1;
        Added(&mut self.0[last])
    }

    /// A member of a closed set.
    pub(super) fn one_of<T: Named>(&mut self, written: &Spanned<String>) -> Option<T> {
        let name = written.get_ref();
        let found = T::from_name(name);
        if found.is_none() {
            let known = || T::ALL.iter().map(|member| member.name());
            self.add(written.span(), format!("unknown {} `{name}`", T::WHAT))
                .expected(listed(known()))
                .nearest(nearest(name, known()));
        }
        found
    }

    /// An array with at least one member and none twice. `None` when a member
    /// is wrong.
    pub(super) fn distinct<T>(
        &mut self,
        names: &Spanned<Vec<Spanned<String>>>,
        what: &str,
        mut read: impl FnMut(&Spanned<String>, &mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        if names.get_ref().is_empty() {
            self.add(names.span(), format!("`{what}` is empty"))
                .expected("at least one name");
        }
        let mut seen: Vec<&String> = Vec::new();
        let mut members = Vec::new();
        let mut whole = !names.get_ref().is_empty();
        for name in names.get_ref() {
            if seen.contains(&name.get_ref()) {
                self.add(
                    name.span(),
                    format!("`{}` stands in `{what}` twice", name.get_ref()),
                );
                whole = false;
                continue;
            }
            seen.push(name.get_ref());
            match read(name, self) {
                Some(member) => members.push(member),
                None => whole = false,
            }
        }
        whole.then_some(members)
    }

    /// A number within limits, or the default where it is absent.
    pub(super) fn number(
        &mut self,
        key: &str,
        written: &Number,
        default: u32,
        most: u32,
    ) -> Option<NonZeroU32> {
        let Some(written) = written else {
            return NonZeroU32::new(default);
        };
        let value = u32::try_from(*written.get_ref()).ok();
        let value = value.filter(|n| *n <= most).and_then(NonZeroU32::new);
        if value.is_none() {
            self.add(written.span(), format!("`{key}` is out of range"))
                .expected(format!("a number from 1 to {most}"));
        }
        value
    }

    /// A command line whose placeholders are all known.
    pub(super) fn argv(
        &mut self,
        words: &Spanned<Vec<Spanned<String>>>,
        known: &[&str],
    ) -> Option<Argv> {
        let program = words.get_ref().first();
        if program.is_none_or(|program| program.get_ref().is_empty()) {
            self.add(words.span(), "the command is empty")
                .expected("an array of a program and its arguments");
            return None;
        }
        let mut whole = true;
        for word in words.get_ref() {
            for name in placeholders(word.get_ref()) {
                if known.contains(&name) {
                    continue;
                }
                whole = false;
                let braced: Vec<_> = known.iter().map(|k| format!("{{{k}}}")).collect();
                let braced = listed(braced.iter().map(String::as_str));
                let near = nearest(name, known.iter().copied());
                self.add(word.span(), format!("unknown placeholder `{{{name}}}`"))
                    .expected(braced)
                    .nearest(near.map(|name| format!("{{{name}}}")));
            }
        }
        let words = words.get_ref().iter().map(|w| w.get_ref().clone());
        whole.then(|| Argv::new(words.collect()))
    }
}

/// Names in braces: `{dir}`. Braces around anything but letters are a shell's
/// or a program's own.
fn placeholders(word: &str) -> impl Iterator<Item = &str> {
    word.split('{').skip(1).filter_map(|rest| {
        let (name, _) = rest.split_once('}')?;
        let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase());
        plain.then_some(name)
    })
}

/// The texts of an array, or none where it is absent.
pub(super) fn texts(written: &Texts) -> Vec<String> {
    let array = written.iter().flat_map(|array| array.get_ref());
    array.map(|text| text.get_ref().clone()).collect()
}

/// What the TOML reader found wrong, in our voice.
pub(super) fn of_toml(error: &toml::de::Error) -> Problem {
    let message = error.message();
    let mut problem = Problem {
        span: error.span().unwrap_or(0..0),
        message: message.to_owned(),
        expected: None,
        nearest: None,
    };
    // serde's default texts, which toml passes on unchanged:
    // unknown field `x`, expected one of `a`, `b`
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let mut names = rest.split('`').skip(1).step_by(2);
        let written = names.next().unwrap_or_default();
        let known: Vec<_> = names.collect();
        problem.message = format!("unknown key `{written}`");
        problem.nearest = nearest(written, known.iter().copied());
        problem.expected = Some(listed(known));
    } else if let Some((what, expected)) = message.split_once(", expected ") {
        problem.message = what.to_owned();
        let plain = match expected {
            "u64" => "a whole number",
            "literal string" => "a value; text stands in double quotes",
            other => other,
        };
        problem.expected = Some(plain.to_owned());
    }
    problem
}
