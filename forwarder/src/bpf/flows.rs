//! The flows that the kernel holds, as a person thinks of them: client, listen, backend, state, age.

use std::{
    collections::{BTreeSet, HashMap as StdHashMap},
    hash::Hash,
    net::IpAddr,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use forwarder_common::{
    abi::{
        Bucket, Direction, Flow, FlowKey, FlowSlot, Layout, TICK_SHIFT, Ticks, Timeouts, Traffic, elapsed, flow_flags,
    },
    address::{V4, V6},
    flow_state::FlowState,
};
use nix::time::{ClockId, clock_gettime};

use super::{new_flows::NewFlows, protected::ProtectedFlows, tables::await_packets};
use crate::config::{Family, masquerade::Filtering};

/// A flow of the running instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    /// IP protocol number.
    pub protocol: u8,
    /// The counter of its rule.
    pub counter: u32,
    /// The client; the port is 0 for protocols without, and the identifier for ICMP echo.
    pub client: (IpAddr, u16),
    /// What the client sends to.
    pub listen: (IpAddr, u16),
    /// What the backend sees as the client.
    pub source: (IpAddr, u16),
    /// Where it goes.
    pub backend: (IpAddr, u16),
    /// How far it has come.
    pub state: FlowState,
    /// Whether floods cannot evict it.
    pub protected: bool,
    /// Since its last packet in either direction.
    pub idle: Duration,
    /// Until it expires without another packet; zero when it has and only waits to be swept.
    pub expires_in: Duration,
    /// Client to backend.
    pub forward: Traffic,
    /// Backend to client.
    pub reply: Traffic,
}

/// A mapping of a masqueraded host: one of its ports, as the world sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingRecord {
    /// IP protocol number.
    pub protocol: u8,
    /// The counter of its rule.
    pub counter: u32,
    /// The host behind; the port is the identifier for ICMP echo.
    pub host: (IpAddr, u16),
    /// What the world sees of it.
    pub outside: (IpAddr, u16),
    /// Who may send to it from outside.
    pub filtering: Filtering,
    /// Whether floods cannot evict it.
    pub protected: bool,
    /// Since the last packet of a flow that uses it.
    pub idle: Duration,
    /// Until it expires if no flow uses it any more; zero when it has and only waits to be swept.
    pub expires_in: Duration,
}

/// What there is in the flow tables, in no order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// Flows of both families, established and embryonic.
    pub flows: Vec<FlowRecord>,
    /// Mappings, likewise.
    pub mappings: Vec<MappingRecord>,
}

/// What is in a flow table, of the room it has. Two entries are room for one flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Flows.
    pub flows: u32,
    /// Mappings of masqueraded hosts. Each takes as much room as a flow.
    pub mappings: u32,
    /// Connections to masqueraded hosts by their own addresses, which the kernel forwards. Each takes as much room.
    pub passing: u32,
    /// Remote ends that mappings let in. Two take as much room as a flow.
    pub permissions: u32,
    /// Room for flows.
    pub limit: u32,
}

/// A flow table of one address family, opened for reading.
enum FlowTable<A: Family> {
    /// Established flows.
    Protected(ProtectedFlows<A>),
    /// New flows.
    Embryonic(NewFlows<A>),
}

/// All flows and mappings.
pub fn read(pins: &Path, timeouts: &Timeouts) -> Result<Records> {
    let now = now()?;
    let mut records = Records::default();
    for protected in [true, false] {
        FlowTable::<V4>::open(pins, protected, "V4")?.records(now, timeouts, &mut records);
        FlowTable::<V6>::open(pins, protected, "V6")?.records(now, timeouts, &mut records);
    }
    Ok(records)
}

/// How full the tables are: IPv4 established and embryonic, IPv6 established and embryonic. What has expired does not count:
/// among the new ones it stays until somebody needs its place.
pub fn fill(pins: &Path, timeouts: &Timeouts) -> Result<[Fill; 4]> {
    let now = now()?;
    Ok([
        FlowTable::<V4>::open(pins, true, "V4")?.fill(now, timeouts),
        FlowTable::<V4>::open(pins, false, "V4")?.fill(now, timeouts),
        FlowTable::<V6>::open(pins, true, "V6")?.fill(now, timeouts),
        FlowTable::<V6>::open(pins, false, "V6")?.fill(now, timeouts),
    ])
}

/// Ends the flows of rules that are gone, by their counters, and those of addresses that the machine has lost, in which
/// direction and state ever, mappings too; says how many flows.
///
/// A new one is removed. A protected one is dated back, so that no packet is forwarded by it any more and the sweeper
/// removes it in its own order.
pub fn end(pins: &Path, counters: &[u32], lost: &BTreeSet<IpAddr>) -> Result<usize> {
    let now = now()?;
    let mut ended = 0;
    // The new ones first, for they become protected ones, and once more: a half that a packet had found enters the other
    // half again if that was removed behind its back. Both are waited for in between.
    for protected in [false, true, false] {
        ended += FlowTable::<V4>::open(pins, protected, "V4")?.end(now, counters, lost);
        ended += FlowTable::<V6>::open(pins, protected, "V6")?.end(now, counters, lost);
    }
    Ok(ended)
}

impl<A: Family> FlowTable<A>
where
    FlowKey<A>: Hash,
    FlowSlot<A>: Layout,
    Bucket<A>: Layout,
{
    fn open(pins: &Path, protected: bool, family: &str) -> Result<Self> {
        if protected {
            return ProtectedFlows::open(pins, family).map(Self::Protected);
        }
        NewFlows::open(pins, family).map(Self::Embryonic)
    }

    const fn limit(&self) -> u32 {
        match self {
            Self::Protected(flows) => flows.limit,
            Self::Embryonic(flows) => flows.limit,
        }
    }

    /// A copy of the table. Packets change it meanwhile: each key counts once.
    fn snapshot(&self) -> StdHashMap<FlowKey<A>, Flow<A>> {
        match self {
            Self::Protected(flows) => flows.iter().collect(),
            Self::Embryonic(flows) => flows.iter().collect(),
        }
    }

    fn fill(&self, now: Ticks, timeouts: &Timeouts) -> Fill {
        let mut fill = Fill { limit: self.limit(), ..Fill::default() };
        let entries = self.snapshot();
        for (key, flow) in &entries {
            let timeout = FlowState::from_number(flow.state).timeout(key.protocol_number(), timeouts);
            if idle(now, &entries, key, flow) > timeout {
                continue;
            }
            match kind(key) {
                Kind::Permission => fill.permissions += 1,
                _ if !is_forward(flow) => {}
                Kind::Packets => fill.flows += 1,
                Kind::Mapping => fill.mappings += 1,
                Kind::Passing => fill.passing += 1,
            }
        }
        fill
    }

    fn end(&mut self, now: Ticks, counters: &[u32], lost: &BTreeSet<IpAddr>) -> usize {
        let lost: Vec<A> = lost.iter().copied().filter_map(A::of).collect();
        // What arrives for the address, and what is sent on with it: of each direction, one is so.
        let is_lost =
            |key: &FlowKey<A>, flow: &Flow<A>| [key.dst, flow.rewrite.src].iter().any(|address| lost.contains(address));
        // Longer ago than any timeout, but a quarter of an hour short of what would count as the future: until then
        // the sweeper has come by.
        let long_ago = now.wrapping_sub(Ticks::MAX / 2 - (15 * 60 * 1000));
        let concerned = |key: &FlowKey<A>, flow: &Flow<A>| counters.contains(&flow.counter) || is_lost(key, flow);
        let entries = self.snapshot();
        match self {
            Self::Protected(flows) => {
                let date_back = |key: &FlowKey<A>, flow: &Flow<A>| concerned(key, flow).then_some(long_ago);
                flows.set_last_seen(date_back);
                // A packet that had already looked at its flow dates it anew. No other comes after that one.
                await_packets();
                flows.set_last_seen(date_back);
            }
            Self::Embryonic(flows) => flows.remove(concerned),
        }
        entries
            .iter()
            .filter(|(key, flow)| concerned(key, flow) && is_forward(flow) && kind(key) == Kind::Packets)
            .count()
    }

    fn records(&self, now: Ticks, timeouts: &Timeouts, records: &mut Records) {
        let entries = self.snapshot();
        for (key, flow) in entries.iter().filter(|(_, flow)| is_forward(flow)) {
            let protocol = key.protocol_number();
            let reply = entries.get(&flow.peer_key(key.protocol));
            let state = FlowState::from_number(flow.state);
            let idle = idle(now, &entries, key, flow);
            let timeout = state.timeout(protocol, timeouts);
            let (expires_in, idle) = (duration(timeout.saturating_sub(idle)), duration(idle));
            let end = |address: A, port| (address.ip(), u16::from_be(port));
            match kind(key) {
                Kind::Packets => records.flows.push(FlowRecord {
                    protocol,
                    counter: flow.counter,
                    client: end(key.src, key.src_port),
                    listen: end(key.dst, key.dst_port),
                    source: end(flow.rewrite.src, flow.rewrite.src_port),
                    backend: end(flow.rewrite.dst, flow.rewrite.dst_port),
                    state,
                    protected: matches!(self, Self::Protected(_)),
                    idle,
                    expires_in,
                    forward: Traffic { packets: flow.packets, bytes: flow.bytes },
                    reply: reply
                        .map(|reply| Traffic { packets: reply.packets, bytes: reply.bytes })
                        .unwrap_or_default(),
                }),
                Kind::Mapping => records.mappings.push(MappingRecord {
                    protocol,
                    counter: flow.counter,
                    host: end(key.src, key.src_port),
                    outside: end(flow.rewrite.src, flow.rewrite.src_port),
                    filtering: filtering(flow.flags),
                    protected: matches!(self, Self::Protected(_)),
                    idle,
                    expires_in,
                }),
                Kind::Passing | Kind::Permission => {}
            }
        }
    }
}

/// Since either direction of a flow has seen a packet; 0 where a packet came after `now` was read.
fn idle<A: Family>(now: Ticks, entries: &StdHashMap<FlowKey<A>, Flow<A>>, key: &FlowKey<A>, flow: &Flow<A>) -> Ticks
where
    FlowKey<A>: Hash,
{
    let other = entries.get(&flow.peer_key(key.protocol)).map(|other| elapsed(now, other.last_seen));
    let own = elapsed(now, flow.last_seen);
    other.map_or(own, |other| own.min(other))
}

/// What an entry is about, by its key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Packets that are forwarded.
    Packets,
    Mapping,
    Permission,
    /// What the kernel forwards.
    Passing,
}

fn kind<A: Family>(key: &FlowKey<A>) -> Kind {
    if key.protocol & FlowKey::<A>::MAPPING != 0 {
        Kind::Mapping
    } else if key.protocol & FlowKey::<A>::PERMISSION != 0 {
        Kind::Permission
    } else if key.protocol & FlowKey::<A>::PASSING != 0 {
        Kind::Passing
    } else {
        Kind::Packets
    }
}

const fn filtering(flags: u8) -> Filtering {
    if flags & flow_flags::ENDPOINT_FILTERING != 0 {
        Filtering::Endpoint
    } else if flags & flow_flags::ADDRESS_FILTERING != 0 {
        Filtering::Address
    } else {
        Filtering::AddressAndPort
    }
}

const fn is_forward<A: Copy>(flow: &Flow<A>) -> bool {
    matches!(flow.direction(), Direction::Forward)
}

const fn duration(ticks: Ticks) -> Duration {
    Duration::from_nanos((ticks as u64) << TICK_SHIFT)
}

/// The programs' clock, `bpf_ktime_get_ns`.
fn now() -> Result<Ticks> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("cannot read the monotonic clock")?;
    Ok((Duration::from(now).as_nanos() >> TICK_SHIFT) as Ticks)
}
