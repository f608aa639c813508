//! veth pairs.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use anyhow::{Result, bail};
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::libc;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};

use crate::host::Host;
use crate::service::{patience, readable_before};

/// What the two ends of a link leave to the other side to finish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offloads {
    /// As the kernel makes them: partial checksums and packets of up to 64 kB cross the link. Native XDP breaks on these.
    #[default]
    Default,
    /// As on a wire: full checksums, packets no longer than the MTU. Both ends have GRO, without which a veth drops,
    /// silently, what a native XDP program at its peer redirects into it.
    Native,
}

/// Properties of a link; [`Default`] is what the kernel does by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkOptions {
    /// In bytes, of both ends; `None` is the kernel's 1500.
    pub mtu: Option<u16>,
    /// Of both ends.
    pub offloads: Offloads,
}

impl From<Offloads> for LinkOptions {
    fn from(offloads: Offloads) -> Self {
        Self { offloads, ..Self::default() }
    }
}

pub(crate) fn create((a, a_name): (&Host, &str), (b, b_name): (&Host, &str), options: LinkOptions) -> Result<()> {
    let mtu = options.mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
    let (a_place, b_place) = (a.next_place(), b.next_place());
    a.ip(&format!(
        "link add {a_name} index {} address {}{mtu} type veth peer name {b_name} index {} address {}{mtu} netns {}",
        a_place.index,
        a_place.mac,
        b_place.index,
        b_place.mac,
        b.netns(),
    ))?;
    let ends = [(a, a_name), (b, b_name)];
    let watches = [Watch::start(a)?, Watch::start(b)?];
    // A veth that comes up looks whether its peer has GRO, and if not, refuses what XDP redirects out of it from then on.
    if options.offloads == Offloads::Native {
        ends.iter().try_for_each(|(host, name)| host.features(name, "tx off gro on"))?;
    }
    for (host, name) in ends {
        host.ip(&format!("link set {name} up"))?;
    }
    if options.offloads == Offloads::Native {
        // Only an end that is up tells its peer that it now takes redirected frames (the peer's XDP features).
        for (host, name) in ends {
            host.features(name, "tx off gro on")?;
        }
    }
    // The end set up first gets its carrier from the second, a little later, and until then drops what it is to send.
    watches.iter().zip(ends).try_for_each(|(watch, (host, name))| watch.wait_until_running(host, name))
}

/// Hears of every change of a host's interfaces.
struct Watch(OwnedFd);

impl Watch {
    fn start(host: &Host) -> Result<Self> {
        let open = || -> nix::Result<OwnedFd> {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let netlink = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
            bind(netlink.as_raw_fd(), &NetlinkAddr::new(0, libc::RTMGRP_LINK.cast_unsigned()))?;
            Ok(netlink)
        };
        Ok(Self(host.enter(open)??))
    }

    fn wait_until_running(&self, host: &Host, name: &str) -> Result<()> {
        let deadline = Instant::now() + patience();
        let running = || -> nix::Result<bool> {
            let is_running = |end: InterfaceAddress| end.flags.contains(InterfaceFlags::IFF_RUNNING);
            Ok(getifaddrs()?.any(|end| end.interface_name == name && is_running(end)))
        };
        while !host.enter(running)?? {
            if !readable_before(self.0.as_fd(), deadline)? {
                bail!("{name} on host {} does not come up", host.name());
            }
            // What the news is does not matter: look again. ENOBUFS (news lost) means the same.
            let _ = recv(self.0.as_raw_fd(), &mut [0; 8192], MsgFlags::empty());
        }
        Ok(())
    }
}
