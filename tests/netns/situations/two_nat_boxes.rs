//! A web server behind two NAT boxes on one segment, each with a line of its own: "poor man's multihoming".

use forwarder_lab::{EchoStream, Family, Host, Spawned};

use super::internet::{Internet, at, customer, default_by};
use super::{in_both_modes, load, serve, transfer};
use crate::forwarder::Forwarder;
use crate::setting::Mode;

in_both_modes!(each_box_gets_the_answers_of_its_connections);

/// The server's addresses: the box's number twice, with a nought between.
const ENDS: [[&str; 2]; 2] = [["10.0.0.101", "fd00:10::101"], ["10.0.0.202", "fd00:10::202"]];

fn each_box_gets_the_answers_of_its_connections(mode: Mode) {
    let net = Internet::new("natboxes", mode);
    let client = net.host("client", 2);
    let segment = net.lab.host("segment").unwrap();
    segment.ip("link add br0 type bridge").unwrap();
    segment.ip("link set br0 up").unwrap();
    let server = net.lab.host("server").unwrap();
    net.lab.link(&server, "eth0", &segment, "server", net.options).unwrap();
    for (line, number) in [(0, 1), (1, 2)] {
        let nat = nat_box(&net, line, number);
        let port = format!("box{number}");
        net.lab.link(&nat, "inside", &segment, &port, net.options).unwrap();
        nat.address("inside", &format!("10.0.0.{number}/24")).unwrap();
        nat.address("inside", &format!("fd00:10::{number}/64")).unwrap();
    }
    for port in ["server", "box1", "box2"] {
        segment.ip(&format!("link set {port} master br0")).unwrap();
    }
    for [v4, v6] in ENDS {
        server.address("eth0", &format!("{v4}/24")).unwrap();
        server.address("eth0", &format!("{v6}/64")).unwrap();
    }
    // An ordinary process, which knows of one address as little as of two.
    let _web = web_server(&server);
    let mut forwarder = Forwarder::named(&net.lab, &server, "pins");
    let page = |line: usize, family: Family| {
        let url = format!("http://{}/", at(customer(line, family, 7), 80));
        client.run(&["curl", "--silent", "--show-error", "--fail", "--max-time", "3", &url])
    };
    for default in [1, 2] {
        for (family, gateway) in [("-4", "10.0.0."), ("-6", "fd00:10::")] {
            server.ip(&format!("{family} route replace default via {gateway}{default}")).unwrap();
        }
        if default == 1 {
            page(0, Family::V4).unwrap();
            page(1, Family::V4).unwrap_err();
            load(&mut forwarder, mode, "two-nat-boxes/forwarder.toml");
        }
        for family in Family::ALL {
            for line in [0, 1] {
                page(line, family).unwrap_or_else(|error| {
                    panic!("default {default}, line {line}, {family:?}: {error:#}\n{:#?}", forwarder.stats())
                });
            }
            // Much at once, and both lines at the same time.
            let _echoes =
                ENDS.map(|ends| serve(&server, at(ends[usize::from(family == Family::V6)].parse().unwrap(), 81)));
            let mut open =
                [0, 1].map(|line| EchoStream::connect(&client, at(customer(line, family, 7), 81), None).unwrap());
            for line in [0, 1] {
                transfer(&client, None, at(customer(line, family, 7), 81)).unwrap();
                for stream in &mut open {
                    stream.exchange(b"both lines").unwrap();
                }
            }
        }
    }
    let stats = forwarder.stats();
    for name in ["box1", "box2"] {
        assert!(stats.rule(name).reply.packets > 100, "{stats:#?}");
    }
    // The default route is by the second box.
    forwarder.succeed(&["remove", "box1"]);
    for family in Family::ALL {
        page(0, family).unwrap_err();
        page(1, family).unwrap();
    }
}

/// Forwards its public address to its address of the server, and hides everything behind that.
fn nat_box(net: &Internet, line: usize, number: u8) -> Host {
    let nat = net.lab.host(&format!("box{number}")).unwrap();
    nat.enable_kernel_forwarding().unwrap();
    net.connect(line, &net.provider(line), &nat, "outside", 7);
    default_by(&nat, line);
    let [v4, v6] = ENDS[line];
    let rules = format!(
        "table inet nat {{ chain in {{ type nat hook prerouting priority dstnat; iifname \"outside\" dnat ip to {v4}; \
         iifname \"outside\" meta l4proto tcp dnat ip6 to {v6}; }}; \
         chain out {{ type nat hook postrouting priority srcnat; oifname \"outside\" masquerade; }}; }}"
    );
    nat.run(&["nft", &rules]).unwrap();
    nat
}

fn web_server(host: &Host) -> Spawned {
    let server = host.spawn(&["python3", "-u", "-m", "http.server", "--bind", "::", "80"]).unwrap();
    server.wait_for_line(|line| line.starts_with("Serving HTTP")).unwrap();
    server
}
