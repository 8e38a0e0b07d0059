//! The workload, its check and whether the power goes: what happens, at each size.

use plugpull_protocol::workload::{
    self,
    plan::{Archive, Database, Repository},
};
use toml::Spanned;

use super::{
    builtin::Builtin,
    complaints::Complaints,
    power_cut::{only_numbers, power_cut},
    stores, user,
};
use crate::scenario::{
    Conformance, Connections, Cuttable, DistributionProgram, Judge, LedgerLoad, Load, Named,
    Profile, Program, Story, WalSync, Writers,
    raw::{RawPowerCut, RawScenario, RawSizes, RawWorkload},
};

/// PostgreSQL's own default of `max_connections` is 100, three are reserved.
const MAX_CONNECTIONS: u32 = 90;

/// The story of each profile. Sizes are the base's, with the profile's over it.
pub(super) fn stories(
    raw: &RawScenario,
    profiles: &[Profile],
    complaints: &mut Complaints,
) -> Option<Vec<(Profile, Story)>> {
    let Some(workload) = &raw.workload else {
        complaints
            .add(0..0, "the table `[workload]` is missing")
            .expected("`[workload]` with `builtin = \"…\"`, or with `run = [\"…\"]`");
        return None;
    };
    let mut stories = Vec::new();
    for &profile in profiles {
        let sizes = match profile {
            Profile::Smoke => &raw.smoke,
            Profile::Full => &raw.full,
            Profile::Nightly => &raw.nightly,
        };
        stories
            .push(story(raw, workload, sizes.as_ref(), complaints).map(|story| (profile, story)));
    }
    stories.into_iter().collect()
}

fn story(
    raw: &RawScenario,
    workload: &Spanned<RawWorkload>,
    sizes: Option<&Spanned<RawSizes>>,
    complaints: &mut Complaints,
) -> Option<Story> {
    let over = sizes.map(Spanned::get_ref);
    let none = RawWorkload::default();
    let over_workload = over.and_then(|over| over.workload.as_ref());
    if let Some(over) = over_workload {
        only_sizes(over, complaints);
    }
    let over_workload = over_workload.map_or(&none, Spanned::get_ref);
    let resized = workload.get_ref().resized(over_workload);
    let cut = match (
        &raw.power_cut,
        over.and_then(|over| over.power_cut.as_ref()),
    ) {
        (None, None) => None,
        (None, Some(over)) => {
            complaints
                .add(over.span(), "there is no `[power-cut]` to change")
                .expected("a table `[power-cut]` for all profiles");
            return None;
        }
        (Some(base), over) => {
            if let Some(over) = over {
                only_numbers(over.get_ref(), complaints);
            }
            let none = RawPowerCut::default();
            let resized = base.get_ref().resized(over.map_or(&none, Spanned::get_ref));
            Some((base, power_cut(base, &resized, complaints)))
        }
    };
    let plot = plot(raw, workload, &resized, complaints)?;
    let Some((table, cut)) = cut else {
        return match plot {
            Plot::Ends(story) => Some(story),
            Plot::CanBeCut(Cuttable::Program(program)) if !program.is_built_in() => {
                Some(Story::Program(program))
            }
            Plot::CanBeCut(_) => {
                complaints
                    .add(
                        workload.span(),
                        "this workload is judged after a power cut, and there is none",
                    )
                    .expected("a table `[power-cut]`");
                None
            }
        };
    };
    match plot {
        Plot::CanBeCut(cuttable) => Some(Story::PowerCut(cuttable, cut?)),
        Plot::Ends(_) => {
            complaints
                .add(
                    table.span(),
                    "this workload keeps no ledger, so a power cut could not be judged",
                )
                .expected(
                    "`postgres-ledger`, `page-fsync`, `files`, `log-store`, \
                     `sqlite-ledger`, `redb-ledger` or a program of your own as the workload",
                );
            None
        }
    }
}

fn only_sizes(over: &Spanned<RawWorkload>, complaints: &mut Complaints) {
    let raw = over.get_ref();
    let spans = [
        ("builtin", raw.builtin.as_ref().map(Spanned::span)),
        ("files", raw.files.as_ref().map(Spanned::span)),
        ("run", raw.run.as_ref().map(Spanned::span)),
        ("atomic", raw.atomic.as_ref().map(Spanned::span)),
        ("damage", raw.damage.as_ref().map(Spanned::span)),
    ];
    for (key, span) in spans.into_iter().chain(raw.settings()) {
        if let Some(span) = span {
            complaints
                .add(span, format!("`{key}` is the same in every profile"))
                .expected("only sizes here");
        }
    }
}

/// A workload before it is known whether the power goes.
enum Plot {
    Ends(Story),
    CanBeCut(Cuttable),
}

fn plot(
    raw: &RawScenario,
    table: &Spanned<RawWorkload>,
    workload: &RawWorkload,
    complaints: &mut Complaints,
) -> Option<Plot> {
    match (&workload.builtin, &workload.run) {
        (Some(name), None) => builtin(raw, complaints.one_of(name)?, workload, complaints),
        (None, Some(run)) => {
            refuse_sizes(
                workload,
                &["operations"],
                "a program of your own",
                complaints,
            );
            refuse_damage(workload, complaints);
            refuse_settings(workload, &[], complaints);
            let operations = user::operations(run, &workload.operations, complaints);
            let run = complaints.argv(run, &["dir", "seed", "operations"]);
            let judge = judge(raw, workload, complaints);
            let program = Program {
                files: user::host_files(&workload.files, complaints),
                run: run?,
                operations: operations?,
                judge: judge?,
            };
            user::is_brought(raw, &program, complaints);
            Some(Plot::CanBeCut(Cuttable::Program(program)))
        }
        (Some(_), Some(run)) => {
            complaints
                .add(run.span(), "a workload is built in or a program, not both")
                .expected("either `builtin` or `run`");
            None
        }
        (None, None) => {
            complaints
                .add(table.span(), "the workload does nothing")
                .expected("`builtin = \"…\"` or `run = [\"…\"]`");
            None
        }
    }
}

fn refuse_sizes(workload: &RawWorkload, known: &[&str], what: &str, complaints: &mut Complaints) {
    for (key, size) in workload.sizes() {
        if let Some(size) = size
            && !known.contains(&key)
        {
            let own = match known {
                [] => "none of the built-in sizes".to_owned(),
                _ => super::diagnostic::listed(known.iter().copied()),
            };
            complaints
                .add(size.span(), format!("`{key}` means nothing to {what}"))
                .expected(own);
        }
    }
}

/// Damage is done to what a program of the distribution left, or to the calls
/// that a mount is given.
fn refuse_damage(workload: &RawWorkload, complaints: &mut Complaints) {
    if let Some(damage) = &workload.damage {
        complaints
            .add(damage.span(), "`damage` means nothing to this workload")
            .expected("`git-clone`, `tar-round-trip`, `sqlite` or `conformance` as the workload");
    }
}

/// A setting that would be ignored would promise something.
fn refuse_settings(workload: &RawWorkload, known: &[&str], complaints: &mut Complaints) {
    for (key, span) in workload.settings() {
        if let Some(span) = span.filter(|_| !known.contains(&key)) {
            let knows = Builtin::ALL.iter().filter(|b| b.settings().contains(&key));
            let knows = knows.map(|builtin| format!("`{builtin}`"));
            complaints
                .add(span, format!("`{key}` means nothing to this workload"))
                .expected(format!(
                    "{} as the workload",
                    knows.collect::<Vec<_>>().join(" or ")
                ));
        }
    }
}

fn builtin(
    raw: &RawScenario,
    builtin: Builtin,
    workload: &RawWorkload,
    complaints: &mut Complaints,
) -> Option<Plot> {
    refuse_sizes(
        workload,
        builtin.sizes(),
        &format!("`{builtin}`"),
        complaints,
    );
    let spans = [
        ("files", workload.files.as_ref().map(Spanned::span)),
        ("atomic", workload.atomic.as_ref().map(Spanned::span)),
        ("[check]", raw.check.as_ref().map(Spanned::span)),
    ];
    for (key, span) in spans {
        if let Some(span) = span {
            complaints
                .add(span, format!("`{key}` is for a program of your own"))
                .expected(format!("nothing: `{builtin}` brings its own oracles"));
        }
    }
    let connections = |default, complaints: &mut Complaints| {
        let n = complaints.number(
            "connections",
            &workload.connections,
            default,
            MAX_CONNECTIONS,
        );
        n.map(Connections)
    };
    if !matches!(
        builtin,
        Builtin::GitClone | Builtin::TarRoundTrip | Builtin::Sqlite | Builtin::Conformance
    ) {
        refuse_damage(workload, complaints);
    }
    refuse_settings(workload, builtin.settings(), complaints);
    let program = |program| Plot::CanBeCut(Cuttable::Program(program));
    Some(match builtin {
        Builtin::GitClone | Builtin::TarRoundTrip | Builtin::Sqlite => {
            let program = distribution(builtin, workload, complaints)?;
            Plot::Ends(Story::Distribution(program))
        }
        Builtin::Conformance => {
            let sequences = complaints.number("sequences", &workload.sequences, 100, 10_000_000);
            let operations =
                complaints.number("operations", &workload.operations, 10_000, 1_000_000_000);
            Plot::Ends(Story::Conformance(Conformance {
                sequences: sequences?,
                operations: operations?,
                damage: damaged(workload),
            }))
        }
        Builtin::NamedChecks => Plot::Ends(Story::NamedChecks),
        Builtin::PostgresInitdb => Plot::Ends(Story::Initdb),
        Builtin::PostgresLoad => Plot::Ends(Story::Load(load(
            workload,
            connections(4, complaints),
            complaints,
        )?)),
        Builtin::PostgresFlakey => Plot::Ends(Story::Flakey(connections(4, complaints)?)),
        Builtin::Writers => Plot::Ends(Story::Writers(writers(workload, complaints)?)),
        Builtin::PostgresLedger => {
            let connections = connections(4, complaints);
            let wal_sync = match &workload.wal_sync_method {
                Some(method) => complaints.one_of(method),
                None => Some(WalSync::Fdatasync),
            };
            Plot::CanBeCut(Cuttable::PostgresLedger(LedgerLoad {
                connections: connections?,
                wal_sync: wal_sync?,
                full_page_writes: workload
                    .full_page_writes
                    .as_ref()
                    .is_none_or(|flag| *flag.get_ref()),
            }))
        }
        Builtin::PageFsync => Plot::CanBeCut(Cuttable::PageFsync),
        Builtin::Files => program(stores::files(workload, complaints)?),
        Builtin::LogStore => program(stores::log_store(workload, complaints)?),
        Builtin::SqliteLedger => program(stores::sqlite_ledger(workload, complaints)?),
        Builtin::RedbLedger => program(stores::redb_ledger(workload, complaints)?),
    })
}

fn load(
    raw: &RawWorkload,
    connections: Option<Connections>,
    complaints: &mut Complaints,
) -> Option<Load> {
    let rows = complaints.number("rows", &raw.rows, 15_000, 10_000_000);
    let batch = complaints.number("rows_per_commit", &raw.rows_per_commit, 1, 10_000_000);
    Some(Load {
        rows: rows?,
        rows_per_commit: batch?,
        connections: connections?,
    })
}

fn writers(raw: &RawWorkload, complaints: &mut Complaints) -> Option<Writers> {
    let writers = complaints.number("writers", &raw.writers, 250, 4096);
    let rounds = complaints.number("rounds", &raw.rounds, 10, 1000);
    let files = complaints.number("files_per_round", &raw.files_per_round, 20, 1000);
    Some(Writers {
        writers: writers?,
        rounds: rounds?,
        files_per_round: files?,
    })
}

fn distribution(
    builtin: Builtin,
    raw: &RawWorkload,
    complaints: &mut Complaints,
) -> Option<DistributionProgram> {
    let seed = 0;
    let program = match builtin {
        Builtin::GitClone => {
            let files = complaints.number("entries", &raw.entries, 400, 100_000);
            let commits = complaints.number("commits", &raw.commits, 8, 1000);
            workload::Program::GitClone(Repository {
                files: files?.get(),
                commits: commits?.get(),
                seed,
            })
        }
        Builtin::TarRoundTrip => {
            let files = complaints.number("entries", &raw.entries, 400, 1_000_000);
            workload::Program::TarRoundTrip(Archive {
                files: files?.get(),
                seed,
            })
        }
        _ => {
            let writers = complaints.number("writers", &raw.writers, 4, 64);
            let each = complaints.number("transactions", &raw.transactions, 50, 100_000);
            workload::Program::Sqlite(Database {
                writers: writers?.get(),
                transactions: each?.get(),
                seed,
            })
        }
    };
    Some(DistributionProgram {
        program,
        damage: damaged(raw),
    })
}

fn damaged(raw: &RawWorkload) -> bool {
    raw.damage.as_ref().is_some_and(|flag| *flag.get_ref())
}

fn judge(raw: &RawScenario, workload: &RawWorkload, complaints: &mut Complaints) -> Option<Judge> {
    let Some(check) = &raw.check else {
        let atomic = workload.atomic.as_ref().is_some_and(|flag| *flag.get_ref());
        return Some(Judge::Files { atomic });
    };
    if let Some(atomic) = &workload.atomic {
        complaints
            .add(
                atomic.span(),
                "`atomic` is for the files oracle, and `[check]` takes its place",
            )
            .expected("no `atomic`, or no `[check]`");
    }
    let Some(run) = &check.get_ref().run else {
        complaints
            .add(check.span(), "`run` is missing")
            .expected("`run = [\"…\"]`, whose exit 0 is \"kept its promises\"");
        return None;
    };
    Some(Judge::Check {
        files: user::host_files(&check.get_ref().files, complaints),
        run: complaints.argv(run, &["dir", "ledger", "seed"])?,
    })
}
