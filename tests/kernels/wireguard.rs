//! WireGuard, set up by the very files of `examples/home-behind-a-vps` and by `wg-quick`: a tunnel to the backend, and one
//! that clients come by.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use forwarder_lab::{Family, Host, Lab, LinkOptions, TcpServer, Transfer, UdpEcho, UdpSocketIn};

use crate::config::{masquerade, rule, source};
use crate::forwarder::Forwarder;
use crate::internet::{Internet, at, customer, default_by, elsewhere};
use crate::setting::{Mode, Setting};

const SIZE: u64 = 1_000_000;

fn example(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/home-behind-a-vps").join(file)
}

/// Brings up `wg0` on both, as the example's README says.
fn tunnel(lab: &Lab, vps: &Host, home: &Host) {
    let key = || shell("wg genkey");
    let (vps_key, home_key) = (key(), key());
    let public = |key: &str| shell(&format!("echo {key} | wg pubkey"));
    for (host, file, key, peer) in [
        (vps, "wg0-vps.conf", &vps_key, ("(of home)", public(&home_key))),
        (home, "wg0-home.conf", &home_key, ("(of the VPS)", public(&vps_key))),
    ] {
        let text = fs::read_to_string(example(file)).unwrap();
        let script = example("home.sh");
        for placeholder in ["(wg genkey)", peer.0] {
            assert!(text.contains(placeholder), "{file} has no {placeholder}");
        }
        let text = text.replace("(wg genkey)", key).replace(peer.0, &peer.1);
        let text = text.replace("/etc/wireguard/home.sh", script.to_str().unwrap());
        let directory = std::env::temp_dir().join(format!("{}-{}", lab.id(), host.name()));
        lab.delete_at_end(&directory).unwrap();
        fs::create_dir(&directory).unwrap();
        let config = directory.join("wg0.conf");
        fs::write(&config, text).unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
        host.run(&["wg-quick", "up", config.to_str().unwrap()]).unwrap();
    }
}

fn shell(script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// How many bytes `wg0` has taken in and sent out.
fn carried(host: &Host) -> u64 {
    let shown = host.run(&["wg", "show", "wg0", "transfer"]).unwrap();
    shown.split_whitespace().skip(1).map(|count| count.parse::<u64>().unwrap()).sum()
}

fn in_tunnel(family: Family, host: u8) -> IpAddr {
    format!("{}{host}", if family == Family::V4 { "10.8.0." } else { "fd08::" }).parse().unwrap()
}

/// TCP and UDP; whom the server saw.
fn exchange(client: &Host, target: SocketAddr, server: &Host, to: SocketAddr) -> anyhow::Result<IpAddr> {
    let _server = TcpServer::start(server, to)?;
    let seen = Transfer::to(target).upload(SIZE).download(SIZE).run(client)?.seen_as.ip();
    let echo = UdpEcho::start(server, to)?;
    let socket = UdpSocketIn::connect(client, target, None)?;
    for size in [1, 1300] {
        socket.exchange(&vec![7; size])?;
    }
    assert!(echo.peers().iter().all(|peer| peer.ip() == seen), "{seen}: {:?}", echo.peers());
    Ok(seen)
}

/// The example: the server at home sees the clients, and answers through the tunnel, whose packets the forwarder itself
/// receives and sends. And the same by masquerade.
pub(crate) fn backend() {
    let net = Internet::new("wgbackend", Mode::Tc);
    let client = net.host("client", 2);
    let vps = net.lab.host("vps").unwrap();
    for (line, interface) in ["eth0", "eth1"].into_iter().enumerate() {
        net.connect(line, &net.provider(line), &vps, interface, 7);
    }
    default_by(&vps, 0);
    let home = net.host("home", 6);
    tunnel(&net.lab, &vps, &home);
    let mut config = fs::read_to_string(example("forwarder.toml")).unwrap();
    for family in Family::ALL {
        for (kind, port) in [("preserve", 9000), ("masquerade", 9001)] {
            let listen = at(customer(0, family, 7), port);
            config += &rule(&format!("{kind}-{family:?}"), listen, at(in_tunnel(family, 2), port), &source(kind));
        }
    }
    let forwarder = Forwarder::named(&net.lab, &vps, "pins");
    forwarder.load(Setting::TC_TWO_ARMED, &config);
    let before = carried(&home);
    for family in Family::ALL {
        let (own, tunnels) = (elsewhere(family, 2), in_tunnel(family, 1));
        for (line, port) in [(0, 80), (1, 25)] {
            let what = format!("{family:?}, the example's port {port}");
            let _server = TcpServer::start(&home, at(in_tunnel(family, 2), port)).unwrap();
            let transfer = Transfer::to(at(customer(line, family, 7), port)).upload(SIZE).download(SIZE);
            let moved = transfer.run(&client);
            let moved = moved.unwrap_or_else(|error| panic!("{what}: {error:#}\n{:#?}", forwarder.stats()));
            assert_eq!(moved.seen_as.ip(), own, "{what}");
        }
        for (port, expected) in [(9000, own), (9001, tunnels)] {
            let seen = exchange(&client, at(customer(0, family, 7), port), &home, at(in_tunnel(family, 2), port));
            let seen = seen.unwrap_or_else(|error| panic!("{family:?}, {port}: {error:#}\n{:#?}", forwarder.stats()));
            assert_eq!(seen, expected, "{family:?}, {port}");
        }
    }
    let carried = carried(&home) - before;
    assert!(carried > 16 * SIZE, "WireGuard carried {carried} bytes");
    let stats = forwarder.stats();
    assert!(stats.drops().is_empty(), "{:?}", stats.drops());
}

/// The other end: clients come through the tunnel to a gateway whose own lines nobody reaches, and hosts behind it go out
/// through the tunnel.
pub(crate) fn uplink() {
    let lab = Lab::new("wguplink").unwrap();
    let [client, vps, gate, server] = ["client", "vps", "gate", "server"].map(|name| lab.host(name).unwrap());
    for (a, a_name, b, b_name) in
        [(&client, "eth0", &vps, "eth1"), (&vps, "eth0", &gate, "eth0"), (&gate, "eth1", &server, "eth0")]
    {
        lab.link(a, a_name, b, b_name, LinkOptions::default()).unwrap();
    }
    vps.enable_kernel_forwarding().unwrap();
    for (host, interface, addresses) in [
        (&client, "eth0", ["198.51.100.2/24", "2001:db8:10::2/64"]),
        (&vps, "eth1", ["198.51.100.1/24", "2001:db8:10::1/64"]),
        (&vps, "eth0", ["203.0.113.7/24", "2001:db8:3::7/64"]),
        (&gate, "eth0", ["203.0.113.8/24", "2001:db8:3::8/64"]),
        (&gate, "eth1", ["192.168.7.1/24", "fd07::1/64"]),
        (&server, "eth0", ["192.168.7.2/24", "fd07::2/64"]),
    ] {
        for address in addresses {
            host.address(interface, address).unwrap();
        }
    }
    for (host, gateways) in [(&client, ["198.51.100.1", "2001:db8:10::1"]), (&server, ["192.168.7.1", "fd07::1"])] {
        for gateway in gateways {
            host.route("default", &format!("via {gateway}")).unwrap();
        }
    }
    tunnel(&lab, &vps, &gate);
    for family in ["-4", "-6"] {
        gate.ip(&format!("{family} route add default dev wg0")).unwrap();
    }
    let inside = |family: Family, host: u8| -> IpAddr {
        format!("{}{host}", if family == Family::V4 { "192.168.7." } else { "fd07::" }).parse().unwrap()
    };
    let mut config = masquerade("out", r#"["192.168.7.0/24", "fd07::/64"]"#, "wg0", "");
    for family in Family::ALL {
        for (kind, port) in [("preserve", 80), ("masquerade", 81)] {
            let (listen, to) = (at(in_tunnel(family, 2), port), at(inside(family, 2), 8000 + port));
            config += &rule(&format!("{kind}-{family:?}"), listen, to, &source(kind));
        }
    }
    let forwarder = Forwarder::named(&lab, &gate, "pins").serving(&["wg0", "eth1"]);
    forwarder.load(Setting::TC_TWO_ARMED, &config);
    for family in Family::ALL {
        let clients = elsewhere(family, 2);
        for (port, expected) in [(80, clients), (81, inside(family, 1))] {
            let seen = exchange(&client, at(in_tunnel(family, 2), port), &server, at(inside(family, 2), 8000 + port));
            let seen = seen.unwrap_or_else(|error| panic!("{family:?}, {port}: {error:#}\n{:#?}", forwarder.stats()));
            assert_eq!(seen, expected, "{family:?}, {port}");
        }
        let seen = exchange(&server, at(clients, 443), &client, at(clients, 443));
        let seen = seen.unwrap_or_else(|error| panic!("{family:?}, out: {error:#}\n{:#?}", forwarder.stats()));
        assert_eq!(seen, in_tunnel(family, 2), "{family:?}, out");
    }
    let stats = forwarder.stats();
    assert!(stats.drops().is_empty(), "{:?}", stats.drops());
}
