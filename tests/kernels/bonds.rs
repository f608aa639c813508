//! Bonds of two ports, as ways in and out.

use std::thread;
use std::time::{Duration, Instant};

use forwarder_lab::{Host, patience};

use crate::forwarder::Forwarder;
use crate::lines::{self, Line};
use crate::setting::Setting;

/// Clients come by ports that stand by for each other, home is behind ports that share the load.
pub(crate) fn in_and_out_and_when_a_port_fails() {
    let (net, _cables) = lines::network("bonds", Line::Bond("active-backup"), Line::Bond("balance-xor"));
    let forwarder = Forwarder::on(&net);
    forwarder.load(Setting::TC_TWO_ARMED, &lines::rules(&net));
    lines::everything_crosses(&net, &forwarder, "by bonds");
    // The client's first port loses its cable, and with it the forwarder's.
    net.client.ip("link set port-a down").unwrap();
    wait_for_port(&net.client, "eth0", "port-b");
    wait_for_port(&net.forwarder, "eth0", "eth0-b");
    lines::everything_crosses(&net, &forwarder, "by the other port");
}

/// XDP on a bond runs in the drivers of its ports.
pub(crate) fn native_xdp() {
    let (net, _cables) = lines::network("bondxdp", Line::Bond("balance-xor"), Line::Bond("active-backup"));
    for (host, ports) in [
        (&net.client, ["port-a", "port-b"]),
        (&net.forwarder, ["eth0-a", "eth0-b"]),
        (&net.forwarder, ["eth1-a", "eth1-b"]),
        (&net.home, ["port-a", "port-b"]),
    ] {
        // As on a wire: native XDP breaks on what a veth leaves undone.
        for port in ports {
            host.features(port, "tx off gro on").unwrap();
        }
    }
    for (host, bond) in [(&net.client, "eth0"), (&net.home, "eth0")] {
        host.features(bond, "tx off").unwrap();
    }
    let forwarder = Forwarder::on(&net);
    let said = forwarder.load(Setting::NATIVE_TWO_ARMED, &lines::rules(&net));
    assert!(said.contains("eth0: native XDP and TC"), "{said}");
    lines::everything_crosses(&net, &forwarder, "by bonds with XDP");
}

/// Waits until a bond sends by this port. (No event says so: ask until it is so.)
fn wait_for_port(host: &Host, bond: &str, port: &str) {
    let deadline = Instant::now() + patience();
    loop {
        let shown = host.ip(&format!("-d link show dev {bond}")).unwrap();
        if shown.contains(&format!("active_slave {port}")) {
            return;
        }
        assert!(Instant::now() < deadline, "{bond} stays with its port:\n{shown}");
        thread::sleep(Duration::from_millis(20));
    }
}
