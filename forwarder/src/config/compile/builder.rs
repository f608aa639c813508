//! The tables of one address family, listen by listen.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use forwarder_common::{
    abi::{Endpoint, RangeKey, Rule, Side, rule_flags},
    checksum::Delta,
};
use ipnet::IpNet;

use super::{FamilyTables, LogicalRule, RuleSummary};
use crate::{
    config::{
        blocks::{self, Extent},
        family::Family,
        masquerade::{Filtering, WayOut},
        one_to_one,
        rule::{Forward, Placed, Ports, Source, protocol_numbers},
        view::View,
    },
    machine::Machine,
};

/// A listen on its way into the tables.
pub(super) struct Entry<'a> {
    pub(super) forward: &'a Forward,
    pub(super) mss: u16,
    pub(super) view: &'a View<'a>,
    pub(super) summary: &'a RuleSummary,
    pub(super) machine: &'a Machine,
    pub(super) ports: Option<Ports>,
    pub(super) rule: usize,
}

/// The allowed clients of a rule, once for all its listens; none where everyone is.
type AllowList<A> = Option<Arc<[(A, u8)]>>;

pub(super) struct Builder<A> {
    pub(super) tables: FamilyTables<A>,
    /// By index of the rule.
    allow: HashMap<usize, AllowList<A>>,
}

impl<A> Default for Builder<A> {
    fn default() -> Self {
        let tables = FamilyTables { rules: Vec::new(), endpoints: BTreeMap::new(), ranges: BTreeMap::new() };
        Self { tables, allow: HashMap::new() }
    }
}

impl<A: Family> Builder<A> {
    /// Adds a listen, if it is of this family.
    pub(super) fn add(&mut self, entry: &Entry<'_>, listen: IpAddr) {
        let (Some(listen), Some(to)) = (A::of(listen), A::of(entry.forward.to.address)) else {
            return;
        };
        let allow = self.allow.entry(entry.rule).or_insert_with(|| allow_list(entry.forward)).clone();
        let first = entry.ports.map_or(0, |ports| ports.first);
        let to_first = entry.forward.to.ports.map_or(first, |ports| ports.first);
        let port_shift = to_first.wrapping_sub(first);
        let source = source(entry).and_then(A::of);
        let hairpin = entry.summary.hairpin;
        let mask = hairpin.and_then(|hairpin| A::of(hairpin.clients.netmask()));
        let stateless = entry.summary.stateless.is_ok();
        let flag = |condition: bool, flag: u16| if condition { flag } else { 0 };
        let body = Rule {
            listen,
            to,
            source: source.or_else(|| A::of(hairpin?.source)).unwrap_or_default(),
            mask: mask.unwrap_or_default(),
            to_delta: Delta::address(listen, to).0,
            port_shift,
            flags: flag(stateless, rule_flags::STATELESS)
                | flag(source.is_some(), rule_flags::REWRITE_SOURCE)
                | flag(mask.is_some(), rule_flags::HAIRPIN)
                | flag(allow.is_some(), rule_flags::ALLOW)
                | flag(entry.ports.is_none_or(|ports| ports.first != ports.last), rule_flags::SPARES_SOCKETS),
            mss: entry.mss,
            ..Rule::default()
        };
        let index = self.tables.rules.len();
        // Where this rule's packets go to as they arrive, or where they come from.
        let replies = source.unwrap_or(to);
        for address in [Some(listen), Some(replies), mask.map(|_| body.source)].into_iter().flatten() {
            let key = blocks::key(Side::Fragment, address, Extent::Everything);
            self.tables.ranges.entry(key).or_insert(index);
        }
        self.tables.rules.push(LogicalRule { name: Arc::clone(&entry.summary.name), body, allow });
        let protocols = entry.view.protocols(entry.ports, A::BITS == 128);
        for protocol in protocols {
            self.name(Side::Listen, listen, protocol, entry.ports, index);
            if stateless {
                let shifted = |ports: Ports| Ports {
                    first: ports.first.wrapping_add(port_shift),
                    last: ports.last.wrapping_add(port_shift),
                };
                self.name(Side::Backend, to, protocol, entry.ports.map(shifted), index);
            }
        }
    }

    /// Adds a one-to-one rule, if it is of this family.
    pub(super) fn add_prefix(&mut self, entry: &Entry<'_>, prefix: IpNet) {
        let (Some(listen), Some(to), Some(mask)) =
            (A::of(prefix.addr()), A::of(entry.forward.to.address), A::of(prefix.netmask()))
        else {
            return;
        };
        let allow = self.allow.entry(entry.rule).or_insert_with(|| allow_list(entry.forward)).clone();
        let flag = |condition: bool, flag: u16| if condition { flag } else { 0 };
        let own = one_to_one::own_addresses(prefix, &entry.forward.to, entry.machine);
        let body = Rule {
            listen,
            to,
            mask,
            to_delta: Delta::address(listen, to).0,
            flags: rule_flags::STATELESS
                | rule_flags::PREFIX
                | flag(allow.is_some(), rule_flags::ALLOW)
                | flag(!own.is_empty(), rule_flags::SPARES_SOCKETS),
            mss: entry.mss,
            ..Rule::default()
        };
        let index = self.tables.rules.len();
        self.tables.rules.push(LogicalRule { name: Arc::clone(&entry.summary.name), body, allow });
        let extent = Extent::Prefix(prefix.prefix_len());
        for (side, address) in [(Side::Listen, listen), (Side::Backend, to)] {
            self.tables.ranges.insert(blocks::key(side, address, extent), index);
            self.tables.ranges.entry(blocks::key(Side::Fragment, address, extent)).or_insert(index);
        }
    }

    /// Adds a prefix of a masquerade, if it is of this family.
    pub(super) fn add_way_out(&mut self, mss: u16, name: &Arc<str>, filtering: Filtering, way: &WayOut) {
        let (Some(from), Some(source)) = (A::of(way.from.addr()), A::of(way.address)) else {
            return;
        };
        let flags = match filtering {
            Filtering::Endpoint => rule_flags::ENDPOINT_FILTERING,
            Filtering::Address => rule_flags::ADDRESS_FILTERING,
            Filtering::AddressAndPort => 0,
        };
        let index = self.tables.rules.len();
        let body = Rule { source, flags, mss, ..Rule::default() };
        self.tables.rules.push(LogicalRule { name: Arc::clone(name), body, allow: None });
        let prefix_len = RangeKey::<A>::SIDE_BITS + u32::from(way.from.prefix_len());
        let key = |interface: u32| RangeKey { prefix_len, ..RangeKey::inside(interface, from) };
        self.tables.ranges.insert(key(way.interface), index);
        // Whoever goes out by some interface is behind us on the way to every other, too.
        self.tables.ranges.entry(key(0)).or_insert(index);
        for (address, extent) in [(from, Extent::Prefix(way.from.prefix_len())), (source, Extent::Everything)] {
            self.tables.ranges.entry(blocks::key(Side::Fragment, address, extent)).or_insert(index);
        }
    }

    /// Enters the keys under which packets find a rule.
    fn name(&mut self, side: Side, address: A, protocol: Option<u8>, ports: Option<Ports>, index: usize) {
        let endpoint = |protocol: u8, port: u16| Endpoint { address, port: port.to_be(), protocol, side: side as u8 };
        match (protocol, ports) {
            (Some(protocol), Some(Ports { first, last })) if first == last => {
                self.tables.endpoints.insert(endpoint(protocol, first), index);
            }
            (Some(protocol), Some(ports)) => {
                for (first, bits) in blocks::aligned(ports) {
                    let key = blocks::key(side, address, Extent::Block { protocol, first, bits });
                    self.tables.ranges.insert(key, index);
                }
            }
            // The echo has no ports, so this is all of it, and found without a second look-up.
            (Some(protocol @ (protocol_numbers::ICMP | protocol_numbers::ICMPV6)), None) => {
                self.tables.endpoints.insert(endpoint(protocol, 0), index);
            }
            (Some(protocol), None) => {
                self.tables.ranges.insert(blocks::key(side, address, Extent::Protocol(protocol)), index);
            }
            (None, _) => {
                self.tables.ranges.insert(blocks::key(side, address, Extent::Everything), index);
            }
        }
    }
}

/// The address of ours that the backend sees; none where it sees the client's.
fn source(entry: &Entry<'_>) -> Option<IpAddr> {
    match entry.forward.source.value {
        Source::Preserve => None,
        Source::Address(address) => Some(address),
        Source::Masquerade => entry.machine.sources.get(&entry.forward.to.address).copied(),
    }
}

fn allow_list<A: Family>(forward: &Forward) -> AllowList<A> {
    if forward.allow.is_empty() {
        return None;
    }
    let prefix = |net: &Placed<IpNet>| Some((A::of(net.addr())?, net.prefix_len()));
    let mut list: Vec<(A, u8)> = forward.allow.iter().filter_map(prefix).collect();
    list.sort_unstable();
    list.dedup();
    Some(list.into())
}
