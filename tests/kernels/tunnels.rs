//! VXLAN: packets whose checksum the kernel has not verified, but knows the sum of. It goes by that sum when they are read at last,
//! and drops what was changed without telling it: datagrams of more than 76 bytes (`udp4_csum_init`, `CHECKSUM_BREAK`).

use std::time::Instant;

use forwarder_lab::{Family, UdpEcho, UdpSocketIn, patience};

use crate::forwarder::Forwarder;
use crate::lines::{self, Line};
use crate::setting::Setting;

/// Answers come out of the tunnel.
pub(crate) fn to_home() {
    crosses("tohome", Line::Ethernet(1500), Line::Vxlan);
}

/// Requests do.
pub(crate) fn from_clients() {
    crosses("fromclients", Line::Vxlan, Line::Ethernet(1500));
}

fn crosses(name: &str, client_line: Line, home_line: Line) {
    let (net, _cables) = lines::network(name, client_line, home_line);
    let forwarder = Forwarder::on(&net);
    forwarder.load(Setting::TC_TWO_ARMED, &lines::rules(&net));
    lines::everything_crosses(&net, &forwarder, name);
    // Now and then one goes by the kernel's neighbour code, to have the next hop confirmed.
    for family in Family::ALL {
        let _echo = UdpEcho::start(&net.home, net.backend(family, 8080)).unwrap();
        let socket = UdpSocketIn::connect(&net.client, net.public(family, 80), None).unwrap();
        let by_neighbour = || forwarder.stats().outcome("forwarded_by_neighbour");
        let (before, deadline) = (by_neighbour(), Instant::now() + patience());
        while by_neighbour() < before + 5 {
            assert!(Instant::now() < deadline, "{family:?}: no next hop is confirmed any more");
            socket.exchange(&[7; 1000]).unwrap();
        }
    }
}
