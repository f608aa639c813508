//! Runs batches of packets through both labs and compares what comes out, byte by byte.
//!
//! Made equal before: the port that masquerading chose (by a binding that must be one to one), how a packet was cut into
//! fragments, and bytes behind the end of an IP packet (which netfilter's stack cuts off).

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::thread;
use std::time::Duration;

use forwarder_lab::Family;

use crate::differences;
use crate::flow::{Content, Flow, Stage};
use crate::generate::{Generator, Input};
use crate::packet::{Body, ETHERNET, ICMP, ICMPV6, Packet, TCP, UDP};
use crate::plan::{Side, Source};
use crate::setting::Mode;
use crate::twin::{Middle, Twin, middle, station};
use crate::view::{View, octets, reassemble, update};

/// In flight at once: fewer than the shortest queue on the way holds.
const BATCH: usize = 40;
/// How many kinds of differences are shown before the run ends.
const ENOUGH: usize = 30;

/// A packet that came out, in the form that is compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Out {
    pub(crate) at: Side,
    pub(crate) frame: Vec<u8>,
}

/// One input, and all that both labs made of it.
pub(crate) struct Case<'c> {
    pub(crate) source: Source,
    pub(crate) input: &'c Input,
    pub(crate) flow: Option<&'c Flow>,
    pub(crate) forwarder: &'c [Out],
    pub(crate) nftables: &'c [Out],
    /// What a translator that only replaces addresses and ports makes of it.
    pub(crate) reference: Option<Out>,
}

pub(crate) struct Oracle {
    twins: [Twin; 2],
    generator: Generator,
    source: Source,
    marker: usize,
    /// Who has a source port towards a backend endpoint, by lab.
    holders: [HashMap<(u8, std::net::IpAddr, u16, u16), usize>; 2],
    explained: BTreeMap<&'static str, usize>,
    compared: BTreeMap<&'static str, [usize; 2]>,
    /// By kind: how many, and the first.
    problems: BTreeMap<String, (usize, String)>,
}

type Outputs = HashMap<u16, Vec<Out>>;

impl Oracle {
    pub(crate) fn new(seed: u64, family: Family, source: Source, mode: Mode) -> Self {
        let mut generator = Generator::new(seed, family, source);
        let marker = generator.marker();
        let mut oracle = Self {
            twins: Middle::BOTH.map(|middle| Twin::new(middle, family, source, mode)),
            generator,
            source,
            marker,
            holders: [HashMap::new(), HashMap::new()],
            explained: BTreeMap::new(),
            compared: BTreeMap::new(),
            problems: BTreeMap::new(),
        };
        oracle.bind_marker();
        oracle
    }

    /// Sends so many packets. What was compared, or, if there are differences without explanation, what they are.
    pub(crate) fn run(mut self, packets: usize) -> Result<String, String> {
        let mut sent = 0;
        while sent < packets && self.problems.len() < ENOUGH {
            let inputs = self.generator.batch(BATCH.min(packets - sent));
            sent += inputs.len();
            self.batch(&inputs);
        }
        let mut report = format!("{sent} packets\n");
        for (what, [same, came_out]) in &self.compared {
            writeln!(report, "{same:8} {what}, of which {came_out} came out").unwrap();
        }
        for (name, count) in &self.explained {
            writeln!(report, "{count:8} differ: {name}").unwrap();
        }
        if self.problems.is_empty() {
            return Ok(report);
        }
        for (kind, (count, first)) in &self.problems {
            writeln!(report, "\n{count} not explained: {kind}\n{first}").unwrap();
        }
        for (kind, (count, _)) in &self.problems {
            writeln!(report, "{count:8} not explained: {kind}").unwrap();
        }
        Err(report)
    }

    fn batch(&mut self, inputs: &[Input]) {
        for input in inputs {
            for (twin, packet) in self.twins.iter().zip(&input.packets) {
                for frame in packet.frames(input.to.unwrap_or(middle(input.from)), station(input.from)) {
                    twin.send(input.from, &frame);
                }
            }
        }
        let mut raw = self.collect();
        if !self.all_same(inputs, &raw) {
            // Whatever is still on its way has some more time.
            thread::sleep(Duration::from_millis(20));
            for (lab, late) in self.collect().into_iter().enumerate() {
                raw[lab].extend(late);
            }
        }
        self.learn_bindings(inputs, &raw);
        let by_mark = self.canonical(inputs, &raw);
        for input in inputs {
            let of_lab = |lab: usize| by_mark[lab].get(&input.mark).cloned().unwrap_or_default();
            self.judge(input, &of_lab(0), &of_lab(1));
        }
        let strangers = [0, 1].map(|lab: usize| {
            let mut strangers: Vec<Out> = by_mark[lab]
                .iter()
                .filter(|(mark, _)| inputs.iter().all(|input| input.mark != **mark))
                .flat_map(|(_, outs)| outs.clone())
                .collect();
            strangers.sort();
            strangers
        });
        if strangers[0] != strangers[1] {
            let [forwarder, nftables] = &strangers;
            let text = show_both(forwarder, nftables);
            self.problem("of no packet".to_owned(), || text);
        }
    }

    fn all_same(&mut self, inputs: &[Input], raw: &[Vec<(Side, Vec<u8>)>; 2]) -> bool {
        let [forwarder, nftables] = self.canonical(inputs, raw);
        forwarder == nftables
    }

    /// Sends an end mark each way, and returns what had arrived before them.
    fn collect(&mut self) -> [Vec<(Side, Vec<u8>)>; 2] {
        let marks = [Side::Client, Side::Home].map(|from| (from, self.generator.mark()));
        let flow = &self.generator.flows[self.marker];
        let arrived = [0, 1].map(|lab: usize| {
            let twin = &self.twins[lab];
            let mut all = Vec::new();
            for (from, mark) in marks {
                let at = if from == Side::Client { Side::Home } else { Side::Client };
                let port = if from == Side::Client { flow.client_port } else { flow.bound_or_own(lab) };
                let packet = flow.packet(from, port, mark, &Content::default());
                packet.frames(middle(from), station(from)).iter().for_each(|frame| twin.send(from, frame));
                let last = |frame: &[u8]| is_end_mark(frame, mark);
                all.extend(
                    twin.arrived_until(at, last).into_iter().filter(|frame| !last(frame)).map(|frame| (at, frame)),
                );
            }
            for at in [Side::Client, Side::Home] {
                all.extend(twin.arrived(at).into_iter().map(|frame| (at, frame)));
            }
            all
        });
        arrived.map(|all| all.into_iter().filter(|(_, frame)| is_of_interest(frame)).collect())
    }

    fn bind_marker(&mut self) {
        let mark = self.generator.mark();
        for lab in [0, 1] {
            let flow = &self.generator.flows[self.marker];
            let packet = flow.packet(Side::Client, flow.client_port, mark, &Content::default());
            let frames = packet.frames(middle(Side::Client), station(Side::Client));
            for frame in &frames {
                self.twins[lab].send(Side::Client, frame);
            }
            let arrived = self.twins[lab].arrived_until(Side::Home, |frame| is_end_mark(frame, mark));
            let frame = arrived.last().unwrap();
            let view = View::of(frame).unwrap();
            self.generator.flows[self.marker].bound[lab] = view.port(frame, view.src_port_at());
        }
    }

    /// What came out, by the mark of what went in, each with the client's own port.
    fn canonical(&self, inputs: &[Input], raw: &[Vec<(Side, Vec<u8>)>; 2]) -> [Outputs; 2] {
        let by_mark: HashMap<u16, &Input> = inputs.iter().map(|input| (input.mark, input)).collect();
        [0, 1].map(|lab: usize| {
            let mut grouped: HashMap<(u16, Side), Vec<Vec<u8>>> = HashMap::new();
            for (at, frame) in &raw[lab] {
                grouped.entry((mark_of(frame, &by_mark), *at)).or_default().push(frame.clone());
            }
            let mut outputs = Outputs::new();
            for ((mark, at), frames) in grouped {
                for mut frame in reassemble(frames) {
                    if let Some(view) = View::of(&frame) {
                        frame.truncate(view.end);
                        if view.mark != mark || !by_mark.contains_key(&mark) {
                            forget_own_identification(&mut frame, view.mark);
                        }
                    }
                    let flow = by_mark.get(&mark).and_then(|input| Some((input.from, input.flow?)));
                    if let (Some((from, flow)), Side::Home) = (flow, at) {
                        self.give_back_port(&mut frame, &self.generator.flows[flow], from, lab);
                    }
                    outputs.entry(mark).or_default().push(Out { at, frame });
                }
            }
            for outs in outputs.values_mut() {
                outs.sort();
            }
            outputs
        })
    }

    /// At home: puts the client's port in the place of the one that this lab has chosen for the flow.
    fn give_back_port(&self, frame: &mut [u8], flow: &Flow, from: Side, lab: usize) {
        let Some(view) = View::of(frame) else { return };
        let port = flow.client_port.to_be_bytes();
        if let Some(inner) = view.inner(frame) {
            let at = inner.dst_port_at();
            if self.source == Source::Masquerade
                && inner.port(frame, at) == flow.bound[lab]
                && inner.src == flow.listen.to
            {
                let checksum = view.checksum_at();
                inner.replace(frame, at, &port, false, checksum);
            }
            return;
        }
        let at = view.src_port_at();
        let Some(found) = view.port(frame, at) else { return };
        let is_translated = from == Side::Client && view.src == flow.seen() && view.dst == flow.listen.to;
        if self.source == Source::Masquerade && (is_translated || Some(found) == flow.bound[lab]) {
            view.replace(frame, at, &port, false, None);
        }
    }

    /// Reads from the client's packets that arrived which source port their flows have. No two flows may share one.
    fn learn_bindings(&mut self, inputs: &[Input], raw: &[Vec<(Side, Vec<u8>)>; 2]) {
        let by_mark: HashMap<u16, &Input> = inputs.iter().map(|input| (input.mark, input)).collect();
        for lab in [0, 1] {
            for (_, frame) in raw[lab].iter().filter(|(at, _)| *at == Side::Home) {
                let Some(input) = by_mark.get(&mark_of(frame, &by_mark)) else { continue };
                let (Some(index), Side::Client, Some(view)) = (input.flow, input.from, View::of(frame)) else {
                    continue;
                };
                let flow = &self.generator.flows[index];
                let is_translated = view.src == flow.seen() && view.dst == flow.listen.to;
                if !is_translated || view.is_icmp_error(frame) || view.fragment.is_some_and(|(offset, _)| offset != 0) {
                    continue;
                }
                // What has no ports has port 0.
                let port = view.port(frame, view.src_port_at()).unwrap_or_default();
                if let Some(problem) = self.bind(lab, index, port) {
                    self.problem(format!("{:?}, {}: source port", Middle::BOTH[lab], input.what), || problem);
                }
            }
        }
    }

    fn bind(&mut self, lab: usize, index: usize, port: u16) -> Option<String> {
        let flow = &self.generator.flows[index];
        if flow.bound[lab] == Some(port) {
            return None;
        }
        let before = flow.bound[lab];
        let holder = self.holders[lab].insert((flow.protocol, flow.listen.to, flow.to_port(), port), index);
        // Another port than before: only after the end of a connection, or where it never became one.
        let may_change =
            flow.protocol == TCP && matches!(flow.stage, Stage::Opening | Stage::Closed | Stage::Reset(_) | Stage::Odd);
        let mut problem = None;
        if let Some(before) = before.filter(|_| !may_change) {
            problem = Some(format!("port {port} follows {before} for {flow:?}"));
        }
        if let Some(other) = holder.filter(|other| *other != index && self.source == Source::Masquerade) {
            let other = &self.generator.flows[other];
            let may_be_over = other.stage == Stage::Odd
                || other.protocol == TCP && !matches!(other.stage, Stage::Answered | Stage::Established);
            if other.bound[lab] == Some(port) && !may_be_over {
                problem = Some(format!("port {port} of {flow:?} is that of {other:?}"));
            }
        }
        self.generator.flows[index].bound[lab] = Some(port);
        problem
    }

    fn judge(&mut self, input: &Input, forwarder: &[Out], nftables: &[Out]) {
        let flow = input.flow.map(|index| &self.generator.flows[index]);
        if forwarder == nftables {
            let [same, came_out] = self.compared.entry(input.what).or_default();
            *same += 1;
            *came_out += usize::from(!forwarder.is_empty());
            return;
        }
        let reference = flow.and_then(|flow| reference(input, flow));
        let case = Case { source: self.source, input, flow, forwarder, nftables, reference };
        if let Some(name) = differences::explain(&case) {
            *self.explained.entry(name).or_default() += 1;
            return;
        }
        let kind = format!(
            "{} from {:?}{}: forwarder {}, nftables {}",
            input.what,
            input.from,
            peculiarities(&input.packets[0]),
            kinds(forwarder),
            kinds(nftables),
        );
        let mut text = format!("  mark {:#06x} {:?}\n", input.mark, flow);
        for frame in input.packets[0].frames(middle(input.from), station(input.from)) {
            writeln!(text, "  sent      {}", hex(&frame)).unwrap();
        }
        if let Some(reference) = &case.reference {
            writeln!(text, "  reference {:?} {}", reference.at, hex(&reference.frame)).unwrap();
        }
        text += &show_both(forwarder, nftables);
        self.problem(kind, || text);
    }

    fn problem(&mut self, kind: String, text: impl FnOnce() -> String) {
        self.problems.entry(kind).or_insert_with(|| (0, text())).0 += 1;
    }
}

/// What is special about a packet, in words.
fn peculiarities(packet: &Packet) -> String {
    let mut text = format!(", protocol {}", packet.body.protocol(packet.src.is_ipv6()));
    if let Some(damage) = packet.damage {
        write!(text, ", {}", format!("{damage:?}").split('(').next().unwrap()).unwrap();
    }
    if let Some(kind) = packet.options.first() {
        write!(text, ", IP option {kind}").unwrap();
    }
    if let Some((kind, _)) = packet.extensions.first() {
        write!(text, ", extension header {kind}").unwrap();
    }
    if packet.hop_limit < 2 {
        write!(text, ", {} hops", packet.hop_limit).unwrap();
    }
    match &packet.body {
        Body::Tcp { flags, .. } => write!(text, ", flags {flags:#04x}").unwrap(),
        Body::Icmp { kind, code, .. } => write!(text, ", type {kind} code {code}").unwrap(),
        _ => {}
    }
    text
}

/// What came out, roughly.
fn kinds(outs: &[Out]) -> String {
    let kind = |out: &Out| {
        let Some(view) = View::of(&out.frame) else { return "nonsense".to_owned() };
        let at = view.transport;
        match (view.protocol, out.frame.get(at..at + 2)) {
            (ICMP | ICMPV6, Some([kind, code])) => format!("ICMP {kind}/{code} at {:?}", out.at),
            (TCP, _) => format!("TCP with {:#04x} at {:?}", out.frame.get(at + 13).unwrap_or(&0), out.at),
            (protocol, _) => format!("protocol {protocol} at {:?}", out.at),
        }
    };
    if outs.is_empty() { "nothing".to_owned() } else { outs.iter().map(kind).collect::<Vec<_>>().join(" and ") }
}

/// What the machine in the middle says itself has an identification of its own choice.
fn forget_own_identification(frame: &mut [u8], mark: u16) {
    const ID: usize = ETHERNET + 4;
    if frame[12] == 0x08 {
        update(frame, ETHERNET + 10, &mark.to_be_bytes(), &[0, 0]);
        frame[ID..ID + 2].copy_from_slice(&[0, 0]);
    }
}

/// A datagram. What the machine in the middle says itself is none, but its identification may be that of an end mark.
fn is_end_mark(frame: &[u8], mark: u16) -> bool {
    View::of(frame).is_some_and(|view| view.protocol == UDP && view.mark == mark)
}

/// Not the machine's own talk: only unicast IP. And no redirects, which tell a client of a nearer way.
fn is_of_interest(frame: &[u8]) -> bool {
    const REDIRECT: u8 = 137;
    let is_redirect = |view: &View| {
        view.protocol == ICMPV6 && view.fragment.is_none() && frame.get(view.transport) == Some(&REDIRECT)
    };
    View::of(frame).is_some_and(|view| !is_redirect(&view)) && frame[0] & 1 == 0
}

/// The mark of the packet that this came of: its own, or that of the packet inside an error of the machine in the middle,
/// or what an echo reply or RST repeats.
fn mark_of(frame: &[u8], inputs: &HashMap<u16, &Input>) -> u16 {
    let Some(view) = View::of(frame) else { return 0 };
    let own = view.mark;
    let inner = view.inner(frame).map(|inner| inner.mark).filter(|mark| inputs.contains_key(mark));
    if let Some(inner) = inner
        && inputs.get(&own).is_none_or(|input| !is_about_another(input))
    {
        return inner;
    }
    if inputs.contains_key(&own) {
        return own;
    }
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    if matches!(view.protocol, ICMP | ICMPV6) && view.transport + 8 <= frame.len() {
        let sequence = word(view.transport + 6);
        return if inputs.contains_key(&sequence) { sequence } else { own };
    }
    if view.protocol == TCP && view.transport + 12 <= frame.len() {
        // A RST goes on where the acknowledgment was.
        let sequence = u32::from(word(view.transport + 4)) << 16 | u32::from(word(view.transport + 6));
        let acknowledges = |input: &&Input| matches!(input.packets[0].body, Body::Tcp { ack, .. } if ack == sequence);
        if sequence != 0
            && let Some(input) = inputs.values().copied().find(|input| acknowledges(input))
        {
            return input.mark;
        }
        for mark in [word(view.transport + 4), word(view.transport + 8)] {
            if inputs.contains_key(&mark) {
                return mark;
            }
        }
    }
    own
}

fn is_about_another(input: &Input) -> bool {
    input.what == "ICMP error"
}

/// The naive translation: everything stays but what must change.
fn reference(input: &Input, flow: &Flow) -> Option<Out> {
    if input.what == "strange" {
        return None;
    }
    let frames = reassemble(input.packets[0].frames([0; 6], [0; 6]));
    let [mut frame] = <[Vec<u8>; 1]>::try_from(frames).ok()?;
    let view = View::of(&frame)?;
    if view.is_icmp_error(&frame) || view.transport > view.end {
        return None;
    }
    frame.truncate(view.end);
    let at = if input.from == Side::Client { Side::Home } else { Side::Client };
    frame[..6].copy_from_slice(&station(at));
    frame[6..12].copy_from_slice(&middle(at));
    let (src, dst) = match input.from {
        Side::Client => (flow.seen(), flow.listen.to),
        Side::Home => (flow.listen.address, flow.client),
    };
    let (port_at, port) = match input.from {
        Side::Client => (view.dst_port_at(), flow.to_port()),
        Side::Home => (view.src_port_at(), if flow.is_echo() { flow.client_port } else { flow.listen_port }),
    };
    if view.port(&frame, port_at).is_some() {
        view.replace(&mut frame, port_at, &port.to_be_bytes(), false, None);
    }
    if input.from == Side::Home && view.port(&frame, view.dst_port_at()).is_some() {
        view.replace(&mut frame, view.dst_port_at(), &flow.client_port.to_be_bytes(), false, None);
    }
    let (src_at, ttl_at, header_checksum) =
        if view.src.is_ipv4() { (12, 8, Some(ETHERNET + 10)) } else { (8, 7, None) };
    let addresses = [octets(src), octets(dst)].concat();
    view.replace(&mut frame, ETHERNET + src_at, &addresses, true, header_checksum.filter(|_| false));
    let hops = frame[ETHERNET + ttl_at].checked_sub(1)?;
    if let Some(checksum) = header_checksum {
        let before = [octets(view.src), octets(view.dst)].concat();
        update(&mut frame, checksum, &before, &addresses);
        let protocol = frame[ETHERNET + 9];
        update(&mut frame, checksum, &[hops + 1, protocol], &[hops, protocol]);
    }
    frame[ETHERNET + ttl_at] = hops;
    Some(Out { at, frame })
}

fn hex(bytes: &[u8]) -> String {
    const SHOWN: usize = 120;
    let mut text = String::new();
    for byte in bytes.iter().take(SHOWN) {
        write!(text, "{byte:02x}").unwrap();
    }
    if bytes.len() > SHOWN {
        write!(text, "… ({} bytes)", bytes.len()).unwrap();
    }
    text
}

fn show_both(forwarder: &[Out], nftables: &[Out]) -> String {
    let mut text = String::new();
    for (name, outs) in [("forwarder", forwarder), ("nftables", nftables)] {
        if outs.is_empty() {
            writeln!(text, "  {name:9} nothing").unwrap();
        }
        for out in outs {
            writeln!(text, "  {name:9} {:?} {}", out.at, hex(&out.frame)).unwrap();
        }
    }
    text
}
