//! Hosts behind forwarder that are idle keep their connections and their ports, whatever their neighbours and the world
//! send: floods that make mappings, floods at mapped ports, and flows that are established until there is no room.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::Range;

use fastrand::Rng;
use forwarder_lab::Family;

use crate::floods::{BATCH, FLOOD, LIMIT_ESTABLISHED, LIMIT_NEW, answer};
use crate::packet::{ACK, Body, Packet, SYN, TCP, UDP};
use crate::plan::{self, CLIENTS, NEIGHBOURS, Side};
use crate::setting::Mode;
use crate::twin::{Twin, middle, station};
use crate::view::View;

/// Idle flows, each with a mapping of its own.
const FLOWS: usize = 10_000;
const REMOTE_PORT: u16 = 443;

/// A host's port, who it talks to, and the port that the world sees.
struct Flow {
    protocol: u8,
    host: IpAddr,
    port: u16,
    remote: IpAddr,
    outer: u16,
}

struct Test {
    twin: Twin,
    family: Family,
    rng: Rng,
    mark: u16,
    flows: Vec<Flow>,
}

impl Test {
    fn start(family: Family, mode: Mode) -> Self {
        crate::stay_on_one_cpu();
        let from = if family == Family::V4 { "10.8.0.0/24" } else { "fd08::/64" };
        let ours = plan::ours(family, Side::Client);
        let config =
            format!("[[masquerade]]\nname = \"behind\"\nfrom = \"{from}\"\nout = \"eth0\"\naddress = \"{ours}\"\n");
        let twin = Twin::with_forwarder(family, mode, &config);
        twin.route_everything(family);
        let flows = (0..FLOWS).map(|index| Flow {
            protocol: if index % 4 < 2 { TCP } else { UDP },
            host: plan::backend(family, (index % 2) as u8),
            port: 2000 + (index / 2) as u16,
            remote: plan::client(family, (index % usize::from(CLIENTS)) as u8),
            outer: 0,
        });
        Self { twin, family, rng: Rng::with_seed(2), mark: 0, flows: flows.collect() }
    }

    fn mark(&mut self) -> u16 {
        self.mark = if self.mark == u16::MAX { 1 } else { self.mark + 1 };
        self.mark
    }

    fn send(&self, from: Side, packet: &Packet) {
        packet.frames(middle(from), station(from)).iter().for_each(|frame| self.twin.send(from, frame));
    }

    /// Throws away what has arrived: also what the machine in the middle says of what was for itself.
    fn drain(&self) {
        self.twin.arrived(Side::Home);
        self.twin.arrived(Side::Client);
    }

    /// The flows, a batch after the other.
    fn batches() -> impl Iterator<Item = Range<usize>> {
        (0..FLOWS).step_by(BATCH).map(|first| first..FLOWS.min(first + BATCH))
    }

    /// One packet of each of these flows from `from`; all must arrive, between the ends that they had before.
    fn round(&mut self, flows: Range<usize>, from: Side, flags: u8, after: &str) {
        let ours = plan::ours(self.family, Side::Client);
        let mut sent = HashMap::new();
        for index in flows {
            let mark = self.mark();
            let flow = &self.flows[index];
            let (src, dst, src_port, dst_port) = match from {
                Side::Home => (flow.host, flow.remote, flow.port, REMOTE_PORT),
                Side::Client => (flow.remote, ours, REMOTE_PORT, flow.outer),
            };
            self.send(from, &Packet::new(src, dst, mark, body(flow.protocol, src_port, dst_port, flags)));
            sent.insert(mark, index);
        }
        let to = if from == Side::Home { Side::Client } else { Side::Home };
        while !sent.is_empty() {
            // What is left of a flood may have the same mark.
            let is_one = |frame: &[u8]| {
                let view = View::of(frame);
                let flow = view.as_ref().and_then(|view| sent.get(&view.mark)).map(|index: &usize| &self.flows[*index]);
                view.zip(flow).is_some_and(|(view, flow)| {
                    if to == Side::Client { view.dst == flow.remote } else { view.src == flow.remote }
                })
            };
            let frames = self.twin.arrived_until(to, is_one);
            let frame = frames.last().unwrap();
            let view = View::of(frame).unwrap();
            let flow = &mut self.flows[sent.remove(&view.mark).unwrap()];
            let ports = [view.src_port_at(), view.dst_port_at()].map(|at| view.port(frame, at).unwrap());
            if from == Side::Home {
                flow.outer = if flow.outer == 0 { ports[0] } else { flow.outer };
                assert_eq!((view.src, view.dst), (ours, flow.remote), "after {after}");
                assert_eq!(ports, [flow.outer, REMOTE_PORT], "after {after}");
            } else {
                assert_eq!((view.src, view.dst, ports), (flow.remote, flow.host, [REMOTE_PORT, flow.port]));
            }
        }
    }

    fn all_go_on(&mut self, after: &str) {
        for flows in Self::batches() {
            self.round(flows.clone(), Side::Home, ACK, after);
            self.round(flows, Side::Client, ACK, after);
        }
        let forwarder = self.twin.forwarder.as_ref().unwrap();
        let (flows, mappings) = (forwarder.flow_count(), forwarder.mappings().len());
        assert!(flows >= FLOWS && mappings >= FLOWS, "after {after}: {flows} flows, {mappings} mappings");
        assert!(
            flows + mappings <= LIMIT_ESTABLISHED + 2 * LIMIT_NEW,
            "after {after}: {flows} flows, {mappings} mappings"
        );
    }

    fn unprotected(&self) -> u64 {
        self.twin.forwarder.as_ref().unwrap().stats().rule("behind").unprotected
    }

    /// How many packets were counted at an interface, whatever became of them.
    fn counted(&self, interface: usize) -> u64 {
        let stats = self.twin.forwarder.as_ref().unwrap().stats();
        let interface = &stats.interfaces[interface];
        let sum = |outcomes: &std::collections::BTreeMap<String, u64>| outcomes.values().sum::<u64>();
        sum(&interface.xdp).max(sum(&interface.tc))
    }

    /// A host behind, the port that it sends from, and where to: all made up.
    fn anybody_to_anybody(&mut self) -> Packet {
        let last = self.rng.u8(2..250);
        let (host, remote): (IpAddr, IpAddr) = match self.family {
            Family::V4 => {
                ([10, 8, 0, last].into(), [self.rng.u8(11..100), 1, self.rng.u8(..), self.rng.u8(1..255)].into())
            }
            Family::V6 => {
                let mut remote = self.rng.u128(..).to_be_bytes();
                remote[..2].copy_from_slice(&[0x20, 0x03]);
                (plan::parse(&format!("fd08::{last:x}")), remote.into())
            }
        };
        let (src, mark) = (self.rng.u16(1..), self.mark());
        Packet::new(host, remote, mark, body(UDP, src, self.rng.u16(1..), 0))
    }
}

fn body(protocol: u8, src: u16, dst: u16, flags: u8) -> Body {
    // Both ends' numbers are these, whatever they send.
    let (seq, ack) = if flags & SYN == 0 { (1, 1) } else { (0, u32::from(flags & ACK != 0)) };
    match protocol {
        TCP => Body::Tcp { src, dst, seq, ack, flags, options: vec![], payload: vec![] },
        _ => Body::Udp { src, dst, unsummed: false, payload: vec![0; 10] },
    }
}

fn idle_hosts_survive(family: Family, mode: Mode) {
    let mut test = Test::start(family, mode);
    for flows in Test::batches() {
        for (from, flags) in [(Side::Home, SYN), (Side::Client, SYN | ACK), (Side::Home, ACK)] {
            test.round(flows.clone(), from, flags, "nothing");
        }
    }
    test.all_go_on("nothing");

    let before = test.counted(1);
    for _ in 0..FLOOD / BATCH {
        for _ in 0..BATCH {
            let packet = test.anybody_to_anybody();
            test.send(Side::Home, &packet);
        }
        test.drain();
    }
    let counted = test.counted(1) - before;
    assert!((FLOOD as u64..FLOOD as u64 + 100).contains(&counted), "{counted} counted");
    test.all_go_on("a flood of mappings");

    for _ in 0..FLOOD / BATCH {
        for _ in 0..BATCH {
            let mut packet = test.anybody_to_anybody();
            (packet.src, packet.dst) = (packet.dst, plan::ours(family, Side::Client));
            test.send(Side::Client, &packet);
        }
        test.drain();
    }
    test.all_go_on("a flood at mapped ports");
    assert_eq!(test.unprotected(), 0);

    // Each is answered and goes on, which protects it, until there is no room. Answers arrive only at hosts whose MAC address
    // is known.
    for number in 0..FLOOD / BATCH {
        if number % 20 == 0 && test.unprotected() > 0 {
            break;
        }
        for _ in 0..BATCH {
            let mut packet = test.anybody_to_anybody();
            packet.src = plan::neighbour(family, test.rng.u8(..NEIGHBOURS));
            test.send(Side::Home, &packet);
        }
        for frame in test.twin.arrived(Side::Client) {
            if let Some(answer) = answer(&frame, Side::Client) {
                test.twin.send(Side::Client, &answer);
            }
        }
        for frame in test.twin.arrived(Side::Home) {
            if let Some(again) = answer(&frame, Side::Home) {
                test.twin.send(Side::Home, &again);
            }
        }
        test.twin.arrived(Side::Client);
    }
    test.drain();
    assert!(test.unprotected() > 0);
    test.all_go_on("a flood that filled the table");
}

#[test]
fn idle_hosts_survive_floods_v4_native() {
    idle_hosts_survive(Family::V4, Mode::Native);
}

#[test]
fn idle_hosts_survive_floods_v6_tc() {
    idle_hosts_survive(Family::V6, Mode::Tc);
}
