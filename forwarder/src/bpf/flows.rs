//! The flows that the kernel holds, as a person thinks of them: client, listen, backend, state, age.

use std::{collections::HashMap as StdHashMap, hash::Hash, io::ErrorKind, net::IpAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData, MapError};
use forwarder_common::{
    abi::{Direction, Flow, FlowKey, Layout, TICK_SHIFT, Ticks, Timeouts, Traffic, elapsed},
    address::{V4, V6},
    flow_state::FlowState,
};
use nix::time::{ClockId, clock_gettime};

use super::{Bits, load::pinned};
use crate::config::Family;

/// `BPF_EXIST` of `bpf.h`: only an entry that is there.
const BPF_EXIST: u64 = 2;

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

/// How many flows and mappings the flow tables have, of the room they have: two entries for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Flows, and mappings of masqueraded hosts, which take as much room.
    pub flows: u32,
    /// Room for flows.
    pub limit: u32,
}

/// A flow table of one address family, opened for reading.
struct FlowTable<A>
where
    FlowKey<A>: Layout,
    Flow<A>: Layout,
{
    map: HashMap<MapData, Bits<FlowKey<A>>, Bits<Flow<A>>>,
    limit: u32,
    protected: bool,
}

/// All flows, both families, established and embryonic; in no order.
pub fn read(pins: &Path, timeouts: &Timeouts) -> Result<Vec<FlowRecord>> {
    let now = now()?;
    let mut flows = Vec::new();
    for protected in [true, false] {
        FlowTable::<V4>::open(pins, protected, "V4")?.records(now, timeouts, &mut flows)?;
        FlowTable::<V6>::open(pins, protected, "V6")?.records(now, timeouts, &mut flows)?;
    }
    Ok(flows)
}

/// How full the tables are: IPv4 established and embryonic, IPv6 established and embryonic.
pub fn fill(pins: &Path) -> Result<[Fill; 4]> {
    Ok([
        FlowTable::<V4>::open(pins, true, "V4")?.fill()?,
        FlowTable::<V4>::open(pins, false, "V4")?.fill()?,
        FlowTable::<V6>::open(pins, true, "V6")?.fill()?,
        FlowTable::<V6>::open(pins, false, "V6")?.fill()?,
    ])
}

/// Ends the flows of rules that are gone, by their counters, and says how many.
///
/// A new one is removed. A protected one is dated back, so that no packet is forwarded by it any more and the sweeper
/// removes it in its own order.
pub fn end(pins: &Path, counters: &[u32]) -> Result<usize> {
    let now = now()?;
    let mut ended = 0;
    for protected in [true, false] {
        ended += FlowTable::<V4>::open(pins, protected, "V4")?.end(now, counters)?;
        ended += FlowTable::<V6>::open(pins, protected, "V6")?.end(now, counters)?;
    }
    Ok(ended)
}

impl<A: Family> FlowTable<A>
where
    FlowKey<A>: Layout + Hash,
    Flow<A>: Layout,
{
    fn open(pins: &Path, protected: bool, family: &str) -> Result<Self> {
        let name = if protected { format!("ESTABLISHED_{family}") } else { format!("EMBRYONIC_{family}") };
        let data = MapData::from_pin(pins.join(&name)).with_context(|| format!("cannot open the pinned map {name}"))?;
        let limit = data.info().with_context(|| format!("cannot ask for the size of map {name}"))?.max_entries() / 2;
        let wrap = if protected { Map::HashMap } else { Map::LruHashMap };
        Ok(Self { map: pinned(pins, &name, wrap)?, limit, protected })
    }

    /// A copy of the table. Packets change it meanwhile: the kernel may then start over, so reading ends after
    /// twice as many steps as there can be entries, and each key counts once.
    fn snapshot(&self) -> Result<StdHashMap<FlowKey<A>, Flow<A>>> {
        let steps = usize::try_from(self.limit).unwrap_or(usize::MAX).saturating_mul(4);
        let mut entries = StdHashMap::new();
        for entry in self.map.iter().take(steps) {
            let (Bits(key), Bits(flow)) = entry.context("cannot read a flow table")?;
            entries.insert(key, flow);
        }
        Ok(entries)
    }

    fn fill(&self) -> Result<Fill> {
        let mut flows: u32 = 0;
        for flow in self.snapshot()?.values() {
            flows += u32::from(is_forward(flow));
        }
        Ok(Fill { flows, limit: self.limit })
    }

    fn end(&mut self, now: Ticks, counters: &[u32]) -> Result<usize> {
        // Longer ago than any timeout, but a quarter of an hour short of what would count as the future: until then
        // the sweeper has come by.
        let long_ago = now.wrapping_sub(Ticks::MAX / 2 - (15 * 60 * 1000));
        let mut ended = 0;
        for (key, flow) in self.snapshot()?.into_iter().filter(|(_, flow)| counters.contains(&flow.counter)) {
            ended += usize::from(is_forward(&flow) && !key.is_of_no_packet());
            let done = if self.protected {
                self.map.insert(Bits(key), Bits(Flow { last_seen: long_ago, ..flow }), BPF_EXIST)
            } else {
                self.map.remove(&Bits(key))
            };
            match done {
                // It has ended by itself meanwhile.
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(MapError::SyscallError(error)) if error.io_error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error).context("cannot end the flows of a removed rule"),
            }
        }
        Ok(ended)
    }

    fn records(&self, now: Ticks, timeouts: &Timeouts, records: &mut Vec<FlowRecord>) -> Result<()> {
        let entries = self.snapshot()?;
        // A mapping is not a flow: those that use it are.
        for (key, flow) in entries.iter().filter(|(key, flow)| is_forward(flow) && !key.is_of_no_packet()) {
            let protocol = key.protocol_number();
            let reply = entries.get(&flow.peer_key(key.protocol));
            let state = FlowState::from_number(flow.state);
            // A packet may have come after `now` was read.
            let idle = [Some(flow), reply]
                .into_iter()
                .flatten()
                .map(|flow| elapsed(now, flow.last_seen))
                .map(|ticks| if ticks > Ticks::MAX / 2 { 0 } else { ticks })
                .min()
                .unwrap_or(0);
            let timeout = state.timeout(protocol, timeouts);
            records.push(FlowRecord {
                protocol,
                counter: flow.counter,
                client: (key.src.ip(), u16::from_be(key.src_port)),
                listen: (key.dst.ip(), u16::from_be(key.dst_port)),
                source: (flow.rewrite.src.ip(), u16::from_be(flow.rewrite.src_port)),
                backend: (flow.rewrite.dst.ip(), u16::from_be(flow.rewrite.dst_port)),
                state,
                protected: self.protected,
                idle: duration(idle),
                expires_in: duration(timeout.saturating_sub(idle)),
                forward: Traffic { packets: flow.packets, bytes: flow.bytes },
                reply: reply.map(|reply| Traffic { packets: reply.packets, bytes: reply.bytes }).unwrap_or_default(),
            });
        }
        Ok(())
    }
}

const fn is_forward<A>(flow: &Flow<A>) -> bool {
    flow.direction == Direction::Forward as u8
}

const fn duration(ticks: Ticks) -> Duration {
    Duration::from_nanos((ticks as u64) << TICK_SHIFT)
}

/// The programs' clock, `bpf_ktime_get_ns`.
fn now() -> Result<Ticks> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("cannot read the monotonic clock")?;
    Ok((Duration::from(now).as_nanos() >> TICK_SHIFT) as Ticks)
}
