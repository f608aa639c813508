//! A VPS in front of a server at home, behind a tunnel, with the clients' addresses preserved. The VPS has two addresses on
//! two interfaces. (A tun device plays WireGuard.)

use std::path::Path;

use forwarder_lab::{Family, Host, Tun, TunKind, TunPump};

use super::internet::{Internet, at, customer, default_by, elsewhere};
use super::{assert_lost, in_both_modes, load, serve, transfer};
use crate::forwarder::Forwarder;
use crate::setting::Mode;

in_both_modes!(answers_go_back_through_the_tunnel_and_out_by_their_line);

/// Where the server is, in the tunnel.
fn home_at(family: Family) -> std::net::IpAddr {
    if family == Family::V4 { "10.8.0.2" } else { "fd08::2" }.parse().unwrap()
}

fn answers_go_back_through_the_tunnel_and_out_by_their_line(mode: Mode) {
    let net = Internet::new("behindvps", mode);
    let client = net.host("client", 2);
    let vps = net.lab.host("vps").unwrap();
    for (line, interface) in ["eth0", "eth1"].into_iter().enumerate() {
        net.connect(line, &net.provider(line), &vps, interface, 7);
    }
    default_by(&vps, 0);
    // Home has a line of its own, by which it reaches everybody.
    let home = net.host("home", 6);
    let _tunnel = tunnel(&vps, &home);
    let mut forwarder = Forwarder::named(&net.lab, &vps, "pins");
    load(&mut forwarder, mode, "home-behind-a-vps/forwarder.toml");
    let reaches = |line: usize, port: u16, family: Family| {
        let _server = serve(&home, at(home_at(family), port));
        transfer(&client, None, at(customer(line, family, 7), port)).map(|seen| {
            assert_eq!(seen.ip(), elsewhere(family, 2), "the client's own address");
        })
    };
    // Home answers by its own line: the client knows nothing of that.
    assert_lost(&client, at(customer(0, Family::V4, 7), 80));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/home-behind-a-vps/home.sh");
    let script = script.to_str().unwrap();
    let works = |how: &str| {
        for family in Family::ALL {
            for (line, port) in [(0, 80), (1, 25)] {
                reaches(line, port, family)
                    .unwrap_or_else(|error| panic!("{how}, {line}, {family:?}: {error:#}\n{:#?}", forwarder.stats()));
            }
            // Its own connections stay on its own line.
            let there = at(elsewhere(family, 2), 81);
            let _answering = serve(&client, there);
            assert_eq!(transfer(&home, None, there).unwrap().ip(), elsewhere(family, 6));
        }
    };
    home.run(&["sh", script]).unwrap();
    works("by the home server's routing");
    home.run(&["sh", script, "down"]).unwrap();
    assert_lost(&client, at(customer(1, Family::V4, 7), 25));
    let mut at_home = Forwarder::named(&net.lab, &home, "home");
    load(&mut at_home, mode, "home-behind-a-vps/home.toml");
    works("by forwarder on the home server");
    assert!(at_home.stats().rule("tunnel").reply.packets > 100);
    // The line's own doing, at last.
    forwarder.succeed(&["remove", "second"]);
    assert_lost(&client, at(customer(1, Family::V4, 7), 25));
    reaches(0, 80, Family::V4).unwrap();
}

fn tunnel(vps: &Host, home: &Host) -> TunPump {
    let [theirs, ours] = [vps, home].map(|host| Tun::create(host, "wg0", TunKind::Tun).unwrap());
    for (host, number) in [(vps, 1), (home, 2)] {
        host.ip("link set wg0 mtu 1420").unwrap();
        host.address("wg0", &format!("10.8.0.{number}/24")).unwrap();
        host.address("wg0", &format!("fd08::{number}/64")).unwrap();
    }
    TunPump::between(theirs, ours).unwrap()
}
