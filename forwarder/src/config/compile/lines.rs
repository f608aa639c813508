//! Lines: which sources belong to them, and what is connected directly and so needs none.

use std::sync::Arc;

use forwarder_common::abi::{RangeKey, Rule, rule_flags};
use ipnet::IpNet;

use super::{Builder, LogicalRule};
use crate::{
    config::{
        family::Family,
        steer::{Line, Steer},
    },
    machine::Machine,
};

/// Never steered, besides what is connected: loopback, link-local, multicast and broadcast (RFC 6890).
const NEVER: [&str; 7] =
    ["127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32", "::1/128", "fe80::/10", "ff00::/8"];

impl<A: Family> Builder<A> {
    /// Adds what a `[[steer]]` is for one of its prefixes, if that is of this family.
    pub(super) fn add_line(&mut self, mss: u16, name: &Arc<str>, steer: &Steer, line: &Line) {
        let (Some(from), Some(mask)) = (A::of(line.from.addr()), A::of(line.from.netmask())) else {
            return;
        };
        let router = line.gateway.and_then(A::of).unwrap_or_default();
        let body = Rule { to: router, mask, flags: rule_flags::LINE, mss, allow: line.interface, ..Rule::default() };
        let index = self.tables.rules.len();
        self.tables.rules.push(LogicalRule { name: Arc::clone(name), body, allow: None });
        let prefix_len = RangeKey::<A>::SIDE_BITS + u32::from(line.from.prefix_len());
        for (protocol, port) in steer.kinds(A::BITS == 128) {
            let kind = u32::from(protocol) << 8 | u32::from(port.to_be()) << 16;
            self.tables.ranges.insert(RangeKey { prefix_len, ..RangeKey::steered(kind, from) }, index);
        }
    }

    /// Enters what is never steered, if anything is.
    pub(super) fn add_connected(&mut self, machine: &Machine) {
        // Any rule stands for it: that it is there is all that is asked.
        let Some(index) = self.tables.rules.iter().position(|rule| rule.body.flags & rule_flags::LINE != 0) else {
            return;
        };
        let networks = machine.interfaces.iter().flat_map(|interface| interface.addresses.iter().map(IpNet::trunc));
        let always = NEVER.iter().filter_map(|prefix| prefix.parse::<IpNet>().ok());
        for network in networks.chain(always).filter(|network| network.prefix_len() > 0) {
            let Some(address) = A::of(network.addr()) else { continue };
            let prefix_len = RangeKey::<A>::SIDE_BITS + u32::from(network.prefix_len());
            self.tables.ranges.entry(RangeKey { prefix_len, ..RangeKey::on_link(address) }).or_insert(index);
        }
    }
}
