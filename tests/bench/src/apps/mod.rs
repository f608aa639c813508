//! Applications: what connections of ordinary programs get, over kernel TCP, next to what else could carry them.

mod contender;
mod ends;
mod load;
mod relay;
mod server;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

use self::contender::{Carrier, Contender};
pub(crate) use self::ends::End;
use self::relay::Relay;
use crate::progress::Progress;
use crate::selection::Selection;
use crate::statistics::Summary;

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Load {
    Bulk,
    BulkNodelay,
    Both,
    Full,
    Fresh,
    Light,
}

/// What is measured of it: a name for programs, a heading for people.
type Metric = (&'static str, &'static str);

impl Load {
    const ALL: [Self; 6] = [Self::Bulk, Self::BulkNodelay, Self::Both, Self::Full, Self::Fresh, Self::Light];

    const fn name(self) -> &'static str {
        match self {
            Self::Bulk => "bulk",
            Self::BulkNodelay => "bulk-nodelay",
            Self::Both => "both",
            Self::Full => "full",
            Self::Fresh => "fresh",
            Self::Light => "light",
        }
    }

    const fn metrics(self) -> &'static [Metric] {
        match self {
            Self::Bulk | Self::BulkNodelay => &[("gbps", "bulk Gbit/s"), ("cpu-s-per-gb", "CPU s/GB")],
            Self::Both => &[("gbps", "both ways Gbit/s")],
            Self::Full => {
                &[("per-second", "requests/s"), ("p50-us", "p50 µs"), ("p99-us", "p99 µs"), ("p999-us", "p99.9 µs")]
            }
            Self::Fresh => {
                &[("per-second", "connections/s"), ("p50-us", "p50 µs"), ("p99-us", "p99 µs"), ("p999-us", "p99.9 µs")]
            }
            Self::Light => &[("p50-us", "p50 µs"), ("p99-us", "p99 µs"), ("p999-us", "p99.9 µs")],
        }
    }

    /// One measurement: a value for each metric.
    fn measure(self, carrier: &Carrier, duration: Duration) -> Result<Vec<f64>> {
        let before = carrier.cpu_time()?;
        let mut done = ends::load(&carrier.net.client, self, carrier.server, duration)?;
        if matches!(self, Self::Bulk | Self::BulkNodelay) {
            let cpu = done.cpu + carrier.cpu_time()?.saturating_sub(before);
            done.values.push(cpu.as_secs_f64() / (done.bytes as f64 * 1e-9));
        }
        Ok(done.values)
    }
}

/// Everything about applications, as written to JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Apps {
    pub(crate) rounds: usize,
    pub(crate) milliseconds: u64,
    /// Versions of the relays, and who was left out and why.
    pub(crate) notes: Vec<String>,
    pub(crate) rows: Vec<AppRow>,
}

/// One kind of load by one contender.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AppRow {
    /// tcp/LOAD/CONTENDER
    pub(crate) name: String,
    pub(crate) load: String,
    pub(crate) contender: String,
    pub(crate) description: String,
    pub(crate) values: Vec<Value>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Value {
    pub(crate) metric: String,
    pub(crate) heading: String,
    pub(crate) measured: Summary,
    /// Beside nftables in the same round; nothing if nftables was not measured.
    pub(crate) of_nftables: Option<Summary>,
}

/// What is to be measured.
pub(crate) struct Plan {
    rows: Vec<(Load, Contender)>,
    pub(crate) rounds: usize,
    pub(crate) length: Duration,
}

const QUICK: [&str; 4] = ["tcp/bulk/nftables", "tcp/bulk/forwarder", "tcp/light/nftables", "tcp/light/forwarder"];

fn name(load: Load, contender: Contender) -> String {
    format!("tcp/{}/{}", load.name(), contender.name())
}

impl Plan {
    pub(crate) fn new(selection: &Selection, rounds: usize, length: Duration) -> Self {
        let wanted = |load: Load, contender: Contender| selection.wants(&name(load, contender), &QUICK);
        let rows = Load::ALL
            .into_iter()
            .flat_map(|load| Contender::ALL.map(|contender| (load, contender)))
            .filter(|(load, contender)| wanted(*load, *contender))
            .collect();
        Self { rows, rounds, length }
    }

    /// The names of its rows.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        self.rows.iter().map(|(load, contender)| name(*load, *contender))
    }

    /// How many steps of progress [`run`] makes.
    pub(crate) fn steps(&self) -> usize {
        self.rows.len() * self.rounds
    }
}

pub(crate) fn run(plan: &Plan, binary: &Path, peers: &Path, progress: &Progress) -> Result<Apps> {
    progress.part("Applications");
    let mut notes = Vec::new();
    let mut carriers = Vec::new();
    for contender in Contender::ALL {
        if !plan.rows.iter().any(|(_, wanted)| *wanted == contender) {
            continue;
        }
        if let Some(reason) = contender.missing(peers) {
            notes.push(reason);
            continue;
        }
        if let Contender::Relay(relay) = contender {
            notes.extend(version(relay, peers));
        }
        progress.show(format!("setting up {}", contender.description()));
        carriers.push(Carrier::build(contender, binary, peers)?);
    }
    let mut measured: BTreeMap<String, Vec<Vec<f64>>> = BTreeMap::new();
    let mut rows = plan.rows.clone();
    for round in 1..=plan.rounds {
        // Everybody comes after everybody else: what one leaves behind in caches is for another in turn.
        rows.reverse();
        for (load, contender) in &rows {
            let name = name(*load, *contender);
            progress.show(format!("Applications: round {round} of {}: {name}", plan.rounds));
            if let Some(carrier) = carriers.iter().find(|carrier| carrier.contender == *contender) {
                let values = load.measure(carrier, plan.length).with_context(|| format!("{name} failed"))?;
                measured.entry(name).or_default().push(values);
            }
            progress.step();
        }
    }
    carriers.iter().try_for_each(Carrier::check_hook)?;
    let rows = plan.rows.iter().filter_map(|(load, contender)| {
        let rounds = measured.get(&name(*load, *contender))?;
        Some(row(*load, *contender, rounds, measured.get(&format!("tcp/{}/nftables", load.name()))))
    });
    let rows = rows.collect();
    Ok(Apps { rounds: plan.rounds, milliseconds: plan.length.as_millis() as u64, notes, rows })
}

fn version(relay: Relay, peers: &Path) -> Option<String> {
    relay.version(peers)
}

fn row(load: Load, contender: Contender, rounds: &[Vec<f64>], nftables: Option<&Vec<Vec<f64>>>) -> AppRow {
    let values = load.metrics().iter().enumerate().map(|(index, (metric, heading))| {
        let of =
            |rounds: &[Vec<f64>]| -> Vec<f64> { rounds.iter().filter_map(|round| round.get(index).copied()).collect() };
        let values = of(rounds);
        let of_nftables = nftables.map(|peer| Summary::of(values.iter().zip(of(peer)).map(|(one, peer)| one / peer)));
        Value {
            metric: (*metric).to_owned(),
            heading: (*heading).to_owned(),
            measured: Summary::of(values),
            of_nftables,
        }
    });
    AppRow {
        name: name(load, contender),
        load: load.name().to_owned(),
        contender: contender.name().to_owned(),
        description: contender.description().to_owned(),
        values: values.collect(),
    }
}

impl Apps {
    /// Of the row and metric, for example `tcp/bulk/forwarder` and `gbps`.
    pub(crate) fn value(&self, name: &str, metric: &str) -> Option<&Value> {
        let row = self.rows.iter().find(|row| row.name == name)?;
        row.values.iter().find(|value| value.metric == metric)
    }

    /// The rows of each kind of load, with what the load is.
    pub(crate) fn loads(&self) -> impl Iterator<Item = (&'static str, Vec<&AppRow>)> {
        Load::ALL.into_iter().filter_map(|load| {
            let rows: Vec<&AppRow> = self.rows.iter().filter(|row| row.load == load.name()).collect();
            (!rows.is_empty()).then_some((load.title(), rows))
        })
    }

    /// How it was measured, for people.
    pub(crate) fn method(&self) -> String {
        format!(
            "Applications over kernel TCP, IPv4, veth with default offloads unless said otherwise; {} rounds of {} ms.\n\
             Medians; in parentheses beside nftables in the same round.",
            self.rounds, self.milliseconds
        )
    }
}

impl Load {
    /// For people.
    const fn title(self) -> &'static str {
        match self {
            Self::Bulk => "one connection, bytes one way",
            Self::BulkNodelay => "the same, the sender with TCP_NODELAY",
            Self::Both => "two connections, bytes both ways",
            Self::Full => "full load: 32 connections, 128-byte requests, 1 KiB answers",
            Self::Fresh => "a connection for each request, 8 clients",
            Self::Light => "light load: one connection, 1000 requests a second",
        }
    }
}

/// As precise as three digits.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

impl Value {
    /// Whether it is a rate, rather than a time or a cost.
    pub(crate) fn more_is_better(&self) -> bool {
        matches!(self.metric.as_str(), "gbps" | "per-second")
    }

    /// For people: the median, and how it is beside nftables.
    pub(crate) fn text(&self) -> String {
        let times = self.of_nftables.map_or_else(String::new, |times| format!(" ({:.2})", times.median));
        short(self.measured.median) + &times
    }
}

impl fmt::Display for Apps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.method())?;
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        for (title, rows) in self.loads() {
            let mut table = Table::new();
            table.load_preset(presets::UTF8_BORDERS_ONLY);
            let headings =
                rows.first().into_iter().flat_map(|row| row.values.iter().map(|value| value.heading.clone()));
            table.set_header(std::iter::once(title.to_owned()).chain(headings));
            for row in rows {
                table.add_row(std::iter::once(row.description.clone()).chain(row.values.iter().map(Value::text)));
            }
            for column in table.column_iter_mut().skip(1) {
                column.set_cell_alignment(CellAlignment::Right);
            }
            writeln!(f, "{table}")?;
        }
        Ok(())
    }
}
