#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use core::net::{Ipv4Addr, Ipv6Addr};
use std::{vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::{
    abi::{NextHopState as State, RuleRef},
    address::{V4, V6},
    tables::{
        Hop,
        memory::{HOP, Memory, MemoryAddress},
    },
    test_packet::internet_checksum,
};

const OUR_MAC: Mac = [2, 0, 0, 0, 0, 1];
const ASKER_MAC: Mac = [2, 0, 0, 0, 0, 2];
const INGRESS: u32 = 5;
const VIA: u32 = 0x1_0007;
const COUNTER: u32 = 3;

/// A frame of any length, and the copies that were sent of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Frame {
    bytes: Vec<u8>,
    sent: Vec<(u32, Vec<u8>)>,
    /// Whether the kernel refuses to change its length or to copy it.
    refuses: bool,
}

impl Packet for Frame {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes.get(offset..)?.first_chunk().copied()
    }
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        *self.bytes.get_mut(offset..)?.first_chunk_mut()? = bytes;
        Some(())
    }
    fn length(&self) -> usize {
        self.bytes.len()
    }
}

impl Answerable for Frame {
    fn resize(&mut self, length: usize) -> Option<()> {
        self.bytes.resize(length, 0);
        (!self.refuses).then_some(())
    }
    fn send_copy(&mut self, interface: u32) -> Option<()> {
        self.sent.push((interface, self.bytes.clone()));
        (!self.refuses).then_some(())
    }
}

fn v4(text: &str) -> [u8; 4] {
    text.parse::<Ipv4Addr>().unwrap().octets()
}

fn v6(text: &str) -> [u8; 16] {
    text.parse::<Ipv6Addr>().unwrap().octets()
}

fn word4(text: &str) -> V4 {
    V4::from_ne_bytes(v4(text))
}

fn words6(text: &str) -> V6 {
    crate::parse::words(v6(text))
}

/// Tables with one `[[neighbor]]`, for a prefix of so many bits, and a way to it in this state.
fn tables<A: MemoryAddress>(prefix: A, bits: u32, ours: A, prober: A, while_alive: bool, state: State) -> Memory<A> {
    let mut memory = Memory::default();
    memory.ingress.set(INGRESS);
    memory.default_hop = Hop { state, interface: VIA, ..HOP };
    memory.rules.insert(1, Rule { counter: COUNTER, ..Rule::neighbor(VIA, ours, prober, while_alive) });
    let key = RangeKey { prefix_len: 32 + bits, ..RangeKey::neighbor(INGRESS, prefix) };
    memory.ranges.insert(key, RuleRef::settled(1));
    memory
}

fn tables4(while_alive: bool, state: State) -> Memory<V4> {
    tables(word4("198.51.100.32"), 30, word4("198.51.100.2"), word4("10.8.0.1"), while_alive, state)
}

fn tables6(while_alive: bool, state: State) -> Memory<V6> {
    tables(words6("2001:db8:0:0:8::"), 78, words6("fe80::1"), words6("fe80::2"), while_alive, state)
}

/// What an ARP frame says.
#[derive(Clone, Debug)]
struct ArpFrame {
    to: Mac,
    from: Mac,
    header: [u8; 8],
    sender_mac: Mac,
    sender: &'static str,
    target_mac: Mac,
    target: &'static str,
}

const REQUEST: ArpFrame = ArpFrame {
    to: [0xff; 6],
    from: ASKER_MAC,
    header: [0, 1, 8, 0, 6, 4, 0, 1],
    sender_mac: ASKER_MAC,
    sender: "198.51.100.1",
    target_mac: [0; 6],
    target: "198.51.100.33",
};

impl ArpFrame {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.to, self.from].concat();
        bytes.extend([8, 6]);
        bytes.extend(self.header);
        bytes.extend(self.sender_mac);
        bytes.extend(v4(self.sender));
        bytes.extend(self.target_mac);
        bytes.extend(v4(self.target));
        bytes
    }
}

fn ask4(memory: &Memory<V4>, bytes: Vec<u8>) -> (Reply, Frame) {
    let mut frame = Frame { bytes, ..Frame::default() };
    (process::<Arp, _>(&mut frame, memory, OUR_MAC), frame)
}

fn ask6(memory: &Memory<V6>, bytes: Vec<u8>) -> (Reply, Frame) {
    let mut frame = Frame { bytes, ..Frame::default() };
    (process::<Discovery, _>(&mut frame, memory, OUR_MAC), frame)
}

const ANSWERED: Reply = Reply::of(Outcome::AnsweredNeighbor);
const NOT_OURS: Reply = Reply::of(Outcome::NotOurs);

#[test]
fn arp_requests_and_what_they_ask() {
    type Change = fn(&mut ArpFrame);
    let table: &[(&str, bool, Change)] = &[
        ("a request", true, |_| {}),
        ("one of those that confirm what is known: to this station", true, |a| a.to = OUR_MAC),
        ("a probe (RFC 5227 section 2.1.1)", true, |a| a.sender = "0.0.0.0"),
        ("the target's MAC address means nothing", true, |a| a.target_mac = [9; 6]),
        ("the asker's MAC address is what it says", true, |a| a.from = [2, 9, 9, 9, 9, 9]),
        ("an announcement (RFC 5227 section 2.3)", false, |a| a.sender = "198.51.100.33"),
        ("a reply", false, |a| a.header[7] = 2),
        ("RARP", false, |a| a.header[7] = 3),
        ("another hardware", false, |a| a.header[1] = 6),
        ("another protocol", false, |a| a.header[2] = 0x86),
        ("longer hardware addresses", false, |a| a.header[4] = 8),
        ("longer protocol addresses", false, |a| a.header[5] = 16),
        ("an address beside the prefix", false, |a| a.target = "198.51.100.36"),
        ("the other side of it", false, |a| a.target = "198.51.100.31"),
        ("no address", false, |a| a.target = "0.0.0.0"),
        ("a multicast address", false, |a| a.target = "224.0.0.1"),
        ("the broadcast address", false, |a| a.target = "255.255.255.255"),
        ("a loopback address", false, |a| a.target = "127.0.0.1"),
        ("from a multicast address", false, |a| a.sender = "224.0.0.1"),
        ("from the broadcast address", false, |a| a.sender = "255.255.255.255"),
        ("from a loopback address", false, |a| a.sender = "127.0.0.1"),
        ("from a group's MAC address", false, |a| a.sender_mac = [1, 0, 0x5e, 0, 0, 1]),
        ("from everybody's MAC address", false, |a| a.sender_mac = [0xff; 6]),
        ("from no MAC address", false, |a| a.sender_mac = [0; 6]),
    ];
    for (about, answered, change) in table {
        let mut arp = REQUEST;
        change(&mut arp);
        let memory = tables4(false, State::Resolved);
        // Not a byte more than there has to be, and padded to the least length of a frame.
        for padding in [0, 18] {
            let mut bytes = arp.bytes();
            bytes.extend(vec![0x55; padding]);
            let (reply, frame) = ask4(&memory, bytes.clone());
            assert_eq!(reply, if *answered { ANSWERED } else { NOT_OURS }, "{about}");
            if *answered {
                let answer = ArpFrame {
                    to: arp.sender_mac,
                    from: OUR_MAC,
                    header: [0, 1, 8, 0, 6, 4, 0, 2],
                    sender_mac: OUR_MAC,
                    sender: arp.target,
                    target_mac: arp.sender_mac,
                    target: arp.sender,
                };
                bytes.splice(..42, answer.bytes());
            }
            assert_eq!(frame.bytes, bytes, "{about}");
            assert!(frame.sent.is_empty());
        }
        let counted = memory.counted(COUNTER);
        let expected = if *answered { 2 } else { 0 };
        assert_eq!((counted.forward.packets, counted.reply.packets), (expected, expected), "{about}");
    }
}

/// A solicitation by its meaning.
#[derive(Clone, Debug)]
struct Solicitation {
    version: u8,
    next_header: u8,
    hop_limit: u8,
    from: &'static str,
    to: &'static str,
    kind: u8,
    code: u8,
    target: &'static str,
    options: Vec<u8>,
    /// What is added to the right checksum.
    wrong: u16,
    /// How much shorter the message says it is.
    short: u16,
}

fn solicitation() -> Solicitation {
    Solicitation {
        version: 6,
        next_header: 58,
        hop_limit: 255,
        from: "fe80::aa",
        to: "ff02::1:ff00:2",
        kind: 135,
        code: 0,
        target: "2001:db8:0:0:8::2",
        options: vec![1, 1, 2, 0, 0, 0, 0, 3],
        wrong: 0,
        short: 0,
    }
}

/// An ICMPv6 message in its frame.
fn icmpv6(to_mac: Mac, from_mac: Mac, head: [u8; 3], ends: [[u8; 16]; 2], message: &[u8], wrong: u16) -> Vec<u8> {
    let [version, next_header, hop_limit] = head;
    let mut message = message.to_vec();
    let length = u16::try_from(message.len()).unwrap();
    let mut summed = ends.concat();
    summed.extend(u32::from(length).to_be_bytes());
    summed.extend([0, 0, 0, 58]);
    summed.extend(&message);
    let sum = internet_checksum(&summed).wrapping_add(wrong);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut bytes = [to_mac, from_mac].concat();
    bytes.extend([0x86, 0xdd, version << 4, 0, 0, 0]);
    bytes.extend(length.to_be_bytes());
    bytes.extend([next_header, hop_limit]);
    bytes.extend(ends.concat());
    bytes.extend(message);
    bytes
}

impl Solicitation {
    fn bytes(&self) -> Vec<u8> {
        let mut message = vec![self.kind, self.code, 0, 0, 0, 0, 0, 0];
        message.extend(v6(self.target));
        message.extend(&self.options);
        message.truncate(message.len() - usize::from(self.short));
        let head = [self.version, self.next_header, self.hop_limit];
        let ends = [v6(self.from), v6(self.to)];
        icmpv6([0x33, 0x33, 0xff, 0, 0, 2], ASKER_MAC, head, ends, &message, self.wrong)
    }
}

/// The advertisement of a proxy.
fn advertisement(to_mac: Mac, to: &str, flags: u8, target: &str) -> Vec<u8> {
    let mut message = vec![136, 0, 0, 0, flags, 0, 0, 0];
    message.extend(v6(target));
    message.extend([2, 1]);
    message.extend(OUR_MAC);
    icmpv6(to_mac, OUR_MAC, [6, 58, 255], [v6("fe80::1"), v6(to)], &message, 0)
}

#[test]
fn solicitations_and_what_they_ask() {
    type Change = fn(&mut Solicitation);
    type Answer = Option<(Mac, &'static str, u8)>;
    const OPTION_MAC: Mac = [2, 0, 0, 0, 0, 3];
    const ALL_NODES: (Mac, &str, u8) = ([0x33, 0x33, 0, 0, 0, 1], "ff02::1", 0);
    const NONCE: [u8; 8] = [14, 1, 1, 2, 3, 4, 5, 6];
    let asker = |mac, from| Some((mac, from, 0x40));
    let table: Vec<(&str, Answer, Change)> = vec![
        ("a solicitation", asker(OPTION_MAC, "fe80::aa"), |_| {}),
        ("from a global address", asker(OPTION_MAC, "2001:db8::1"), |s| s.from = "2001:db8::1"),
        ("unicast: is it still there?", asker(OPTION_MAC, "fe80::aa"), |s| s.to = s.target),
        ("without an option", asker(ASKER_MAC, "fe80::aa"), |s| s.options.clear()),
        ("with a nonce before it", asker(OPTION_MAC, "fe80::aa"), |s| s.options = [&NONCE[..], &s.options].concat()),
        ("with two: the first counts", asker(OPTION_MAC, "fe80::aa"), |s| s.options.extend([1, 1, 2, 9, 9, 9, 9, 9])),
        ("with an option that nobody knows", asker(OPTION_MAC, "fe80::aa"), |s| {
            s.options.extend([200, 1, 0, 0, 0, 0, 0, 0]);
        }),
        ("with a long option", asker(OPTION_MAC, "fe80::aa"), |s| {
            s.options.extend([200, 2]);
            s.options.extend([0; 14]);
        }),
        ("with four options", asker(OPTION_MAC, "fe80::aa"), |s| s.options.extend(NONCE.repeat(3))),
        ("of somebody who is about to take it", Some(ALL_NODES), |s| {
            s.from = "::";
            s.options.clear();
        }),
        ("the same, and looking out for itself (RFC 7527)", Some(ALL_NODES), |s| {
            s.from = "::";
            s.options = NONCE.to_vec();
        }),
        ("the same, not to the group", None, |s| {
            s.from = "::";
            s.options.clear();
            s.to = s.target;
        }),
        ("the same, to another group", None, |s| {
            s.from = "::";
            s.options.clear();
            s.to = "ff02::1";
        }),
        ("the same, with a link address", None, |s| s.from = "::"),
        ("forwarded by a router", None, |s| s.hop_limit = 254),
        ("another code", None, |s| s.code = 1),
        ("another type: an advertisement", None, |s| s.kind = 136),
        ("another type: a router's solicitation", None, |s| s.kind = 133),
        ("a wrong checksum", None, |s| s.wrong = 1),
        ("shorter than it has to be", None, |s| {
            s.options.clear();
            s.short = 1;
        }),
        ("a cut option", None, |s| s.short = 1),
        ("an option of length 0", None, |s| s.options.extend([14, 0, 0, 0, 0, 0, 0, 0])),
        ("an option that goes on after the end", None, |s| s.options[1] = 2),
        ("a link address that is too long", None, |s| {
            s.options[1] = 2;
            s.options.extend([0; 8]);
        }),
        ("more options than are looked at", None, |s| s.options.extend(NONCE.repeat(4))),
        ("a group's link address", None, |s| s.options[2] = 3),
        ("no link address at all", None, |s| s.options[2..].fill(0)),
        ("an extension header", None, |s| s.next_header = 60),
        ("another version", None, |s| s.version = 4),
        ("a group's address", None, |s| s.target = "ff02::1"),
        ("an address of the link", None, |s| s.target = "fe80::8:0:2"),
        ("the loopback address", None, |s| s.target = "::1"),
        ("no address", None, |s| s.target = "::"),
        ("an address beside the prefix", None, |s| s.target = "2001:db8:0:0:c::"),
        ("the other side of it", None, |s| s.target = "2001:db8:0:0:7:ffff:ffff:ffff"),
        ("from a group", None, |s| s.from = "ff02::5"),
        ("from the loopback address", None, |s| s.from = "::1"),
        ("from the address that is asked for", None, |s| s.from = s.target),
        ("to another address", None, |s| s.to = "2001:db8:0:0:8::3"),
    ];
    for (about, answer, change) in table {
        let mut solicitation = solicitation();
        change(&mut solicitation);
        let memory = tables6(false, State::Resolved);
        for padding in [0, 20] {
            let mut bytes = solicitation.bytes();
            bytes.extend(vec![0x55; padding]);
            let (reply, frame) = ask6(&memory, bytes.clone());
            assert_eq!(reply, if answer.is_some() { ANSWERED } else { NOT_OURS }, "{about}");
            let expected = answer.map(|(mac, to, flags)| advertisement(mac, to, flags, solicitation.target));
            assert_eq!(frame.bytes, expected.unwrap_or(bytes), "{about}");
            assert!(frame.sent.is_empty());
        }
        let counted = memory.counted(COUNTER);
        let expected = if answer.is_some() { 2 } else { 0 };
        assert_eq!((counted.forward.packets, counted.reply.packets), (expected, expected), "{about}");
    }
}

/// Whatever is cut off a question, it is no question any more, and stays as it is.
#[test]
fn cut_questions_are_left_alone() {
    for length in 0..42 {
        let bytes = REQUEST.bytes()[..length].to_vec();
        let (reply, frame) = ask4(&tables4(true, State::Resolved), bytes.clone());
        assert_eq!((reply, frame.bytes), (NOT_OURS, bytes));
    }
    let whole = solicitation().bytes();
    for length in 0..whole.len() {
        let bytes = whole[..length].to_vec();
        let (reply, frame) = ask6(&tables6(true, State::Resolved), bytes.clone());
        assert_eq!((reply, frame.bytes), (NOT_OURS, bytes));
    }
}

const PROBE4: [u8; 42] = [
    2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 8, 0, // to ourselves, as far as the link goes
    0x45, 0, 0, 28, 0, 0, 0x40, 0, 1, 1, 0x45, 0x84, 10, 8, 0, 1, 198, 51, 100, 33, // one hop
    0, 0, 0xff, 0xff, 0, 0, 0, 0, // an echo reply that nobody waits for
];

fn probe6() -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 59, 1];
    bytes.extend(v6("fe80::2"));
    bytes.extend(v6("2001:db8:0:0:8::2"));
    bytes
}

#[test]
fn ways_and_whether_they_are_answered() {
    assert_eq!(internet_checksum(&PROBE4[14..34]), 0);
    let probing = |outcome| Reply { outcome, probes: VIA };
    // The state of the way; whether it is by the rule's interface; what becomes of the question always, and while alive.
    let table = [
        (State::Resolved, true, ANSWERED, probing(Outcome::AnsweredNeighbor)),
        (State::Unresolved, true, ANSWERED, probing(Outcome::HeldForNeighbor)),
        (State::Local, true, NOT_OURS, NOT_OURS),
        (State::Unreachable, true, NOT_OURS, NOT_OURS),
        (State::Prohibited, true, NOT_OURS, NOT_OURS),
        (State::Blackhole, true, NOT_OURS, NOT_OURS),
        (State::Unknown, true, NOT_OURS, NOT_OURS),
        (State::Resolved, false, NOT_OURS, NOT_OURS),
        (State::Unresolved, false, NOT_OURS, NOT_OURS),
    ];
    let (request, solicitation) = (REQUEST.bytes(), solicitation().bytes());
    for (state, by_via, always, alive) in table {
        for (while_alive, expected) in [(false, always), (true, alive)] {
            let about = std::format!("{state:?} {by_via} {while_alive}");
            let (mut four, mut six) = (tables4(while_alive, state), tables6(while_alive, state));
            if !by_via {
                // The asker's own side, say.
                four.default_hop.interface = INGRESS;
                six.default_hop.interface = INGRESS;
            }
            let (reply4, frame4) = ask4(&four, request.clone());
            let (reply6, frame6) = ask6(&six, solicitation.clone());
            assert_eq!([reply4, reply6], [expected; 2], "{about}");
            let answers = expected.outcome == Outcome::AnsweredNeighbor;
            let probes = expected.probes != 0;
            let advertised = advertisement([2, 0, 0, 0, 0, 3], "fe80::aa", 0x40, "2001:db8:0:0:8::2");
            assert_eq!([frame4.sent.len(), frame6.sent.len()], [usize::from(answers && probes); 2], "{about}");
            if answers && probes {
                let (interface, copy) = &frame4.sent[0];
                assert_eq!((*interface, copy[20..22].to_vec()), (INGRESS, vec![0, 2]));
                assert_eq!(frame6.sent, [(INGRESS, advertised.clone())]);
            }
            if probes {
                assert_eq!((frame4.bytes, frame6.bytes), (PROBE4.to_vec(), probe6()), "{about}");
            } else if answers {
                assert_eq!((&frame4.bytes[20..22], frame6.bytes), (&[0, 2][..], advertised), "{about}");
            } else {
                assert_eq!((frame4.bytes, frame6.bytes), (request.clone(), solicitation.clone()), "{about}");
            }
            let asked = u64::from(answers || probes);
            for counted in [four.counted(COUNTER), six.counted(COUNTER)] {
                assert_eq!((counted.forward.packets, counted.reply.packets), (asked, u64::from(answers)), "{about}");
            }
        }
    }
}

#[test]
fn questions_of_another_interface_are_not_answered() {
    for ingress in [0, INGRESS + 1, VIA, INGRESS | RangeKey::<V4>::INTERFACES] {
        let (four, six) = (tables4(false, State::Resolved), tables6(false, State::Resolved));
        four.ingress.set(ingress);
        six.ingress.set(ingress);
        assert_eq!(ask4(&four, REQUEST.bytes()).0, NOT_OURS);
        assert_eq!(ask6(&six, solicitation().bytes()).0, NOT_OURS);
    }
}

/// Each probe takes an entry of the kernel's table of neighbours.
#[test]
fn probes_are_limited_and_what_is_known_is_answered_all_the_same() {
    for (state, then) in [(State::Resolved, ANSWERED), (State::Unresolved, NOT_OURS)] {
        let memory = tables6(true, state);
        let probes = || (0..200).filter(|_| ask6(&memory, solicitation().bytes()).0.probes != 0).count();
        assert_eq!(probes(), 50);
        let (reply, frame) = ask6(&memory, solicitation().bytes());
        assert_eq!(reply, then);
        if then == NOT_OURS {
            assert_eq!(frame.bytes, solicitation().bytes());
        }
        memory.wait(160);
        assert_eq!(probes(), 10);
        memory.wait(1_000_000);
        assert_eq!(probes(), 50);
    }
}

#[test]
fn a_refusing_kernel_loses_the_question() {
    for state in [State::Resolved, State::Unresolved] {
        let mut frame = Frame { bytes: solicitation().bytes(), refuses: true, ..Frame::default() };
        assert_eq!(process::<Discovery, _>(&mut frame, &tables6(true, state), OUR_MAC).outcome, Outcome::DropError);
    }
    let mut frame = Frame { bytes: REQUEST.bytes(), refuses: true, ..Frame::default() };
    assert_eq!(process::<Arp, _>(&mut frame, &tables4(true, State::Resolved), OUR_MAC).outcome, Outcome::DropError);
}

#[test]
fn a_rule_keeps_its_interface() {
    for via in [0, 1, 0xffff, 0x1_0000, 0x00ff_ffff] {
        assert_eq!(Rule::neighbor(via, 1_u32, 2, false).via(), via);
    }
}

proptest! {
    /// Whatever arrives is a right question, and becomes a right answer, or is left as it was.
    #[test]
    fn anything_is_answered_or_left_alone(
        mut bytes in prop::collection::vec(any::<u8>(), 0..140),
        like in 0..3,
        changes in prop::collection::vec((0_usize..90, any::<u8>()), 0..3),
        repaired: bool,
    ) {
        if like > 0 {
            bytes = if like == 1 { REQUEST.bytes() } else { solicitation().bytes() };
        }
        for (at, byte) in changes {
            if let Some(there) = bytes.get_mut(at) {
                *there = byte;
            }
        }
        if like == 2 && repaired {
            let length = usize::from(u16::from_be_bytes([bytes[18], bytes[19]]));
            if let Some(message) = bytes.get(54..54 + length).filter(|message| message.len() >= 4).map(<[u8]>::to_vec) {
                let [to, from] = [&bytes[38..54], &bytes[22..38]].map(|address| address.try_into().unwrap());
                let head = [bytes[14] >> 4, bytes[20], bytes[21]];
                let again = icmpv6(OUR_MAC, ASKER_MAC, head, [from, to], &{
                    let mut message = message;
                    message[2..4].fill(0);
                    message
                }, 0);
                bytes.splice(54..54 + length, again[54..].to_vec());
            }
        }
        let (reply, frame) = ask6(&tables6(false, State::Resolved), bytes.clone());
        if reply == NOT_OURS {
            prop_assert_eq!(&frame.bytes, &bytes);
        } else {
            prop_assert_eq!((reply, frame.bytes.len(), bytes[21]), (ANSWERED, 86, 255));
            let [src, dst] = [22, 38].map(|at| frame.bytes[at..at + 16].try_into().unwrap());
            let message = &frame.bytes[54..];
            prop_assert_eq!(&message[8..24], &bytes[62..78], "another address than was asked for");
            let mut unsummed = message.to_vec();
            unsummed[2..4].fill(0);
            let again = icmpv6(frame.bytes[..6].try_into().unwrap(), OUR_MAC, [6, 58, 255], [src, dst], &unsummed, 0);
            prop_assert_eq!(&frame.bytes, &again);
        }
        let (reply, frame) = ask4(&tables4(false, State::Resolved), bytes.clone());
        if reply == NOT_OURS {
            prop_assert_eq!(&frame.bytes, &bytes);
        } else {
            prop_assert_eq!(&frame.bytes[28..32], &bytes[38..42], "another address than was asked for");
        }
    }
}
