//! An internet of one router, hosts on it, and two providers whose customers have addresses of theirs.
//!
//! ```text
//!     hosts 198.51.100.H ── world ─┬─ provider 0 ── 203.0.113.0/24, 2001:db8:3::/64
//!           2001:db8:10::H         └─ provider 1 ── 192.0.2.0/24,   2001:db8:4::/64
//! ```

use std::net::{IpAddr, SocketAddr};

use forwarder_lab::{Family, Host, Lab, LinkOptions, Offloads};

use crate::setting::Mode;

/// What the addresses of each provider's customers begin with.
const PREFIXES: [[&str; 2]; 2] = [["203.0.113.", "2001:db8:3::"], ["192.0.2.", "2001:db8:4::"]];

pub(super) struct Internet {
    pub(super) lab: Lab,
    pub(super) options: LinkOptions,
    world: Host,
}

/// An address of a customer of `line`; the same digits in both families.
pub(super) fn customer(line: usize, family: Family, host: u8) -> IpAddr {
    parse(PREFIXES[line][usize::from(family == Family::V6)], host)
}

/// The address of a host on the internet.
pub(super) fn elsewhere(family: Family, host: u8) -> IpAddr {
    parse(if family == Family::V4 { "198.51.100." } else { "2001:db8:10::" }, host)
}

fn parse(prefix: &str, host: u8) -> IpAddr {
    format!("{prefix}{host}").parse().unwrap()
}

pub(super) fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

impl Internet {
    pub(super) fn new(name: &str, mode: Mode) -> Self {
        let lab = Lab::new(name).unwrap();
        let world = lab.host("world").unwrap();
        world.enable_kernel_forwarding().unwrap();
        let offloads = if mode == Mode::Native { Offloads::Native } else { Offloads::Default };
        Self { lab, world, options: offloads.into() }
    }

    /// A host with an address of its own; `number` is even, and not a multiple of four.
    pub(super) fn host(&self, name: &str, number: u8) -> Host {
        let host = self.lab.host(name).unwrap();
        let link = format!("h{number}");
        self.lab.link(&host, "eth0", &self.world, &link, self.options).unwrap();
        self.world.address(&link, &format!("198.51.100.{}/30", number - 1)).unwrap();
        self.world.address(&link, &format!("2001:db8:10::{}/127", number + 1)).unwrap();
        host.address("eth0", &format!("198.51.100.{number}/30")).unwrap();
        host.address("eth0", &format!("2001:db8:10::{number}/127")).unwrap();
        host.route("default", &format!("via 198.51.100.{}", number - 1)).unwrap();
        host.route("default", &format!("via 2001:db8:10::{}", number + 1)).unwrap();
        host
    }

    /// A provider's router. Its customers are behind `line`, and leave with their own addresses or not at all (RFC 2827).
    pub(super) fn provider(&self, line: usize) -> Host {
        let router = self.lab.host(&format!("provider{line}")).unwrap();
        router.enable_kernel_forwarding().unwrap();
        let (port, number) = (format!("p{line}"), 129 + 4 * line);
        self.lab.link(&router, "world", &self.world, &port, self.options).unwrap();
        self.world.address(&port, &format!("198.51.100.{number}/30")).unwrap();
        self.world.address(&port, &format!("2001:db8:11:{line}::1/64")).unwrap();
        router.address("world", &format!("198.51.100.{}/30", number + 1)).unwrap();
        router.address("world", &format!("2001:db8:11:{line}::2/64")).unwrap();
        router.route("default", &format!("via 198.51.100.{number}")).unwrap();
        router.route("default", &format!("via 2001:db8:11:{line}::1")).unwrap();
        let [v4, v6] = PREFIXES[line];
        self.world.route(&format!("{v4}0/24"), &format!("via 198.51.100.{}", number + 1)).unwrap();
        self.world.route(&format!("{v6}/64"), &format!("via 2001:db8:11:{line}::2")).unwrap();
        let rules = format!(
            "table inet bcp38 {{ chain forward {{ type filter hook forward priority 0; \
             iifname \"line\" ip saddr != {v4}0/24 drop; iifname \"line\" ip6 saddr != {v6}/64 drop; }}; }}"
        );
        router.run(&["nft", &rules]).unwrap();
        router
    }

    /// Connects a customer by Ethernet: the router has .1 of the line, the customer `number`.
    pub(super) fn connect(&self, line: usize, router: &Host, customer: &Host, interface: &str, number: u8) {
        self.lab.link(customer, interface, router, "line", self.options).unwrap();
        let [v4, v6] = PREFIXES[line];
        router.address("line", &format!("{v4}1/24")).unwrap();
        router.address("line", &format!("{v6}1/64")).unwrap();
        customer.address(interface, &format!("{v4}{number}/24")).unwrap();
        customer.address(interface, &format!("{v6}{number}/64")).unwrap();
    }
}

/// Makes `line` the default route, by the router that [`Internet::connect`] made.
pub(super) fn default_by(host: &Host, line: usize) {
    let [v4, v6] = PREFIXES[line];
    for (family, prefix) in [("-4", v4), ("-6", v6)] {
        host.ip(&format!("{family} route replace default via {prefix}1")).unwrap();
    }
}
