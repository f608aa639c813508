//! `flows`: what is under way.

use std::{collections::BTreeMap, io::Write, net::IpAddr, path::Path};

use anyhow::Result;
use forwarder_common::abi::Traffic;
use serde::Serialize;

use super::{Instance, require_reading, table};
use crate::{
    bpf::{
        flows::{self, FlowRecord, MappingRecord},
        tables::Tables,
    },
    cli::{Format, Show},
    config::rule::protocol_numbers::{ICMP, ICMPV6, SCTP, TCP, UDP},
};

/// A flow as it is shown.
#[derive(Serialize)]
struct ShownFlow {
    protocol: String,
    /// None when the rule is gone.
    rule: Option<String>,
    client: String,
    listen: String,
    /// What the backend sees as the client.
    source: String,
    backend: String,
    state: &'static str,
    /// Whether floods of new flows cannot evict it.
    protected: bool,
    idle_seconds: u64,
    expires_in_seconds: u64,
    forward: ShownTraffic,
    reply: ShownTraffic,
}

/// A mapping as it is shown.
#[derive(Serialize)]
struct ShownMapping {
    protocol: String,
    /// None when the rule is gone.
    rule: Option<String>,
    /// The host behind, with its port.
    host: String,
    /// What the world sees of it.
    outside: String,
    /// Who may send to it.
    filtering: String,
    protected: bool,
    idle_seconds: u64,
    expires_in_seconds: u64,
}

#[derive(Serialize)]
struct ShownTraffic {
    packets: u64,
    bytes: u64,
}

impl From<Traffic> for ShownTraffic {
    fn from(traffic: Traffic) -> Self {
        Self { packets: traffic.packets, bytes: traffic.bytes }
    }
}

/// Runs the command.
pub fn run(pins: &Path, options: Show, out: &mut dyn Write) -> Result<()> {
    require_reading()?;
    let instance = Instance::open(pins)?;
    let timeouts = Tables::open(&instance.pins)?.settings()?.timeouts;
    let rules: BTreeMap<u32, &str> =
        instance.state.counters.iter().map(|(name, counter)| (*counter, name.as_str())).collect();
    let mut records = flows::read(&instance.pins, &timeouts)?;
    // What has expired only waits for the sweeper: no packet would use it.
    records.flows.retain(|record| !record.expires_in.is_zero());
    records.mappings.retain(|record| !record.expires_in.is_zero());
    records.flows.sort_by_key(|record| (record.protocol, record.listen, record.client, record.source));
    records.mappings.sort_by_key(|record| (record.protocol, record.host, record.outside));
    let shown = records.flows.iter().map(|record| show(record, &rules));
    let mappings = records.mappings.iter().map(|record| show_mapping(record, &rules));
    match options.format {
        Format::Json => {
            let (flows, mappings): (Vec<ShownFlow>, Vec<ShownMapping>) = (shown.collect(), mappings.collect());
            writeln!(out, "{:#}", serde_json::json!({ "flows": flows, "mappings": mappings }))?;
        }
        Format::Table => {
            if records.flows.is_empty() {
                writeln!(out, "no flows (stateless rules keep none; forwarder list says which they are)")?;
            } else {
                write!(out, "{}", to_table(shown))?;
            }
            if !records.mappings.is_empty() {
                write!(out, "\n{}", mapping_table(mappings))?;
            }
        }
    }
    Ok(())
}

fn mapping_table(mappings: impl Iterator<Item = ShownMapping>) -> String {
    let mut table = table::table(["PROTOCOL", "HOST", "OUTSIDE", "FILTERING", "IDLE", "EXPIRES", "RULE"]);
    for mapping in mappings {
        let seconds = |seconds| table::duration(std::time::Duration::from_secs(seconds));
        table.add_row([
            mapping.protocol,
            mapping.host,
            mapping.outside,
            mapping.filtering,
            seconds(mapping.idle_seconds),
            seconds(mapping.expires_in_seconds),
            mapping.rule.unwrap_or_else(|| "(removed)".to_owned()),
        ]);
    }
    table::text(&table)
}

fn to_table(flows: impl Iterator<Item = ShownFlow>) -> String {
    let mut table = table::table([
        "PROTOCOL",
        "CLIENT",
        "LISTEN",
        "SOURCE",
        "BACKEND",
        "STATE",
        "IDLE",
        "EXPIRES",
        "TO BACKEND",
        "TO CLIENT",
        "RULE",
    ]);
    for flow in flows {
        let seconds = |seconds| table::duration(std::time::Duration::from_secs(seconds));
        table.add_row([
            flow.protocol,
            flow.client,
            flow.listen,
            flow.source,
            flow.backend,
            flow.state.to_owned(),
            seconds(flow.idle_seconds),
            seconds(flow.expires_in_seconds),
            table::bytes(flow.forward.bytes),
            table::bytes(flow.reply.bytes),
            flow.rule.unwrap_or_else(|| "(removed)".to_owned()),
        ]);
    }
    table::text(&table)
}

fn show(record: &FlowRecord, rules: &BTreeMap<u32, &str>) -> ShownFlow {
    let end = |end: (IpAddr, u16)| endpoint(record.protocol, end);
    ShownFlow {
        protocol: protocol_name(record.protocol),
        rule: rules.get(&record.counter).map(|name| (*name).to_owned()),
        client: end(record.client),
        listen: end(record.listen),
        source: end(record.source),
        backend: end(record.backend),
        state: record.state.name(),
        protected: record.protected,
        idle_seconds: record.idle.as_secs(),
        expires_in_seconds: record.expires_in.as_secs(),
        forward: record.forward.into(),
        reply: record.reply.into(),
    }
}

fn show_mapping(record: &MappingRecord, rules: &BTreeMap<u32, &str>) -> ShownMapping {
    let end = |end: (IpAddr, u16)| endpoint(record.protocol, end);
    ShownMapping {
        protocol: protocol_name(record.protocol),
        rule: rules.get(&record.counter).map(|name| (*name).to_owned()),
        host: end(record.host),
        outside: end(record.outside),
        filtering: record.filtering.to_string(),
        protected: record.protected,
        idle_seconds: record.idle.as_secs(),
        expires_in_seconds: record.expires_in.as_secs(),
    }
}

/// An address, with its port where the protocol has ports; the identifier of an ICMP echo is not one.
fn endpoint(protocol: u8, (address, port): (IpAddr, u16)) -> String {
    match (protocol, address) {
        (TCP | UDP | SCTP, IpAddr::V4(v4)) => format!("{v4}:{port}"),
        (TCP | UDP | SCTP, IpAddr::V6(v6)) => format!("[{v6}]:{port}"),
        _ => address.to_string(),
    }
}

fn protocol_name(protocol: u8) -> String {
    match protocol {
        TCP => "tcp".to_owned(),
        UDP => "udp".to_owned(),
        ICMP => "icmp".to_owned(),
        ICMPV6 => "icmpv6".to_owned(),
        SCTP => "sctp".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_have_ports_where_protocols_have_them() {
        let v4 = |port| (IpAddr::from([192, 0, 2, 7]), port);
        let v6 = |port| (IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7]), port);
        assert_eq!(endpoint(TCP, v4(80)), "192.0.2.7:80");
        assert_eq!(endpoint(UDP, v6(53)), "[2001:db8::7]:53");
        assert_eq!(endpoint(ICMP, v4(77)), "192.0.2.7");
        assert_eq!(endpoint(47, v4(0)), "192.0.2.7");
    }
}
