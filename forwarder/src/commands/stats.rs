//! `stats`: the counters, for people, programs and Prometheus.

use std::{io::Write, path::Path};

use anyhow::Result;
use forwarder_common::{
    abi::{InterfaceCounters, RuleCounters, Traffic},
    verdict::{Kind, Outcome},
};
use serde_json::{Map, Value, json};

use super::{Instance, require_reading, table};
use crate::{
    bpf::counters::Counters,
    cli::{Stats, StatsFormat},
    config::Mode,
    state::UplinkState,
};

mod prometheus;

/// Everything that is counted, with the names it is shown by.
pub struct Snapshot {
    /// Name and counters of each rule, in the order of the configuration; the lines last.
    pub rules: Vec<(String, RuleCounters)>,
    /// How many of them are lines: theirs are packets that leave by them, forwarded ones and the machine's own.
    pub lines: usize,
    /// Each interface.
    pub interfaces: Vec<InterfaceSnapshot>,
    /// Each line that has a name.
    pub uplinks: Vec<UplinkState>,
}

/// The counters of an interface.
pub struct InterfaceSnapshot {
    /// Its name.
    pub name: String,
    /// The mode it is served in.
    pub mode: Mode,
    /// What happened there.
    pub counters: InterfaceCounters,
}

/// Runs the command.
pub fn run(pins: &Path, options: Stats, out: &mut dyn Write) -> Result<()> {
    require_reading()?;
    let snapshot = read(&Instance::open(pins)?)?;
    match options.format {
        StatsFormat::Json => writeln!(out, "{:#}", to_json(&snapshot))?,
        StatsFormat::Prometheus => write!(out, "{}", prometheus::text(&snapshot))?,
        StatsFormat::Table => write!(out, "{}", to_table(&snapshot))?,
    }
    Ok(())
}

fn read(instance: &Instance) -> Result<Snapshot> {
    let counters = Counters::open(&instance.pins)?;
    let state = &instance.state;
    let mut rules = Vec::new();
    for name in state.names() {
        let counted = state.counters.get(name).map(|counter| counters.rule(*counter)).transpose()?;
        rules.push((name.clone(), counted.unwrap_or_default()));
    }
    let mut interfaces = Vec::new();
    for one in &state.interfaces {
        let counters = counters.interface(one.slot)?;
        interfaces.push(InterfaceSnapshot { name: one.name.clone(), mode: one.mode, counters });
    }
    Ok(Snapshot { rules, lines: state.steers.len(), interfaces, uplinks: state.uplinks.clone() })
}

fn to_json(snapshot: &Snapshot) -> Value {
    let traffic = |traffic: Traffic| json!({ "packets": traffic.packets, "bytes": traffic.bytes });
    let rules: Vec<Value> = snapshot
        .rules
        .iter()
        .map(|(name, counters)| {
            json!({
                "name": name,
                "forward": traffic(counters.forward),
                "reply": traffic(counters.reply),
                "flows": counters.flows,
                "denied": counters.denied,
                "unprotected": counters.unprotected,
                "port_clashes": counters.port_clashes,
            })
        })
        .collect();
    let outcomes = |counts: &[u64]| -> Map<String, Value> {
        Outcome::ALL.iter().zip(counts).map(|(outcome, count)| (outcome.name().to_owned(), json!(count))).collect()
    };
    let interfaces: Vec<Value> = snapshot
        .interfaces
        .iter()
        .map(|one| {
            json!({
                "name": one.name,
                "mode": one.mode,
                "xdp": outcomes(&one.counters.xdp),
                "tc": outcomes(&one.counters.tc),
                "egress": outcomes(&one.counters.egress),
            })
        })
        .collect();
    let uplinks: Vec<Value> = snapshot
        .uplinks
        .iter()
        .map(|one| json!({ "name": one.name, "up": one.up, "since": one.since, "changes": one.changes }))
        .collect();
    json!({ "rules": rules, "interfaces": interfaces, "uplinks": uplinks })
}

fn to_table(snapshot: &Snapshot) -> String {
    let mut rules =
        table::table(["RULE", "DIRECTION", "PACKETS", "BYTES", "FLOWS", "DENIED", "UNPROTECTED", "PORT CLASHES"]);
    let first_line = snapshot.rules.len().saturating_sub(snapshot.lines);
    for (index, (name, counters)) in snapshot.rules.iter().enumerate() {
        let [forward, reply] = if index < first_line { ["to backend", "to client"] } else { ["forwarded", "our own"] };
        let traffic = |traffic: Traffic| (traffic.packets.to_string(), table::bytes(traffic.bytes));
        let ((packets, bytes), (reply_packets, reply_bytes)) = (traffic(counters.forward), traffic(counters.reply));
        rules.add_row([
            name.clone(),
            forward.to_owned(),
            packets,
            bytes,
            counters.flows.to_string(),
            counters.denied.to_string(),
            counters.unprotected.to_string(),
            counters.port_clashes.to_string(),
        ]);
        rules.add_row([String::new(), reply.to_owned(), reply_packets, reply_bytes]);
    }
    let mut interfaces = table::table(["INTERFACE", "HOOK", "WHAT BECAME OF A PACKET", "PACKETS"]);
    for one in &snapshot.interfaces {
        let mut name = one.name.as_str();
        for (hook, counts) in [("XDP", &one.counters.xdp), ("TC", &one.counters.tc), ("own, TC", &one.counters.egress)]
        {
            let mut hook = hook;
            let counted = Outcome::ALL.iter().zip(counts.iter()).filter(|(_, count)| **count > 0);
            for (outcome, count) in counted {
                let what = match outcome.kind() {
                    Kind::Forward => outcome.name().to_owned(),
                    Kind::Pass => format!("passed on: {}", outcome.name()),
                    Kind::Drop => outcome.name().replacen("drop_", "dropped: ", 1),
                    Kind::Hold => outcome.name().replacen("held_", "held: ", 1),
                    Kind::Answer => outcome.name().replacen("answered_", "sender told: ", 1),
                };
                interfaces.add_row([name, hook, &what.replace('_', " "), &count.to_string()]);
                (name, hook) = ("", "");
            }
        }
        if !name.is_empty() {
            interfaces.add_row([name, "", "no packet yet", "0"]);
        }
    }
    let mut text = String::new();
    if !rules.is_empty() {
        text += &table::text(&rules);
        text += "\n";
    }
    text += &table::text(&interfaces);
    if !snapshot.uplinks.is_empty() {
        let mut uplinks = table::table(["UPLINK", "STATE", "CHANGES"]);
        for one in &snapshot.uplinks {
            let state = if one.up { "up" } else { "down" };
            uplinks.add_row([one.name.clone(), state.to_owned(), one.changes.to_string()]);
        }
        text += "\n";
        text += &table::text(&uplinks);
    }
    text
}
