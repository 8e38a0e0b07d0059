//! An exploration as a picture: lanes below each other, over one axis.
//!
//! Each lane is a drawing without text, which may be as wide as its reader's screen; all words
//! stand beside it. Outcomes have lanes of their own, so none is told by its colour alone.

use std::fmt::Write as _;

use super::text::{Escaped, Grouped, bytes, counted};
use crate::report::{ClassOf, Epoch, Exploration};

/// Height of a drawing's own units.
const HEIGHT: f64 = 100.0;

/// Why a state is judged without a look at it.
const SPARED: &str = "were judged by a look at a state that differs only where nothing was read: not \
                      by mounting, recovery, the check, unmounting or fsck";

/// All that is shown of an exploration, of which so many looks were spared.
pub(super) fn exploration(out: &mut String, of: &Exploration, spared: u64) {
    let (planned, kept, broken) = of.counts();
    let unseen = planned.saturating_sub(kept + broken);
    summary(out, of, (planned, kept, broken));
    if let skipped @ 1.. = of.skipped_mandatory() {
        let _ = write!(
            out,
            "<p class=\"warn\"><b>{} skipped:</b> the budget has no room for all that an \
             exploration looks at first. Give it more <code>states</code>.</p>",
            counted(skipped, "mandatory state was", "mandatory states were")
        );
    }
    out.push_str("<div class=\"lanes\">");
    requests(out, of);
    cuts(out, of, (kept, broken, unseen));
    axis(out, "event 0", &format!("event {}", Grouped(of.events)));
    epochs(out, of);
    out.push_str("</div>");
    kinds(out, of);
    left_out(out, of, (unseen, spared));
    guilty(out, of, broken);
    epoch_table(out, &of.epochs);
}

fn summary(out: &mut String, of: &Exploration, (planned, kept, broken): (u64, u64, u64)) {
    let total = |what: &str| of.totals.get(what).copied().unwrap_or(0);
    let _ = write!(
        out,
        "<p>{} with {} and {} were recorded. Of {}, {} kept every promise and {} broke one.</p>",
        counted(total("writes"), "write", "writes"),
        bytes(total("bytes")),
        counted(total("flushes"), "flush", "flushes"),
        counted(planned, "planned state", "planned states"),
        Grouped(kept),
        Grouped(broken),
    );
}

fn requests(out: &mut String, of: &Exploration) {
    let total = |what: &str| of.totals.get(what).copied().unwrap_or(0);
    let column = |what: &str| of.columns.get(what).map_or(&[][..], Vec::as_slice);
    let lanes = [
        ("writes", "Writes", "bytes", bytes(total("bytes"))),
        ("pending", "Could be lost", "pending", {
            let most = counted(total("pending"), "write", "writes");
            format!("at most {most} at a time")
        }),
        (
            "flushes",
            "Flushes",
            "flushes",
            Grouped(total("flushes")).to_string(),
        ),
        ("acknowledged", "Promises", "acknowledged", {
            format!("{} acknowledged", Grouped(total("acknowledged")))
        }),
        (
            "served",
            "Served to readers",
            "served",
            Grouped(total("served")).to_string(),
        ),
        (
            "marks",
            "Marks",
            "marks",
            Grouped(total("marks")).to_string(),
        ),
        (
            "errors",
            "Failed requests",
            "errors",
            Grouped(total("errors")).to_string(),
        ),
    ];
    for (counted, name, drawn, note) in lanes {
        if total(counted) == 0 {
            continue;
        }
        let about = format!("{name} over the recording: {note}");
        lane(out, (&format!("<b>{name}</b>"), &note), "", &about, |out| {
            path(out, "fill", column(drawn), most(column(drawn)), &[]);
            before(out, of);
        });
    }
}

fn cuts(out: &mut String, of: &Exploration, (kept, broken, unseen): (u64, u64, u64)) {
    let states = &of.states;
    let left: Vec<u64> = (states.planned.iter().zip(&states.kept).zip(&states.broken))
        .map(|((planned, kept), broken)| planned.saturating_sub(kept + broken))
        .collect();
    let tallest = most(&states.planned);
    let lanes = [
        ("kept", "✓", "Cuts that kept", &states.kept, kept),
        ("broken", "✗", "Cuts that broke", &states.broken, broken),
        ("unseen", "○", "Not looked at", &left, unseen),
    ];
    for (class, mark, name, column, total) in lanes {
        if total == 0 && class == "unseen" {
            continue;
        }
        let title = format!(
            "<span class=\"mark {class}\" aria-hidden=\"true\">{mark}</span> <b>{name}</b>"
        );
        let note = counted(total, "state", "states");
        let about = format!("{name} a promise, by the place of the cut: {note}");
        let height = if total == 0 { "" } else { "tall" };
        lane(out, (&title, &note), height, &about, |out| {
            // A few failures among many states must not be too small to see.
            let scale = if class == "broken" {
                most(column)
            } else {
                tallest
            };
            path(out, class, column, scale, &[]);
            before(out, of);
        });
    }
}

fn epochs(out: &mut String, of: &Exploration) {
    let column =
        |of: fn(&Epoch) -> u64, epochs: &[Epoch]| epochs.iter().map(of).collect::<Vec<_>>();
    let planned = column(|epoch| epoch.planned, &of.epochs);
    let kept = column(|epoch| epoch.kept, &of.epochs);
    let broken = column(|epoch| epoch.broken, &of.epochs);
    let with = of.epochs.iter().filter(|epoch| epoch.planned > 0).count() as u64;
    out.push_str("<h4>States per epoch, from one flush to the next</h4>");
    let grouped = of.epochs.len() as u64 != of.epochs_total;
    let note = match grouped {
        true => format!(
            "{} drawn as {}",
            counted(of.epochs_total, "epoch", "epochs"),
            of.epochs.len()
        ),
        false => format!(
            "{with} of {} have states",
            counted(of.epochs_total, "epoch", "epochs")
        ),
    };
    let tallest = most(&planned);
    lane(
        out,
        ("<b>States</b>", &note),
        "tall",
        &format!("states per epoch: {note}"),
        |out| {
            path(out, "unseen", &planned, tallest, &[]);
            path(out, "kept", &kept, tallest, &[]);
            path(out, "broken", &broken, tallest, &kept);
        },
    );
    axis(
        out,
        "epoch 1",
        &format!("epoch {}", Grouped(of.epochs_total)),
    );
}

fn lane(
    out: &mut String,
    (name, note): (&str, &str),
    class: &str,
    about: &str,
    draw: impl FnOnce(&mut Drawing),
) {
    let mut drawing = Drawing::default();
    draw(&mut drawing);
    let _ = write!(
        out,
        "<div class=\"name\">{name} <span class=\"soft\">{}</span></div>\
         <svg class=\"{class}\" viewBox=\"0 0 {} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-label=\"{}\">{}</svg>",
        Escaped(note),
        drawing.width.max(1),
        Escaped(about),
        drawing.text,
    );
}

#[derive(Default)]
struct Drawing {
    text: String,
    width: usize,
}

fn most(column: &[u64]) -> u64 {
    column.iter().copied().max().unwrap_or(0).max(1)
}

/// One path for all bars of a lane, on top of those of `below`. What is there at all is seen.
fn path(out: &mut Drawing, class: &str, column: &[u64], most: u64, below: &[u64]) {
    out.width = out.width.max(column.len());
    let mut path = String::new();
    for (x, value) in column.iter().enumerate().filter(|(_, value)| **value > 0) {
        let tall = |value: u64| HEIGHT * value as f64 / most as f64;
        let height = tall(*value).clamp(8.0, HEIGHT);
        let bottom = HEIGHT - below.get(x).map_or(0.0, |below| tall(*below));
        let top = (bottom - height).max(0.0);
        let _ = write!(path, "M{x} {top:.0}h1v{height:.0}h-1z");
    }
    if !path.is_empty() {
        let _ = write!(out.text, "<path class=\"{class}\" d=\"{path}\"/>");
    }
}

/// What is before the first cut that counts is paler.
fn before(out: &mut Drawing, of: &Exploration) {
    let columns = of.from / of.events_each.max(1);
    if columns > 0 {
        let _ = write!(
            out.text,
            "<rect class=\"before\" width=\"{columns}\" height=\"{HEIGHT}\"/>"
        );
    }
}

fn axis(out: &mut String, first: &str, last: &str) {
    let _ = write!(
        out,
        "<div class=\"axis\"><span>{}</span><span>{}</span></div>",
        Escaped(first),
        Escaped(last)
    );
}

fn kinds(out: &mut String, of: &Exploration) {
    out.push_str(
        "<details><summary>Kinds of states</summary><table class=\"kinds small\"><thead><tr><th>kind</th>\
         <th class=\"n\">possible</th><th class=\"n\">drawn</th><th class=\"n\">new content</th>\
         <th class=\"n\">kept</th><th class=\"n\">broke</th></tr></thead><tbody>",
    );
    for class in &of.classes {
        let ClassOf {
            drawn,
            planned,
            kept,
            broken,
            ..
        } = class;
        let possible = class
            .possible
            .map_or("?".to_owned(), |n| Grouped(n).to_string());
        let _ = write!(
            out,
            "<tr><th>{} <span class=\"why\">{}</span></th>\
             <td class=\"n\" data-label=\"possible\">{possible}</td>",
            Escaped(&class.class),
            meaning(&class.class),
        );
        for (label, n) in [
            ("drawn", drawn),
            ("new content", planned),
            ("kept", kept),
            ("broke", broken),
        ] {
            let _ = write!(
                out,
                "<td class=\"n\" data-label=\"{label}\">{}</td>",
                Grouped(*n)
            );
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></details>");
}

fn meaning(class: &str) -> &'static str {
    match class {
        "none" => "nothing but what is durable",
        "all" => "everything that was submitted",
        "one-only" => "one pending write and no other",
        "all-but-one" => "all pending writes but one",
        "earlier" => "everything submitted, at the cuts before",
        "pair" => "two pending writes and no others",
        "torn" => "one write torn at the atomic unit",
        "late" => "one that lands on a write submitted after it",
        "combination" => "every combination, where there are few",
        "random" => "a seeded choice",
        _ => "",
    }
}

fn left_out(out: &mut String, of: &Exploration, (unseen, spared): (u64, u64)) {
    let planned = of.left_out.iter().map(|of| (of.count, of.why.as_str()));
    let unseen = (unseen > 0).then_some((unseen, of.unseen_because.as_str()));
    let spared = (spared > 0).then_some((spared, SPARED));
    let all: Vec<_> = planned.chain(unseen).chain(spared).collect();
    if all.is_empty() {
        return;
    }
    out.push_str("<h3 class=\"small\" style=\"margin-top:1rem\">Left out, and why</h3><ul class=\"plain small\">");
    for (count, why) in all {
        let _ = write!(out, "<li><b>{}</b> {}</li>", Grouped(count), Escaped(why));
    }
    out.push_str("</ul>");
}

fn guilty(out: &mut String, of: &Exploration, broken: u64) {
    if of.broken.is_empty() {
        return;
    }
    let _ = write!(
        out,
        "<details><summary>States that broke a promise: {}</summary><div class=\"wide\">\
         <table class=\"small\"><thead><tr><th>state</th><th class=\"n\">cut at event</th><th>kind</th>\
         <th>oracle</th></tr></thead><tbody>",
        match of.broken.len() as u64 == broken {
            true => Grouped(broken).to_string(),
            false => format!("the first {} of {}", of.broken.len(), Grouped(broken)),
        }
    );
    for state in &of.broken {
        let _ = write!(
            out,
            "<tr><td class=\"mono\">{}</td><td class=\"n\">{}</td><td>{}</td><td>{}</td></tr>",
            Escaped(&state.state),
            Grouped(state.cut),
            Escaped(&state.class),
            Escaped(&state.oracle)
        );
    }
    out.push_str("</tbody></table></div></details>");
}

fn epoch_table(out: &mut String, epochs: &[Epoch]) {
    out.push_str(
        "<details><summary>Epochs in numbers</summary><div class=\"wide\"><table class=\"small\"><thead><tr>\
         <th>epoch</th><th class=\"n\">to event</th><th class=\"n\">writes</th><th class=\"n\">states</th>\
         <th class=\"n\">kept</th><th class=\"n\">broke</th></tr></thead><tbody>",
    );
    for epoch in epochs.iter().filter(|epoch| epoch.planned > 0) {
        let name = match epoch.first == epoch.last {
            true => Grouped(epoch.first).to_string(),
            false => format!("{}–{}", Grouped(epoch.first), Grouped(epoch.last)),
        };
        let _ = write!(out, "<tr><td>{name}</td>");
        for n in [
            epoch.until,
            epoch.writes,
            epoch.planned,
            epoch.kept,
            epoch.broken,
        ] {
            let _ = write!(out, "<td class=\"n\">{}</td>", Grouped(n));
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div></details>");
}
