//! The result, for people and for programs.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use forwarder_lab::Family;
use serde::Serialize;

use crate::machine::Machine;
use crate::measure::{Measured, Plan, Sample};
use crate::row::{Row, Way, family_name};
use crate::statistics::Summary;

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    rounds: usize,
    milliseconds: u128,
    flows_in_order: bool,
    limits: Vec<Line>,
    rows: Vec<Line>,
    /// For each forwarder to compare with: its rate divided by that of the first one in the same round.
    beside: Vec<Beside>,
}

#[derive(Debug, Serialize)]
struct Beside {
    name: String,
    of_first: Summary,
}

#[derive(Debug, Serialize)]
struct Line {
    name: String,
    description: &'static str,
    /// Which of several forwarders.
    #[serde(skip)]
    binary: String,
    family: &'static str,
    flows: u32,
    /// Million packets for each second of CPU time.
    mpps: Summary,
    nanoseconds_per_packet: Summary,
    /// Of the limit measured immediately before.
    of_limit: Summary,
    /// The share of packets sent that did not arrive, in the worst repetition.
    lost: f64,
    /// CPU time as a share of the time that passed: how much of the CPU others left.
    cpu_share: Summary,
    /// All repetitions, in order: the row's and the limit's million packets per second of CPU time.
    samples: Vec<[f64; 2]>,
}

impl Report {
    pub(crate) fn new(machine: Machine, plan: &Plan, results: &[Measured]) -> Self {
        let limits = Family::ALL.into_iter().filter_map(|family| {
            let of_family = results.iter().filter(|one| one.row.family == family);
            let samples: Vec<Sample> = of_family
                .flat_map(|one| one.samples.iter().map(|sample| Sample { limit: sample.limit, row: sample.limit }))
                .collect();
            (!samples.is_empty()).then(|| line(Row::limit(family), &samples))
        });
        Self {
            machine,
            rounds: plan.rounds,
            milliseconds: plan.length.as_millis(),
            flows_in_order: plan.in_order,
            limits: limits.collect(),
            rows: results.iter().map(|one| line(one.row, &one.samples)).collect(),
            beside: results.iter().filter_map(|one| beside(one, results)).collect(),
        }
    }
}

fn beside(one: &Measured, results: &[Measured]) -> Option<Beside> {
    let first = results.iter().find(|other| one.row.binary != 0 && other.row == Row { binary: 0, ..one.row })?;
    let ratios = one.samples.iter().zip(&first.samples).map(|(one, first)| one.row.rate() / first.row.rate());
    Some(Beside { name: one.row.to_string(), of_first: Summary::of(ratios) })
}

fn line(row: Row, samples: &[Sample]) -> Line {
    let summary = |value: fn(&Sample) -> f64| Summary::of(samples.iter().map(value));
    Line {
        name: row.to_string(),
        description: row.description(),
        binary: if row.binary == 0 { String::new() } else { format!(" [beside-{}]", row.binary) },
        family: family_name(row.family),
        flows: row.flows,
        mpps: summary(|sample| sample.row.rate() / 1e6),
        nanoseconds_per_packet: summary(|sample| 1e9 / sample.row.rate()),
        of_limit: summary(|sample| sample.row.rate() / sample.limit.rate()),
        lost: samples.iter().map(|sample| sample.row.lost()).fold(0.0, f64::max),
        cpu_share: summary(|sample| sample.row.cpu.as_secs_f64() / sample.row.wall.as_secs_f64()),
        samples: samples.iter().map(|sample| [sample.row.rate() / 1e6, sample.limit.rate() / 1e6]).collect(),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = if self.flows_in_order { "in the order they were made" } else { "in scattered order" };
        writeln!(f, "{}", self.machine)?;
        writeln!(
            f,
            "UDP, 64 bytes (IPv6: 70) on the wire; {} rounds of {} ms; flows visited {order}.\n\
             Rates are for each second of CPU time. Ratios are to the limit measured immediately before: median (middle half).",
            self.rounds, self.milliseconds
        )?;
        let mut table = Table::new();
        table.load_preset(presets::UTF8_BORDERS_ONLY);
        table.set_header(["", "flows", "Mpps", "ns", "of the limit", "× kernel", "× nftables", "lost"]);
        for family in Family::ALL.map(family_name) {
            let of_family = |lines: &[Line]| lines.iter().filter(|line| line.family == family).count();
            if of_family(&self.rows) == 0 {
                continue;
            }
            let peer = |way: Way| {
                let name = Row { way, ..Row::limit(if family == "v4" { Family::V4 } else { Family::V6 }) }.to_string();
                self.rows.iter().find(|line| line.name == name).map(|line| line.of_limit.median)
            };
            let (kernel, nftables) = (peer(Way::Kernel), peer(Way::Nftables));
            for line in self.limits.iter().chain(&self.rows).filter(|line| line.family == family) {
                let times = |peer: Option<f64>| {
                    peer.map_or_else(String::new, |peer| format!("{:.2}", line.of_limit.median / peer))
                };
                let Summary { median, lower, upper } = line.of_limit;
                table.add_row([
                    format!("IP{family}  {}{}", line.description, line.binary),
                    line.flows.to_string(),
                    format!("{:.2}", line.mpps.median),
                    format!("{:.0}", line.nanoseconds_per_packet.median),
                    format!("{median:.2} ({lower:.2}–{upper:.2})"),
                    times(kernel),
                    times(nftables),
                    if line.lost == 0.0 { String::new() } else { format!("{:.2} %", 100.0 * line.lost) },
                ]);
            }
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        write!(f, "{table}")?;
        for Beside { name, of_first: Summary { median, lower, upper } } in &self.beside {
            write!(f, "\n{name}: {median:.3} ({lower:.3}–{upper:.3}) of the first forwarder's rate")?;
        }
        Ok(())
    }
}
