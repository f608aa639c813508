//! The Prometheus text exposition format, version 0.0.4.

use std::fmt::Write as _;

use forwarder_common::{
    abi::RuleCounters,
    verdict::{Kind, Outcome},
};

use super::Snapshot;
use crate::state::UplinkState;

/// A counter of a rule: its name, what it is, its labels besides the rule, and where it is.
type RuleMetric = (&'static str, &'static str, &'static [(&'static str, fn(&RuleCounters) -> u64)]);

const RULE_METRICS: [RuleMetric; 6] = [
    (
        "forwarder_rule_packets_total",
        "Packets forwarded by a rule; forward is client to backend.",
        &[("direction=\"forward\"", |rule| rule.forward.packets), ("direction=\"reply\"", |rule| rule.reply.packets)],
    ),
    (
        "forwarder_rule_bytes_total",
        "Bytes forwarded by a rule, IP header included.",
        &[("direction=\"forward\"", |rule| rule.forward.bytes), ("direction=\"reply\"", |rule| rule.reply.bytes)],
    ),
    ("forwarder_rule_flows_total", "Flows begun.", &[("", |rule| rule.flows)]),
    ("forwarder_rule_denied_total", "Packets of clients that the rule does not allow.", &[("", |rule| rule.denied)]),
    (
        "forwarder_rule_unprotected_total",
        "Flows that found no room among the established and can be evicted.",
        &[("", |rule| rule.unprotected)],
    ),
    (
        "forwarder_rule_port_clashes_total",
        "Source ports passed over because a socket of this machine has them.",
        &[("", |rule| rule.port_clashes)],
    ),
];

/// All counters as text.
pub(super) fn text(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    for (name, help, samples) in RULE_METRICS {
        heading(&mut text, name, help);
        for (rule, counters) in &snapshot.rules {
            let rule = escape(rule);
            for (label, value) in samples {
                let comma = if label.is_empty() { "" } else { "," };
                sample(&mut text, name, &format!("rule=\"{rule}\"{comma}{label}"), value(counters));
            }
        }
    }
    let name = "forwarder_packets_total";
    heading(&mut text, name, "What became of the packets at each hook; every packet counts once at each.");
    for interface in &snapshot.interfaces {
        for (hook, counts) in
            [("xdp", &interface.counters.xdp), ("tc", &interface.counters.tc), ("egress", &interface.counters.egress)]
        {
            for (outcome, count) in Outcome::ALL.iter().zip(counts.iter()) {
                let labels = format!(
                    "interface=\"{}\",hook=\"{hook}\",verdict=\"{}\",outcome=\"{}\"",
                    escape(&interface.name),
                    verdict(outcome.kind()),
                    outcome.name()
                );
                sample(&mut text, name, &labels, *count);
            }
        }
    }
    if !snapshot.uplinks.is_empty() {
        uplinks(&mut text, &snapshot.uplinks);
    }
    text
}

fn uplinks(text: &mut String, uplinks: &[UplinkState]) {
    let labels = |uplink: &UplinkState| format!("uplink=\"{}\"", escape(&uplink.name));
    let name = "forwarder_uplink_up";
    typed_heading(text, name, "Whether a line works: 1 or 0.", "gauge");
    for uplink in uplinks {
        sample(text, name, &labels(uplink), uplink.up.into());
    }
    let name = "forwarder_uplink_changes_total";
    heading(text, name, "How often a line went down or came up since it was loaded.");
    for uplink in uplinks {
        sample(text, name, &labels(uplink), uplink.changes);
    }
}

const fn verdict(kind: Kind) -> &'static str {
    match kind {
        Kind::Forward => "forward",
        Kind::Pass => "pass",
        Kind::Drop => "drop",
        Kind::Hold => "hold",
        Kind::Answer => "answer",
    }
}

fn heading(text: &mut String, name: &str, help: &str) {
    typed_heading(text, name, help, "counter");
}

fn typed_heading(text: &mut String, name: &str, help: &str, kind: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn sample(text: &mut String, name: &str, labels: &str, value: u64) {
    let _ = writeln!(text, "{name}{{{labels}}} {value}");
}

/// A label's value: backslash, quote and newline are escaped.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing, reason = "a test that cannot go on has failed")]

    use forwarder_common::abi::{InterfaceCounters, Traffic};

    use super::*;
    use crate::{commands::stats::InterfaceSnapshot, config::Mode};

    fn uplink(name: &str, up: bool, changes: u64) -> UplinkState {
        UplinkState {
            name: name.to_owned(),
            interface: "eth0".to_owned(),
            gateway: Vec::new(),
            probe: Vec::new(),
            up,
            why: None,
            probe_failed: None,
            since: 0,
            changes,
        }
    }

    fn snapshot() -> Snapshot {
        let counters = RuleCounters {
            forward: Traffic { packets: 3, bytes: 180 },
            reply: Traffic { packets: 2, bytes: 1500 },
            flows: 1,
            ..RuleCounters::default()
        };
        let mut xdp = [0; Outcome::COUNT];
        xdp[Outcome::Forwarded as usize] = 5;
        Snapshot {
            rules: vec![("web".to_owned(), counters)],
            lines: 0,
            uplinks: vec![uplink("fibre", true, 0), uplink("dsl", false, 3)],
            interfaces: vec![InterfaceSnapshot {
                name: "eth\"0\\".to_owned(),
                mode: Mode::Native,
                counters: InterfaceCounters { xdp, tc: [0; Outcome::COUNT], egress: [0; Outcome::COUNT] },
            }],
        }
    }

    #[test]
    fn every_counter_has_its_line() {
        let text = text(&snapshot());
        for line in [
            "forwarder_rule_packets_total{rule=\"web\",direction=\"forward\"} 3",
            "forwarder_rule_bytes_total{rule=\"web\",direction=\"reply\"} 1500",
            "forwarder_rule_flows_total{rule=\"web\"} 1",
            "forwarder_rule_denied_total{rule=\"web\"} 0",
            "forwarder_packets_total{interface=\"eth\\\"0\\\\\",hook=\"xdp\",verdict=\"forward\",outcome=\"forwarded\"} 5",
            "forwarder_uplink_up{uplink=\"fibre\"} 1",
            "forwarder_uplink_up{uplink=\"dsl\"} 0",
            "forwarder_uplink_changes_total{uplink=\"dsl\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "no line {line} in\n{text}");
        }
        assert_eq!(text.lines().filter(|line| line.starts_with("forwarder_packets_total")).count(), 3 * Outcome::COUNT);
    }

    #[test]
    fn every_metric_is_described_once_before_its_samples() {
        let text = text(&snapshot());
        let mut described = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or_default();
                assert_eq!(kind, if name.ends_with("_total") { "counter" } else { "gauge" }, "{line}");
                assert!(!described.contains(&name), "{line}");
                described.push(name);
            } else if !line.starts_with('#') {
                assert_eq!(line.split('{').next(), described.last().copied(), "{line}");
            }
        }
        assert_eq!(described.len(), RULE_METRICS.len() + 3);
    }
}
