//! What an instance has to remember that the kernel does not: `/run/forwarder/NAME.json`.

mod file;
pub mod uplinks;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, Result};
use forwarder_common::abi::{KnownInterface, interface_flags};
use serde::{Deserialize, Serialize};

use crate::{
    bpf::attach::TcAttachment,
    config::{Config, Mode},
    machine::netlink::FallbackRoute,
    serve::elsewhere::Elsewhere,
};
pub use file::{DaemonLock, Lock, StateFile, write_atomically};
pub use uplinks::UplinkState;

/// Where state files are. Like the pins, it does not survive a restart of the machine.
pub const DIRECTORY: &str = "/run/forwarder";
/// The version of the file's format.
const FORMAT: u32 = 1;

/// A loaded instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The version of this format.
    pub format: u32,
    /// The version of the program that loaded it.
    pub program: String,
    /// Seconds since 1970.
    pub loaded_at: u64,
    /// Where its maps and links are pinned.
    pub pins: PathBuf,
    /// The file it was configured from; none without one.
    pub config_path: Option<PathBuf>,
    /// The rules that run, those added since included.
    pub config: Config,
    /// What `list` says about each rule.
    pub rules: Vec<RuleState>,
    /// What `list` says about each masquerade.
    #[serde(default)]
    pub masquerades: Vec<MasqueradeState>,
    /// What `list` says about each steer.
    #[serde(default)]
    pub steers: Vec<SteerState>,
    /// What `status` says about each uplink.
    #[serde(default)]
    pub uplinks: Vec<UplinkState>,
    /// What `list` says about each neighbour answered for.
    #[serde(default)]
    pub neighbors: Vec<NeighborState>,
    /// Where its programs hang.
    pub interfaces: Vec<AttachedInterface>,
    /// The interfaces that are not served and have the program for what leaves, since something is steered.
    #[serde(default)]
    pub elsewhere: Vec<Elsewhere>,
    /// Which counter each rule has.
    pub counters: BTreeMap<String, u32>,
    /// Settings of the machine that `load` changed.
    pub sysctls: Vec<ChangedSysctl>,
    /// The interfaces that were made to receive all multicast, for `[[neighbor]]`.
    #[serde(default)]
    pub all_multicast: BTreeSet<String>,
    /// The default routes that were added for what is to be steered.
    #[serde(default)]
    pub fallback_routes: BTreeSet<FallbackRoute>,
    /// The network namespace it works in: the device and inode of its file.
    pub network_namespace: (u64, u64),
    /// Whether `load` mounted the BPF file system.
    pub mounted_bpffs: bool,
    /// The machine's addresses when the rules were last worked out: flows of those that it has lost end.
    #[serde(default)]
    pub addresses: BTreeSet<IpAddr>,
    /// What the machine does not have yet and rules wait for, in words.
    #[serde(default)]
    pub waiting: Vec<String>,
}

/// A rule as `list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleState {
    /// Its name.
    pub name: String,
    /// What it answers for, as on this machine.
    pub listen: Vec<String>,
    /// Its protocols; empty for the default.
    pub protocol: Vec<String>,
    /// Its backend.
    pub to: String,
    /// What the backend sees.
    pub source: String,
    /// Where the backend sees the clients: those that it cannot see, for it would answer them directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hairpin: Option<HairpinState>,
    /// Its clients; empty for everyone.
    pub allow: Vec<String>,
    /// Whether it keeps no flows.
    pub stateless: bool,
    /// What TCP's segment size is lowered to, in words.
    #[serde(default)]
    pub mss_clamp: String,
    /// Why it has to keep flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not_stateless: Option<String>,
}

impl RuleState {
    /// What the backend sees, in words: "preserve", and below it whom it sees as one of our addresses.
    pub fn describe_source(&self) -> String {
        let hairpin = |hairpin: &HairpinState| format!("{}\n{}: {}", self.source, hairpin.clients, hairpin.source);
        self.hairpin.as_ref().map_or_else(|| self.source.clone(), hairpin)
    }
}

/// [`crate::config::Hairpin`] as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HairpinState {
    /// A prefix.
    pub clients: String,
    /// The address of ours that the backend sees in place of theirs.
    pub source: String,
}

/// A masquerade as `list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasqueradeState {
    /// Its name.
    pub name: String,
    /// The hosts, each prefix with its way out.
    pub ways: Vec<WayOutState>,
    /// What is let in.
    pub filtering: String,
}

/// How the hosts of a prefix go out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WayOutState {
    /// The hosts.
    pub from: String,
    /// The interface.
    pub out: String,
    /// The address that they have outside.
    pub address: String,
}

/// A steer as `list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SteerState {
    /// Its name.
    pub name: String,
    /// The sources.
    pub from: Vec<String>,
    /// The protocols; empty for all.
    pub protocol: Vec<String>,
    /// The source ports; none for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// The line.
    pub interface: String,
    /// The routers at its other end.
    pub gateway: Vec<String>,
    /// What its packets leave by now: the interface, with the uplink that takes the line's place if one does.
    #[serde(default)]
    pub leaves_by: Vec<String>,
}

impl SteerState {
    /// The packets that it is for, in words.
    pub fn kinds(&self) -> String {
        let protocols = if self.protocol.is_empty() { "all".to_owned() } else { self.protocol.join(", ") };
        match &self.port {
            Some(port) if self.protocol.is_empty() => format!("tcp, udp from port {port}"),
            Some(port) => format!("{protocols} from port {port}"),
            None => protocols,
        }
    }
}

/// A `[[neighbor]]` as `list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighborState {
    /// Its name.
    pub name: String,
    /// The interface where it is asked.
    pub interface: String,
    /// The addresses that are answered for; empty while an interface is waited for.
    #[serde(rename = "for")]
    pub addresses: Vec<String>,
    /// The interface where they live.
    pub via: String,
    /// When they are answered for.
    pub answer: String,
}

/// An interface that programs hang on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedInterface {
    /// Its name at load.
    pub name: String,
    /// The kernel's index, which outlives a new name.
    pub index: u32,
    /// Its Ethernet address at load, which the programs compare with; none without a link header.
    pub mac: Option<[u8; 6]>,
    /// Its slot in the interface counters and in the names of pins.
    pub slot: u32,
    /// The mode in use, never `auto`.
    pub mode: Mode,
    /// Why this one.
    pub why: String,
    /// How the TC program hangs on it.
    pub tc: TcAttachment,
    /// How the program for what leaves hangs on it; none where nothing is steered.
    #[serde(default)]
    pub egress: Option<TcAttachment>,
    /// Whether `load` switched the removal of VLAN tags off.
    pub vlan_stripping_off: bool,
    /// Whether XDP on other interfaces may send out of it.
    pub xdp_out: bool,
}

impl AttachedInterface {
    /// What the programs know about it.
    pub fn seen_by_programs(&self) -> KnownInterface {
        let out = if self.xdp_out { interface_flags::XDP_OUT } else { 0 };
        KnownInterface {
            flags: interface_flags::SERVED | out,
            // Below `INTERFACE_SLOTS`.
            slot: self.slot as u16,
            mac: self.mac.unwrap_or_default(),
        }
    }
}

/// A value below `/proc/sys` that `load` changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedSysctl {
    /// Its file.
    pub path: PathBuf,
    /// What it was.
    pub old: String,
}

impl State {
    /// The names of all rules, each of which has counters.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        let masquerades = self.masquerades.iter().map(|masquerade| &masquerade.name);
        let neighbors = self.neighbors.iter().map(|neighbor| &neighbor.name);
        let steers = self.steers.iter().map(|steer| &steer.name);
        self.rules.iter().map(|rule| &rule.name).chain(masquerades).chain(steers).chain(neighbors)
    }

    /// A new instance, loaded now by this program.
    pub fn new(pins: &Path, config: Config) -> Result<Self> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            format: FORMAT,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            loaded_at: now.as_secs(),
            pins: pins.to_owned(),
            config_path: None,
            config,
            rules: Vec::new(),
            masquerades: Vec::new(),
            steers: Vec::new(),
            uplinks: Vec::new(),
            neighbors: Vec::new(),
            interfaces: Vec::new(),
            elsewhere: Vec::new(),
            counters: BTreeMap::new(),
            sysctls: Vec::new(),
            all_multicast: BTreeSet::new(),
            fallback_routes: BTreeSet::new(),
            network_namespace: network_namespace()?,
            mounted_bpffs: false,
            addresses: BTreeSet::new(),
            waiting: Vec::new(),
        })
    }

    /// The interfaces to serve that have not been there yet.
    pub fn absent_interfaces(&self) -> impl Iterator<Item = &str> {
        let known = |slot: u32| self.interfaces.iter().any(|one| one.slot == slot);
        let names = (0..).zip(&self.config.interfaces).filter(move |(slot, _)| !known(*slot));
        names.map(|(_, name)| name.value.as_str())
    }

    /// Whether this process is in the network namespace that the instance works in.
    pub fn is_here(&self) -> Result<bool> {
        Ok(self.network_namespace == network_namespace()?)
    }
}

/// The network namespace of this process: the device and inode of its file.
fn network_namespace() -> Result<(u64, u64)> {
    let file = fs::metadata("/proc/self/ns/net").context("cannot look at /proc/self/ns/net; is /proc mounted?")?;
    Ok((file.dev(), file.ino()))
}
