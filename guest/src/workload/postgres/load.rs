//! Loads a table from several connections and asks it questions with known
//! answers, before and after a restart.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use plugpull_protocol::workload::plan::{Answer, Load, LoadRow};
use plugpull_protocol::workload::{LoadRun, ServerRun};
use postgres::{Client, SimpleQueryMessage};

use super::check;
use super::server::{Server, Started};
use crate::workload::Env;

/// The table, and amcheck to check it with.
const SCHEMA: &str = "
    CREATE EXTENSION IF NOT EXISTS amcheck;
    CREATE TABLE load (id int PRIMARY KEY, grp int NOT NULL, val bigint NOT NULL, pad text NOT NULL);
    CREATE INDEX ON load (grp, val);
";

/// Load, vacuum, ask, restart, ask again, check.
pub(super) fn run(
    env: &Env,
    dir: &Path,
    load: Load,
    batch: u32,
    conf: &[String],
    timeout: Duration,
) -> anyhow::Result<LoadRun> {
    anyhow::ensure!(batch > 0 && load.connections > 0, "nothing to load with");
    let deadline = Instant::now() + timeout;
    let mut run = LoadRun {
        before: Vec::new(),
        after: Vec::new(),
        errors: Vec::new(),
        amcheck: None,
        first: ServerRun::default(),
        second: None,
    };
    let server = match Server::start(env, dir, conf, left(deadline)?)? {
        Started::Ready(server) => server,
        Started::Ended(ended) => {
            run.first = ended;
            return Ok(run);
        }
    };
    let filled = fill(&server, load, batch, deadline).and_then(|()| ask(&server, load, deadline));
    keep(filled, &mut run.before, &mut run.errors);
    run.first = server.stop(left(deadline)?)?;
    run.first.answered = !run.before.is_empty();

    let server = match Server::start(env, dir, conf, left(deadline)?)? {
        Started::Ready(server) => server,
        Started::Ended(ended) => {
            run.second = Some(ended);
            return Ok(run);
        }
    };
    let asked = ask(&server, load, deadline);
    keep(asked, &mut run.after, &mut run.errors);
    run.amcheck = Some(check::amcheck(env, &server, None, left(deadline)?)?);
    let ended = server.stop(left(deadline)?)?;
    run.second = Some(ServerRun {
        answered: !run.after.is_empty(),
        ..ended
    });
    Ok(run)
}

/// What the server refuses is something seen, not a failure to look.
fn keep(got: anyhow::Result<Vec<Answer>>, to: &mut Vec<Answer>, errors: &mut Vec<String>) {
    match got {
        Ok(answers) => *to = answers,
        Err(e) => errors.push(format!("{e:#}")),
    }
}

/// What is left of the whole workload's time.
fn left(deadline: Instant) -> anyhow::Result<Duration> {
    let left = deadline.checked_duration_since(Instant::now());
    left.context("the time for the whole load is over")
}

fn fill(server: &Server, load: Load, batch: u32, deadline: Instant) -> anyhow::Result<()> {
    let mut client = server.connect(left(deadline)?)?;
    client.batch_execute(SCHEMA).context("create the table")?;
    let hot: Vec<u32> = (0..load.hot()).collect();
    client
        .batch_execute(&insert(&load, &hot))
        .context("insert the first rows")?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..load.connections)
            .map(|conn| scope.spawn(move || one_connection(server, load, batch, conn, deadline)))
            .collect();
        let ends = threads.into_iter().map(|thread| {
            let end = thread.join();
            end.map_err(|_| anyhow::anyhow!("a loading thread panicked"))?
        });
        // All are joined before the first error is returned.
        ends.collect::<Vec<_>>().into_iter().collect()
    })
}

/// Insert every n-th row and make every n-th update, a batch of each in turn.
fn one_connection(
    server: &Server,
    load: Load,
    batch: u32,
    conn: u32,
    deadline: Instant,
) -> anyhow::Result<()> {
    let mut client = server.connect(left(deadline)?)?;
    let mine = |i: &u32| i % load.connections == conn;
    let rows: Vec<u32> = (load.hot()..load.rows).filter(mine).collect();
    let updates: Vec<u32> = (0..load.updates()).filter(mine).collect();
    let mut rows = rows.chunks(batch as usize);
    let mut updates = updates.chunks((batch as usize / 3).max(1));
    loop {
        let (rows, updates) = (rows.next(), updates.next());
        if rows.is_none() && updates.is_none() {
            return Ok(());
        }
        for sql in [
            rows.map(|r| insert(&load, r)),
            updates.map(|u| update(&load, u)),
        ]
        .into_iter()
        .flatten()
        {
            left(deadline)?;
            let done = client.batch_execute(&sql);
            done.with_context(|| format!("connection {conn} loads"))?;
        }
    }
}

fn insert(load: &Load, ids: &[u32]) -> String {
    let mut sql = "INSERT INTO load VALUES ".to_owned();
    for (i, id) in ids.iter().enumerate() {
        let LoadRow { id, grp, val, pad } = load.row(*id);
        let comma = if i == 0 { "" } else { "," };
        // Writing to a String cannot fail; the text is hexadecimal.
        let _ = write!(sql, "{comma}({id},{grp},{val},'{pad}')");
    }
    sql
}

/// The updates as one transaction (a query string is one), by ascending id so
/// that connections cannot lock each other out.
fn update(load: &Load, updates: &[u32]) -> String {
    let mut updates: Vec<_> = updates.iter().map(|u| load.update(*u)).collect();
    updates.sort_unstable();
    let mut sql = String::new();
    for (id, add) in updates {
        let _ = write!(sql, "UPDATE load SET val = val + {add} WHERE id = {id};");
    }
    sql
}

/// Vacuum, then ask what [`Load::answers`] knows.
fn ask(server: &Server, load: Load, deadline: Instant) -> anyhow::Result<Vec<Answer>> {
    let mut client = server.connect(left(deadline)?)?;
    client.batch_execute("VACUUM ANALYZE").context("vacuum")?;
    let hot = format!("SELECT sum(val) FROM load WHERE id < {}", load.hot());
    let single = [
        ("rows", "SELECT count(*) FROM load"),
        ("sum", "SELECT sum(val) FROM load"),
        ("hot", &hot),
        ("pad", "SELECT sum(length(pad)) FROM load"),
    ];
    let mut answers = Vec::new();
    for (name, sql) in single {
        for row in rows(&mut client, sql)? {
            answers.push(Answer {
                name: name.into(),
                value: row.join(" "),
            });
        }
    }
    let groups = "SELECT grp, count(*), sum(val) FROM load GROUP BY grp ORDER BY grp";
    for row in rows(&mut client, groups)? {
        let (grp, rest) = row.split_first().context("a row of nothing")?;
        answers.push(Answer {
            name: format!("group {grp}"),
            value: rest.join(" "),
        });
    }
    Ok(answers)
}

/// A query's rows as the server prints them.
fn rows(client: &mut Client, sql: &str) -> anyhow::Result<Vec<Vec<String>>> {
    let messages = client.simple_query(sql);
    let messages = messages.with_context(|| format!("ask {sql}"))?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let cells = |row: &postgres::SimpleQueryRow| {
        let cell = |i| row.get(i).unwrap_or("NULL").to_owned();
        (0..row.len()).map(cell).collect()
    };
    Ok(rows.map(cells).collect())
}
