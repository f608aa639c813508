//! Control: what it takes to load rules, to change one, and to hold flows.

mod tool;
mod traffic;

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets};
use forwarder_lab::Family;
use serde::{Deserialize, Serialize};

use self::tool::{Tool, Workplace};
use crate::apps::short;
use crate::forwarding;
use crate::progress::Progress;
use crate::row::count;
use crate::selection::Selection;
use crate::statistics::Summary;

/// How the names of peers begin, longest first.
const TOOLS: [&str; 3] = ["/nftables-element", "/nftables", "/iptables"];
/// Peers that are this much better are named.
const CLEARLY: f64 = 1.03;
const ROUNDS_OF_MANY: usize = 3;
const COUNTS: [u32; 3] = [1, 1000, 100_000];
/// Rules among which one changes.
const CHANGING: [u32; 2] = [1000, 100_000];

/// Something to find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    /// How long loading so many rules takes.
    Load(Tool, u32),
    /// How long it takes from the command that loads one rule to the first packet that arrives.
    FirstPacket(Tool),
    /// How long it takes to change one of so many rules, and how many packets are lost meanwhile.
    Change(Tool, u32),
    /// The same by nftables, naming only what changes.
    ChangeElement(u32),
    /// Memory for each flow.
    FlowMemory,
    /// Memory for each rule.
    RuleMemory,
    /// Memory of an entry of conntrack.
    ConntrackMemory,
}

impl Question {
    fn all() -> Vec<Self> {
        let each = |question: fn(Tool, u32) -> Self, counts: &'static [u32]| {
            Tool::ALL.into_iter().flat_map(move |tool| counts.iter().map(move |count| question(tool, *count)))
        };
        each(Self::Load, &COUNTS)
            .chain(Tool::ALL.map(Self::FirstPacket))
            .chain(each(Self::Change, &CHANGING))
            .chain(CHANGING.map(Self::ChangeElement))
            .chain([Self::FlowMemory, Self::RuleMemory, Self::ConntrackMemory])
            .collect()
    }

    fn name(self) -> String {
        match self {
            Self::Load(tool, rules) => format!("control/load/{}/{}", tool.name(), count(rules)),
            Self::FirstPacket(tool) => format!("control/first-packet/{}", tool.name()),
            Self::Change(tool, rules) => format!("control/change/{}/{}", tool.name(), count(rules)),
            Self::ChangeElement(rules) => format!("control/change/nftables-element/{}", count(rules)),
            Self::FlowMemory => "control/memory/flow".to_owned(),
            Self::RuleMemory => "control/memory/rule".to_owned(),
            Self::ConntrackMemory => "control/memory/conntrack".to_owned(),
        }
    }

    fn description(self) -> String {
        let rules = |rules: u32| format!("{} rule{}", count(rules), if rules == 1 { "" } else { "s" });
        match self {
            Self::Load(tool, number) => format!("{}, {}", tool.loads_by(), rules(number)),
            Self::FirstPacket(tool) => format!("{} of one rule, to the first packet that arrives", tool.loads_by()),
            Self::Change(tool, number) => format!("{}, one of {}", tool.changes_by(), rules(number)),
            Self::ChangeElement(number) => format!("nft, only the element, one of {}", rules(number)),
            Self::FlowMemory => "forwarder, room for a flow (both families)".to_owned(),
            Self::RuleMemory => "forwarder, room for a rule (both families)".to_owned(),
            Self::ConntrackMemory => "conntrack, an entry (slab object)".to_owned(),
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Load(..) | Self::FirstPacket(_) => "From nothing to rules",
            Self::Change(..) | Self::ChangeElement(_) => "One rule changed while 20 000 packets a second flow",
            Self::FlowMemory | Self::RuleMemory | Self::ConntrackMemory => "Memory",
        }
    }

    /// How often to look: what takes seconds each time varies little.
    fn rounds(self, rounds: usize) -> usize {
        match self {
            Self::Load(_, count) | Self::Change(_, count) | Self::ChangeElement(count) if count > 10_000 => {
                rounds.min(ROUNDS_OF_MANY)
            }
            _ => rounds,
        }
    }

    fn answer(self, binary: &Path, rounds: usize) -> Result<Vec<Value>> {
        let rounds = self.rounds(rounds);
        match self {
            Self::Load(tool, rules) => {
                let place = Workplace::build(tool, binary)?;
                let file = place.file("rules", &place.rules(rules as usize)?, "")?;
                let load = || -> Result<Duration> {
                    let took = place.load(&file)?;
                    place.unload()?;
                    Ok(took)
                };
                Ok(vec![milliseconds(rounds, load)?])
            }
            Self::FirstPacket(tool) => {
                let place = Workplace::build(tool, binary)?;
                let file = place.file("rules", &place.rules(1)?, "")?;
                let (net, to) = (&place.net, place.net.public(Family::V4, 8000));
                let backend = net.backend(Family::V4, 9000);
                let load = || -> Result<Duration> {
                    let took = traffic::first_arrival(&net.client, to, &net.home, backend, || place.load(&file))?;
                    place.unload()?;
                    Ok(took)
                };
                Ok(vec![milliseconds(rounds, load)?])
            }
            Self::Change(tool, rules) => change(tool, rules, binary, rounds),
            Self::ChangeElement(rules) => change_element(rules, binary, rounds),
            Self::FlowMemory => {
                let limits = |flows: u32| format!("[limits]\nflows = {flows}\n");
                Ok(vec![memory(binary, limits, [65_536, 262_144])?])
            }
            Self::RuleMemory => {
                let limits = |rules: u32| format!("[limits]\nrules = {rules}\n");
                Ok(vec![memory(binary, limits, [4096, 102_400])?])
            }
            Self::ConntrackMemory => {
                Ok(slab_object("nf_conntrack").into_iter().map(|size| bytes(size as f64)).collect())
            }
        }
    }
}

/// One of many rules leads elsewhere and back again, while packets flow by another one.
fn change(tool: Tool, rules: u32, binary: &Path, rounds: usize) -> Result<Vec<Value>> {
    let place = Workplace::build(tool, binary)?;
    let mut rules = place.rules(rules as usize)?;
    let one = place.file("one", &rules, "")?;
    if let Some((_, to)) = rules.ways.last_mut() {
        to.set_port(to.port() ^ 1 << 15);
    }
    let other = place.file("other", &rules, "")?;
    place.load(&one)?;
    changes(&place, rounds, |round| place.change(if round % 2 == 0 { &other } else { &one }))
}

fn change_element(rules: u32, binary: &Path, rounds: usize) -> Result<Vec<Value>> {
    let place = Workplace::build(Tool::Nftables, binary)?;
    let rules = place.rules(rules as usize)?;
    place.load(&place.file("one", &rules, "")?)?;
    let (listen, to) = rules.ways.last().context("no rules")?;
    let key = format!("{} . {}", listen.ip(), listen.port());
    let element = |port: u16| {
        format!(
            "delete element ip bench ways {{ {key} }}\nadd element ip bench ways {{ {key} : {} . {port} }}\n",
            to.ip()
        )
    };
    let files = [to.port() ^ 1 << 15, to.port()]
        .map(|port| forwarding::file(&place.net, &format!("{port}.nft"), &element(port)));
    let [other, one] = files;
    let (other, one) = (other?, one?);
    changes(&place, rounds, |round| place.change(if round % 2 == 0 { &other } else { &one }))
}

fn changes(place: &Workplace, rounds: usize, change: impl Fn(usize) -> Result<Duration>) -> Result<Vec<Value>> {
    let net = &place.net;
    let (to, backend) = (net.public(Family::V4, 8000), net.backend(Family::V4, 9000));
    let (mut times, mut lost, mut sent) = (Vec::new(), Vec::new(), 0);
    for round in 0..rounds {
        let (took, flowed) = traffic::during(&net.client, to, &net.home, backend, || change(round))?;
        times.push(took.as_secs_f64() * 1e3);
        lost.push(flowed.lost as f64);
        sent += flowed.sent;
    }
    let note = format!("of {} sent each time", sent / rounds as u64);
    Ok(vec![
        Value { unit: "ms".to_owned(), measured: Summary::of(times), note: String::new() },
        Value { unit: "packets lost".to_owned(), measured: Summary::of(lost), note },
    ])
}

/// What one more of something costs: forwarder's memory with two sizes of tables.
fn memory(binary: &Path, limits: impl Fn(u32) -> String, [few, many]: [u32; 2]) -> Result<Value> {
    let place = Workplace::build(Tool::Forwarder, binary)?;
    let rules = place.rules(1)?;
    let of = |number: u32| -> Result<u64> {
        place.load(&place.file("rules", &rules, &limits(number))?)?;
        let memory = place.memory()?;
        place.unload()?;
        Ok(memory)
    };
    let (less, more) = (of(few)?, of(many)?);
    Ok(bytes(more.saturating_sub(less) as f64 / f64::from(many - few)))
}

/// The size of the objects of one of the kernel's caches, if it has it by itself.
fn slab_object(name: &str) -> Option<u64> {
    let caches = fs::read_to_string("/proc/slabinfo").ok()?;
    let line = caches.lines().find(|line| line.split_whitespace().next() == Some(name))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

fn bytes(value: f64) -> Value {
    Value { unit: "bytes".to_owned(), measured: Summary::of([value]), note: String::new() }
}

fn milliseconds(rounds: usize, mut action: impl FnMut() -> Result<Duration>) -> Result<Value> {
    let times: Vec<f64> = (0..rounds).map(|_| Ok(action()?.as_secs_f64() * 1e3)).collect::<Result<_>>()?;
    Ok(Value { unit: "ms".to_owned(), measured: Summary::of(times), note: String::new() })
}

/// Everything about control, as written to JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Control {
    pub(crate) rounds: usize,
    pub(crate) rows: Vec<ControlRow>,
}

/// An answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ControlRow {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) description: String,
    pub(crate) values: Vec<Value>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Value {
    pub(crate) unit: String,
    pub(crate) measured: Summary,
    pub(crate) note: String,
}

/// What is to be found out.
pub(crate) struct Plan {
    questions: Vec<Question>,
    rounds: usize,
}

impl Plan {
    pub(crate) fn new(selection: &Selection, rounds: usize) -> Self {
        let mut questions = Question::all();
        questions.retain(|question| selection.wants(&question.name(), &[]));
        Self { questions, rounds }
    }

    /// The names of its rows.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        self.questions.iter().map(|question| question.name())
    }

    /// How many steps of progress [`run`] makes.
    pub(crate) fn steps(&self) -> usize {
        self.questions.len()
    }
}

pub(crate) fn run(plan: &Plan, binary: &Path, progress: &Progress) -> Result<Control> {
    progress.part("Control");
    let rows = plan.questions.iter().map(|question| {
        let name = question.name();
        progress.show(format!("Control: {name}"));
        let values = question.answer(binary, plan.rounds).with_context(|| format!("{name} failed"))?;
        progress.step();
        Ok(ControlRow { name, title: question.title().to_owned(), description: question.description(), values })
    });
    let rows: Result<Vec<ControlRow>> = rows.collect();
    let mut rows = rows?;
    rows.retain(|row| !row.values.is_empty());
    Ok(Control { rounds: plan.rounds, rows })
}

impl Control {
    /// The rows under each title.
    pub(crate) fn titles(&self) -> Vec<(&str, Vec<&ControlRow>)> {
        let mut titles: Vec<(&str, Vec<&ControlRow>)> = Vec::new();
        for row in &self.rows {
            match titles.iter_mut().find(|(title, _)| *title == row.title) {
                Some((_, rows)) => rows.push(row),
                None => titles.push((&row.title, vec![row])),
            }
        }
        titles
    }
}

impl Control {
    /// Where a peer took less time, or lost fewer packets, than forwarder: a sentence for each.
    pub(crate) fn losses(&self) -> Vec<String> {
        let mut sentences = Vec::new();
        for row in &self.rows {
            let ours = TOOLS.iter().find_map(|tool| {
                let name = row.name.replacen(tool, "/forwarder", 1);
                self.rows.iter().find(|other| name != row.name && other.name == name)
            });
            let pairs =
                ours.into_iter().flat_map(|ours| row.values.iter().zip(&ours.values).map(move |pair| (ours, pair)));
            for (ours, (their, our)) in pairs {
                if their.measured.median * CLEARLY < our.measured.median {
                    sentences.push(format!(
                        "{}: {}; {}: {}",
                        row.description,
                        their.text(),
                        ours.description,
                        our.text()
                    ));
                }
            }
        }
        sentences
    }
}

impl Value {
    /// For people: the median, and between which values the middle half of all is.
    pub(crate) fn text(&self) -> String {
        let Summary { median, lower, upper } = self.measured;
        let spread = if lower < upper { format!(" ({}–{})", short(lower), short(upper)) } else { String::new() };
        let number = if median == 0.0 { "0".to_owned() } else { short(median) };
        format!("{number}{spread} {} {}", self.unit, self.note).trim().to_owned()
    }
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Control, IPv4; {} rounds: median (middle half).", self.rounds)?;
        for (title, rows) in self.titles() {
            let mut table = Table::new();
            table.load_preset(presets::UTF8_BORDERS_ONLY);
            let columns = rows.iter().map(|row| row.values.len()).max().unwrap_or_default();
            table.set_header(std::iter::once(title).chain(std::iter::repeat_n("", columns)));
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
