#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use super::*;
use crate::config::Draft;
use crate::config::compile::SteerSummary;
use crate::machine::Interface;

fn machine(kernel: Kernel) -> Machine {
    let interface = |index, name: &str| Interface {
        index,
        name: name.to_owned(),
        mac: None,
        mtu: 1500,
        has_link_header: index != 3,
        up: true,
        carrier: true,
        addresses: Vec::new(),
    };
    let interfaces = vec![interface(2, "eth0"), interface(3, "ppp0"), interface(4, "eth1")];
    Machine { interfaces, kernel: Some(kernel), ..Machine::default() }
}

/// A steer of an IPv4 source to ppp0, on a machine with this kernel.
fn obstacles_with(kernel: Kernel) -> Vec<String> {
    let machine = machine(kernel);
    let (_, compiled) = Draft::read("f.toml", "").compile(&machine).unwrap();
    let line = Line {
        from: "192.0.2.123/32".parse().unwrap(),
        interface: 3,
        interface_name: "ppp0".to_owned(),
        gateway: None,
        uplink: None,
    };
    let steers = vec![SteerSummary { name: Arc::from("fixed"), lines: vec![line] }];
    obstacles(&Compiled { steers, ..compiled }, &machine)
}

fn by(v4: &[u32], strict: &[u32]) -> Kernel {
    let default_by = [v4.iter().copied().collect(), BTreeSet::new()];
    Kernel { default_by, strict: strict.iter().copied().collect(), ..Kernel::default() }
}

#[test]
fn nothing_is_said_where_nothing_is_in_the_way() {
    assert!(obstacles_with(by(&[2], &[2])).is_empty());
    assert!(obstacles_with(by(&[3], &[2, 3])).is_empty(), "strict filtering knows the way back");
}

#[test]
fn each_obstacle_is_named_with_what_to_try() {
    let cases: [(Kernel, &str, &str); 2] = [
        (by(&[], &[]), "no default route for IPv4", "ip route add default"),
        (by(&[2], &[3]), "reverse-path filtering of ppp0 is strict", "sysctl -w net.ipv4.conf.ppp0.rp_filter=2"),
    ];
    for (kernel, what, hint) in cases {
        let said = obstacles_with(kernel);
        let [sentence] = said.as_slice() else { panic!("{said:?}") };
        assert!(
            sentence.starts_with("steer \"fixed\": ") && sentence.contains(what) && sentence.contains(hint),
            "{sentence}"
        );
    }
}
