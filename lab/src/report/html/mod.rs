//! `report.html`: the report as one page for a person, with all that it needs in it.
//!
//! It holds no script and fetches nothing, and its own policy forbids both: what programs and
//! guests wrote is shown in it. It is made for a phone as much as for a desk and for paper.

mod chart;
#[cfg(test)]
pub(crate) mod fixture;
mod text;

use std::{collections::BTreeMap, fmt::Write as _};

use self::text::{Escaped, Grouped, counted};
use super::{Exploration, Failure, Report, ScenarioResult, Verdict, table::clock};

/// Its name in the directory of a run.
pub const FILE: &str = "report.html";

/// What was drawn of the explorations, by case; or why it cannot be shown.
pub type Explorations = BTreeMap<String, Result<Exploration, String>>;

const STYLE: &str = include_str!("style.css");

/// The page.
pub fn page(report: &Report, explorations: &Explorations) -> String {
    let mut out = String::new();
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
         style-src 'unsafe-inline'\"><title>{}: plugpull, seed {}</title>\n\
         <style>\n{STYLE}</style></head>\n<body>\n",
        report.verdict, report.seed
    );
    let mut troubled: Vec<_> = report
        .scenarios
        .iter()
        .filter(|of| is_troubled(of))
        .collect();
    // What was found comes before what could not be looked for.
    troubled.sort_by_key(|of| of.verdict != Verdict::Fail);
    head(&mut out, report, &troubled, explorations);
    out.push_str("<main>\n");
    findings(&mut out, report, &troubled);
    cases(&mut out, report);
    caught(&mut out, report);
    all_explorations(&mut out, report, explorations);
    the_run(&mut out, report);
    out.push_str(
        "</main>\n<footer class=\"small\"><p>What each word means stands in \
         <code>docs/reading-a-report.md</code>. The same for programs: <code>report.json</code>, \
         <code>junit.xml</code>.</p></footer>\n</body></html>\n",
    );
    out
}

fn is_troubled(result: &ScenarioResult) -> bool {
    result.verdict != Verdict::Pass
}

/// A sign for each verdict, so that none is told by its colour alone.
fn sign(word: &str) -> &'static str {
    match word {
        "pass" => "✓",
        "caught" => "◎",
        "part" | "recorded" => "◔",
        "fail" => "✗",
        _ => "?",
    }
}

fn tag(word: &str, more: &str) -> String {
    format!(
        "<span class=\"tag {word}{more}\">{} {word}</span>",
        sign(word)
    )
}

/// A case's name as the target of links; names are plain, others are escaped.
fn anchor(prefix: &str, name: &str) -> String {
    format!("{prefix}-{}", crate::rundir::file_name(name))
}

fn head(
    out: &mut String,
    report: &Report,
    troubled: &[&ScenarioResult],
    explorations: &Explorations,
) {
    let verdict = report.verdict.to_string();
    let _ = write!(
        out,
        "<header><p class=\"brand\">plugpull</p><div class=\"verdict {verdict}\">{}\
         <h1>{}</h1></div><dl class=\"facts\">",
        tag(&verdict, " big"),
        headline(report)
    );
    let mut facts = vec![
        ("seed", report.seed.to_string()),
        ("profile", report.profile.to_string()),
        ("shard", report.shard.clone()),
        ("guests", format!("{}, QEMU {}", report.accel, report.qemu)),
        ("time", clock(report.seconds)),
    ];
    if !report.shards.is_empty() {
        let shards: Vec<_> = report.shards.iter().map(ToString::to_string).collect();
        facts.push(("merged from", shards.join(", ")));
    }
    for (name, value) in facts {
        let _ = write!(out, "<div><dt>{name}</dt><dd>{}</dd></div>", Escaped(value));
    }
    out.push_str("</dl><nav aria-label=\"Parts of this page\">");
    let parts = [
        ("findings", "Findings", !troubled.is_empty()),
        ("cases", "Cases", true),
        ("explorations", "Explorations", !explorations.is_empty()),
        ("run", "The run", true),
    ];
    for (id, name, _) in parts.iter().filter(|(.., there)| *there) {
        let _ = write!(out, "<a href=\"#{id}\">{name}</a>");
    }
    out.push_str("</nav></header>\n");
}

/// The whole run in a sentence.
fn headline(report: &Report) -> String {
    let count = |verdict| {
        report
            .scenarios
            .iter()
            .filter(|of| of.verdict == verdict)
            .count() as u64
    };
    let all = report.scenarios.len() as u64;
    let states: u64 = report.scenarios.iter().map(|of| of.crash_states).sum();
    let cases = counted(all, "case", "cases");
    let lack = match report.missing.is_empty() {
        true => String::new(),
        false => {
            let missing: Vec<_> = report.missing.iter().map(ToString::to_string).collect();
            format!("; missing: shard {}", missing.join(", "))
        }
    };
    let said = match (report.verdict, all) {
        (_, 0) => "No case was run".to_owned(),
        (Verdict::Pass, _) => format!("{cases} as expected"),
        (Verdict::Fail, _) => format!("{} of {cases} failed", Grouped(count(Verdict::Fail))),
        (Verdict::Infra, _) if count(Verdict::Infra) == 0 => format!("{cases}, and not all there"),
        (Verdict::Infra, _) => {
            format!(
                "Nothing can be said of {} of {cases}",
                Grouped(count(Verdict::Infra))
            )
        }
    };
    let looked = match states {
        0 => String::new(),
        n => format!("; {} looked at", counted(n, "crash state", "crash states")),
    };
    format!("{said}{looked}{lack}")
}

fn findings(out: &mut String, report: &Report, troubled: &[&ScenarioResult]) {
    if !report.missing.is_empty() {
        let missing: Vec<_> = report.missing.iter().map(ToString::to_string).collect();
        let _ = write!(
            out,
            "<p class=\"warn\" style=\"margin-top:1.5rem\"><b>Shards are missing:</b> {}. What they \
             would have run is not in this report.</p>",
            missing.join(", ")
        );
    }
    if troubled.is_empty() {
        return;
    }
    out.push_str("<section aria-labelledby=\"findings\"><h2 id=\"findings\">Findings</h2>\n");
    for result in troubled {
        let word = result.word();
        let _ = write!(
            out,
            "<article class=\"card finding {word}\" id=\"{}\"><h3>{} <span class=\"mono\">{}</span>\
             </h3><p>{}</p><p class=\"soft\">{}</p>",
            anchor("case", &result.name),
            tag(word, ""),
            Escaped(&result.name),
            Escaped(result.because.as_deref().unwrap_or("no reason given")),
            Escaped(&result.about),
        );
        complaints(out, result);
        out.push_str("</article>\n");
    }
    out.push_str("</section>\n");
}

/// What oracles said of controls: how a failure looks, and that it would be found.
fn caught(out: &mut String, report: &Report) {
    let caught = |of: &&ScenarioResult| !is_troubled(of) && !of.failures.is_empty();
    let caught: Vec<_> = report.scenarios.iter().filter(caught).collect();
    if caught.is_empty() {
        return;
    }
    out.push_str(
        "<section aria-labelledby=\"caught\"><h2 id=\"caught\">Controls, and what caught them</h2>\n",
    );
    for result in caught {
        let _ = write!(
            out,
            "<details class=\"card finding caught\" id=\"{}\"><summary>{} <span class=\"mono\">{}\
             </span></summary>",
            anchor("case", &result.name),
            tag(result.word(), ""),
            Escaped(&result.name)
        );
        complaints(out, result);
        out.push_str("</details>\n");
    }
    out.push_str("</section>\n");
}

fn complaints(out: &mut String, result: &ScenarioResult) {
    if result.failures.is_empty() {
        return;
    }
    out.push_str("<ol>");
    for (n, failure) in result.failures.iter().enumerate() {
        // The same command below each of them would drown what they say.
        let next = result.failures.get(n + 1);
        let again = next.is_none_or(|next| next.repro != failure.repro);
        finding(out, &result.name, failure, again);
    }
    out.push_str("</ol>");
}

fn finding(out: &mut String, case: &str, failure: &Failure, again: bool) {
    let at = failure.detail.strip_prefix(case);
    let at = at.and_then(|rest| rest.strip_prefix('@'));
    let (state, detail) = match at.and_then(|rest| rest.split_once(": ")) {
        Some((state, detail)) => (Some(state), detail),
        None => (None, failure.detail.as_str()),
    };
    let _ = write!(
        out,
        "<li><span class=\"oracle\">{}</span>",
        Escaped(&failure.oracle)
    );
    if let Some(state) = state {
        let state = Escaped(state);
        let _ = write!(
            out,
            " <span class=\"soft\">in state</span> <code>{state}</code>"
        );
    }
    if let Some(door) = failure.door {
        let _ = write!(out, " <span class=\"soft\">laid at</span> <b>{door}</b>");
    }
    let _ = write!(out, "<p class=\"story\">{}</p>", Escaped(detail));
    if let Some(evidence) = &failure.evidence {
        let evidence = Escaped(evidence);
        let _ = write!(out, "<p class=\"story soft\">{evidence}</p>");
    }
    if again && !failure.repro.is_empty() {
        let _ = write!(
            out,
            "<div class=\"again\"><span class=\"soft small\">see it again</span>\
             <code>{}</code></div>",
            Escaped(&failure.repro)
        );
    }
    out.push_str("</li>");
}

const COLUMNS: [(&str, bool); 8] = [
    ("verdict", false),
    ("image", false),
    ("lower", false),
    ("mount", false),
    ("states", true),
    ("checks", true),
    ("faults", true),
    ("time", true),
];

fn cases(out: &mut String, report: &Report) {
    out.push_str("<section aria-labelledby=\"cases\"><h2 id=\"cases\">Cases</h2>\n");
    if report.scenarios.is_empty() {
        out.push_str("<p>No case was run.</p></section>");
        return;
    }
    out.push_str(
        "<div class=\"card\"><fieldset class=\"filter small\"><legend>Show</legend>\
         <label><input type=\"radio\" name=\"only\" id=\"only-all\" checked> all</label>\
         <label><input type=\"radio\" name=\"only\" id=\"only-bad\"> what did not pass</label>\
         <label><input type=\"radio\" name=\"only\" id=\"only-controls\"> controls</label></fieldset>\
         <table class=\"cases\"><thead><tr>",
    );
    for (name, number) in COLUMNS {
        let class = if number { " class=\"n\"" } else { "" };
        let _ = write!(out, "<th scope=\"col\"{class}>{name}</th>");
    }
    out.push_str("</tr></thead>\n");
    let scenarios = report
        .scenarios
        .chunk_by(|a, b| a.scenario() == b.scenario());
    for cases in scenarios {
        let well = if cases.iter().any(is_troubled) {
            ""
        } else {
            "all-well "
        };
        let controls = if cases.iter().any(|of| of.control) {
            ""
        } else {
            "no-controls"
        };
        let _ = write!(
            out,
            "<tbody class=\"{well}{controls}\"><tr class=\"about\"><th scope=\"rowgroup\" colspan=\"8\">\
             {} <span>{}</span></th></tr>",
            Escaped(cases[0].scenario()),
            Escaped(&cases[0].about)
        );
        for case in cases {
            row(out, case);
        }
        out.push_str("</tbody>\n");
    }
    out.push_str("</table></div></section>\n");
}

fn row(out: &mut String, result: &ScenarioResult) {
    let word = result.word();
    let control = if result.control { "" } else { " no-control" };
    let _ = write!(
        out,
        "<tr class=\"is-{word}{control}\"><td class=\"verdict-cell\">{}{}</td>",
        tag(word, ""),
        notes(result)
    );
    for (label, text) in [
        ("image", &result.image),
        ("lower", &result.lower),
        ("mount", &result.mount),
    ] {
        let _ = write!(
            out,
            "<td data-label=\"{label}\">{}</td>",
            Escaped(dash(text))
        );
    }
    for (label, n) in [
        ("states", result.crash_states),
        ("checks", result.oracle_checks),
        ("faults", result.faults_fired),
    ] {
        let shown = match n {
            0 => "–".to_owned(),
            n => Grouped(n).to_string(),
        };
        let _ = write!(out, "<td class=\"n\" data-label=\"{label}\">{shown}</td>");
    }
    let _ = writeln!(
        out,
        "<td class=\"n\" data-label=\"time\">{}</td></tr>",
        clock(result.seconds)
    );
}

fn dash(text: &str) -> &str {
    if text.is_empty() { "–" } else { text }
}

/// What a row says beside its numbers.
fn notes(result: &ScenarioResult) -> String {
    let mut notes = String::new();
    if is_troubled(result) || !result.failures.is_empty() {
        let because = Escaped(result.because.as_deref().unwrap_or("no reason given"));
        let to = anchor("case", &result.name);
        let _ = write!(notes, "<a class=\"why\" href=\"#{to}\">{because}</a>");
    } else if let Some(because) = &result.because {
        let _ = write!(notes, "<span class=\"why\">{}</span>", Escaped(because));
    }
    if let skipped @ 1.. = result.skipped_mandatory() {
        let states = counted(skipped, "mandatory state", "mandatory states");
        let _ = write!(
            notes,
            "<span class=\"why\">⚠ {states} skipped: no room in the budget</span>"
        );
    }
    notes
}

fn all_explorations(out: &mut String, report: &Report, explorations: &Explorations) {
    if explorations.is_empty() {
        return;
    }
    out.push_str(
        "<section aria-labelledby=\"explorations\"><h2 id=\"explorations\">Explorations</h2>\n",
    );
    for result in &report.scenarios {
        let Some(drawn) = explorations.get(&result.name) else {
            continue;
        };
        let _ = write!(
            out,
            "<article class=\"card\"><h3 class=\"mono\">{}</h3>",
            Escaped(&result.name)
        );
        match drawn {
            Ok(drawn) => {
                let spared = result.counts.named("pruned_looks");
                chart::exploration(out, drawn, spared);
            }
            Err(why) => {
                let why = Escaped(why);
                let _ = write!(out, "<p class=\"warn\">It cannot be shown: {why}</p>");
            }
        }
        out.push_str("</article>\n");
    }
    out.push_str("</section>\n");
}

fn the_run(out: &mut String, report: &Report) {
    out.push_str(
        "<section aria-labelledby=\"run\"><h2 id=\"run\">The run</h2><div class=\"card\">",
    );
    for image in &report.images {
        let note = if image.as_locked {
            ""
        } else {
            " <b>not as locked: the archive moved on</b>"
        };
        let _ = write!(
            out,
            "<p><b>{}</b> kernel {}{note}<br><span class=\"soft mono\">packages {}</span></p>",
            Escaped(&image.name),
            Escaped(&image.kernel),
            Escaped(&image.packages_hash)
        );
    }
    let mut phases = report.phases.clone();
    for (phase, seconds) in report.scenarios.iter().flat_map(|of| &of.phases) {
        *phases.entry(phase.clone()).or_default() += seconds;
    }
    let mut phases: Vec<_> = phases.into_iter().collect();
    phases.sort_by(|a, b| b.1.total_cmp(&a.1));
    if !phases.is_empty() {
        let spent = phases
            .iter()
            .map(|(phase, s)| format!("{phase} {}", clock(*s)));
        let spent = spent.collect::<Vec<_>>().join(", ");
        let spent = Escaped(spent);
        let _ = write!(
            out,
            "<p class=\"small\">Time, summed over all tests: {spent}</p>"
        );
    }
    out.push_str("</div></section>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests;

    #[test]
    fn the_page_is_whole_and_what_others_wrote_is_text() {
        let page = fixture::page();
        assert!(!page.contains("<script"), "{page}");
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;quoted&quot;"));
        assert!(!page.contains(['\u{1b}', '\u{202e}']));
        for outside in ["src=", "url(", "@import", "<link", "http:", "https:"] {
            assert!(!page.contains(outside), "{outside}");
        }
        for (open, close) in [
            ("<table", "</table>"),
            ("<article", "</article>"),
            ("<svg", "</svg>"),
        ] {
            assert_eq!(
                page.matches(open).count(),
                page.matches(close).count(),
                "{open}"
            );
        }
        insta::assert_snapshot!(page.split("</style>").nth(1).unwrap_or_default());
    }

    #[test]
    fn every_link_has_its_target() {
        let page = fixture::page();
        let links = page.split("href=\"#").skip(1);
        for link in links.filter_map(|rest| rest.split('"').next()) {
            assert!(page.contains(&format!("id=\"{link}\"")), "{link}");
        }
    }

    #[test]
    fn a_page_of_nothing_says_so() {
        let page = page(&tests::report(Vec::new()), &Explorations::new());
        assert!(page.contains("No case was run"));
        assert!(!page.contains("href=\"#findings\""));
    }

    #[test]
    fn what_is_missing_is_said_first() {
        let report = Report {
            missing: vec!["3/4".parse().expect("a shard")],
            ..tests::report(vec![tests::passed("a::b::c::d")])
        };
        let page = page(&report.finish(), &Explorations::new());
        assert!(page.contains("<b>Shards are missing:</b> 3/4."));
        assert!(page.contains("<title>infra: "));
    }
}
