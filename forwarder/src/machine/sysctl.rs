//! The settings of the machine that forwarding needs, and how they come back.
//!
//! Routing look-ups of our programs name the loopback interface, and the kernel answers them only where forwarding
//! is on for it. Forwarding as a whole (`conf.all`) stays as it is: for IPv6 it would make a machine that is
//! configured by router advertisements lose its default route.
//!
//! Of an IPv4 route's MTU (`ip route ... mtu 1400`) such a look-up tells only where it is locked, or where
//! `ip_forward_use_pmtu` is on, while the kernel's own forwarding heeds it always (`ip_mtu_from_fib_result`,
//! `ip_dst_mtu_maybe_forward`). Of IPv6 routes, both heed locked ones alone.

use std::{collections::BTreeSet, fs, io, path::Path};

use anyhow::{Context as _, Result};

use crate::state::ChangedSysctl;

/// Below `/proc/sys/net`, which shows the network namespace of whoever looks.
const FORWARDING: [&str; 2] = ["/proc/sys/net/ipv4/conf/lo/forwarding", "/proc/sys/net/ipv6/conf/lo/forwarding"];

/// The kernel tells the MTU of every IPv4 route.
const ROUTE_MTU: &str = "/proc/sys/net/ipv4/ip_forward_use_pmtu";

/// Switches on what forwarding needs; `changed` hears of each value before it is changed.
pub fn enable_forwarding(mut changed: impl FnMut(ChangedSysctl)) -> Result<()> {
    for path in FORWARDING {
        switch_on(Path::new(path), &mut changed)?;
    }
    switch_on(Path::new(ROUTE_MTU), &mut changed)
}

fn switch_on(path: &Path, changed: &mut impl FnMut(ChangedSysctl)) -> Result<()> {
    let old = match fs::read_to_string(path) {
        Ok(old) => old.trim().to_owned(),
        // A machine without IPv6 (or IPv4) has nothing to forward there.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    if old == "1" {
        return Ok(());
    }
    changed(ChangedSysctl { path: path.to_owned(), old });
    fs::write(path, "1").with_context(|| format!("cannot write {}", path.display()))
}

/// Which of the switches that let the kernel itself forward are off: `net.ipv4.conf.IFACE.forwarding` of these interfaces,
/// and `net.ipv6.conf.all.forwarding`, by which it goes for IPv6.
pub fn forwarding_off<'a>(interfaces: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let v4 =
        interfaces.map(|name| (format!("net.ipv4.conf.{name}.forwarding"), format!("ipv4/conf/{name}/forwarding")));
    let v6 = ("net.ipv6.conf.all.forwarding".to_owned(), "ipv6/conf/all/forwarding".to_owned());
    let is_off =
        |path: &str| fs::read_to_string(Path::new("/proc/sys/net").join(path)).is_ok_and(|text| text.trim() == "0");
    v4.chain([v6]).filter(|(_, path)| is_off(path)).map(|(name, _)| name).collect()
}

/// Writes the old value back.
pub fn restore(sysctl: &ChangedSysctl) -> Result<()> {
    fs::write(&sysctl.path, &sysctl.old)
        .with_context(|| format!("cannot restore {} to {}", sysctl.path.display(), sysctl.old))
}
