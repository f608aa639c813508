#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::config::load as read;
use crate::machine::Kernel;

/// The names of the interfaces that want the program, where routes lead by these.
fn wanted_with(text: &str, leads_by: &[u32]) -> Vec<String> {
    let interface = |(index, name): (u32, &str)| Interface {
        index,
        name: name.to_owned(),
        mac: None,
        mtu: 1500,
        has_link_header: true,
        up: true,
        carrier: true,
        addresses: Vec::new(),
    };
    let interfaces = [(1, "lo"), (2, "eth0"), (3, "eth1"), (4, "wg0")].map(interface).into();
    let kernel = Some(Kernel { leads_by: leads_by.iter().copied().collect(), ..Kernel::default() });
    let machine = Machine { interfaces, kernel, ..Machine::default() };
    let state = State::new(Path::new("/sys/fs/bpf/x"), read("f.toml", text).unwrap()).unwrap();
    wanted(&state, &machine).into_iter().map(|interface| interface.name.clone()).collect()
}

#[test]
fn where_routes_lead_elsewhere_and_nobody_is_served() {
    let steer = "interfaces = [\"eth0\", \"ppp0\"]\n[[steer]]\nfrom = \"192.0.2.7\"\ninterface = \"ppp0\"\n";
    assert_eq!(wanted_with(steer, &[1, 2, 3]), ["eth1"]);
    assert_eq!(wanted_with(steer, &[2, 3, 4, 9]), ["eth1", "wg0"]);
    assert!(wanted_with(steer, &[]).is_empty());
    assert!(wanted_with("interfaces = [\"eth0\"]\n", &[2, 3]).is_empty(), "nothing is steered");
}
