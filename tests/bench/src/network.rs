//! A row's own network: client, forwarder, backend, and everything that forwards and counts, ready to be measured.

use std::path::Path;

use anyhow::{Context as _, Result};
use forwarder_lab::{Offloads, Topology};

use crate::addresses::Addresses;
use crate::cpu::Cpu;
use crate::establish;
use crate::forwarding::{self, Forwarder};
use crate::programs::{Flows, Programs, Run};
use crate::row::{Row, Way};
use crate::samples;

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
        let forwarder = match row.way {
            Way::Limit | Way::RedirectByIndex => None,
            Way::Kernel => {
                net.forwarder.enable_kernel_forwarding()?;
                None
            }
            Way::Nftables => {
                net.forwarder.enable_kernel_forwarding()?;
                forwarding::nftables(row, &net, &addresses)?;
                None
            }
            Way::Forwarder { hook, masquerade } => {
                Some(Forwarder::load(row, hook, masquerade, &net, &addresses, binary)?)
            }
        };
        let mut network = Self { row, addresses, programs, forwarder, net };
        if row.has_flows() {
            establish::run(&mut network, cpu)?;
        }
        Ok(network)
    }

    /// Sends frames and sees to it that what arrived is right.
    pub(crate) fn run(&mut self, cpu: &Cpu, flows: Flows, frames: u32, reflect: bool) -> Result<Run> {
        let run = self.programs.run(&self.net, cpu, flows, frames, reflect)?;
        samples::check(&self.programs.samples()?, &self.addresses, self.row.family)
            .with_context(|| format!("{} forwards wrongly", self.row))?;
        Ok(run)
    }
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
