//! Loading the object: maps of the configured sizes, programs with the globals of their interface.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use anyhow::{Context as _, Result, anyhow, bail};
pub use aya::Ebpf;
use aya::{
    EbpfLoader,
    maps::{Array, Map, MapData, PerCpuArray, ProgramArray, Queue},
    programs::{ProgramError, RawTracePoint, SchedClassifier, TestRun as _, TestRunOptions, Xdp},
};
use forwarder_common::abi::{FlowHash, INTERFACE_SLOTS};

use super::{Bits, attach, object};
use crate::config;

/// The XDP program of an interface.
pub const XDP: &str = "forwarder_xdp";
/// The program that begins flows at XDP.
pub const XDP_BEGIN: &str = "forwarder_xdp_begin";
/// The program for IPv6 at XDP.
pub const XDP_V6: &str = "forwarder_xdp_v6";
/// The programs that XDP programs hand packets over to, and the maps that those find them in, by the interface's slot.
const HANDED_TO: [(&str, &str); 2] = [(XDP_BEGIN, "BEGIN"), (XDP_V6, "XDP_V6")];
/// The TC ingress program of an interface with Ethernet headers.
pub const TC: &str = "forwarder_tc";
/// The TC ingress program of an interface that delivers bare IP packets.
pub const TC_L3: &str = "forwarder_tc_l3";
/// The TC egress program of an interface with Ethernet headers.
pub const EGRESS: &str = "forwarder_egress";
/// The TC egress program of an interface that takes bare IP packets.
pub const EGRESS_L3: &str = "forwarder_egress_l3";
/// Run once, it starts the timer that removes expired flows.
pub const SWEEP: &str = "forwarder_sweep";

/// How many entries each map gets whose size depends on the configuration, by the map's name.
pub type Sizes = BTreeMap<&'static str, u32>;

/// The global variables of the programs on one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Globals {
    /// Index into the interface counters, below [`INTERFACE_SLOTS`].
    pub slot: u32,
    /// The interface's own address; all zero without link headers.
    pub mac: [u8; 6],
    /// Messages up to this level are logged: 0 none, 1 errors, 5 everything.
    pub log_level: u8,
    /// Whether the programs record their last verdict in a map, for tests.
    pub record: bool,
}

/// Opens the object with its maps pinned in `pins`: made there by the first call, shared by the others.
///
/// The caller compares maps that exist already ([`super::layout::compare`]).
pub fn open(pins: &Path, sizes: &Sizes, globals: Globals) -> Result<Ebpf> {
    open_object(object::BPF_OBJECT, pins, sizes, globals)
}

/// As [`open`], with another object: tests change the programs in it.
pub fn open_object(bytes: &[u8], pins: &Path, sizes: &Sizes, globals: Globals) -> Result<Ebpf> {
    if globals.slot >= INTERFACE_SLOTS {
        bail!("more than {INTERFACE_SLOTS} interfaces; run a second instance with --pins for the others");
    }
    let layouts = object::layouts()?;
    let mut loader = EbpfLoader::new();
    for name in layouts.keys() {
        loader.map_pin_path(name, pins.join(name));
    }
    for (name, entries) in sizes {
        loader.map_max_entries(name, *entries);
    }
    let record = u8::from(globals.record);
    let [m0, m1, m2, m3, m4, m5] = globals.mac;
    // The word that the program compares with.
    let mac = [m0, m1, m2, m3, m4, m5, 0, 0];
    loader
        .override_global("INTERFACE_SLOT", &globals.slot, true)
        .override_global("INTERFACE_MAC", &mac, true)
        .override_global("RECORD", &record, false)
        .override_global(aya_log::LEVEL, &globals.log_level, false);
    loader.load(bytes).map_err(|error| match error {
        aya::EbpfError::MapError(aya::maps::MapError::CreateError { name, io_error }) => {
            let entries = sizes.get(name.as_str());
            let error = anyhow!(io_error).context(format!("the kernel refused to make map {name}"));
            match entries {
                Some(entries) => error.context(format!(
                    "no room for {entries} entries in map {name}; lower [limits] in the configuration"
                )),
                None => error,
            }
        }
        other => anyhow!(other).context("cannot load the BPF object into the kernel"),
    })
}

/// Loads the XDP program of the interface in `slot` into the kernel, and before it those that it hands packets over to.
pub fn xdp(bpf: &mut Ebpf, slot: u32) -> Result<&mut Xdp> {
    for (name, programs) in HANDED_TO {
        let program = loaded_xdp(bpf, name)?.fd().context("the kernel gave no program")?;
        let program = program.try_clone().context("cannot keep a program of the kernel's")?;
        let map = bpf.map_mut(programs).with_context(|| format!("the BPF object has no map {programs}"))?;
        let mut map: ProgramArray<&mut MapData> =
            map.try_into().with_context(|| format!("map {programs} is no array of programs"))?;
        map.set(slot, &program, 0).with_context(|| format!("cannot write map {programs}"))?;
    }
    loaded_xdp(bpf, XDP)
}

fn loaded_xdp<'a>(bpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program: &mut Xdp = program(bpf, name)?;
    program.load().map_err(|error| rejected(name, error))?;
    Ok(program)
}

/// Loads the TC program `name` into the kernel.
pub fn classifier<'a>(bpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program: &mut SchedClassifier = program(bpf, name)?;
    program.load().map_err(|error| rejected(name, error))?;
    Ok(program)
}

fn program<'a, P>(bpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    bpf.program_mut(name)
        .with_context(|| format!("the BPF object has no program {name}"))?
        .try_into()
        .with_context(|| format!("program {name} of the BPF object is of another kind"))
}

/// Explains why a program did not load: the end of the verifier's log says it, the rest is its way there.
fn rejected(name: &str, error: ProgramError) -> anyhow::Error {
    const LINES: usize = 12;
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
            let last = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().join("\n  ");
            anyhow!(io_error).context(format!(
                "the kernel's verifier rejects program {name}; please report this with the kernel version. It says last:\n  {last}"
            ))
        }
        other => anyhow!(other).context(format!("cannot load program {name} into the kernel")),
    }
}

/// Fills the queues of free sweep slots: 1 to `flows` for each address family.
pub fn fill_free_slots(bpf: &mut Ebpf, flows: u32) -> Result<()> {
    for name in ["FREE_SLOTS_V4", "FREE_SLOTS_V6"] {
        let map = bpf.map_mut(name).with_context(|| format!("the BPF object has no map {name}"))?;
        let mut queue: Queue<&mut MapData, u32> = map.try_into().with_context(|| format!("map {name} is no queue"))?;
        for slot in 1..=flows {
            queue.push(slot, 0).with_context(|| format!("cannot fill map {name}"))?;
        }
    }
    Ok(())
}

/// Writes how keys become slots of the tables of flows, of these sizes: with random numbers, before there is any flow.
pub fn seed_flow_tables(bpf: &mut Ebpf, sizes: &config::Sizes) -> Result<()> {
    let mut seeds = [0; 10];
    for seed in &mut seeds {
        let mut bytes = [0; size_of::<u64>()];
        File::open("/dev/urandom")
            .and_then(|mut source| source.read_exact(&mut bytes))
            .context("cannot read random numbers from /dev/urandom")?;
        *seed = u64::from_ne_bytes(bytes);
    }
    let hash = FlowHash {
        seeds,
        mask: FlowHash::slots(sizes.flows.saturating_mul(2)) - 1,
        used: 0,
        buckets: FlowHash::buckets(sizes.new_flows),
        unused: 0,
    };
    let map = bpf.map_mut("FLOW_HASH").context("the BPF object has no map FLOW_HASH")?;
    let mut map: Array<&mut MapData, Bits<FlowHash>> = map.try_into().context("map FLOW_HASH is no array")?;
    map.set(0, Bits(hash), 0).context("cannot write map FLOW_HASH")
}

/// Watches for frames that are lost after XDP redirected them; counted in map `REDIRECT_LOSSES`.
pub fn watch_redirects(bpf: &mut Ebpf, pins: &Path) -> Result<()> {
    for (name, tracepoint) in
        [("forwarder_redirect_err", "xdp_redirect_err"), ("forwarder_devmap_xmit", "xdp_devmap_xmit")]
    {
        let program = bpf.program_mut(name).with_context(|| format!("the BPF object has no program {name}"))?;
        let program: &mut RawTracePoint =
            program.try_into().with_context(|| format!("program {name} is of another type"))?;
        attach::tracepoint(program, tracepoint, pins)?;
    }
    Ok(())
}

/// Frames of this machine that were lost after XDP redirected them: refused by the kernel, not taken by a driver.
pub fn redirect_losses(pins: &Path) -> Result<[u64; 2]> {
    let map: PerCpuArray<MapData, u64> = pinned(pins, "REDIRECT_LOSSES", Map::PerCpuArray)?;
    let sum =
        |index: u32| -> Result<u64> { Ok(map.get(&index, 0).context("cannot read map REDIRECT_LOSSES")?.iter().sum()) };
    Ok([sum(0)?, sum(1)?])
}

/// Starts the kernel timer that removes expired flows; it runs until the map that holds it is gone.
pub fn start_sweep(bpf: &mut Ebpf) -> Result<()> {
    let program = classifier(bpf, SWEEP)?;
    // An Ethernet frame of nothing; the program does not look at it.
    let frame = [0; 64];
    let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::default() };
    let result = program.test_run(options).context("cannot run the program that starts the flow timer")?;
    if result.return_value != 0 {
        bail!("the flow timer did not start: the kernel said {}", result.return_value.cast_signed());
    }
    Ok(())
}

/// The kernel memory that the maps in `pins` take, in bytes, as the kernel accounts for it.
pub fn memory(pins: &Path) -> Result<u64> {
    let mut bytes = 0;
    for name in object::layouts()?.keys() {
        let map = MapData::from_pin(pins.join(name)).with_context(|| format!("cannot open the pinned map {name}"))?;
        let fd = map.fd().as_fd().as_raw_fd();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))
            .with_context(|| format!("cannot read how much memory map {name} takes"))?;
        bytes += info
            .lines()
            .find_map(|line| line.strip_prefix("memlock:"))
            .and_then(|value| value.trim().parse::<u64>().ok())
            .unwrap_or(0);
    }
    Ok(bytes)
}

/// Opens the pinned map `name` for reading or writing as the type that `wrap` makes of it.
pub(super) fn pinned<M>(pins: &Path, name: &str, wrap: fn(MapData) -> Map) -> Result<M>
where
    M: TryFrom<Map, Error = aya::maps::MapError>,
{
    let data = MapData::from_pin(pins.join(name))
        .with_context(|| format!("cannot open the pinned map {}", pins.join(name).display()))?;
    M::try_from(wrap(data)).with_context(|| format!("the pinned map {name} is of another kind"))
}
