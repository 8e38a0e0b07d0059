//! What came of it, as values: samples, medians, ratios.
//!
//! Ratios are taken round by round and then their median: what happens on the host
//! during a round happens to all.

use serde::Serialize;

use super::{
    goals::Judged,
    lines::{Line, Unit},
    servers::{Role, Server},
};
use crate::bench::figures::Summary;

/// Changes whenever the JSON does.
const SCHEMA: u32 = 1;

/// Everything that one call measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Results {
    /// Version of this format.
    pub schema: u32,
    /// `fs`.
    pub bench: &'static str,
    /// Where it ran.
    pub setting: Setting,
    /// What a reader must know.
    pub notes: Vec<String>,
    /// Who was measured.
    pub servers: Vec<Server>,
    /// What was measured.
    pub lines: Vec<LineResult>,
    /// Memory after a walk, where that was asked for.
    pub walks: Vec<Walk>,
    /// The goals, and whether they are met.
    pub goals: Vec<Judged>,
}

/// Where it ran.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setting {
    /// `uname -r`.
    pub kernel: String,
    /// Processors this process may use.
    pub cores: usize,
    /// What the lower directory is.
    pub lower: String,
    /// The version of `passthrough_hp`'s libfuse.
    pub libfuse: String,
    /// How often everything was measured.
    pub rounds: u32,
    /// The load average of the last minute, at the beginning of each round and at the
    /// end. The bench itself is good for one or two.
    pub load: Vec<f64>,
}

/// One line, everybody's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LineResult {
    /// What was measured.
    pub line: Line,
    /// Of its rates.
    pub unit: Unit,
    /// By server, in the order of [`Results::servers`].
    pub of: Vec<ServerResult>,
}

/// One server on one line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServerResult {
    /// Who.
    pub server: String,
    /// How to judge it.
    pub role: Role,
    /// Round by round.
    pub samples: Vec<Sample>,
    /// Why there is no sample in some round.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
}

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sample {
    /// Of which round.
    pub round: u32,
    /// In the line's unit; more is better.
    pub rate: f64,
    /// Operations.
    pub ops: u64,
    /// How long it took.
    pub seconds: f64,
    /// User and system time of the server meanwhile.
    pub server_cpu_s: f64,
}

/// What a server needed to know a tree.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Walk {
    /// Who.
    pub server: String,
    /// How to judge it.
    pub role: Role,
    /// Names walked.
    pub names: u64,
    /// How long it took.
    pub seconds: f64,
    /// Resident memory before and after, in KiB.
    pub rss_kib: [u64; 2],
    /// Open descriptors afterwards.
    pub descriptors: usize,
}

impl Results {
    pub(super) fn new(setting: Setting, notes: Vec<String>, servers: Vec<Server>) -> Self {
        Self {
            schema: SCHEMA,
            bench: "fs",
            setting,
            notes,
            servers,
            lines: Vec::new(),
            walks: Vec::new(),
            goals: Vec::new(),
        }
    }

    /// The line of this name.
    pub fn line(&self, name: &str) -> Option<&LineResult> {
        self.lines.iter().find(|line| line.line.name == name)
    }
}

impl LineResult {
    /// The first server of this role.
    pub fn role(&self, role: Role) -> Option<&ServerResult> {
        self.of.iter().find(|result| result.role == role)
    }

    /// The one of this name.
    pub fn server(&self, name: &str) -> Option<&ServerResult> {
        self.of.iter().find(|result| result.server == name)
    }

    /// The peer with the highest median.
    pub fn best_peer(&self) -> Option<&ServerResult> {
        let peers = self.of.iter().filter(|result| result.role == Role::Peer);
        let rated = peers.filter_map(|peer| Some((peer, peer.rate()?.median)));
        rated
            .max_by(|(_, a), (_, b)| a.total_cmp(b))
            .map(|(peer, _)| peer)
    }

    /// The lowest processor time per operation of any peer, in seconds.
    pub fn least_peer_cpu(&self) -> Option<f64> {
        let peers = self.of.iter().filter(|result| result.role == Role::Peer);
        peers
            .filter_map(ServerResult::cpu_per_op)
            .min_by(f64::total_cmp)
    }
}

impl ServerResult {
    /// Rates in brief; `None` where every round failed.
    pub fn rate(&self) -> Option<Summary> {
        let rates: Vec<_> = self.samples.iter().map(|sample| sample.rate).collect();
        Summary::of(&rates)
    }

    /// Processor seconds of the server per operation, of all rounds together: a round
    /// is a few ticks of the clock.
    pub fn cpu_per_op(&self) -> Option<f64> {
        let cpu: f64 = self.samples.iter().map(|sample| sample.server_cpu_s).sum();
        let ops: u64 = self.samples.iter().map(|sample| sample.ops).sum();
        (ops > 0).then(|| cpu / ops as f64)
    }

    /// This one's rate by the other's, in the rounds that both have.
    pub fn ratio(&self, other: &Self) -> Option<Summary> {
        let pairs = self.samples.iter().filter_map(|ours| {
            let theirs = other.samples.iter().find(|s| s.round == ours.round)?;
            Some(ours.rate / theirs.rate)
        });
        Summary::of(&pairs.collect::<Vec<_>>())
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use crate::bench::fs::{lines, servers::Server};

    /// A server with these rates, one per round, a thousand operations and 10 ms of
    /// processor time in each.
    pub(crate) fn result(server: &str, role: Role, rates: &[f64]) -> ServerResult {
        let samples = rates.iter().zip(1..).map(|(rate, round)| Sample {
            round,
            rate: *rate,
            ops: 1000,
            seconds: 1000.0 / rate,
            server_cpu_s: if role == Role::Native { 0.0 } else { 0.01 },
        });
        ServerResult {
            server: server.to_owned(),
            role,
            samples: samples.collect(),
            errors: Vec::new(),
        }
    }

    /// A line of the catalogue with these results.
    pub(crate) fn line(name: &str, of: Vec<ServerResult>) -> LineResult {
        let line = lines::all()
            .into_iter()
            .find(|line| line.name == name)
            .expect("a line of the catalogue");
        LineResult {
            unit: line.unit(),
            line,
            of,
        }
    }

    /// These lines, measured on a machine that does not exist.
    pub(crate) fn results(lines: Vec<LineResult>) -> Results {
        let setting = Setting {
            kernel: "6.18.44".into(),
            cores: 2,
            lower: "new ext4 on a loop device, image in memory".into(),
            libfuse: "3.17.2-3".into(),
            rounds: 3,
            load: vec![0.5, 2.0, 3.25],
        };
        let mut servers: Vec<Server> = Vec::new();
        for result in lines.iter().flat_map(|line| &line.of) {
            if !servers.iter().any(|server| server.name == result.server) {
                servers.push(Server {
                    name: result.server.clone(),
                    role: result.role,
                    launch: None,
                });
            }
        }
        let mut results = Results::new(setting, vec!["a note".into()], servers);
        results.lines = lines;
        results
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::*, *};

    #[test]
    fn ratios_are_taken_round_by_round() {
        // The host was ten times slower in the second round.
        let ours = result("a", Role::Ours, &[80.0, 9.0, 90.0]);
        let peer = result("b", Role::Peer, &[100.0, 10.0, 80.0]);
        let ratio = ours.ratio(&peer).unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (0.9, 0.8, 1.125));
        // A round that the other has not got is no round.
        let mut peer = peer;
        peer.samples.remove(0);
        assert_eq!(ours.ratio(&peer).unwrap().n, 2);
        peer.samples.clear();
        assert_eq!(ours.ratio(&peer), None);
    }

    #[test]
    fn the_best_peer_has_the_highest_median_and_is_no_floor() {
        let line = line(
            "stat-t1",
            vec![
                result("native", Role::Native, &[900.0]),
                result("ours", Role::Ours, &[500.0]),
                result("a", Role::Peer, &[10.0, 10.0, 400.0]),
                result("b", Role::Peer, &[20.0, 20.0, 20.0]),
                result("floor", Role::Floor, &[800.0]),
            ],
        );
        assert_eq!(line.best_peer().unwrap().server, "b");
        let micros = line.least_peer_cpu().map(|cpu| (cpu * 1e6).round());
        assert_eq!(micros, Some(10.0));
    }
}
