//! What stands in the middle, set up as a user would.

mod forwarder;

use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use forwarder_lab::{Family, Topology};

pub(crate) use self::forwarder::{Forwarded, Forwarder};
use crate::rules::{Rules, iptables_restore};

/// Seconds that netfilter keeps flows without packets: the bench goes back to each often enough, but not always in the
/// usual two minutes.
const FLOW_SECONDS: &str = "3600";

/// DNAT for each listen and masquerade towards the backend, by nftables.
pub(crate) fn nftables(net: &Topology, rules: &Rules) -> Result<()> {
    net.forwarder.enable_kernel_forwarding()?;
    let file = file(net, "nft", &rules.nft())?;
    net.forwarder.run(&["nft", "-f", &file.to_string_lossy()])?;
    keep_flows(net)
}

/// The same by iptables.
pub(crate) fn iptables(net: &Topology, family: Family, rules: &Rules) -> Result<()> {
    net.forwarder.enable_kernel_forwarding()?;
    let file = file(net, "iptables", &rules.iptables())?;
    net.forwarder.run(&[iptables_restore(family), &file.to_string_lossy()])?;
    keep_flows(net)
}

fn keep_flows(net: &Topology) -> Result<()> {
    net.forwarder.sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", FLOW_SECONDS)
}

/// Gives the forwarder the addresses that rules listen on and that it does not have: it would warn of each rule.
pub(crate) fn own(net: &Topology, rules: &Rules) -> Result<()> {
    let known = Family::ALL.map(|family| net.public_address(family));
    for address in rules.addresses().into_iter().filter(|address| !known.contains(address)) {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        net.forwarder.further_address("eth0", &format!("{address}/{bits}"))?;
    }
    Ok(())
}

/// Has netfilter forget all flows.
pub(crate) fn forget_flows(net: &Topology) -> Result<()> {
    net.forwarder.run(&["conntrack", "--flush"]).map(drop)
}

/// Writes a file that goes with the network.
pub(crate) fn file(net: &Topology, extension: &str, text: &str) -> Result<PathBuf> {
    let path = env::temp_dir().join(format!("{}.{extension}", net.lab.id()));
    net.lab.delete_at_end(&path)?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
