//! A row's own network: client, forwarder, backend, and everything that forwards and counts, ready to be measured.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context as _, Result};
use forwarder_lab::{Offloads, Topology};

use crate::addresses::{Addresses, BACKEND_PORT, LISTEN_PORT, OUTER_BITS, OUTER_V4, OUTER_V6};
use crate::cpu::Cpu;
use crate::establish;
use crate::forwarding::{self, Forwarder};
use crate::programs::{Flows, Programs, Run};
use crate::row::{Hook, Mode, Row, Way};
use crate::rules::{Rules, Source};
use crate::samples;

/// Established flows that forwarder has room for by default.
const USUAL_FLOWS: u32 = 32_768;
/// The least room that is asked for.
const LEAST_FLOWS: u32 = 1024;

pub(crate) struct Network {
    pub(crate) row: Row,
    pub(crate) addresses: Addresses,
    programs: Programs,
    pub(crate) forwarder: Option<Forwarder>,
    // Last: everything else ends before it.
    pub(crate) net: Topology,
}

impl Network {
    pub(crate) fn build(row: Row, binary: &Path, cpu: &Cpu) -> Result<Self> {
        Self::try_build(row, binary, cpu).with_context(|| format!("cannot set up {row}"))
    }

    fn try_build(row: Row, binary: &Path, cpu: &Cpu) -> Result<Self> {
        let net = Topology::two_armed("bench", Offloads::Native)?;
        let addresses = Addresses::of(row, &net)?;
        let (client_mac, backend_mac) = addresses.macs();
        net.forwarder.neighbor("eth1", addresses.destination, &mac_text(backend_mac))?;
        for client in addresses.clients() {
            net.forwarder.neighbor("eth0", client, &mac_text(client_mac))?;
        }
        // Sinks first: a forwarder looks whether XDP can send towards them.
        let programs = Programs::attach(row, &net, &addresses)?;
        let forwarder = middle(row, &net, &addresses, binary)?;
        let mut network = Self { row, addresses, programs, forwarder, net };
        if row.has_flows() {
            establish::run(&mut network, cpu)?;
        }
        Ok(network)
    }

    /// Sends frames and sees to it that what arrived is right.
    pub(crate) fn run(&mut self, cpu: &Cpu, flows: Flows, frames: u32, reflect: bool) -> Result<Run> {
        let run = self.programs.run(&self.net, cpu, flows, frames, reflect)?;
        samples::check(&self.programs.samples()?, &self.addresses, self.row)
            .with_context(|| format!("{} forwards wrongly", self.row))?;
        Ok(run)
    }

    /// Has whatever would not forget new flows by itself forget them.
    pub(crate) fn forget(&self) -> Result<()> {
        match self.row.way {
            Way::Nftables | Way::Iptables if self.row.fresh => forwarding::forget_flows(&self.net),
            _ => Ok(()),
        }
    }
}

/// Sets up what forwards.
fn middle(row: Row, net: &Topology, addresses: &Addresses, binary: &Path) -> Result<Option<Forwarder>> {
    let rules = || {
        let (listen, backend) = (addresses.listen, addresses.destination);
        let (used, count) = (1 << row.listen_bits(), row.rule_count() as usize);
        Rules::new("udp", (listen, LISTEN_PORT).into(), (backend, BACKEND_PORT).into(), used, count)
    };
    match row.way {
        Way::Limit | Way::RedirectByIndex => Ok(None),
        Way::Kernel | Way::FibLookup => net.forwarder.enable_kernel_forwarding().map(|()| None),
        Way::Nftables => forwarding::nftables(net, &rules()).map(|()| None),
        Way::Iptables => forwarding::iptables(net, row.family, &rules()).map(|()| None),
        Way::Forwarder { hook, mode } => {
            let rules = |source| -> Result<String> {
                let rules = rules();
                forwarding::own(net, &rules)?;
                Ok(rules.toml(source))
            };
            let rules = match mode {
                Mode::Preserve => rules(Source::Preserve)?,
                Mode::PreserveFlows => rules(Source::PreserveFlows)?,
                Mode::Masquerade => rules(Source::Masquerade)?,
                Mode::Prefix => prefix_rule(addresses.destination),
            };
            let flows = if row.fresh { USUAL_FLOWS } else { row.flows.max(LEAST_FLOWS) };
            let room = if row.has_flows() { format!("new_flows = {}\n", establish::ROOM) } else { String::new() };
            let config = format!("[limits]\nflows = {flows}\n{room}[timeouts]\nudp_established = \"1h\"\n{rules}");
            let hook = if hook == Hook::Xdp { "native" } else { "tc" };
            let forwarder = Forwarder::load(net, binary, hook, &config)?;
            forwarder.check_stateless(matches!(mode, Mode::Preserve | Mode::Prefix))?;
            Ok(Some(forwarder))
        }
    }
}

/// The network around the backend under outer addresses.
fn prefix_rule(backend: IpAddr) -> String {
    let (v4, v6) = OUTER_BITS;
    let (outer, inner) = match backend {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            (format!("{OUTER_V4}/{v4}"), format!("{}/{v4}", Ipv4Addr::new(a, b, c, 0)))
        }
        IpAddr::V6(address) => {
            let [a, b, c, ..] = address.segments();
            (format!("{OUTER_V6}/{v6}"), format!("{}/{v6}", Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0)))
        }
    };
    format!("\n[[forward]]\nname = \"bench\"\nlisten = \"{outer}\"\nto = \"{inner}\"\n")
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
