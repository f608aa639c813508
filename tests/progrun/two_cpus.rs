//! Two CPUs that begin, use and end the same flows at once.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aya::TestRun as _;
use aya::maps::{Array, HashMap, Map, MapData, Queue};
use aya::programs::{TestRunOptions, Xdp};
use aya_obj::programs::XdpAttachType;
use forwarder::bpf::attach;
use forwarder::bpf::load;
use forwarder::bpf::new_flows::NewFlows;
use forwarder::bpf::{Bits, Plain};
use forwarder_common::abi::{Bucket, Flow, FlowHash, FlowKey, FlowSlot, Layout, Place, REACH, Slotted, near};
use forwarder_common::address::{V4, V6};
use forwarder_lab::{Family, patience};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::connection::{Connection, KEEPING_FLOWS, entries};
use crate::fixture::{arriving, warm_up};
use crate::plan::Side;
use crate::test_packet::{Body::Udp, wrongness};
use crate::world::{self, World, sk_buff, xdp_md};

const RULES: &str = include_str!("../fixtures/rules.toml");
/// Fewer than there are connections, so that places are taken all the time.
const ROOM: u32 = 32;
const PORTS: std::ops::Range<u16> = 4000..4016;
/// After each round nobody writes, and the table of new flows is looked at.
const ROUNDS: u32 = 50;
/// Of a round, by each CPU.
const PACKETS: usize = 1_500;
const REDIRECTED: [u32; 2] = [4, 7];

/// A packet, and what it must look like if it is forwarded. Its source port may be another one.
struct Sample {
    frame: Vec<u8>,
    src: SocketAddr,
    dst: SocketAddr,
    chosen_port: bool,
}

fn samples(world: &World) -> Vec<Sample> {
    let mut samples = Vec::new();
    for family in Family::ALL {
        for rule in KEEPING_FLOWS {
            for port in PORTS {
                let connection = Connection::new(family, rule, port);
                let frame = arriving(world, &connection.request(Udp).0);
                samples.push(Sample { frame, src: connection.source, dst: connection.backend, chosen_port: true });
                let frame = arriving(world, &connection.answer(Udp).0);
                samples.push(Sample { frame, src: connection.listen, dst: connection.client, chosen_port: false });
            }
        }
    }
    samples
}

/// Source and destination of a UDP packet without options.
fn ends(frame: &[u8]) -> (SocketAddr, SocketAddr) {
    let end = |address: usize, port: usize| {
        let number = u16::from_be_bytes([frame[port], frame[port + 1]]);
        let ip = if frame[12] == 0x08 {
            <[u8; 4]>::try_from(&frame[address..address + 4]).unwrap().into()
        } else {
            <[u8; 16]>::try_from(&frame[address..address + 16]).unwrap().into()
        };
        SocketAddr::new(ip, number)
    };
    if frame[12] == 0x08 { (end(26, 34), end(30, 36)) } else { (end(22, 54), end(38, 56)) }
}

/// What one CPU does: packets in an order that the seed says, first to XDP, then to TC. How many each forwarded.
fn send(world: &Handles, cpu: usize, samples: &[Sample], packets: usize, seed: u32) -> [u32; 2] {
    let mut cpus = CpuSet::new();
    cpus.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
    let program = |name: &str| world.pins.join(attach::PROGRAMS).join(name);
    let xdp = Xdp::from_pin(program("xdp_0"), XdpAttachType::Interface).unwrap();
    let tc = attach::classifier(&world.pins, load::TC).unwrap();
    let mut forwarded = [0; 2];
    let mut random = seed;
    for _ in 0..packets {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let sample = &samples[(random >> 8) as usize % samples.len()];
        for hook in [0, 1] {
            let mut out = vec![0; sample.frame.len() + 64];
            let context = if hook == 0 { xdp_md(world.index, sample.frame.len()) } else { sk_buff(world.index, 0) };
            let options = TestRunOptions {
                data_in: Some(&sample.frame),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                ..TestRunOptions::default()
            };
            let result = if hook == 0 { xdp.test_run(options) } else { tc.test_run(options) }.unwrap();
            if !REDIRECTED.contains(&result.return_value) {
                continue;
            }
            out.truncate(result.data_size_out as usize);
            let (src, dst) = ends(&out);
            assert_eq!((src.ip(), dst.ip()), (sample.src.ip(), sample.dst.ip()), "{out:02x?}");
            if sample.chosen_port {
                assert_eq!(dst.port(), sample.dst.port(), "{out:02x?}");
            } else {
                assert_eq!(src.port(), sample.src.port(), "{out:02x?}");
                assert!(PORTS.contains(&dst.port()), "{out:02x?}");
            }
            assert_eq!(wrongness(&out), (0, 0), "{out:02x?}");
            forwarded[hook] += 1;
            break;
        }
    }
    forwarded
}

/// What each CPU does in a round.
fn both_send(world: &Handles, samples: &[Sample], seed: u32) -> [[u32; 2]; 2] {
    thread::scope(|scope| {
        let cpus = [0, 1].map(|cpu: u32| scope.spawn(move || send(world, cpu as usize, samples, PACKETS, seed + cpu)));
        cpus.map(|cpu| cpu.join().unwrap())
    })
}

/// No key is twice among the new flows.
fn check_new_flows<A>(world: &World, suffix: &str)
where
    A: Slotted + Ord + std::fmt::Debug,
    Bucket<A>: Layout,
{
    let entries: Vec<(FlowKey<A>, Flow<A>)> = NewFlows::open(&world.pins, suffix).unwrap().iter().collect();
    let keys: BTreeSet<_> = entries.iter().map(|(key, _)| key).collect();
    assert_eq!(keys.len(), entries.len(), "a key twice: {entries:?}");
}

/// Says so when it goes, also by a panic: nobody else would end who waits for it.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a CPU's thread needs of the world.
struct Handles {
    pins: std::path::PathBuf,
    index: u32,
}

/// The tables of a family agree with each other: every key has its slot, every slot its key, every home its bits.
fn check_slots<A>(world: &World, suffix: &str) -> usize
where
    A: Slotted + Eq + std::fmt::Debug + Ord,
    FlowKey<A>: Layout,
    FlowSlot<A>: Layout,
{
    let open = |name: &str| MapData::from_pin(world.pins.join(name)).unwrap();
    let hash: Array<_, Bits<FlowHash>> = Map::Array(open("FLOW_HASH")).try_into().unwrap();
    let Bits(hash) = hash.get(&0, 0).unwrap();
    let slots: Array<_, Bits<FlowSlot<A>>> = Map::Array(open(&format!("FLOWS_{suffix}"))).try_into().unwrap();
    let slots: Vec<FlowSlot<A>> = (0..slots.len()).map(|index| slots.get(&index, 0).unwrap().0).collect();
    let keys: HashMap<_, Bits<FlowKey<A>>, Plain<u64>> =
        Map::HashMap(open(&format!("ESTABLISHED_{suffix}"))).try_into().unwrap();
    let keys: Vec<(FlowKey<A>, u64)> = keys.iter().map(|entry| entry.unwrap()).map(|(k, p)| (k.0, p.0)).collect();
    let mut bits = vec![0_u32; slots.len()];
    for (key, place) in &keys {
        let place = Place::unpack(*place);
        assert_eq!(slots[place.index as usize].occupant(), Some(*key), "{place:?}");
        assert!(place.distance < REACH);
        let home = place.index.wrapping_sub(place.distance) & hash.mask;
        let first = hash.home(key);
        assert!(home == first || home == hash.second_home(first), "{place:?}");
        bits[home as usize] |= near(place.distance);
    }
    assert_eq!(slots.iter().filter(|slot| slot.occupant().is_some()).count(), keys.len());
    for (index, (slot, bits)) in slots.iter().zip(bits).enumerate() {
        let tagged = slot.key.protocol;
        assert_eq!(tagged & 0x7fff_0000, bits, "slot {index}");
        assert_ne!(tagged & 0x7ff, 0x7ff, "slot {index} is busy");
    }
    keys.len()
}

#[test]
fn no_flow_is_mixed_with_another_and_nothing_is_left_behind() {
    world::with_changed(
        RULES,
        |compiled| {
            compiled.sizes.flows = ROOM;
            // So few that they push each other out while they are read.
            compiled.sizes.new_flows = 8;
        },
        |world| {
            warm_up(world);
            load::start_sweep(world.bpf()).unwrap();
            let samples = samples(world);
            let handles = Handles { pins: world.pins.clone(), index: world.index(Side::Clients) };
            let done = AtomicBool::new(false);
            let mut dated_back = 0_u32;
            thread::scope(|scope| {
                let ageing = scope.spawn(|| {
                    let mut rounds = 0;
                    while !done.load(Ordering::Relaxed) {
                        for family in Family::ALL {
                            world.make_flows_older(family);
                        }
                        rounds += 1;
                        thread::sleep(Duration::from_millis(3));
                    }
                    rounds
                });
                let ended = Ended(&done);
                let [mut xdp, mut tc] = [0; 2];
                for round in 0..ROUNDS {
                    for [at_xdp, at_tc] in both_send(&handles, &samples, 2 * round + 1) {
                        xdp += at_xdp;
                        tc += at_tc;
                    }
                    check_new_flows::<V4>(world, "V4");
                    check_new_flows::<V6>(world, "V6");
                }
                drop(ended);
                dated_back = ageing.join().unwrap();
                assert!(xdp > 2000 && tc > 2000, "{xdp} at XDP, {tc} at TC");
            });
            assert!(dated_back > 10, "{dated_back}");
            for family in Family::ALL {
                let deadline = Instant::now() + patience();
                while entries(world, family).0 != 0 {
                    world.make_flows_older(family);
                    assert!(Instant::now() < deadline, "{family:?} has {:?} entries", entries(world, family));
                    thread::sleep(Duration::from_millis(10));
                }
            }
            // And with flows in them.
            let forwarded = send(&handles, 0, &samples, ROUNDS as usize * PACKETS, 1);
            assert!(forwarded[0] > 1000);
            assert_eq!(check_slots::<V4>(world, "V4"), 2 * ROOM as usize);
            assert_eq!(check_slots::<V6>(world, "V6"), 2 * ROOM as usize);
            for family in ["V4", "V6"] {
                let free = MapData::from_pin(world.pins.join(format!("FREE_SLOTS_{family}"))).unwrap();
                let mut free: Queue<_, u32> = Map::Queue(free).try_into().unwrap();
                assert!(free.pop(0).is_err(), "a place is left over");
            }
        },
    );
}
