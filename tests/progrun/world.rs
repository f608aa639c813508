//! An instance of forwarder whose programs are loaded but attached to nothing, in a network namespace of its own.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use aya::Pod;
use aya::maps::{Array, Map, MapData, ProgramArray};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp, XdpMode};
use aya_obj::programs::XdpAttachType;
use forwarder::bpf::attach;
use forwarder::bpf::counters::Counters;
use forwarder::bpf::load::{self, Ebpf, Globals};
use forwarder::bpf::new_flows::NewFlows;
use forwarder::bpf::object::BPF_OBJECT;
use forwarder::bpf::protected::ProtectedFlows;
use forwarder::bpf::tables::{self, Tables};
use forwarder::bpf::{Plain, bpffs, interfaces};
use forwarder::config::{Compiled, Draft};
use forwarder::machine::{Interface, Machine, sysctl};
use forwarder::reconcile::{self, Plan, Running, RunningTables};
use forwarder_common::abi::{
    Bucket, Flow, FlowKey, FlowSlot, InterfaceCounters, KnownInterface, Layout, RuleCounters, Settings, Slotted,
    interface_flags, ticks_from_millis,
};
use forwarder_common::address::{V4, V6};
use forwarder_common::verdict::Outcome;
use forwarder_lab::{Family, Host, Lab, Offloads};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::plan::{self, OWN, STATIONS, Side};

/// Of the machine that configurations are compiled for, whatever the real one has.
pub(crate) const LOCAL_PORTS: (u16, u16) = (32_768, 60_999);

/// One of the two programs that a packet may meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Xdp,
    Tc,
}

impl Hook {
    pub(crate) const BOTH: [Self; 2] = [Self::Xdp, Self::Tc];
}

/// What a program did with a frame.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) frame: Vec<u8>,
    /// The program's return value.
    pub(crate) returned: u32,
    pub(crate) outcome: Outcome,
    /// The interface out by the program's own record; 0 for none.
    pub(crate) interface: u32,
}

/// Everything that is counted, by rule and for the interface.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Counts {
    pub(crate) rules: BTreeMap<String, RuleCounters>,
    pub(crate) interface: InterfaceCounters,
}

/// The loaded programs, their maps and the network around them.
pub(crate) struct World {
    /// As `load` has it while it runs; afterwards there are only pins.
    bpf: Option<Ebpf>,
    xdp: Xdp,
    tc: SchedClassifier,
    record: Array<MapData, Words>,
    pub(crate) pins: PathBuf,
    pub(crate) tables: Tables,
    counters: Counters,
    /// Which counter each rule has.
    pub(crate) rules: BTreeMap<String, u32>,
    indices: BTreeMap<&'static str, u32>,
    mac: [u8; 6],
    pub(crate) host: Host,
}

/// Runs a test on an instance with this configuration (a template for [`plan::fill_in`]).
pub(crate) fn with(template: &str, test: impl FnOnce(&mut World) + Send) {
    with_changed(template, |_| {}, test);
}

/// As [`with`], after a change of the map contents that no configuration can express.
pub(crate) fn with_changed(
    template: &str,
    change: impl FnOnce(&mut Compiled) + Send,
    test: impl FnOnce(&mut World) + Send,
) {
    with_object(BPF_OBJECT, template, change, test);
}

/// As [`with_changed`], with other programs than those that are shipped.
pub(crate) fn with_object(
    object: &[u8],
    template: &str,
    change: impl FnOnce(&mut Compiled) + Send,
    test: impl FnOnce(&mut World) + Send,
) {
    with_object_and_sizes(object, template, change, |_| {}, test);
}

/// As [`with`], with maps of other sizes.
pub(crate) fn with_sizes(
    template: &str,
    resize: impl FnOnce(&mut load::Sizes) + Send,
    test: impl FnOnce(&mut World) + Send,
) {
    with_object_and_sizes(BPF_OBJECT, template, |_| {}, resize, test);
}

fn with_object_and_sizes(
    object: &[u8],
    template: &str,
    change: impl FnOnce(&mut Compiled) + Send,
    resize: impl FnOnce(&mut load::Sizes) + Send,
    test: impl FnOnce(&mut World) + Send,
) {
    let lab = Lab::new("progrun").unwrap();
    let host = network(&lab);
    let pins = lab.pins("pins").unwrap();
    let indices = Side::ALL.map(|side| host.ifindex(side.interface()).unwrap());
    let mut compiled = ready(compile_for(indices, template));
    change(&mut compiled);
    let mut sizes = tables::map_sizes(&compiled.sizes);
    resize(&mut sizes);
    host.enter(|| {
        stay_on_cpu(nix::sched::sched_getcpu().unwrap()).unwrap();
        let mut world = World::load(object, &host, &pins, &compiled, &sizes);
        test(&mut world);
    })
    .unwrap();
}

/// With next hops that change only when a test says so.
pub(crate) fn ready(mut compiled: Compiled) -> Compiled {
    compiled.settings.next_hop_lifetime = u32::MAX / 2;
    compiled
}

/// The map contents of a configuration, compiled for the machine of the plan; of rules that name no interface.
pub(crate) fn compile(template: &str) -> Compiled {
    compile_for([2, 3], template)
}

/// As [`compile`], where the interfaces have these indices.
fn compile_for(indices: [u32; 2], template: &str) -> Compiled {
    let limits = "[limits]\nflows = 64\nnew_flows = 64\nrules = 64\n";
    let draft = Draft::read("fixture.toml", &format!("{limits}{}", plan::fill_in(template)));
    let inner = |backend: IpAddr| plan::ip(if backend.is_ipv4() { Family::V4 } else { Family::V6 }, "inner");
    let interface = |(index, side): (u32, Side)| Interface {
        index,
        name: side.interface().to_owned(),
        mac: None,
        mtu: 1500,
        has_link_header: true,
        up: true,
        carrier: true,
        addresses: own_addresses(side).iter().map(|address| address.parse().unwrap()).collect(),
    };
    let machine = Machine {
        interfaces: indices.into_iter().zip(Side::ALL).map(interface).collect(),
        local_port_range: LOCAL_PORTS,
        source_rules: false,
        sources: draft.backends().into_iter().map(|backend| (backend, inner(backend))).collect(),
        ..Machine::default()
    };
    draft.compile(&machine).unwrap_or_else(|problems| panic!("{problems}")).1
}

fn own_addresses(side: Side) -> Vec<String> {
    let on_side = OWN.iter().filter(|(owner, _)| *owner == side);
    on_side
        .flat_map(|(_, name)| {
            [format!("{}/24", plan::ip(Family::V4, name)), format!("{}/64", plan::ip(Family::V6, name))]
        })
        .collect()
}

/// The forwarder's host, with the routes and neighbours of the plan.
fn network(lab: &Lab) -> Host {
    let (host, wire) = (lab.host("forwarder").unwrap(), lab.host("wire").unwrap());
    for side in Side::ALL {
        lab.link(&host, side.interface(), &wire, side.interface(), Offloads::Native.into()).unwrap();
        for address in own_addresses(side) {
            host.address(side.interface(), &address).unwrap();
        }
    }
    // Of an IPv4 route without `lock`, bpf_fib_lookup does not tell the MTU.
    for family in Family::ALL {
        for name in STATIONS {
            let address = plan::ip(family, name);
            let mac = plan::station(address).map(|byte| format!("{byte:02x}")).join(":");
            host.neighbor(plan::side_of(address).interface(), address, &mac).unwrap();
        }
        let gateway = plan::ip(family, "backend_2");
        host.route(&plan::ip(family, "narrow").to_string(), &format!("via {gateway} mtu lock {}", plan::NARROW_MTU))
            .unwrap();
        let prohibited = plan::ip(family, "prohibited");
        let flag = if family == Family::V4 { "" } else { "-6 " };
        host.ip(&format!("{flag}route add prohibit {prohibited}")).unwrap();
    }
    host
}

/// Has this thread, and so the programs that it runs, stay on one CPU: next hops and counters are kept for each.
pub(crate) fn stay_on_cpu(cpu: usize) -> nix::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)
}

impl World {
    fn load(object: &[u8], host: &Host, pins: &Path, compiled: &Compiled, sizes: &load::Sizes) -> Self {
        {
            static MOUNT: Mutex<()> = Mutex::new(());
            let _one_at_a_time = MOUNT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            bpffs::ensure(pins).unwrap();
        }
        attach::make_directories(pins).unwrap();
        sysctl::enable_forwarding(|_| {}).unwrap();
        let indices: BTreeMap<_, _> =
            Side::ALL.map(|side| (side.interface(), host.ifindex(side.interface()).unwrap())).into();
        let mac = mac(host, Side::Clients);
        let globals = Globals { slot: 0, mac, log_level: 0, record: true };
        let mut bpf = load::open_object(object, pins, sizes, globals).unwrap();
        attach::pin_program(load::classifier(&mut bpf, load::TC).unwrap(), pins, load::TC).unwrap();
        attach::pin_program(load::xdp(&mut bpf, 0).unwrap(), pins, &attach::xdp_pin(0)).unwrap();
        programs_that_begin(&mut bpf).clear_index(&0).unwrap();
        load::fill_free_slots(&mut bpf, compiled.sizes.flows).unwrap();
        load::seed_flow_tables(&mut bpf, &compiled.sizes).unwrap();
        // A run of the XDP program can name an interface as where its frame came from only if that runs XDP.
        let pass: &mut Xdp = bpf.program_mut("forwarder_pass").unwrap().try_into().unwrap();
        pass.load().unwrap();
        pass.attach_to_if_index(indices[Side::Clients.interface()], XdpMode::Driver).unwrap();

        let mut tables = Tables::open(pins).unwrap();
        tables.initialise(&compiled.settings).unwrap();
        let running = Running {
            generation: 0,
            settings: compiled.settings,
            counters: BTreeMap::new(),
            sizes: tables.sizes(),
            v4: RunningTables::default(),
            v6: RunningTables::default(),
        };
        let plan = reconcile::plan(&running, compiled).unwrap();
        tables.execute(&plan.operations).unwrap();
        let served = KnownInterface { flags: interface_flags::SERVED | interface_flags::XDP_OUT, slot: 0, mac };
        interfaces::write(pins, &[], indices.values().map(|index| (*index, served))).unwrap();
        let counters = Counters::open(pins).unwrap();
        let rules = plan.counters;
        let program = |name: &str| pins.join(attach::PROGRAMS).join(name);
        Self {
            bpf: Some(bpf),
            xdp: Xdp::from_pin(program("xdp_0"), XdpAttachType::Interface).unwrap(),
            tc: attach::classifier(pins, load::TC).unwrap(),
            record: Array::try_from(Map::Array(MapData::from_pin(pins.join("LAST_VERDICT")).unwrap())).unwrap(),
            pins: pins.to_owned(),
            tables,
            counters,
            rules,
            indices,
            mac,
            host: host.clone(),
        }
    }

    /// The programs as the loader holds them.
    pub(crate) fn bpf(&mut self) -> &mut Ebpf {
        self.bpf.as_mut().unwrap()
    }

    /// From now on XDP begins flows, as where the loader has done all its work. Until then the fast path is alone there.
    pub(crate) fn let_xdp_begin(&mut self) {
        let program: &Xdp = self.bpf().program(load::XDP_BEGIN).unwrap().try_into().unwrap();
        let begin = program.fd().unwrap().try_clone().unwrap();
        programs_that_begin(self.bpf()).set(0, &begin, 0).unwrap();
    }

    /// Loads the object once more, as for another interface: with the same maps, but a slot of its own.
    pub(crate) fn open_again(&self, slot: u32) -> Ebpf {
        let sizes = tables::map_sizes(&self.tables.sizes());
        load::open(&self.pins, &sizes, Globals { slot, mac: self.mac, log_level: 0, record: true }).unwrap()
    }

    /// As when the loader ends: only pins are left of its programs and maps.
    pub(crate) fn end_loader(&mut self) {
        self.bpf = None;
    }

    /// The kernel's index of an interface.
    pub(crate) fn index(&self, side: Side) -> u32 {
        self.indices[side.interface()]
    }

    /// The MAC address of the interface that every frame comes in by, whichever side it is from.
    pub(crate) const fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The MAC address of an interface.
    pub(crate) fn mac_of(&self, side: Side) -> [u8; 6] {
        mac(&self.host, side)
    }

    /// Gives a program a frame that came in by `eth0`.
    pub(crate) fn run(&mut self, hook: Hook, frame: &[u8]) -> Ran {
        self.run_segmented(hook, frame, 0)
    }

    /// As [`Self::run`], at TC with a packet that will be cut into segments of this payload.
    pub(crate) fn run_segmented(&mut self, hook: Hook, frame: &[u8], segment: u32) -> Ran {
        let index = self.index(Side::Clients);
        let context = match hook {
            Hook::Xdp => xdp_md(index, frame.len()),
            Hook::Tc => sk_buff(index, segment),
        };
        let mut out = vec![0; frame.len() + 64];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        self.record.set(0, Words([0; 8]), 0).unwrap();
        let result = match hook {
            Hook::Xdp => self.xdp.test_run(options),
            Hook::Tc => self.tc.test_run(options),
        };
        let result = result.unwrap_or_else(|error| panic!("cannot run {hook:?} on {frame:02x?}: {error:?}"));
        let Words([recorded, outcome, interface, ..]) = self.record.get(&0, 0).unwrap();
        assert_eq!(recorded, hook as u32 + 1, "the program recorded no verdict");
        out.truncate(result.data_size_out as usize);
        let outcome = Outcome::ALL[outcome as usize];
        Ran { frame: out, returned: result.return_value, outcome, interface }
    }

    /// Every counter now.
    pub(crate) fn counts(&self) -> Counts {
        let rules = self.rules.iter().map(|(name, counter)| (name.clone(), self.counters.rule(*counter).unwrap()));
        Counts { rules: rules.collect(), interface: self.counters.interface(0).unwrap() }
    }

    /// Makes every kept next hop stale, as the daemon does when a route changes.
    pub(crate) fn forget_next_hops(&mut self) {
        let mut settings = self.tables.settings().unwrap();
        settings.epoch += 1;
        let map = Map::Array(MapData::from_pin(self.pins.join("SETTINGS")).unwrap());
        let mut map: Array<_, Plain<Settings>> = map.try_into().unwrap();
        map.set(0, Plain(settings), 0).unwrap();
    }

    /// Lets every established flow of a family have seen its last packet 20 days ago.
    pub(crate) fn make_flows_older(&self, family: Family) {
        match family {
            Family::V4 => age::<V4>(&self.pins, "V4"),
            Family::V6 => age::<V6>(&self.pins, "V6"),
        }
    }

    /// From what the maps hold now to another configuration.
    pub(crate) fn plan(&self, compiled: &Compiled) -> Plan {
        reconcile::plan(&self.tables.running(self.rules.clone()).unwrap(), compiled).unwrap()
    }

    /// The entries of a flow table, as the pins show them.
    pub(crate) fn flows<A>(&self, name: &str) -> BTreeMap<FlowKey<A>, Flow<A>>
    where
        A: Ord + Slotted,
        FlowKey<A>: Layout,
        Flow<A>: Layout,
        FlowSlot<A>: Layout,
        Bucket<A>: Layout,
    {
        flows(&self.pins, name)
    }
}

fn age<A: Slotted>(pins: &Path, family: &str)
where
    FlowSlot<A>: Layout,
    Bucket<A>: Layout,
{
    let ago = ticks_from_millis(20 * 86_400_000);
    let flows = ProtectedFlows::<A>::open(pins, family).unwrap();
    flows.set_last_seen(|_, flow| Some(flow.last_seen.wrapping_sub(ago)));
}

/// The entries of the flow table pinned in `pins`.
pub(crate) fn flows<A>(pins: &Path, name: &str) -> BTreeMap<FlowKey<A>, Flow<A>>
where
    A: Ord + Slotted,
    FlowKey<A>: Layout,
    Flow<A>: Layout,
    FlowSlot<A>: Layout,
    Bucket<A>: Layout,
{
    if let Some(family) = name.strip_prefix("ESTABLISHED_") {
        return ProtectedFlows::open(pins, family).unwrap().iter().collect();
    }
    let family = name.strip_prefix("EMBRYONIC_").unwrap();
    NewFlows::open(pins, family).unwrap().iter().collect()
}

fn programs_that_begin(bpf: &mut Ebpf) -> ProgramArray<&mut MapData> {
    bpf.map_mut("BEGIN").unwrap().try_into().unwrap()
}

fn mac(host: &Host, side: Side) -> [u8; 6] {
    let text = host.mac(side.interface()).unwrap();
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Words([u32; 8]);
// SAFETY: integers without padding.
unsafe impl Pod for Words {}

/// `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
pub(crate) fn xdp_md(ingress: u32, length: usize) -> Vec<u8> {
    [0, u32::try_from(length).unwrap(), 0, ingress, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// `struct __sk_buff` with its `ifindex`, and `gso_size` and `gso_segs` of a packet to be cut.
pub(crate) fn sk_buff(interface: u32, segment: u32) -> Vec<u8> {
    const LENGTH: usize = 192;
    const IFINDEX: usize = 40;
    const GSO_SEGS: usize = 164;
    const GSO_SIZE: usize = 176;
    let mut context = vec![0; LENGTH];
    let mut set = |offset: usize, value: u32| context[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
    set(IFINDEX, interface);
    if segment != 0 {
        set(GSO_SEGS, 2);
        set(GSO_SIZE, segment);
    }
    context
}
