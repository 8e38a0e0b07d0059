//! The clients in `clients/`, each against the real socket: a program in its
//! language says everything that can be said, then something that is refused.

use std::path::PathBuf;

use super::tests::{Host, RULES, ack, begin};
use super::*;

#[path = "../../../../clients/plugpull.rs"]
#[expect(dead_code, reason = "what a test does not need of it, others do")]
mod plugpull;

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../clients")
}

/// Run a program whose promises are those of [`expected`].
fn ran(argv: &[&str]) {
    let dir = tempfile::tempdir().expect("a directory");
    let host = Host::default();
    let program = Call {
        cwd: clients().display().to_string(),
        argv: argv.iter().map(|&word| word.to_owned()).collect(),
        timeout_ms: 60_000,
    };
    let request = UserRequest::Run {
        dir: dir.path().join("work").display().to_string(),
        program,
        socket: RULES,
    };
    let seen = run(request, &host, dir.path()).expect("carried out");
    let UserSeen::Ran(ran) = seen else {
        panic!("{seen:?}");
    };
    let Ended::Exited(exited) = &ran.ended else {
        panic!("{ran:?}");
    };
    assert!(exited.success(), "{ran:?}");
    assert_eq!(ran.connections, 1);
    expected(&host.heard()[1..], ran.refused);
}

const KEY: &str = "a%20b/%C3%A9%25";

fn expected(heard: &[Promise], refused: Option<String>) {
    let why = refused.expect("the last was refused");
    assert!(why.contains("line 6: `ack never` without"), "{why}");
    let served = Promise::Served {
        key: KEY.into(),
        value: String::new(),
    };
    let mark = Promise::Mark {
        text: "half way, 50%".into(),
    };
    let all = [
        begin(1, KEY, Some("x%0Ay")),
        begin(1, "gone", None),
        ack(1, KEY),
        served,
        mark,
        Promise::Garbled { why },
    ];
    assert_eq!(heard, all);
}

#[test]
fn rust() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path().join("promises");
    let host = Host::default();
    let ((), heard) = socket::listening(&at, RULES, &host, |_| {
        let mut promises = plugpull::Promises::connect_to(&at)?;
        promises.begin("a b/é%", Some("x\ny"))?;
        promises.begin::<str>("gone", None)?;
        promises.ack("a b/é%")?;
        promises.served("a b/é%", "")?;
        promises.mark("half way, 50%")?;
        assert!(promises.mark("two\nlines").is_err());
        let refused = promises.ack("never").expect_err("never begun");
        assert!(
            refused.to_string().starts_with("error connection 1"),
            "{refused}"
        );
        Ok(())
    })
    .expect("it listens");
    expected(&host.heard(), heard.refused);
}

#[test]
fn python() {
    ran(&[
        "python3",
        // Nothing is left beside the client.
        "-B",
        "-c",
        "
import os, plugpull
promises = plugpull.Promises()
promises.begin('a b/é%', b'x\\ny')
promises.begin('gone')
promises.ack('a b/é%')
promises.served('a b/é%', '')
promises.mark('half way, 50%')
try:
    promises.ack('never')
    raise SystemExit('taken')
except plugpull.Refused as refused:
    assert str(refused).startswith('error connection 1'), refused
del os.environ['PLUGPULL']
plugpull.Promises().ack('to nobody')
",
    ]);
}

#[test]
fn c() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = dir.path().join("say.c");
    let text = r#"
#include "plugpull.h"
#define CHECK(what) do { if (!(what)) { fprintf(stderr, "%s: %s\n", #what, p.error); return 1; } } while (0)
int main(void)
{
    struct plugpull p;
    CHECK(plugpull_open(&p) == 0);
    CHECK(plugpull_begin(&p, "a b/\xc3\xa9%", "x\ny") == 0);
    CHECK(plugpull_begin(&p, "gone", NULL) == 0);
    CHECK(plugpull_ack(&p, "a b/\xc3\xa9%") == 0);
    CHECK(plugpull_served(&p, "a b/\xc3\xa9%", "") == 0);
    CHECK(plugpull_mark(&p, "half way, 50%") == 0);
    CHECK(plugpull_mark(&p, "two\nlines") == -1);
    CHECK(plugpull_ack(&p, "never") == -1);
    CHECK(strncmp(p.error, "error connection 1", 18) == 0);
    plugpull_close(&p);
    unsetenv("PLUGPULL");
    CHECK(plugpull_open(&p) == 0);
    CHECK(plugpull_ack(&p, "to nobody") == 0);
    return 0;
}
"#;
    fs::write(&source, text).expect("written");
    let built = dir.path().join("say");
    let (source, built) = (source.display().to_string(), built.display().to_string());
    let include = format!("-I{}", clients().display());
    let strict = [
        "-std=c99",
        "-D_POSIX_C_SOURCE=200809L",
        "-Wall",
        "-Wextra",
        "-Werror",
    ];
    let compiler = Spec::new(["cc"])
        .args(strict)
        .args([&include, "-o", &built, &source]);
    let compiled = compiler.run(Duration::from_secs(60)).expect("cc runs");
    assert!(compiled.success(), "{compiled:?}");
    ran(&[&built]);
}

#[test]
fn shell() {
    ran(&[
        "sh",
        "-euc",
        r#"
. ./plugpull.sh
plugpull_open
plugpull_begin "a b/é%" "x
y"
plugpull_begin gone
plugpull_ack "a b/é%"
plugpull_served "a b/é%" ""
plugpull_mark "half way, 50%"
if said=$(plugpull_ack never 2>&1); then exit 1; fi
case $said in "plugpull: error connection 1"*) ;; *) echo "$said" >&2; exit 2 ;; esac
unset PLUGPULL
plugpull_ack "to nobody"
"#,
    ]);
}
