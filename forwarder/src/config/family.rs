//! The two address families, so that tables are written once and hold the exact type of each.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use forwarder_common::address::{Address, V4, V6};

/// An address family as the maps hold its addresses: network order in native words.
pub trait Family: Address + Ord + std::fmt::Debug + std::hash::Hash + Send + Sync + 'static {
    /// Bits of an address.
    const BITS: u8;
    /// "IPv4" or "IPv6".
    const NAME: &'static str;
    /// The address, if it is of this family.
    fn of(address: IpAddr) -> Option<Self>;
    /// The address as everyone else writes it.
    fn ip(self) -> IpAddr;
}

impl Family for V4 {
    const BITS: u8 = 32;
    const NAME: &'static str = "IPv4";

    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(v4) => Some(Self::from_ne_bytes(v4.octets())),
            IpAddr::V6(_) => None,
        }
    }

    fn ip(self) -> IpAddr {
        Ipv4Addr::from(self.to_ne_bytes()).into()
    }
}

impl Family for V6 {
    const BITS: u8 = 128;
    const NAME: &'static str = "IPv6";

    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some(bytemuck::cast(v6.octets())),
        }
    }

    fn ip(self) -> IpAddr {
        let octets: [u8; 16] = bytemuck::cast(self);
        Ipv6Addr::from(octets).into()
    }
}
