//! The part of the settings that the configuration decides.

use std::time::Duration;

use forwarder_common::{
    abi::{self, PortRange, RangeKey, Side, Ticks, rule_flags, setting_flags},
    address::{V4, V6},
};

use super::{FamilyTables, SettingsPart};
use crate::{
    config::{Config, family::Family, settings::Timeouts},
    machine::Machine,
};

/// How long the kernel's answer about a route is used: what a route change may take to be noticed.
const NEXT_HOP_LIFETIME: Duration = Duration::from_secs(1);

fn ticks(duration: Duration) -> Ticks {
    abi::ticks_from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// Whether some rule of a family has a range on this side.
fn has<A: Family>(tables: &FamilyTables<A>, sides: &[Side]) -> bool {
    let side = |key: &RangeKey<A>| key.side & 0xff;
    tables.ranges.keys().any(|key| sides.iter().any(|one| side(key) == *one as u32))
}

/// Whether some range says more of its packets than where they come from.
fn by_kind<A: Family>(tables: &FamilyTables<A>) -> bool {
    tables.ranges.keys().any(|key| key.side & 0xff == Side::Steered as u32 && key.side >> 8 != 0)
}

/// Rules that no packet finds by where it goes to or comes from.
const OTHERS: u16 = rule_flags::LINE | rule_flags::NEIGHBOR;

pub(super) fn part(config: &Config, machine: &Machine, v4: &FamilyTables<V4>, v6: &FamilyTables<V6>) -> SettingsPart {
    fn any<A>(tables: &FamilyTables<A>, stateless: bool) -> bool {
        let mut rules = tables.rules.iter().map(|rule| rule.body.flags).filter(|flags| flags & OTHERS == 0);
        rules.any(|flags| (flags & rule_flags::STATELESS != 0) == stateless)
    }
    fn hairpin<A>(tables: &FamilyTables<A>) -> bool {
        tables.rules.iter().any(|rule| rule.body.flags & rule_flags::HAIRPIN != 0)
    }
    let either = |sides: &[Side]| has(v4, sides) || has(v6, sides);
    // Those that are asked about every packet; the others are asked about few.
    let asked = [Side::Listen, Side::Backend];
    let flags = [
        (any(v4, false) || any(v6, false), setting_flags::FLOWS),
        (any(v4, true) || any(v6, true), setting_flags::STATELESS),
        (hairpin(v4) || hairpin(v6), setting_flags::HAIRPIN),
        (has(v4, &asked), setting_flags::RANGES_V4),
        (has(v6, &asked), setting_flags::RANGES_V6),
        (either(&[Side::Inside]), setting_flags::MASQUERADE),
        (either(&[Side::Steered]), setting_flags::STEER),
        (by_kind(v4) || by_kind(v6), setting_flags::STEER_BY_KIND),
        (either(&[Side::Neighbor]), setting_flags::NEIGHBOR),
        (machine.source_rules, setting_flags::ROUTE_BY_SOURCE),
    ];
    SettingsPart {
        flags: flags.iter().filter(|(set, _)| *set).fold(0, |all, (_, flag)| all | flag),
        next_hop_lifetime: ticks(NEXT_HOP_LIFETIME),
        timeouts: timeouts(&config.timeouts),
        ports: ports(machine.local_port_range),
    }
}

fn timeouts(timeouts: &Timeouts) -> abi::Timeouts {
    abi::Timeouts {
        tcp_opening: ticks(timeouts.tcp_opening),
        tcp_established: ticks(timeouts.tcp_established),
        tcp_closing: ticks(timeouts.tcp_closing),
        tcp_reset: ticks(timeouts.tcp_reset),
        udp_opening: ticks(timeouts.udp_opening),
        udp_established: ticks(timeouts.udp_established),
        icmp: ticks(timeouts.icmp),
        other: ticks(timeouts.other),
    }
}

/// Lowest port to allocate: those below are for services (RFC 6335 section 6).
const LOWEST_PORT: u16 = 1024;

/// Where to allocate source ports: outside the range of local sockets first, in the larger part first.
fn ports((low, high): (u16, u16)) -> [PortRange; 3] {
    const NONE: PortRange = PortRange { first: 1, last: 0 };
    let range = |first: u16, last: u16| {
        if first <= last { PortRange { first, last } } else { NONE }
    };
    let above = high.checked_add(1).map_or(NONE, |first| range(first.max(LOWEST_PORT), u16::MAX));
    let below = low.checked_sub(1).map_or(NONE, |last| range(LOWEST_PORT, last));
    let inside = range(low, high);
    let count = |range: PortRange| (u32::from(range.last) + 1).saturating_sub(u32::from(range.first));
    if count(above) >= count(below) { [above, below, inside] } else { [below, above, inside] }
}
