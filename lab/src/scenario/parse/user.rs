//! The files of a user's program, and whether its commands name one of them.

use std::num::NonZeroU32;

use toml::Spanned;

use super::{
    complaints::Complaints,
    diagnostic::{listed, nearest},
};
use crate::scenario::{
    HostFile, Judge, Program,
    raw::{Number, RawScenario, Texts},
};

/// More would not fit onto a command line.
const MAX_OPERATIONS: u32 = 10_000;

/// The host files of an array. They lie beside each other in the guest, so no
/// two may have one name.
pub(super) fn host_files(written: &Texts, complaints: &mut Complaints) -> Vec<HostFile> {
    let mut files: Vec<HostFile> = Vec::new();
    for path in written.iter().flat_map(|array| array.get_ref()) {
        let file = HostFile {
            written: path.get_ref().clone(),
            span: path.span(),
        };
        if matches!(file.name(), "" | "." | "..") || file.written.contains('\0') {
            complaints
                .add(path.span(), "this is no path of a file")
                .expected("a path; a relative one starts at the directory of this file");
        } else if let Some(other) = files.iter().find(|other| other.name() == file.name()) {
            let message = format!(
                "`{}` has the same name as `{}`",
                file.written, other.written
            );
            complaints
                .add(path.span(), message)
                .expected("different names: all files lie beside each other in the guest");
        } else {
            files.push(file);
        }
    }
    files
}

/// A command that begins with `./NAME` runs one of the files.
pub(super) fn is_brought(raw: &RawScenario, program: &Program, complaints: &mut Complaints) {
    let workload = raw.workload.as_ref().and_then(|w| w.get_ref().run.as_ref());
    let check = raw.check.as_ref().and_then(|c| c.get_ref().run.as_ref());
    let more: &[HostFile] = match &program.judge {
        Judge::Check { files, .. } => files,
        Judge::Files { .. } | Judge::Store(_) => &[],
    };
    let names = || program.files.iter().chain(more).map(HostFile::name);
    for run in [workload, check].into_iter().flatten() {
        let Some(word) = run.get_ref().first() else {
            continue;
        };
        let Some(name) = word.get_ref().strip_prefix("./") else {
            continue;
        };
        if !names().any(|file| file == name) {
            let expected = match names().next() {
                None => "its path on the host in `files = [\"…\"]`".to_owned(),
                Some(_) => listed(names()),
            };
            complaints
                .add(word.span(), format!("`{name}` is not among the `files`"))
                .expected(expected)
                .nearest(nearest(name, names()).map(|near| format!("./{near}")));
        }
    }
    for file in more {
        if let Some(other) = program.files.iter().find(|f| f.name() == file.name())
            && other.written != file.written
        {
            let message = format!(
                "`{}` has the same name as `{}`",
                file.written, other.written
            );
            complaints
                .add(file.span.clone(), message)
                .expected("different names: all files lie beside each other in the guest");
        }
    }
}

/// How many operations a program has that takes a list of them.
pub(super) fn operations(
    run: &Spanned<Vec<Spanned<String>>>,
    count: &Number,
    complaints: &mut Complaints,
) -> Option<Option<NonZeroU32>> {
    let taken = run
        .get_ref()
        .iter()
        .find(|word| word.get_ref().contains("{operations}"));
    match (taken, count) {
        (None, None) => Some(None),
        (Some(_), Some(_)) => complaints
            .number("operations", count, 1, MAX_OPERATIONS)
            .map(Some),
        (Some(word), None) => {
            complaints
                .add(word.span(), "`{operations}` of how many is not said")
                .expected("`operations = …`, how many the program has");
            None
        }
        (None, Some(count)) => {
            complaints
                .add(
                    count.span(),
                    "the program is not told which operations to carry out",
                )
                .expected("`{operations}` in `run`, for a list such as `1-3,7`");
            None
        }
    }
}
