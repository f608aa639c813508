//! The two networks that most tests use.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use crate::host::Host;
use crate::lab::Lab;
use crate::link::{LinkOptions, Offloads};

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// How the forwarder is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The public side on `eth0`, the home on `eth1`.
    TwoArmed,
    /// Everything on `eth0`, to and from one router, as on a VPS.
    OneArmed,
}

/// Client, forwarder and home, ready for traffic, without forwarder itself: the forwarder's kernel forwards nothing.
///
/// ```text
/// two-armed:   client ── eth0 forwarder eth1 ── home
///
/// one-armed:   client ── router ── home
///                          │
///                        eth0 forwarder
/// ```
///
/// | network | IPv4 | IPv6 |
/// |---|---|---|
/// | client's | 198.51.100.0/24 | 2001:db8:1::/64 |
/// | home's | 10.8.0.0/24 | fd08::/64 |
/// | forwarder's when one-armed | 203.0.113.0/24 | 2001:db8:3::/64 |
///
/// Every interface towards the forwarder is the other host's `eth0`. Home's way out is the forwarder: in the one-armed
/// shape the router sends everything from home to it, as a tunnel from home would.
pub struct Topology {
    /// Who asks: .2 in its network, with .3 to .9 as further addresses.
    pub client: Host,
    /// Where forwarder is to run.
    pub forwarder: Host,
    /// Who answers: .2 in its network.
    pub home: Host,
    /// In the one-armed shape only.
    pub router: Option<Host>,
    /// How it was built.
    pub shape: Shape,
    /// Owns all of it; last, so that everything else ends before.
    pub lab: Lab,
}

/// Further addresses of the client, so that several clients can be told apart.
const FURTHER_CLIENT_ADDRESSES: std::ops::RangeInclusive<u8> = 3..=9;

impl Topology {
    /// Builds the given shape; `name` begins the names of its namespaces.
    pub fn new(name: &str, shape: Shape, offloads: Offloads) -> Result<Self> {
        match shape {
            Shape::TwoArmed => Self::two_armed(name, offloads),
            Shape::OneArmed => Self::one_armed(name, offloads),
        }
    }

    /// The forwarder between client and home.
    pub fn two_armed(name: &str, offloads: Offloads) -> Result<Self> {
        let lab = Lab::new(name)?;
        let (client, forwarder, home) = (lab.host("client")?, lab.host("forwarder")?, lab.host("home")?);
        let options = LinkOptions::from(offloads);
        lab.link(&client, "eth0", &forwarder, "eth0", options)?;
        lab.link(&home, "eth0", &forwarder, "eth1", options)?;
        Self::joined(lab, [client, forwarder, home], ["eth0", "eth1"])
    }

    /// The same of client, forwarder and home that are joined already: what the forwarder's interfaces on their sides are
    /// called, and `eth0` of the others, get their addresses.
    pub fn joined(lab: Lab, [client, forwarder, home]: [Host; 3], [outer, inner]: [&str; 2]) -> Result<Self> {
        both(&forwarder, outer, "198.51.100.1/24", "2001:db8:1::1/64")?;
        both(&forwarder, inner, "10.8.0.1/24", "fd08::1/64")?;
        ends(&client, &home)?;
        Ok(Self { client, forwarder, home, router: None, shape: Shape::TwoArmed, lab })
    }

    /// The forwarder beside the way, behind a router.
    pub fn one_armed(name: &str, offloads: Offloads) -> Result<Self> {
        let lab = Lab::new(name)?;
        let (client, forwarder, home) = (lab.host("client")?, lab.host("forwarder")?, lab.host("home")?);
        let router = lab.host("router")?;
        let options = LinkOptions::from(offloads);
        lab.link(&client, "eth0", &router, "client", options)?;
        lab.link(&forwarder, "eth0", &router, "vps", options)?;
        lab.link(&home, "eth0", &router, "home", options)?;
        router.enable_kernel_forwarding()?;
        both(&router, "client", "198.51.100.1/24", "2001:db8:1::1/64")?;
        both(&router, "home", "10.8.0.1/24", "fd08::1/64")?;
        both(&router, "vps", "203.0.113.1/24", "2001:db8:3::1/64")?;
        both(&forwarder, "eth0", "203.0.113.7/24", "2001:db8:3::7/64")?;
        forwarder.route("default", "via 203.0.113.1")?;
        forwarder.route("default", "via 2001:db8:3::1")?;
        ends(&client, &home)?;
        for (family, to, vps) in [("-4", "203.0.113.0/24", "203.0.113.7"), ("-6", "2001:db8:3::/64", "2001:db8:3::7")] {
            router.ip(&format!("{family} route add {to} dev vps table 100"))?;
            router.ip(&format!("{family} route add default via {vps} table 100"))?;
            router.ip(&format!("{family} rule add iif home lookup 100"))?;
        }
        Ok(Self { client, forwarder, home, router: Some(router), shape: Shape::OneArmed, lab })
    }

    /// The forwarder's interfaces.
    pub fn interfaces(&self) -> &'static [&'static str] {
        match self.shape {
            Shape::TwoArmed => &["eth0", "eth1"],
            Shape::OneArmed => &["eth0"],
        }
    }

    /// The forwarder's public address.
    pub fn public_address(&self, family: Family) -> IpAddr {
        match (self.shape, family) {
            (Shape::TwoArmed, Family::V4) => [198, 51, 100, 1].into(),
            (Shape::TwoArmed, Family::V6) => [0x2001, 0xdb8, 1, 0, 0, 0, 0, 1].into(),
            (Shape::OneArmed, Family::V4) => [203, 0, 113, 7].into(),
            (Shape::OneArmed, Family::V6) => [0x2001, 0xdb8, 3, 0, 0, 0, 0, 7].into(),
        }
    }

    /// The forwarder's address on the side of home: what home sees when clients are masqueraded.
    pub fn inner_address(&self, family: Family) -> IpAddr {
        match (self.shape, family) {
            (Shape::TwoArmed, Family::V4) => [10, 8, 0, 1].into(),
            (Shape::TwoArmed, Family::V6) => [0xfd08, 0, 0, 0, 0, 0, 0, 1].into(),
            (Shape::OneArmed, _) => self.public_address(family),
        }
    }

    /// Home's address.
    pub fn home_address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => [10, 8, 0, 2].into(),
            Family::V6 => [0xfd08, 0, 0, 0, 0, 0, 0, 2].into(),
        }
    }

    /// The client's (first) address.
    pub fn client_address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => [198, 51, 100, 2].into(),
            Family::V6 => [0x2001, 0xdb8, 1, 0, 0, 0, 0, 2].into(),
        }
    }

    /// A port of the forwarder's public address.
    pub fn public(&self, family: Family, port: u16) -> SocketAddr {
        (self.public_address(family), port).into()
    }

    /// A port of home.
    pub fn backend(&self, family: Family, port: u16) -> SocketAddr {
        (self.home_address(family), port).into()
    }
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];
}

fn ends(client: &Host, home: &Host) -> Result<()> {
    both(client, "eth0", "198.51.100.2/24", "2001:db8:1::2/64")?;
    for n in FURTHER_CLIENT_ADDRESSES {
        client.further_address("eth0", &format!("198.51.100.{n}/24"))?;
        client.further_address("eth0", &format!("2001:db8:1::{n}/64"))?;
    }
    both(home, "eth0", "10.8.0.2/24", "fd08::2/64")?;
    for (host, v4, v6) in [(client, "198.51.100.1", "2001:db8:1::1"), (home, "10.8.0.1", "fd08::1")] {
        host.route("default", &format!("via {v4}"))?;
        host.route("default", &format!("via {v6}"))?;
    }
    Ok(())
}

fn both(host: &Host, interface: &str, v4: &str, v6: &str) -> Result<()> {
    host.address(interface, v4)?;
    host.address(interface, v6)
}
