//! Files and what becomes of them.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail by panicking"
)]
#![allow(clippy::type_complexity, reason = "tables spell their columns out")]
#![allow(clippy::format_collect, reason = "files of a test are short, or made once")]

mod bad_files;
mod map_contents;
mod neighbor;
mod properties;
mod stateless;
mod whole_files;

use std::collections::BTreeMap;

use super::*;
use crate::machine::{Interface, Kernel};

/// A machine with a public interface, a tunnel and an interface that only has a link-local address.
fn machine() -> Machine {
    let interface = |index, name: &str, addresses: &[&str]| Interface {
        index,
        name: name.into(),
        mac: None,
        mtu: 1500,
        has_link_header: true,
        up: true,
        carrier: true,
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
    };
    Machine {
        interfaces: vec![
            interface(1, "lo", &["127.0.0.1/8", "::1/128"]),
            interface(2, "eth0", &["203.0.113.7/24", "203.0.113.8/24", "2001:db8::7/64", "fe80::1/64"]),
            interface(3, "wg0", &["10.8.0.1/24"]),
            interface(4, "eth1", &["fe80::2/64"]),
            Interface { has_link_header: false, ..interface(5, "tun0", &[]) },
        ],
        local_port_range: (32_768, 60_999),
        source_rules: false,
        sources: BTreeMap::new(),
        kernel: Some(Kernel { default_by: [[2].into(), [2].into()], ..Kernel::default() }),
        ..Machine::default()
    }
}

/// The machine with a route to every backend but 10.99.0.0/16.
fn routed(backends: &BTreeSet<IpAddr>) -> Machine {
    let (v4, v6): (IpAddr, IpAddr) = ("10.8.0.1".parse().unwrap(), "2001:db8::7".parse().unwrap());
    let unreachable: ipnet::IpNet = "10.99.0.0/16".parse().unwrap();
    let source = |backend: &IpAddr| (*backend, if backend.is_ipv4() { v4 } else { v6 });
    let sources = backends.iter().filter(|backend| !unreachable.contains(*backend)).map(source).collect();
    // Behind the tunnel are 2001:db8:0:0:8::/78 and whatever is neither public nor unreachable.
    let behind: ipnet::IpNet = "2001:db8:0:0:8::/78".parse().unwrap();
    let public: [ipnet::IpNet; 2] = ["203.0.113.0/26", "2001:db8::/64"].map(|net| net.parse().unwrap());
    let way = |to: &IpAddr| if public.iter().any(|net| net.contains(to)) && !behind.contains(to) { 2 } else { 3 };
    let ways = backends.iter().filter(|to| !unreachable.contains(*to)).map(|to| (*to, way(to))).collect();
    Machine { sources, ways, ..machine() }
}

fn read(text: &str) -> Result<(Config, Compiled), Diagnostics> {
    let draft = Draft::read("f.toml", text);
    let machine = routed(&draft.backends());
    draft.compile(&machine)
}

fn compiled(text: &str) -> Compiled {
    read(text).map_err(|problems| problems.to_string()).unwrap().1
}

/// A rule that is fine by itself, with some lines replaced or added.
fn rule(lines: &[(&str, &str)]) -> String {
    let mut keys = vec![("name", "\"web\""), ("listen", "\"203.0.113.7:80\""), ("to", "\"10.8.0.2:8080\"")];
    for line in lines {
        match keys.iter_mut().find(|key| key.0 == line.0) {
            Some(key) => key.1 = line.1,
            None => keys.push(*line),
        }
    }
    let lines: String = keys.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
    format!("[[forward]]\n{lines}")
}
