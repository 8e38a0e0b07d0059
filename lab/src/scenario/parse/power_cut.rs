//! `[power-cut]`: where the power goes, and how much of what that leaves is looked at.

use std::num::NonZeroU32;

use plugpull_disk::explore::{Class, Classes};
use toml::Spanned;

use super::complaints::Complaints;
use crate::scenario::{CutPoint, Cuts, PowerCut, STATES_PER_CUT, raw::RawPowerCut};

/// A profile may have other numbers, and nothing else.
pub(super) fn only_numbers(over: &RawPowerCut, complaints: &mut Complaints) {
    let spans = [
        ("cut", over.cut.as_ref().map(Spanned::span)),
        ("fsck", over.fsck.as_ref().map(Spanned::span)),
        ("nested", over.nested.as_ref().map(Spanned::span)),
        ("prune", over.prune.as_ref().map(Spanned::span)),
        ("kinds", over.kinds.as_ref().map(Spanned::span)),
    ];
    for (key, span) in spans {
        if let Some(span) = span {
            complaints
                .add(span, format!("`{key}` is the same in every profile"))
                .expected(format!(
                    "`{key}` in `[power-cut]`; `cuts`, `states` and `reruns` may change"
                ));
        }
    }
}

/// More cuts or states than this would not end in a night.
const MAX_CUTS: u32 = 100_000;
const MAX_STATES: u32 = 10_000_000;

/// What `[power-cut]` says.
pub(super) fn power_cut(
    table: &Spanned<RawPowerCut>,
    raw: &RawPowerCut,
    complaints: &mut Complaints,
) -> Option<PowerCut> {
    let cuts = match (&raw.cuts, &raw.cut) {
        (Some(cuts), Some(cut)) => {
            let span = cut.span().start.max(cuts.span().start)..cut.span().end.max(cuts.span().end);
            complaints
                .add(
                    span,
                    "`cuts` chooses points from the seed, `cut` names one: not both",
                )
                .expected("either `cuts` or `cut`");
            None
        }
        (Some(_), None) => complaints
            .number("cuts", &raw.cuts, 1, MAX_CUTS)
            .map(Cuts::Seeded),
        (None, Some(cut)) => cut_point(cut, complaints).map(Cuts::At),
        (None, None) => Some(Cuts::Everywhere),
    };
    let fewest = match &cuts {
        Some(Cuts::Seeded(cuts)) => cuts.get() * STATES_PER_CUT,
        _ => STATES_PER_CUT,
    };
    let nested = nested(raw, cuts.as_ref(), complaints)?;
    let kinds = kinds(raw, cuts.as_ref(), complaints)?;
    let reruns = reruns(raw, cuts.as_ref(), complaints)?;
    let fsck = raw.fsck.as_ref().is_none_or(|flag| *flag.get_ref());
    let prune = raw.prune.as_ref().is_none_or(|flag| *flag.get_ref());
    let Some(written) = &raw.states else {
        let states = NonZeroU32::new(fewest)?;
        if matches!(cuts, Some(Cuts::Everywhere)) {
            complaints
                .add(table.span(), "a cut everywhere has no end by itself")
                .expected("`states = …`, the most crash states to look at; or `cuts = …`");
            return None;
        }
        return Some(PowerCut {
            cuts: cuts?,
            states,
            fsck,
            nested,
            prune,
            kinds,
            reruns,
        });
    };
    let states = complaints.number("states", &raw.states, fewest, MAX_STATES)?;
    if states.get() < fewest {
        complaints
            .add(written.span(), "`states` is too small for the cuts")
            .expected(format!(
                "at least {fewest}: for each cut nothing, everything and one seeded subset of what was pending"
            ));
        return None;
    }
    Some(PowerCut {
        cuts: cuts?,
        states,
        fsck,
        nested,
        prune,
        kinds,
        reruns,
    })
}

/// Enough to find one operation among thousands, or a few among some dozens.
const RERUNS: u32 = 24;
const MAX_RERUNS: u64 = 1_000;

/// More recoveries in a row than anybody sits through.
const MAX_NESTED: u64 = 8;

/// How often the power goes again.
fn nested(raw: &RawPowerCut, cuts: Option<&Cuts>, complaints: &mut Complaints) -> Option<u32> {
    let Some(written) = &raw.nested else {
        return Some(0);
    };
    let nested = *written.get_ref();
    if nested > MAX_NESTED {
        complaints
            .add(
                written.span(),
                format!("{nested} cuts in a row are too many"),
            )
            .expected(format!("at most {MAX_NESTED}"));
        return None;
    }
    if nested > 0 && !matches!(cuts, None | Some(Cuts::Everywhere)) {
        complaints
            .add(written.span(), "`nested` is for a cut everywhere")
            .expected("neither `cuts` nor `cut`");
        return None;
    }
    u32::try_from(nested).ok()
}

/// How often the workload may be run again to tell a failure.
fn reruns(raw: &RawPowerCut, cuts: Option<&Cuts>, complaints: &mut Complaints) -> Option<u32> {
    let Some(written) = &raw.reruns else {
        return Some(RERUNS);
    };
    let reruns = *written.get_ref();
    if reruns > MAX_RERUNS {
        complaints
            .add(written.span(), format!("{reruns} reruns are too many"))
            .expected(format!("at most {MAX_RERUNS}"));
        return None;
    }
    if !matches!(cuts, None | Some(Cuts::Everywhere)) {
        complaints
            .add(written.span(), "`reruns` is for a cut everywhere")
            .expected("neither `cuts` nor `cut`");
        return None;
    }
    u32::try_from(reruns).ok()
}

/// Which kinds of states are looked at.
fn kinds(raw: &RawPowerCut, cuts: Option<&Cuts>, complaints: &mut Complaints) -> Option<Classes> {
    let Some(written) = &raw.kinds else {
        return Some(Classes::ALL);
    };
    if !matches!(cuts, None | Some(Cuts::Everywhere)) {
        complaints
            .add(written.span(), "`kinds` is for a cut everywhere")
            .expected("neither `cuts` nor `cut`");
        return None;
    }
    let read = |name: &Spanned<String>, complaints: &mut Complaints| complaints.one_of(name);
    complaints
        .distinct::<Class>(written, "kinds", read)
        .map(Classes::of)
}

fn cut_point(written: &Spanned<String>, complaints: &mut Complaints) -> Option<CutPoint> {
    let (kind, rest) = written
        .get_ref()
        .split_once(' ')
        .unwrap_or((written.get_ref(), ""));
    let number = rest.parse::<u64>().ok().filter(|n| *n > 0);
    let seconds = rest.strip_suffix(" s").and_then(|s| s.parse::<f64>().ok());
    let point = match kind {
        "request" => number.map(CutPoint::Request),
        "flush" => number.map(CutPoint::Flush),
        "mark" if !rest.is_empty() => Some(CutPoint::Mark(rest.to_owned())),
        "time" => seconds
            .filter(|s| (0.0..=86_400.0).contains(s))
            .map(|s| CutPoint::TimeMs((s * 1000.0) as u64)),
        _ => None,
    };
    if point.is_none() {
        complaints
            .add(
                written.span(),
                format!("`{}` is no cut point", written.get_ref()),
            )
            .expected("\"request N\", \"flush N\", \"mark TEXT\" or \"time 1.5 s\"");
    }
    point
}
