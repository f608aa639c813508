//! The bench's BPF programs in the kernel: attached to one network, run, and read.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use aya::maps::xdp::DevMap;
use aya::maps::{Array, MapData};
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, Pod};
use forwarder_bench_ebpf::{
    BACKEND_SINK, CLIENT_SINK, DEVICE_GENERATOR, DEVICE_LIMIT, DEVICE_REFLECT, Frame, Generator, SAMPLE_EVERY, SAMPLES,
    Sink, Wire,
};
use forwarder_lab::{Family, Topology};

use crate::addresses::Addresses;
use crate::cpu::Cpu;
use crate::frame;
use crate::row::{Row, Way};

pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/forwarder-bench-ebpf"));

/// How many frames the kernel makes before it hands them on; as many as a NIC's driver usually takes at once.
const BATCH: u32 = 64;
/// `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
type XdpContext = [u32; 6];

/// Which flows a run sends, and in which order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flows {
    /// The lowest flow.
    pub(crate) first: u32,
    /// How many; a power of two.
    pub(crate) count: u32,
    /// From one to the next, modulo `count`; odd.
    pub(crate) stride: u32,
    /// The first one's distance from the lowest; below `count`.
    pub(crate) next: u32,
}

impl Flows {
    /// So many from `first` on, in the order of their numbers.
    pub(crate) const fn in_order(first: u32, count: u32) -> Self {
        Self { first, count, stride: 1, next: 0 }
    }

    /// Where to go on after so many frames.
    pub(crate) const fn after(self, frames: u32) -> Self {
        Self { next: self.next.wrapping_add(self.stride.wrapping_mul(frames)) & (self.count - 1), ..self }
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Frames.
    pub(crate) sent: u32,
    /// Frames that reached the backend while `cpu` passed.
    pub(crate) received: u64,
    /// Frames that reached the backend in the end.
    pub(crate) arrived: u64,
    /// Frames that reached the backend's interface but should not have.
    pub(crate) stray: u64,
    /// Frames that came back to the client.
    pub(crate) returned: u64,
    /// CPU time.
    pub(crate) cpu: Duration,
    /// Time by the clock on the wall.
    pub(crate) wall: Duration,
}

impl Run {
    /// Frames received for each second of CPU time.
    pub(crate) fn rate(&self) -> f64 {
        self.received as f64 / self.cpu.as_secs_f64()
    }

    /// The share of frames sent that did not arrive.
    pub(crate) fn lost(&self) -> f64 {
        1.0 - self.arrived as f64 / f64::from(self.sent)
    }
}

/// A record that a BPF map holds.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Record<T>(pub(crate) T);
// SAFETY: integers without padding, by the layout of the record.
unsafe impl Pod for Record<Generator> {}
// SAFETY: as above.
unsafe impl Pod for Record<Sink> {}
// SAFETY: as above.
unsafe impl Pod for Record<Wire> {}

/// The programs of one row's network.
pub(crate) struct Programs {
    bpf: Ebpf,
    family: Family,
    /// Of each frame, in bytes.
    length: usize,
    generator: Generator,
    sinks: [Sink; 2],
    client_interface: u32,
}

impl Programs {
    /// Loads them and attaches sinks at both ends; for the limit, also what stands in the middle.
    pub(crate) fn attach(row: Row, net: &Topology, addresses: &Addresses) -> Result<Self> {
        let mut bpf = Ebpf::load(OBJECT).context("the kernel refuses the bench's BPF programs")?;
        let client_interface = net.client.ifindex("eth0")?;
        net.home.enter(|| attach(&mut bpf, "backend_sink", "eth0"))??;
        net.client.enter(|| attach(&mut bpf, "client_sink", "eth0"))??;
        let backend_interface = net.home.ifindex("eth0")?;
        net.home.enter(|| set_device(&mut bpf, DEVICE_REFLECT, backend_interface))??;
        net.client.enter(|| set_device(&mut bpf, DEVICE_GENERATOR, client_interface))??;
        let out = net.forwarder.ifindex("eth1")?;
        let middle = match (row.way, row.family) {
            (Way::Limit, _) => Some("limit"),
            (Way::RedirectByIndex, _) => Some("limit_by_index"),
            (Way::FibLookup, Family::V4) => Some("route_v4"),
            (Way::FibLookup, Family::V6) => Some("route_v6"),
            _ => None,
        };
        if let Some(program) = middle {
            net.forwarder.enter(|| set_device(&mut bpf, DEVICE_LIMIT, out))??;
            net.forwarder.enter(|| attach(&mut bpf, program, "eth0"))??;
        }
        let program = xdp(&mut bpf, generator_name(row.family))?;
        program.load().context("the kernel refuses the generator")?;
        let length = frame::length(row);
        let sink = |address: IpAddr| {
            let [.., a, b, c, d] = match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            let address = u32::from_ne_bytes([a, b, c, d]);
            Sink { address, is_v6: u32::from(row.family == Family::V6), length: length as u32, ..Sink::default() }
        };
        Ok(Self {
            family: row.family,
            length,
            generator: Generator { out, ..frame::generator(addresses, row)? },
            sinks: [sink(addresses.destination), sink(addresses.listen)],
            client_interface,
            bpf,
        })
    }

    /// Sends `frames` frames. With `reflect`, the backend sends every one back to where it came from.
    pub(crate) fn run(&mut self, net: &Topology, cpu: &Cpu, flows: Flows, frames: u32, reflect: bool) -> Result<Run> {
        self.prepare(flows, reflect)?;
        let length = self.length;
        let (interface, generator) = (self.client_interface, xdp(&mut self.bpf, generator_name(self.family))?);
        let timed = move || -> Result<(Duration, Duration)> {
            let (cpu_before, before) = (cpu.time()?, Instant::now());
            generate(generator, interface, length, frames)?;
            Ok((cpu.time()?.saturating_sub(cpu_before), before.elapsed()))
        };
        let (cpu, wall) = net.client.enter(timed)??;
        let received = self.sink(BACKEND_SINK)?.received;
        self.settle()?;
        let backend = self.sink(BACKEND_SINK)?;
        let returned = self.sink(CLIENT_SINK)?.received;
        Ok(Run { sent: frames, received, arrived: backend.received, stray: backend.stray, returned, cpu, wall })
    }

    fn prepare(&mut self, flows: Flows, reflect: bool) -> Result<()> {
        let Flows { first, count, stride, next } = flows;
        if !count.is_power_of_two() || stride.is_multiple_of(2) {
            bail!("{count} flows with steps of {stride} cannot each have their turn");
        }
        let generator = Generator { first, mask: count - 1, stride, next, ..self.generator };
        array(&mut self.bpf, "GENERATOR")?.set(0, Record(generator), 0)?;
        for (index, sink) in (0..).zip(self.sinks) {
            let reflect = u32::from(reflect && index == BACKEND_SINK);
            array(&mut self.bpf, "SINKS")?.set(index, Record(Sink { reflect, ..sink }), 0)?;
        }
        Ok(())
    }

    fn sink(&mut self, index: u32) -> Result<Sink> {
        let Record(sink) = array::<Record<Sink>>(&mut self.bpf, "SINKS")?.get(&index, 0)?;
        Ok(sink)
    }

    /// Waits until the last frames have gone their way: until nothing moves any more.
    fn settle(&mut self) -> Result<()> {
        let mut last = None;
        loop {
            let (backend, client) = (self.sink(BACKEND_SINK)?, self.sink(CLIENT_SINK)?);
            let now = Some((backend.received, backend.stray, client.received, client.stray));
            if now == last {
                return Ok(());
            }
            last = now;
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Frames that the backend kept of the last run.
    pub(crate) fn samples(&mut self) -> Result<Vec<Vec<u8>>> {
        let kept = self.sink(BACKEND_SINK)?.received.div_ceil(SAMPLE_EVERY).min(SAMPLES.into()) as u32;
        let length = frame::head(self.family);
        let map = array::<Frame>(&mut self.bpf, "SAMPLED")?;
        (0..kept)
            .map(|slot| {
                let words = map.get(&slot, 0).context("cannot read a sample")?;
                let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
                bytes.truncate(length);
                Ok(bytes)
            })
            .collect()
    }
}

/// Has a generator make frames, as if they were received by `interface` of the current network namespace.
pub(crate) fn generate(generator: &Xdp, interface: u32, length: usize, frames: u32) -> Result<()> {
    let context: XdpContext = [0, length as u32, 0, interface, 0, 0];
    let context: Vec<u8> = context.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let frame = vec![0; length];
    let options = TestRunOptions {
        data_in: Some(&frame),
        ctx_in: Some(&context),
        repeat: frames,
        attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
        ..TestRunOptions::default()
    };
    generator.test_run(options).context("the generator does not run")?;
    Ok(())
}

pub(crate) const fn generator_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "generate_v4",
        Family::V6 => "generate_v6",
    }
}

pub(crate) fn xdp<'bpf>(bpf: &'bpf mut Ebpf, name: &str) -> Result<&'bpf mut Xdp> {
    let program = bpf.program_mut(name).with_context(|| format!("the bench's BPF object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// Attaches a program in the current network namespace.
fn attach(bpf: &mut Ebpf, name: &str, interface: &str) -> Result<()> {
    let program = xdp(bpf, name)?;
    program.load().with_context(|| format!("the kernel refuses program {name}"))?;
    program.attach(interface, XdpMode::Driver).with_context(|| format!("cannot attach {name} to {interface}"))?;
    Ok(())
}

/// Sets a device of the current network namespace to send out of.
pub(crate) fn set_device(bpf: &mut Ebpf, slot: u32, interface: u32) -> Result<()> {
    let map = bpf.map_mut("DEVICES").context("the bench's BPF object has no map DEVICES")?;
    DevMap::try_from(map)?.set(slot, interface, None, 0).context("cannot enter a device")
}

pub(crate) fn array<'bpf, T: Pod>(bpf: &'bpf mut Ebpf, name: &str) -> Result<Array<&'bpf mut MapData, T>> {
    let map = bpf.map_mut(name).with_context(|| format!("the bench's BPF object has no map {name}"))?;
    Array::try_from(map).with_context(|| format!("map {name} of the bench's BPF object is of another kind"))
}
