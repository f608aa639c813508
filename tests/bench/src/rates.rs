//! Packet rates: all groups measured, and their table.

use std::fmt;
use std::path::Path;

use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

use crate::cpu;
use crate::groups::Group;
use crate::measure::{self, Measured, Plan, Sample};
use crate::progress::Progress;
use crate::row::{Row, Way, family_name};
use crate::statistics::Summary;

/// Everything about packet rates, as written to JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Rates {
    pub(crate) rounds: usize,
    pub(crate) milliseconds: u64,
    pub(crate) flows_in_order: bool,
    /// The CPU that did everything.
    pub(crate) cpu: usize,
    pub(crate) groups: Vec<Lines>,
}

/// A group of rows, the limits first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Lines {
    pub(crate) title: String,
    pub(crate) name: String,
    pub(crate) rows: Vec<Line>,
    /// For each forwarder to compare with: its rate divided by that of the first one in the same round.
    pub(crate) beside: Vec<Beside>,
}

/// How another forwarder does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Beside {
    pub(crate) name: String,
    pub(crate) of_first: Summary,
}

/// A row as measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) conditions: String,
    pub(crate) family: String,
    pub(crate) flows: u32,
    /// The rows whose multiple this one is: kernel forwarding and nftables in the same conditions.
    pub(crate) kernel: String,
    pub(crate) nftables: String,
    /// Million packets for each second of CPU time.
    pub(crate) mpps: Summary,
    pub(crate) nanoseconds_per_packet: Summary,
    /// Of the limit measured immediately before.
    pub(crate) of_limit: Summary,
    /// The share of packets sent that did not arrive, in the worst repetition.
    pub(crate) lost: f64,
    /// CPU time as a share of the time that passed: how much of the CPU others left.
    pub(crate) cpu_share: Summary,
    /// All repetitions, in order: the row's and the limit's million packets per second of CPU time.
    pub(crate) samples: Vec<[f64; 2]>,
}

/// Measures all groups, one after the other, on one CPU.
pub(crate) fn run(
    groups: &[Group],
    plan: &Plan,
    binaries: &[&Path],
    wanted: Option<usize>,
    progress: &Progress,
) -> anyhow::Result<Rates> {
    let cpu = cpu::pin(wanted)?;
    let groups = groups.iter().map(|group| {
        progress.part(group.title);
        let results = measure::run(group, plan, binaries, &cpu, progress)?;
        Ok(Lines {
            title: group.title.to_owned(),
            name: group.name.to_owned(),
            rows: lines(&results),
            beside: besides(&results),
        })
    });
    Ok(Rates {
        rounds: plan.rounds,
        milliseconds: plan.length.as_millis() as u64,
        flows_in_order: plan.in_order,
        cpu: cpu.number(),
        groups: groups.collect::<anyhow::Result<_>>()?,
    })
}

/// The limits, each of all its samples, and then the rows.
fn lines(results: &[Measured]) -> Vec<Line> {
    let mut limits: Vec<(Row, Vec<Sample>)> = Vec::new();
    for one in results {
        let samples = one.samples.iter().map(|sample| Sample { limit: sample.limit, row: sample.limit });
        let limit = one.row.limit();
        match limits.iter_mut().find(|(row, _)| *row == limit) {
            Some((_, all)) => all.extend(samples),
            None => limits.push((limit, samples.collect())),
        }
    }
    let rows = results.iter().map(|one| (one.row, &one.samples));
    limits.iter().map(|(row, samples)| (*row, samples)).chain(rows).map(|(row, samples)| line(row, samples)).collect()
}

fn besides(results: &[Measured]) -> Vec<Beside> {
    let beside = |one: &Measured| {
        let first = results.iter().find(|other| one.row.binary != 0 && other.row == Row { binary: 0, ..one.row })?;
        let ratios = one.samples.iter().zip(&first.samples).map(|(one, first)| one.row.rate() / first.row.rate());
        Some(Beside { name: one.row.to_string(), of_first: Summary::of(ratios) })
    };
    results.iter().filter_map(beside).collect()
}

fn line(row: Row, samples: &[Sample]) -> Line {
    let summary = |value: fn(&Sample) -> f64| Summary::of(samples.iter().map(value));
    let peer = |way: Way| {
        Row { way, flows: if row.fresh { row.flows } else { 1 << 10 }, rules: None, binary: 0, ..row }.to_string()
    };
    Line {
        name: row.to_string(),
        description: row.description().to_owned(),
        conditions: row.conditions(),
        family: family_name(row.family).to_owned(),
        flows: row.flows,
        kernel: Row { way: Way::Kernel, ..row.limit() }.to_string(),
        nftables: peer(Way::Nftables),
        mpps: summary(|sample| sample.row.rate() / 1e6),
        nanoseconds_per_packet: summary(|sample| 1e9 / sample.row.rate()),
        of_limit: summary(|sample| sample.row.rate() / sample.limit.rate()),
        lost: samples.iter().map(|sample| sample.row.lost()).fold(0.0, f64::max),
        cpu_share: summary(|sample| sample.row.cpu.as_secs_f64() / sample.row.wall.as_secs_f64()),
        samples: samples.iter().map(|sample| [sample.row.rate() / 1e6, sample.limit.rate() / 1e6]).collect(),
    }
}

impl Rates {
    /// The line of that name, whichever group it is in.
    pub(crate) fn line(&self, name: &str) -> Option<&Line> {
        self.groups.iter().flat_map(|group| &group.rows).find(|line| line.name == name)
    }

    /// How many times the rate of the row called `peer` a line has, both beside their limits.
    pub(crate) fn times(&self, line: &Line, peer: &str) -> Option<f64> {
        self.line(peer).map(|peer| line.of_limit.median / peer.of_limit.median)
    }

    /// How it was measured, for people.
    pub(crate) fn method(&self) -> String {
        let order = if self.flows_in_order { "in the order they were made" } else { "in scattered order" };
        format!(
            "UDP, 64 bytes (IPv6: 70) on the wire unless said otherwise; {} rounds of {} ms on CPU {}; flows visited {order}.\n\
             Rates are for each second of CPU time. Ratios are to the limit measured immediately before: median (middle half).",
            self.rounds, self.milliseconds, self.cpu
        )
    }
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.method())?;
        for group in &self.groups {
            let mut table = Table::new();
            table.load_preset(presets::UTF8_BORDERS_ONLY);
            let title = format!("{}, packets", group.title);
            table.set_header([&title, "", "Mpps", "ns", "of the limit", "× kernel", "× nftables", "lost"]);
            for line in &group.rows {
                let times = |peer| self.times(line, peer).map_or_else(String::new, |times| format!("{times:.2}"));
                let Summary { median, lower, upper } = line.of_limit;
                table.add_row([
                    format!("IP{} {}", line.family, line.description),
                    line.conditions.clone(),
                    format!("{:.2}", line.mpps.median),
                    format!("{:.0}", line.nanoseconds_per_packet.median),
                    format!("{median:.2} ({lower:.2}–{upper:.2})"),
                    times(&line.kernel),
                    times(&line.nftables),
                    if line.lost == 0.0 { String::new() } else { format!("{:.2} %", 100.0 * line.lost) },
                ]);
            }
            for column in table.column_iter_mut().skip(2) {
                column.set_cell_alignment(CellAlignment::Right);
            }
            writeln!(f, "{table}")?;
            for Beside { name, of_first: Summary { median, lower, upper } } in &group.beside {
                writeln!(f, "{name}: {median:.3} ({lower:.3}–{upper:.3}) of the first forwarder's rate")?;
            }
        }
        Ok(())
    }
}
