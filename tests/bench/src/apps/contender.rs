//! Who carries the connections: a network of its own for each, with everything in it.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use forwarder_lab::{Family, Offloads, Spawned, Topology};

use super::ends::Server;
use super::load;
use super::relay::Relay;
use crate::cpu;
use crate::forwarding::{self, Forwarder};
use crate::rules::{Rules, Source};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    /// The kernel routes, addresses stay.
    Kernel,
    Nftables(Offloads),
    /// forwarder as `--mode` says.
    Forwarder(Source, Mode),
    Relay(Relay),
}

/// How forwarder is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// As it chooses by itself: on veth, TC.
    Auto,
    /// In the drivers, on links without offloads: with them, it would break connections.
    Native,
}

impl Contender {
    pub(super) const ALL: [Self; 10] = [
        Self::Kernel,
        Self::Nftables(Offloads::Default),
        Self::Forwarder(Source::Masquerade, Mode::Auto),
        Self::Forwarder(Source::Preserve, Mode::Auto),
        Self::Relay(Relay::Haproxy),
        Self::Relay(Relay::Nginx),
        Self::Relay(Relay::Socat),
        Self::Relay(Relay::Realm),
        Self::Nftables(Offloads::Native),
        Self::Forwarder(Source::Masquerade, Mode::Native),
    ];

    /// The name to filter by.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Nftables(Offloads::Default) => "nftables",
            Self::Nftables(Offloads::Native) => "nftables-no-offloads",
            Self::Forwarder(Source::Masquerade, Mode::Auto) => "forwarder",
            Self::Forwarder(_, Mode::Auto) => "forwarder-preserve",
            Self::Forwarder(_, Mode::Native) => "forwarder-native",
            Self::Relay(relay) => relay.name(),
        }
    }

    /// For people.
    pub(super) const fn description(self) -> &'static str {
        match self {
            Self::Kernel => "kernel forwarding, no NAT",
            Self::Nftables(Offloads::Default) => "nftables DNAT + masquerade",
            Self::Nftables(Offloads::Native) => "nftables, links without offloads",
            Self::Forwarder(Source::Masquerade, Mode::Auto) => "forwarder auto (TC), masquerade",
            Self::Forwarder(_, Mode::Auto) => "forwarder auto (TC), preserve (stateless)",
            Self::Forwarder(_, Mode::Native) => "forwarder native XDP, masquerade, links without offloads",
            Self::Relay(Relay::Haproxy) => "HAProxy",
            Self::Relay(Relay::Nginx) => "nginx stream",
            Self::Relay(Relay::Socat) => "socat",
            Self::Relay(Relay::Realm) => "realm",
        }
    }

    /// Why this machine cannot have it, if so.
    pub(super) fn missing(self, peers: &Path) -> Option<String> {
        match self {
            Self::Relay(relay) if relay.find(peers).is_none() => {
                Some(format!("{} left out: there is no such program here", self.description()))
            }
            _ => None,
        }
    }

    fn offloads(self) -> Offloads {
        match self {
            Self::Nftables(offloads) => offloads,
            Self::Forwarder(_, Mode::Native) => Offloads::Native,
            _ => Offloads::Default,
        }
    }
}

const LISTEN_PORT: u16 = 8000;
const BACKEND_PORT: u16 = 9000;
/// As many flows as conntrack has room for by default on a machine of some gigabytes: none is to suffer from a lack.
const FLOWS: u32 = 262_144;

/// A contender's network, ready to carry connections.
pub(super) struct Carrier {
    pub(super) contender: Contender,
    /// What clients connect to.
    pub(super) server: SocketAddr,
    forwarder: Option<Forwarder>,
    home: Server,
    _relay: Option<Spawned>,
    // Last: everything else ends before it.
    pub(super) net: Topology,
}

impl Carrier {
    pub(super) fn build(contender: Contender, binary: &Path, peers: &Path) -> Result<Self> {
        Self::try_build(contender, binary, peers).with_context(|| format!("cannot set up {}", contender.description()))
    }

    fn try_build(contender: Contender, binary: &Path, peers: &Path) -> Result<Self> {
        let net = Topology::two_armed("bench", contender.offloads())?;
        let (listen, backend) = (net.public(Family::V4, LISTEN_PORT), net.backend(Family::V4, BACKEND_PORT));
        // Thousands of short connections a second need more ports than there are, if each keeps its own for a minute.
        for host in [&net.client, &net.forwarder] {
            host.sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
            host.sysctl("net.ipv4.tcp_tw_reuse", "1")?;
        }
        // What a connection leaves behind for the next one to the same host (round-trip time, how far packets overtake each
        // other) would have each contender go on for all rounds as it happened to begin.
        for host in [&net.client, &net.forwarder, &net.home] {
            host.sysctl("net.ipv4.tcp_no_metrics_save", "1")?;
        }
        let server = Server::start(&net.home, backend)?;
        let rules = Rules::new("tcp", listen, backend, 1, 1);
        let (mut forwarder, mut relay) = (None, None);
        match contender {
            Contender::Kernel => net.forwarder.enable_kernel_forwarding()?,
            Contender::Nftables(_) => forwarding::nftables(&net, &rules)?,
            Contender::Forwarder(source, mode) => {
                let config = format!("[limits]\nflows = {FLOWS}\nnew_flows = {FLOWS}\n{}", rules.toml(source));
                let mode = if mode == Mode::Auto { "auto" } else { "native" };
                forwarder = Some(Forwarder::load(&net, binary, mode, &config)?);
            }
            Contender::Relay(which) => relay = Some(which.start(&net, peers, listen, backend)?),
        }
        let target = if contender == Contender::Kernel { backend } else { listen };
        let said = || relay.as_ref().map_or_else(String::new, |relay| format!("; it said: {}", relay.output()));
        net.client.enter(|| load::wait_for(target))?.with_context(|| format!("it does not serve{}", said()))?;
        Ok(Self { contender, server: target, forwarder, home: server, _relay: relay, net })
    }

    /// CPU time so far of all that carries, but for the clients, who tell their own: the server and, on its time, the
    /// kernel; whatever runs in the forwarder's namespace; and the kernel's packet threads.
    pub(super) fn cpu_time(&self) -> Result<Duration> {
        Ok(self.home.cpu_time()? + relay_time(&self.net)? + cpu::packet_threads_time())
    }

    /// Makes sure that forwarder carried the connections by the hook that this row is about, and not the kernel.
    pub(super) fn check_hook(&self) -> Result<()> {
        let (Contender::Forwarder(_, mode), Some(forwarder)) = (self.contender, &self.forwarder) else { return Ok(()) };
        let forwarded = forwarder.forwarded()?;
        match mode {
            Mode::Auto if forwarded.tc == 0 || forwarded.xdp != 0 => {
                bail!("{}: TC forwarded {} packets, XDP {}", self.contender.description(), forwarded.tc, forwarded.xdp)
            }
            // What begins and ends connections is TC's: of short ones, most packets.
            Mode::Native if forwarded.xdp < forwarded.tc / 4 => {
                bail!("{}: XDP forwarded {} packets, TC {}", self.contender.description(), forwarded.xdp, forwarded.tc)
            }
            _ => Ok(()),
        }
    }
}

/// CPU time of the processes in the forwarder's namespace, with that of their children that have ended.
fn relay_time(net: &Topology) -> Result<Duration> {
    let namespace = fs::metadata(net.forwarder.netns_path()).context("the forwarder's namespace is gone")?;
    let ticks_per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
    let mut ticks = 0;
    for process in fs::read_dir("/proc").context("cannot list processes")?.flatten().map(|entry| entry.path()) {
        let inside = fs::metadata(process.join("ns/net")).is_ok_and(|its| its.ino() == namespace.ino());
        if !inside {
            continue;
        }
        // It may have ended meanwhile. After the name in parentheses, the 12th to 15th fields are user and system time of
        // the process and of its children (proc_pid_stat(5)).
        let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        ticks += fields.skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
    }
    Ok(Duration::from_secs_f64(ticks as f64 / ticks_per_second as f64))
}
