//! Looks at a report in a real browser, as a reader would: on a wide screen and a phone, light and
//! dark, and on paper. What is seen is measured, not guessed, and the pictures stay.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use plugpull_vm::{
    host,
    process::{Cmd, Output},
};
use serde::Deserialize;

/// One view of a page; a page of a nightly run has thousands of elements.
const VIEW: Duration = Duration::from_secs(180);

/// Browsers that take the options below.
const BROWSERS: [&str; 5] = [
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
];

/// The least contrast of text with what is behind it (WCAG 2.2, 1.4.3, level AA).
const CONTRAST: f64 = 4.5;

/// The tallest picture; a longer page is cut off there.
const TALLEST: u32 = 12_000;

/// A browser on this host, if there is one.
pub fn find() -> Option<PathBuf> {
    BROWSERS.iter().find_map(|name| host::program(name))
}

#[derive(Debug, Clone, Copy)]
struct View {
    name: &'static str,
    width: u32,
    dark: bool,
}

const VIEWS: [View; 4] = [
    View {
        name: "light",
        width: 1280,
        dark: false,
    },
    View {
        name: "dark",
        width: 1280,
        dark: true,
    },
    View {
        name: "phone-light",
        width: 360,
        dark: false,
    },
    View {
        name: "phone-dark",
        width: 360,
        dark: true,
    },
];

/// What a view measured of itself.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Measured {
    /// What the page had to fit into, in CSS pixels.
    width: u32,
    /// What it took.
    needed: u32,
    height: u32,
    dark: bool,
    /// Elements with text of their own that can be seen.
    texts: u32,
    /// The text with the least contrast, and what it is.
    contrast: f64,
    palest: String,
    /// Elements that reach out of the page on the right.
    wide: Vec<String>,
}

/// Measures from inside; run in a copy of the page, since the page itself allows no script.
const PROBE: &str = include_str!("browser/probe.js");

/// Look at a page in every view; pictures go to `dir`. What is wrong with it, in sentences.
///
/// # Errors
/// When the browser does not do as it is told: no fault of the page.
pub fn look(browser: &Path, page: &Path, dir: &Path) -> Result<Vec<String>> {
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let html = fs::read_to_string(page).with_context(|| format!("read {}", page.display()))?;
    let scratch = tempfile::tempdir().context("make a directory for the browser")?;
    let probed = scratch.path().join("probed.html");
    fs::write(&probed, with_probe(&html)?).context("write a copy of the page")?;
    let browser = Browser {
        program: browser,
        home: scratch.path(),
    };
    let mut wrong = Vec::new();
    for view in VIEWS {
        let dom = browser.open(view, 800, &["--dump-dom"], &probed)?;
        let measured = read_probe(&dom.stdout_text())
            .with_context(|| format!("measure the view {}", view.name))?;
        wrong.extend(judge(view, &measured));
        let picture = dir.join(format!("{}.png", view.name));
        let to = format!("--screenshot={}", picture.display());
        let height = measured.height.clamp(200, TALLEST);
        let shown = browser.open(view, height, &[&to], page)?;
        wrong.extend(complaints(&shown).map(|said| format!("{}: {said}", view.name)));
        ensure!(
            fs::read(&picture).is_ok_and(|bytes| bytes.starts_with(b"\x89PNG")),
            "the browser has taken no picture: {}",
            shown.stderr_text()
        );
    }
    let paper = dir.join("print.pdf");
    let to = format!("--print-to-pdf={}", paper.display());
    let printed = browser.open(VIEWS[1], 800, &["--no-pdf-header-footer", &to], page)?;
    ensure!(
        fs::read(&paper).is_ok_and(|bytes| bytes.starts_with(b"%PDF")),
        "the browser has printed nothing: {}",
        printed.stderr_text()
    );
    Ok(wrong)
}

struct Browser<'a> {
    program: &'a Path,
    home: &'a Path,
}

impl Browser<'_> {
    fn open(&self, view: View, height: u32, options: &[&str], page: &Path) -> Result<Output> {
        let page = page
            .canonicalize()
            .with_context(|| format!("find {}", page.display()))?;
        // 0 is dark and 1 is light (Blink's `PreferredColorScheme`).
        let scheme = u8::from(!view.dark);
        let output = Cmd::new(self.program)
            .args([
                // It shows a file of ours, and root can have no sandbox.
                "--no-sandbox",
                "--headless",
                "--disable-gpu",
                "--hide-scrollbars",
                "--enable-logging=stderr",
                &format!("--user-data-dir={}", self.home.join("profile").display()),
                &format!("--window-size={},{height}", view.width),
                &format!("--blink-settings=preferredColorScheme={scheme}"),
            ])
            .args(options)
            .arg(format!("file://{}", page.display()))
            .env("HOME", self.home)
            .own_group()
            .run(VIEW)?;
        Ok(output)
    }
}

/// The page with the probe in it instead of the policy that would forbid it.
fn with_probe(html: &str) -> Result<String> {
    let policy = "http-equiv=\"Content-Security-Policy\"";
    ensure!(
        html.matches(policy).count() == 1 && html.ends_with("</body></html>\n"),
        "the page is none of ours"
    );
    let open = html.replacen(policy, "name=\"policy\"", 1);
    let body = open.trim_end_matches("</body></html>\n");
    Ok(format!("{body}<script>{PROBE}</script></body></html>\n"))
}

/// What the probe left in the page.
fn read_probe(dom: &str) -> Result<Measured> {
    let start = "data-measured=\"";
    let at = dom.find(start).context("the page's script did not run")?;
    let rest = &dom[at + start.len()..];
    let value = rest.split('"').next().unwrap_or_default();
    let json = value.replace("&quot;", "\"").replace("&amp;", "&");
    serde_json::from_str(&json).with_context(|| format!("read {json}"))
}

fn judge(view: View, measured: &Measured) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut unless = |right: bool, why: String| {
        if !right {
            wrong.push(format!("{}: {why}", view.name));
        }
    };
    unless(
        measured.width == view.width,
        format!("it was shown {} pixels wide", measured.width),
    );
    unless(
        measured.needed <= measured.width && measured.wide.is_empty(),
        format!(
            "it needs {} pixels of {}: {}",
            measured.needed,
            measured.width,
            measured.wide.join("; ")
        ),
    );
    unless(measured.dark == view.dark, "the wrong colours".into());
    unless(measured.texts > 0, "nothing is to be read".into());
    unless(
        measured.contrast >= CONTRAST,
        format!(
            "the contrast of {} is {:.2}",
            measured.palest, measured.contrast
        ),
    );
    wrong
}

/// What the page itself brought onto the browser's console.
fn complaints(output: &Output) -> impl Iterator<Item = String> {
    let said: Vec<String> = output.stderr_text().lines().map(str::to_owned).collect();
    said.into_iter().filter(|line| line.contains(":CONSOLE"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::html::fixture;

    const GOOD: Measured = Measured {
        width: 360,
        needed: 360,
        height: 900,
        dark: true,
        texts: 40,
        contrast: 5.0,
        palest: String::new(),
        wide: Vec::new(),
    };

    #[test]
    fn what_does_not_fit_or_cannot_be_read_is_wrong() {
        let wrong = |measured: Measured| judge(VIEWS[3], &measured).len();
        assert_eq!(wrong(GOOD), 0);
        assert_eq!(
            wrong(Measured {
                needed: 361,
                ..GOOD
            }),
            1
        );
        assert_eq!(
            wrong(Measured {
                wide: vec!["td".into()],
                ..GOOD
            }),
            1
        );
        assert_eq!(wrong(Measured { width: 500, ..GOOD }), 1);
        assert_eq!(
            wrong(Measured {
                dark: false,
                ..GOOD
            }),
            1
        );
        assert_eq!(
            wrong(Measured {
                contrast: 4.4,
                ..GOOD
            }),
            1
        );
        assert_eq!(wrong(Measured { texts: 0, ..GOOD }), 1);
    }

    /// Also a control: a page that is spoiled is found to be.
    #[test]
    #[ignore = "needs Chromium; the profile `full` looks at its own report"]
    fn a_browser_shows_the_report_to_every_reader() {
        let browser = find().expect("a browser: Debian's package chromium-headless-shell");
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/plugpull/looks");
        let page = dir.join("report.html");
        fs::create_dir_all(&dir).expect("a directory");
        fs::write(&page, fixture::page()).expect("written");
        let wrong = look(&browser, &page, &dir).expect("looked");
        assert_eq!(wrong, [""; 0], "pictures: {}", dir.display());

        let spoiled = fixture::page()
            .replace(
                "</main>",
                "<p style=\"width:2000px;color:#888\">x</p></main>",
            )
            .replace("<main>", "<main><img src=\"https://example.org/x\">");
        fs::write(&page, spoiled).expect("written");
        let wrong = look(&browser, &page, &dir.join("spoiled")).expect("looked");
        for what in ["it needs", "the contrast", "CONSOLE"] {
            assert!(
                wrong.iter().any(|said| said.contains(what)),
                "{what}: {wrong:?}"
            );
        }
    }
}
