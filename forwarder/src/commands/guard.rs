//! What a rule would take from this machine itself: the SSH connection one sits in, and its own services.

pub mod lines;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;
use forwarder_common::{
    abi::{Endpoint, RangeKey, Side, rule_flags},
    address::{V4, V6},
};

use ipnet::IpNet;

use super::invalid;
use crate::{
    config::{
        Compiled, Family, FamilyTables, LogicalRule,
        rule::protocol_numbers::{TCP, UDP},
    },
    machine::sockets::Listener,
};

/// Refuses rules that would take the SSH connection that this command is typed in.
pub fn refuse_to_cut_ssh(compiled: &Compiled) -> Result<()> {
    let Some(server) = ssh_server() else { return Ok(()) };
    match capturing_rule(compiled, server.ip(), TCP, server.port()) {
        Some(rule) => Err(invalid(format!(
            "rule \"{rule}\" would take the SSH connection you are using (to {server}); change the rule, or use --force \
             if you have another way in"
        ))),
        None => Ok(()),
    }
}

/// A sentence for each rule that takes clients from a service of this machine.
pub fn shadowed_services(compiled: &Compiled, listeners: &[Listener]) -> Vec<String> {
    /// More would hide the rest of the output.
    const AT_MOST: usize = 8;
    let mut sentences = Vec::new();
    for listener in listeners {
        let shadows = if listener.address.is_unspecified() {
            any_capturing_rule(compiled, listener)
        } else {
            capturing_rule(compiled, listener.address, listener.protocol, listener.port)
        };
        if let Some(rule) = shadows {
            let protocol = if listener.protocol == UDP { "UDP" } else { "TCP" };
            let at = SocketAddr::new(listener.address, listener.port);
            sentences.push(format!("rule \"{rule}\" takes clients from a service of this machine: {protocol} {at}"));
        }
    }
    sentences.sort();
    sentences.dedup();
    if sentences.len() > AT_MOST {
        let more = sentences.len() - AT_MOST;
        sentences.truncate(AT_MOST);
        sentences.push(format!("and {more} more services of this machine"));
    }
    sentences
}

/// The server's end of the SSH connection that this process descends from.
///
/// `sudo` clears the variable, so the environments of our ancestors are asked as well.
fn ssh_server() -> Option<SocketAddr> {
    /// More generations than any login has.
    const GENERATIONS: usize = 32;
    if let Ok(value) = std::env::var("SSH_CONNECTION") {
        return parse_ssh_connection(&value);
    }
    let mut process = std::os::unix::process::parent_id();
    for _ in 0..GENERATIONS {
        if process <= 1 {
            break;
        }
        let environment = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        let found = environment.split(|byte| *byte == 0).find_map(|variable| {
            let variable = std::str::from_utf8(variable).ok()?;
            parse_ssh_connection(variable.strip_prefix("SSH_CONNECTION=")?)
        });
        if found.is_some() {
            return found;
        }
        process = parent_of(process)?;
    }
    None
}

fn parent_of(process: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// `CLIENT CLIENT-PORT SERVER SERVER-PORT`; an IPv6 scope (`%eth0`) is left out.
fn parse_ssh_connection(value: &str) -> Option<SocketAddr> {
    let mut words = value.split_whitespace().skip(2);
    let address = words.next()?.split('%').next()?;
    let address: IpAddr = address.parse().ok()?;
    Some(SocketAddr::new(address.to_canonical(), words.next()?.parse().ok()?))
}

/// The rule that a client's packet to this address and port belongs to.
fn capturing_rule(compiled: &Compiled, address: IpAddr, protocol: u8, port: u16) -> Option<&str> {
    match address.to_canonical() {
        IpAddr::V4(_) => in_family(&compiled.v4, V4::of(address.to_canonical())?, protocol, port),
        IpAddr::V6(_) => in_family(&compiled.v6, V6::of(address)?, protocol, port),
    }
}

fn in_family<A: Family>(tables: &FamilyTables<A>, address: A, protocol: u8, port: u16) -> Option<&str> {
    let endpoint = Endpoint { address, port: port.to_be(), protocol, side: Side::Listen as u8 };
    let exact = tables.endpoints.get(&endpoint);
    let index = exact.or_else(|| longest_range(&tables.ranges, &endpoint))?;
    tables.rules.get(*index).filter(|rule| concerns_us(rule)).map(|rule| rule.name.as_ref())
}

/// The range that a longest-prefix match finds, as the kernel does.
fn longest_range<'a, A: Family>(ranges: &'a BTreeMap<RangeKey<A>, usize>, endpoint: &Endpoint<A>) -> Option<&'a usize> {
    ranges
        .iter()
        .filter(|(range, _)| contains(range, endpoint.address) && matches(range, endpoint))
        .max_by_key(|(range, _)| range.prefix_len)
        .map(|(_, index)| index)
}

/// Whether the address is the range's, or of its prefix.
fn contains<A: Family>(range: &RangeKey<A>, address: A) -> bool {
    let bits = range.prefix_len.saturating_sub(RangeKey::<A>::SIDE_BITS).min(A::BITS.into());
    IpNet::new(range.address.ip(), bits as u8).is_ok_and(|prefix| prefix.contains(&address.ip()))
}

/// Whether the rule takes something from this machine itself: a prefix in which the machine has no address does not.
const fn concerns_us<A>(rule: &LogicalRule<A>) -> bool {
    rule.body.flags & (rule_flags::PREFIX | rule_flags::SPARES_SOCKETS) != rule_flags::PREFIX
}

/// Whether the range contains the endpoint, addresses apart.
fn matches<A: Family>(range: &RangeKey<A>, endpoint: &Endpoint<A>) -> bool {
    let bits = range.prefix_len.saturating_sub(RangeKey::<A>::SIDE_BITS + u32::from(A::BITS));
    let tail = |protocol: u16, port: u16| u32::from(protocol) << 16 | u32::from(u16::from_be(port));
    let mask = u32::MAX.checked_shl(32_u32.saturating_sub(bits)).unwrap_or(0);
    let difference = tail(u16::from_be(range.protocol), range.port) ^ tail(endpoint.protocol.into(), endpoint.port);
    range.side == u32::from(endpoint.side) && difference & mask == 0
}

/// The first rule that takes the port of a service that listens on all addresses.
fn any_capturing_rule<'a>(compiled: &'a Compiled, listener: &Listener) -> Option<&'a str> {
    let v4 = || any_in_family(&compiled.v4, listener);
    let v6 = || any_in_family(&compiled.v6, listener);
    // An IPv6 socket takes IPv4 clients too, unless told otherwise.
    if listener.address.is_ipv4() { v4() } else { v6().or_else(v4) }
}

fn any_in_family<'a, A: Family>(tables: &'a FamilyTables<A>, listener: &Listener) -> Option<&'a str> {
    let wanted = |address: A| Endpoint {
        address,
        port: listener.port.to_be(),
        protocol: listener.protocol,
        side: Side::Listen as u8,
    };
    let exact =
        tables.endpoints.iter().find(|(endpoint, _)| **endpoint == wanted(endpoint.address)).map(|(_, index)| index);
    let concerns = |index: &usize| tables.rules.get(*index).is_some_and(concerns_us);
    let ranges =
        || tables.ranges.iter().filter(|(range, index)| matches(range, &wanted(range.address)) && concerns(index));
    let longest = || ranges().max_by_key(|(range, _)| range.prefix_len).map(|(_, index)| index);
    let index = exact.or_else(longest)?;
    tables.rules.get(*index).map(|rule| rule.name.as_ref())
}

#[cfg(test)]
mod tests;
