//! A VPS in front of a server at home, behind a tunnel, with the clients' addresses preserved. The VPS has two addresses on
//! two interfaces. The tunnel is WireGuard by the example's own files, in user space; and, for everything else, a tun device.

use std::fs;

use forwarder_lab::{Family, Host, Spawned, Tun, TunKind, TunPump};

use super::internet::{Internet, at, customer, default_by, elsewhere};
use super::{assert_lost, example, in_both_modes, load, serve, transfer};
use crate::forwarder::Forwarder;
use crate::setting::Mode;

in_both_modes!(answers_go_back_through_the_tunnel_and_out_by_their_line, by_wireguard);

/// Where the server is, in the tunnel.
fn home_at(family: Family) -> std::net::IpAddr {
    if family == Family::V4 { "10.8.0.2" } else { "fd08::2" }.parse().unwrap()
}

struct Situation {
    client: Host,
    vps: Host,
    /// It has a line of its own, by which it reaches everybody.
    home: Host,
    net: Internet,
}

impl Situation {
    /// Without the tunnel.
    fn new(name: &str, mode: Mode) -> Self {
        let net = Internet::new(name, mode);
        let client = net.host("client", 2);
        let vps = net.lab.host("vps").unwrap();
        for (line, interface) in ["eth0", "eth1"].into_iter().enumerate() {
            net.connect(line, &net.provider(line), &vps, interface, 7);
        }
        default_by(&vps, 0);
        let home = net.host("home", 6);
        Self { client, vps, home, net }
    }

    /// A service at home as the client finds it at an address of the VPS.
    fn reaches(&self, line: usize, port: u16, family: Family) -> anyhow::Result<()> {
        let _server = serve(&self.home, at(home_at(family), port));
        let seen = transfer(&self.client, None, at(customer(line, family, 7), port))?;
        assert_eq!(seen.ip(), elsewhere(family, 2), "the client's own address");
        Ok(())
    }

    #[track_caller]
    fn works(&self, forwarder: &Forwarder, how: &str) {
        for family in Family::ALL {
            for (line, port) in [(0, 80), (1, 25)] {
                self.reaches(line, port, family)
                    .unwrap_or_else(|error| panic!("{how}, {line}, {family:?}: {error:#}\n{:#?}", forwarder.stats()));
            }
            // Its own connections stay on its own line.
            let there = at(elsewhere(family, 2), 81);
            let _answering = serve(&self.client, there);
            assert_eq!(transfer(&self.home, None, there).unwrap().ip(), elsewhere(family, 6));
        }
    }
}

fn answers_go_back_through_the_tunnel_and_out_by_their_line(mode: Mode) {
    let test = Situation::new("behindvps", mode);
    let Situation { client, vps, home, net } = &test;
    let _tunnel = tunnel(vps, home);
    let mut forwarder = Forwarder::named(&net.lab, vps, "pins");
    load(&mut forwarder, mode, "home-behind-a-vps/forwarder.toml");
    // Home answers by its own line: the client knows nothing of that.
    assert_lost(client, at(customer(0, Family::V4, 7), 80));
    let script = example("home-behind-a-vps/home.sh");
    let script = script.to_str().unwrap();
    home.run(&["sh", script]).unwrap();
    test.works(&forwarder, "by the home server's routing");
    home.run(&["sh", script, "down"]).unwrap();
    assert_lost(client, at(customer(1, Family::V4, 7), 25));
    let mut at_home = Forwarder::named(&net.lab, home, "home");
    load(&mut at_home, mode, "home-behind-a-vps/home.toml");
    test.works(&forwarder, "by forwarder on the home server");
    assert!(at_home.stats().rule("tunnel").reply.packets > 100);
    // The line's own doing, at last.
    forwarder.succeed(&["remove", "second"]);
    assert_lost(client, at(customer(1, Family::V4, 7), 25));
    test.reaches(0, 80, Family::V4).unwrap();
}

/// `wg0-vps.conf` and `wg0-home.conf` as they are, but for the keys and where `home.sh` is.
fn by_wireguard(mode: Mode) {
    let test = Situation::new("wireguard", mode);
    let Situation { client, vps, home, net } = &test;
    let keys = [vps, home].map(|host| {
        let private = host.run(&["wg", "genkey"]).unwrap();
        let public = host.run(&["sh", "-c", &format!("echo {} | wg pubkey", private.trim())]).unwrap();
        [private.trim().to_owned(), public.trim().to_owned()]
    });
    let [[vps_key, of_vps], [home_key, of_home]] = &keys;
    let config = |file: &str, private: &str, peer: (&str, &str)| {
        let directory = std::env::temp_dir().join(format!("{}-{file}", net.lab.id()));
        net.lab.delete_at_end(&directory).unwrap();
        fs::create_dir(&directory).unwrap();
        let contents = fs::read_to_string(example("home-behind-a-vps").join(file)).unwrap();
        let contents = contents.replace("(wg genkey)", private).replace(peer.0, peer.1);
        let script = format!("sh {}", example("home-behind-a-vps/home.sh").display());
        let path = directory.join("wg0.conf");
        fs::write(&path, contents.replace("/etc/wireguard/home.sh", &script)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let vps_config = config("wg0-vps.conf", vps_key, ("(of home)", of_home));
    let home_config = config("wg0-home.conf", home_key, ("(of the VPS)", of_vps));
    let _ends = [wg_quick(vps, &vps_config), wg_quick(home, &home_config)];
    let mut forwarder = Forwarder::named(&net.lab, vps, "pins");
    load(&mut forwarder, mode, "home-behind-a-vps/forwarder.toml");
    test.works(&forwarder, "by WireGuard");
    let shown = home.ip("link show dev wg0").unwrap();
    assert!(shown.contains("mtu 1420"), "{shown}");
    forwarder.succeed(&["remove", "second"]);
    assert_lost(client, at(customer(1, Family::V4, 7), 25));
    test.reaches(0, 80, Family::V4).unwrap();
}

/// Brings WireGuard up by a file of `wg-quick`'s, until the value is dropped. Processes and the sockets by which they are
/// found, whose names have no namespace, have a world of their own.
fn wg_quick(host: &Host, config: &str) -> Spawned {
    let script = format!(
        "mkdir -p /run/wireguard && mount -t tmpfs none /run/wireguard && \
         WG_QUICK_USERSPACE_IMPLEMENTATION=wireguard-go wg-quick up {config} && echo it is up && exec sleep infinity"
    );
    let argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", &script];
    let spawned = host.spawn(&argv).unwrap();
    spawned.wait_for_line(|line| line == "it is up").unwrap();
    spawned
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
