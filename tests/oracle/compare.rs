//! Runs batches of packets through both labs and compares what comes out, byte by byte.
//!
//! Made equal before: the port that masquerading chose (by a binding that must be one to one), how a packet was cut into
//! fragments, and bytes behind the end of an IP packet (which netfilter's stack cuts off).

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::env;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use forwarder_lab::Family;

use crate::differences;
use crate::flow::{Content, End, Flow};
use crate::generate::{Generator, Input};
use crate::plan::{Side, Source};
use crate::setting::Mode;
use crate::twin::{Middle, Twin, middle, station};
use crate::view::{View, reassemble};

mod binding;
mod mark;
pub(crate) mod reference;
mod report;

use mark::{forget_own_identification, is_end_mark, is_of_interest, mark_of};
use report::{hex, kinds, peculiarities, show_both};

/// In flight at once: fewer than the shortest queue on the way holds.
const BATCH: usize = 40;
/// After so many packets, one hears how far it is.
const STEP: usize = 1000;
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
    /// All flows.
    pub(crate) flows: &'c [Flow],
    /// Whether connection tracking said that the packet is invalid; slow.
    pub(crate) is_invalid: &'c dyn Fn() -> bool,
}

pub(crate) struct Oracle {
    twins: [Twin; 2],
    generator: Generator,
    marker: usize,
    /// Who has a source port towards a backend endpoint, by lab.
    holders: [HashMap<Endpoints, usize>; 2],
    explained: BTreeMap<&'static str, usize>,
    compared: BTreeMap<&'static str, [usize; 2]>,
    /// By kind: how many, and the first.
    problems: BTreeMap<String, (usize, String)>,
    /// The explanation that does not count.
    without: Option<String>,
}

/// Protocol, source address, destination and port, source port.
type Endpoints = (u8, IpAddr, IpAddr, u16, u16);

type Outputs = HashMap<u16, Vec<Out>>;

impl Oracle {
    pub(crate) fn new(seed: u64, family: Family, source: Source, mode: Mode) -> Self {
        let mut generator = Generator::new(seed, family, source);
        let marker = generator.marker();
        let mut oracle = Self {
            twins: Middle::BOTH.map(|middle| Twin::new(middle, family, source, mode)),
            generator,
            marker,
            holders: [HashMap::new(), HashMap::new()],
            explained: BTreeMap::new(),
            compared: BTreeMap::new(),
            problems: BTreeMap::new(),
            without: env::var("FORWARDER_ORACLE_WITHOUT").ok(),
        };
        oracle.bind_marker();
        oracle
    }

    /// Sends so many packets, and says so as it goes on. What was compared, or, if there are differences without explanation,
    /// what they are.
    pub(crate) fn run(mut self, packets: usize) -> Result<String, String> {
        let mut sent = 0;
        while sent < packets && self.problems.len() < ENOUGH {
            let inputs = self.generator.batch(BATCH.min(packets - sent));
            sent += inputs.len();
            self.batch(&inputs);
            if sent / STEP != (sent - inputs.len()) / STEP || sent == packets {
                self.tell(sent);
            }
        }
        if sent != packets {
            self.tell(sent);
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

    /// A line of JSON for `cargo xtask oracle`, if it wants one.
    fn tell(&self, sent: usize) {
        if env::var_os("FORWARDER_ORACLE_REPORT").is_some() {
            let same: usize = self.compared.values().map(|[same, _]| same).sum();
            let unexplained: usize = self.problems.values().map(|(count, _)| count).sum();
            let report = serde_json::json!({
                "sent": sent, "same": same, "explained": self.explained, "unexplained": unexplained,
            });
            eprintln!("{report}");
        }
    }

    fn batch(&mut self, inputs: &[Input]) {
        self.send(inputs);
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
        let invalid = OnceCell::new();
        for input in inputs {
            let of_lab = |lab: usize| by_mark[lab].get(&input.mark).cloned().unwrap_or_default();
            self.judge(input, &of_lab(0), &of_lab(1), &invalid);
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

    /// All frames, in an order that the inputs' delays say.
    fn send(&self, inputs: &[Input]) {
        let mut schedule = Vec::new();
        for (position, input) in inputs.iter().enumerate() {
            let frames =
                |lab: usize| input.packets[lab].frames(input.to.unwrap_or(middle(input.from)), station(input.from));
            let [frames, others] = [0, 1].map(frames);
            for (index, pair) in frames.into_iter().zip(others).enumerate() {
                schedule.push((position + input.delays.get(index).unwrap_or(&0), input.from, pair));
            }
        }
        schedule.sort_by_key(|(position, ..)| *position);
        for (_, from, (first, second)) in schedule {
            self.twins[0].send(from, &first);
            self.twins[1].send(from, &second);
        }
    }

    fn all_same(&mut self, inputs: &[Input], raw: &[Vec<(Side, Vec<u8>)>; 2]) -> bool {
        let [forwarder, nftables] = self.canonical(inputs, raw);
        forwarder == nftables
    }

    /// Sends an end mark each way, and returns what had arrived before them.
    fn collect(&mut self) -> [Vec<(Side, Vec<u8>)>; 2] {
        let marks = End::BOTH.map(|by| (by, self.generator.mark()));
        let flow = &self.generator.flows[self.marker];
        let arrived = [0, 1].map(|lab: usize| {
            let twin = &self.twins[lab];
            let mut all = Vec::new();
            for (by, mark) in marks {
                let (from, at) = (flow.side(by), flow.side(by.other()));
                let port = if by == End::Client { flow.client_port } else { flow.bound_or_own(lab) };
                let packet = flow.packet(by, port, mark, &Content::default());
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
            let packet = flow.packet(End::Client, flow.client_port, mark, &Content::default());
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
                        let is_own_error = view.inner(&frame).is_some_and(|inner| inner.mark == mark);
                        if view.mark != mark || is_own_error || !by_mark.contains_key(&mark) {
                            forget_own_identification(&mut frame, view.mark);
                        }
                    }
                    let flow =
                        by_mark.get(&mark).and_then(|input| Some((input.by, &self.generator.flows[input.flow?])));
                    if let Some((by, flow)) = flow.filter(|(_, flow)| at == flow.side(End::Server)) {
                        Self::give_back_port(&mut frame, flow, by, lab);
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

    /// `invalid`: the marks of this batch's packets that connection tracking calls so, once somebody wants to know.
    fn judge(&mut self, input: &Input, forwarder: &[Out], nftables: &[Out], invalid: &OnceCell<HashSet<u16>>) {
        let flow = input.flow.map(|index| &self.generator.flows[index]);
        if forwarder == nftables {
            let [same, came_out] = self.compared.entry(input.what).or_default();
            *same += 1;
            *came_out += usize::from(!forwarder.is_empty());
            return;
        }
        let reference = flow.and_then(|flow| reference::reference(input, flow, self.generator.source));
        let is_invalid = || invalid.get_or_init(|| self.twins[1].invalid()).contains(&input.mark);
        let case = Case {
            source: self.generator.source,
            input,
            flow,
            forwarder,
            nftables,
            reference,
            flows: &self.generator.flows,
            is_invalid: &is_invalid,
        };
        if let Some(name) = differences::explain(&case, self.without.as_deref()) {
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
