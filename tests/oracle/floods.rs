//! Idle established flows survive floods: of SYNs, of datagrams to random ports, of flows that are each answered once, and
//! of flows that are established until there is no room for any more.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::Range;

use fastrand::Rng;
use forwarder_lab::Family;

use crate::flow::{Content, End, Flow, Stage};
use crate::packet::{ACK, Body, Packet, SYN, TCP, UDP};
use crate::plan::{self, CLIENTS, Side, Source, Way};
use crate::setting::Mode;
use crate::twin::{Twin, middle, station};
use crate::view::View;

/// Established flows that are idle during the floods.
const FLOWS: usize = 10_000;
/// Packets of each flood: more than all tables together hold.
pub(crate) const FLOOD: usize = 45_000;
/// In flight at once.
pub(crate) const BATCH: usize = 100;
/// Of `forwarder.toml`, the defaults.
pub(crate) const LIMIT_ESTABLISHED: usize = 32_768;
pub(crate) const LIMIT_NEW: usize = 8192;

/// Of a UDP header.
const UDP_LENGTH: usize = 8;

/// What each packet of a flood leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answered {
    Never,
    /// By the other end.
    Once,
    /// And that once more by the first, which establishes the flow.
    Twice,
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
        let config = plan::rules(family, Source::Masquerade);
        let twin = Twin::with_forwarder(family, mode, &config);
        twin.route_everything(family);
        let listen = plan::listens(family, Source::Masquerade)[0];
        let flows = (0..FLOWS).map(|index| Flow {
            listen,
            protocol: if index % 2 == 0 { TCP } else { UDP },
            client: plan::client(family, (index % usize::from(CLIENTS)) as u8),
            client_port: 2000 + (index / usize::from(CLIENTS)) as u16,
            listen_port: 80,
            stage: Stage::Closed,
            seen: plan::ours(family, Side::Home),
            chooses_port: [true; 2],
            bound: [None; 2],
            bound_before: [None; 2],
            reopens: [false; 2],
            sides: Way::Inward.sides(),
            acknowledges: 0,
            history: Vec::new(),
        });
        Self { twin, family, rng: Rng::with_seed(1), mark: 0, flows: flows.collect() }
    }

    fn mark(&mut self) -> u16 {
        self.mark = if self.mark == u16::MAX { 1 } else { self.mark + 1 };
        self.mark
    }

    fn send(&self, from: Side, packet: &Packet) {
        packet.frames(middle(from), station(from)).iter().for_each(|frame| self.twin.send(from, frame));
    }

    /// One packet of each of these flows from one end, all of which must arrive. With which source port.
    fn round(&mut self, flows: Range<usize>, by: End, tcp_flags: u8) -> Vec<u16> {
        let first = flows.start;
        let mut ports = vec![0; flows.len()];
        let mut sent = HashMap::new();
        for index in flows {
            let mark = self.mark();
            let flow = &mut self.flows[index];
            let flags = if flow.protocol == TCP { tcp_flags } else { 0 };
            flow.advance(by, flags, mark);
            let ack = (by == End::Client).then_some(flow.acknowledges);
            let content = Content { flags, ack, ..Content::default() };
            let port = if by == End::Client { flow.client_port } else { flow.bound[0].unwrap() };
            let packet = flow.packet(by, port, mark, &content);
            let from = flow.side(by);
            self.send(from, &packet);
            sent.insert(mark, index);
        }
        while !sent.is_empty() {
            let is_one = |frame: &[u8]| View::of(frame).is_some_and(|view| sent.contains_key(&view.mark));
            let frames = self.twin.arrived_until(Way::Inward.sides()[1 - by as usize], is_one);
            let frame = frames.last().unwrap();
            let view = View::of(frame).unwrap();
            let index = sent.remove(&view.mark).unwrap();
            let flow = &self.flows[index];
            let dst = if by == End::Client { flow.listen.to } else { flow.client };
            assert_eq!(view.dst, dst, "{flow:?}");
            ports[index - first] = view.port(frame, view.src_port_at()).unwrap();
        }
        ports
    }

    /// The flows, a batch after the other.
    fn batches() -> impl Iterator<Item = Range<usize>> {
        (0..FLOWS).step_by(BATCH).map(|first| first..FLOWS.min(first + BATCH))
    }

    fn establish(&mut self) {
        for flows in Self::batches() {
            let ports = self.round(flows.clone(), End::Client, SYN);
            for (flow, port) in self.flows[flows.clone()].iter_mut().zip(ports) {
                flow.bound[0] = Some(port);
            }
            self.round(flows.clone(), End::Server, SYN | ACK);
            self.round(flows, End::Client, ACK);
        }
    }

    /// All flows go on, both ways, as before.
    fn all_go_on(&mut self, after: &str) {
        for flows in Self::batches() {
            let ports = self.round(flows.clone(), End::Client, ACK);
            for (flow, port) in self.flows[flows.clone()].iter().zip(ports) {
                assert_eq!(flow.bound[0], Some(port), "after {after}: {flow:?}");
            }
            assert!(self.round(flows, End::Server, ACK).iter().all(|port| *port == 80), "after {after}");
        }
        let flows = self.twin.forwarder.as_ref().unwrap().flow_count();
        // Of some new ones only half is left.
        assert!((FLOWS..=LIMIT_ESTABLISHED + 2 * LIMIT_NEW).contains(&flows), "after {after}: {flows} flows");
    }

    fn anybody(&mut self) -> IpAddr {
        match self.family {
            Family::V4 => [self.rng.u8(11..100), self.rng.u8(..), self.rng.u8(..), self.rng.u8(1..255)].into(),
            Family::V6 => {
                let mut address = self.rng.u128(..).to_be_bytes();
                address[..2].copy_from_slice(&[0x20, 0x03]);
                address.into()
            }
        }
    }

    /// Packets made by `packet` from anybody, each counted.
    fn flood(&mut self, answered: Answered, packet: impl Fn(&mut Self, IpAddr, u16) -> Packet) {
        let before = self.outcomes();
        let mut sent = 0;
        let mut came_back = 0;
        let mut asked = 0;
        let wanted = if answered == Answered::Twice { LIMIT_ESTABLISHED } else { FLOOD };
        while asked < wanted {
            for _ in 0..BATCH {
                let (src, mark) = (self.anybody(), self.mark());
                let packet = packet(self, src, mark);
                self.send(Side::Client, &packet);
            }
            (asked, sent) = (asked + BATCH, sent + BATCH);
            for frame in self.twin.arrived(Side::Home) {
                if answered != Answered::Never
                    && let Some(answer) = answer(&frame, Side::Home)
                {
                    self.twin.send(Side::Home, &answer);
                }
            }
            let back = self.twin.arrived(Side::Client);
            came_back += back.len();
            if answered == Answered::Twice {
                for again in back.iter().filter_map(|frame| answer(frame, Side::Client)) {
                    self.twin.send(Side::Client, &again);
                    sent += 1;
                }
            }
        }
        self.twin.arrived(Side::Home);
        let counted: u64 = self.outcomes().values().sum::<u64>() - before.values().sum::<u64>();
        // Home's answers come in by another interface; neighbour discovery is all else there is.
        assert!((sent as u64..sent as u64 + 100).contains(&counted), "{sent} sent, {counted} counted");
        if answered != Answered::Never {
            assert!(came_back > asked * 9 / 10, "{came_back} of {asked} answers arrived");
        }
    }

    /// How often each outcome was counted where the client's packets come in first.
    fn outcomes(&self) -> BTreeMap<String, u64> {
        let stats = self.twin.forwarder.as_ref().unwrap().stats();
        let interface = &stats.interfaces[0];
        if interface.xdp.values().any(|count| *count > 0) { interface.xdp.clone() } else { interface.tc.clone() }
    }
}

/// What answers a first datagram, and what answers that; nothing answers the latter.
const ANSWERS: [&[u8]; 2] = [b"once", b"again"];

/// A UDP datagram back to where it came from, by who is at this side, or nothing for any other frame.
pub(crate) fn answer(frame: &[u8], by: Side) -> Option<Vec<u8>> {
    let view = View::of(frame).filter(|view| view.protocol == UDP)?;
    let (src, dst) = (view.port(frame, view.src_port_at())?, view.port(frame, view.dst_port_at())?);
    let payload = match frame.get(view.transport + UDP_LENGTH..view.end)? {
        payload if payload == ANSWERS[1] => return None,
        payload if payload == ANSWERS[0] => ANSWERS[1],
        _ => ANSWERS[0],
    };
    let body = Body::Udp { src: dst, dst: src, unsummed: false, payload: payload.to_vec() };
    let packet = Packet::new(view.dst, view.src, view.mark, body);
    packet.frames(middle(by), station(by)).pop()
}

fn idle_flows_survive(family: Family, mode: Mode) {
    let mut test = Test::start(family, mode);
    test.establish();
    test.all_go_on("nothing");
    let [web, .., all, _twin] = plan::listens(family, Source::Masquerade)[..] else { panic!("other rules") };

    test.flood(Answered::Never, |test, src, mark| {
        let (src_port, seq) = (test.rng.u16(1..), test.rng.u32(..));
        let body = Body::Tcp { src: src_port, dst: 80, seq, ack: 0, flags: SYN, options: vec![], payload: vec![] };
        Packet::new(src, web.address, mark, body)
    });
    test.all_go_on("a SYN flood");

    test.flood(Answered::Never, |test, src, mark| {
        let listen = if test.rng.bool() { web.address } else { all.address };
        let (src_port, dst) = (test.rng.u16(1..), test.rng.u16(1..));
        let body = Body::Udp { src: src_port, dst, unsummed: false, payload: vec![0; 10] };
        Packet::new(src, listen, mark, body)
    });
    test.all_go_on("a flood of datagrams to random ports");

    test.flood(Answered::Once, |test, src, mark| {
        let body = Body::Udp { src: test.rng.u16(1..), dst: 80, unsummed: false, payload: vec![0; 10] };
        Packet::new(src, web.address, mark, body)
    });
    test.all_go_on("a flood that was answered");
    let unprotected = |test: &Test| test.twin.forwarder.as_ref().unwrap().stats().rule("web").unprotected;
    assert_eq!(unprotected(&test), 0);

    test.flood(Answered::Twice, |test, src, mark| {
        let body = Body::Udp { src: test.rng.u16(1..), dst: 80, unsummed: false, payload: vec![0; 10] };
        Packet::new(src, web.address, mark, body)
    });
    // Whoever found no room was counted, and went on among the new ones.
    assert!(unprotected(&test) > 0);
    test.all_go_on("a flood that filled the table");
}

#[test]
fn idle_flows_survive_floods_v4_native() {
    idle_flows_survive(Family::V4, Mode::Native);
}

#[test]
fn idle_flows_survive_floods_v6_tc() {
    idle_flows_survive(Family::V6, Mode::Tc);
}
