#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::config::Draft;
use crate::machine::{Interface, Kernel};

const LINES: &str = "[[steer]]\nfrom = [\"192.0.2.123\", \"2001:db8:4::123\"]\ninterface = \"ppp0\"\n\
                     [[steer]]\nfrom = \"203.0.113.7\"\ninterface = \"eth1\"\ngateway = \"203.0.113.1\"\n";

/// What is needed with these default routes, and these interfaces down.
fn needed_with(text: &str, default_by: [&[u32]; 2], down: &[&str]) -> Vec<FallbackRoute> {
    let interface = |index, name: &str, addresses: &[&str]| Interface {
        index,
        name: name.to_owned(),
        mac: None,
        mtu: 1500,
        has_link_header: name != "ppp0",
        up: !down.contains(&name),
        carrier: true,
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
    };
    let interfaces = vec![
        interface(2, "eth0", &["198.51.100.1/24"]),
        interface(3, "ppp0", &["192.0.2.123/32"]),
        interface(4, "eth1", &["203.0.113.7/24"]),
    ];
    let default_by = default_by.map(|by| by.iter().copied().collect::<BTreeSet<u32>>());
    let kernel = Some(Kernel { default_by, ..Kernel::default() });
    let machine = Machine { interfaces, kernel, followed: true, ..Machine::default() };
    let (_, compiled) = Draft::read("f.toml", text).compile(&machine).unwrap();
    needed(&compiled, &machine)
}

fn route(v6: bool, interface: u32, gateway: Option<&str>) -> FallbackRoute {
    FallbackRoute { v6, interface, gateway: gateway.map(|gateway| gateway.parse().unwrap()) }
}

#[test]
fn each_family_without_a_default_route_needs_one_by_the_first_line_that_is_there() {
    let [v4, v6] = [false, true].map(|v6| route(v6, 3, None));
    assert_eq!(needed_with(LINES, [&[2], &[2]], &[]), []);
    assert_eq!(needed_with(LINES, [&[2], &[]], &[]), [v6]);
    assert_eq!(needed_with(LINES, [&[], &[]], &[]), [v4, v6]);
    assert_eq!(needed_with(LINES, [&[], &[]], &["ppp0"]), [route(false, 4, Some("203.0.113.1"))]);
    assert_eq!(needed_with(LINES, [&[], &[]], &["ppp0", "eth1"]), []);
}

#[test]
fn nothing_is_needed_where_nothing_is_steered_or_nobody_wants_it() {
    assert_eq!(needed_with("", [&[], &[]], &[]), []);
    assert_eq!(needed_with(&format!("fallback_route = false\n{LINES}"), [&[], &[]], &[]), []);
}
