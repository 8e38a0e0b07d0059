//! Results as plain text of 80 columns.

use std::fmt::Write as _;

use super::{
    goals::{Judged, Point, Reached},
    results::{LineResult, Results, ServerResult},
    servers::Role,
};
use crate::text::push_wrapped;

/// Points that miss a goal and are named; the JSON has all.
const NAMED: usize = 4;

/// Characters of an error; the JSON has all of it.
const REASON: usize = 120;

/// The results as text.
pub fn table(results: &Results) -> String {
    let mut out = String::new();
    let setting = &results.setting;
    let load: Vec<_> = setting
        .load
        .iter()
        .map(|load| format!("{load:.1}"))
        .collect();
    let head = format!(
        "bench fs: kernel {}, cores: {}, lower: {}, libfuse {}; {} rounds; load {}",
        setting.kernel,
        setting.cores,
        setting.lower,
        setting.libfuse,
        setting.rounds,
        load.join(", ")
    );
    push_wrapped(&mut out, &head, "", "  ");
    for note in &results.notes {
        push_wrapped(&mut out, note, "- ", "  ");
    }
    for line in &results.lines {
        push_line(&mut out, line);
    }
    push_walks(&mut out, results);
    for Judged { server, goals } in &results.goals {
        let _ = writeln!(out, "\ngoals, for {server} (~ where rounds disagree)");
        for goal in goals {
            push_goal(&mut out, goal);
        }
    }
    out
}

fn push_line(out: &mut String, line: &LineResult) {
    let title = format!("{}, {}", line.line.title, line.unit.label());
    let _ = writeln!(
        out,
        "\n{title:<52} {:>8} {:>7} {:>9}",
        "×native", "×peer", "CPU µs/op"
    );
    for result in &line.of {
        push_server(out, line, result);
    }
}

fn push_server(out: &mut String, line: &LineResult, result: &ServerResult) {
    let Some(rate) = result.rate() else {
        let why = result.errors.first().map_or("not measured", String::as_str);
        let mut why: String = why.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some((n, _)) = why.char_indices().nth(REASON) {
            why.truncate(n);
            why.push('…');
        }
        let text = format!("  {:<24} {why}", result.server);
        push_wrapped(out, &text, "", "      ");
        return;
    };
    let against = |other: Option<&ServerResult>| {
        let ratio = other.and_then(|other| result.ratio(other));
        ratio.map_or_else(|| "–".to_owned(), |ratio| short(ratio.median))
    };
    let cpu = match (result.role, result.cpu_per_op()) {
        (Role::Native, _) | (_, None) => "–".to_owned(),
        (_, Some(cpu)) => format!("{:.1}", cpu * 1e6),
    };
    let range = format!("({}–{})", grouped(rate.min), grouped(rate.max));
    let failed = match result.errors.len() {
        0 => String::new(),
        n => format!(" {n} failed"),
    };
    let _ = writeln!(
        out,
        "  {:<22} {:>9} {:<19}{:>7} {:>7} {:>9}{failed}",
        result.server,
        grouped(rate.median),
        range,
        against(line.role(Role::Native)),
        against(line.best_peer()),
        cpu,
    );
}

fn push_walks(out: &mut String, results: &Results) {
    let Some(first) = results.walks.first() else {
        return;
    };
    let title = format!("walking {} names", first.names);
    let _ = writeln!(
        out,
        "\n{title:<25} {:>12} {:>12} {:>12} {:>12}",
        "names/s", "MiB before", "MiB after", "descriptors"
    );
    for walk in &results.walks {
        let [before, after] = walk.rss_kib.map(|kib| kib as f64 / 1024.0);
        let _ = writeln!(
            out,
            "  {:<23} {:>12} {before:>12.1} {after:>12.1} {:>12}",
            walk.server,
            grouped(walk.names as f64 / walk.seconds),
            walk.descriptors,
        );
    }
}

fn push_goal(out: &mut String, reached: &Reached) {
    let total = reached.points.len();
    let verdict = match reached.met() {
        _ if total == 0 => "not measured".to_owned(),
        met if met == total => format!("ok ({met} of {total})"),
        met => format!("MISSED ({met} of {total})"),
    };
    let dots = ".".repeat(76_usize.saturating_sub(reached.goal.chars().count() + verdict.len()));
    push_wrapped(
        out,
        &format!("  {} {dots} {verdict}", reached.goal),
        "",
        "      ",
    );
    let mut missed: Vec<&Point> = reached.points.iter().filter(|point| !point.met).collect();
    missed.sort_by(|a, b| (a.value / a.limit).total_cmp(&(b.value / b.limit)));
    let more = missed.len().saturating_sub(NAMED);
    let named = missed.iter().take(NAMED).map(|point| {
        let noisy = if point.is_noisy() { "~" } else { "" };
        format!("{} {}{noisy}", point.line, short(point.value))
    });
    let mut named: Vec<_> = named.collect();
    if more > 0 {
        named.push(format!("and {more} more"));
    }
    if !named.is_empty() {
        push_wrapped(out, &format!("      {}", named.join(", ")), "", "      ");
    }
}

/// Three digits that count.
fn short(ratio: f64) -> String {
    match ratio {
        r if r >= 100.0 => format!("{r:.0}"),
        r if r >= 10.0 => format!("{r:.1}"),
        r if r >= 0.1 => format!("{r:.2}"),
        r => format!("{r:.3}"),
    }
}

/// Without a fraction and with commas between thousands; small ones with one digit.
fn grouped(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{
        super::results::{Walk, testing::*},
        *,
    };

    fn sample() -> Results {
        let line_of = |name, scale: f64| {
            let rates = |base: f64| [base * scale, base * scale * 1.25, base * scale * 0.75];
            line(
                name,
                vec![
                    result("native", Role::Native, &rates(571_000.0)),
                    result("plugpull-fs cached", Role::Ours, &rates(24_000.0)),
                    result("plugpull-fs direct", Role::Ours, &rates(12_345.6)),
                    result("passthrough_hp", Role::Peer, &rates(23_312.0)),
                    result("passthrough_hp, no pt", Role::Peer, &rates(21_000.0)),
                    result("bindfs", Role::Peer, &rates(11_974.0)),
                    result("protocol floor", Role::Floor, &rates(40_000.0)),
                ],
            )
        };
        let mut slow = line_of("read-seq-4k-t1", 0.001);
        slow.of[5].samples.clear();
        slow.of[5].errors = vec!["1 of 1 threads not done after 120s".into()];
        let mut results = results(vec![
            slow,
            line_of("create-t1", 0.1),
            line_of("stat-t1", 1.0),
            line_of("stat-t4", 1.5),
        ]);
        let walk = |server: &str, role, after| Walk {
            server: server.into(),
            role,
            names: 20_000,
            seconds: 0.5,
            rss_kib: [2048, after],
            descriptors: 20_009,
        };
        results.walks = vec![
            walk("plugpull-fs cached", Role::Ours, 140 << 10),
            walk("bindfs", Role::Peer, 9 << 10),
        ];
        results.goals = super::super::goals::judge(&results);
        results
    }

    #[test]
    fn the_table_fits_a_terminal() {
        let text = table(&sample());
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn the_json_keeps_every_sample() {
        let json = serde_json::to_value(sample()).expect("a value");
        let stat = &json["lines"][2];
        assert_eq!(stat["line"]["name"], "stat-t1");
        assert_eq!(stat["unit"], "operations");
        assert_eq!(stat["of"][1]["samples"][2]["rate"], 18_000.0);
        assert_eq!(stat["of"][1]["samples"][2]["round"], 3);
        assert_eq!(json["walks"][0]["rss_kib"][1], 140 << 10);
        assert_eq!(json["goals"][0]["goals"][0]["points"][0]["met"], true);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(grouped(1_234_567.4), "1,234,567");
        assert_eq!(grouped(999.9), "1,000");
        assert_eq!(grouped(12.34), "12.3");
        assert_eq!(
            [0.0123, 0.5, 12.34, 123.4].map(short),
            ["0.012", "0.50", "12.3", "123"]
        );
    }
}
