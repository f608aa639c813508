//! A server with a fixed-address line (a tun device plays PPP) and a dynamic one behind somebody's router. DNS and mail
//! answer at the fixed address; everything else uses the other line.

use std::fs;
use std::net::IpAddr;
use std::time::Instant;

use anyhow::Context as _;
use forwarder_lab::{EchoStream, Family, Host, Shape, Spawned, Tun, TunKind, TunPump, patience};

use super::internet::{Internet, at, customer, default_by, elsewhere};
use super::{assert_lost, example, in_both_modes, load, serve, transfer};
use crate::daemon::Daemon;
use crate::forwarder::Forwarder;
use crate::setting::{Mode, Setting};

in_both_modes!(dns_and_mail_answer_at_the_fixed_address, the_fixed_line_comes_late_fails_and_redials);

const FIXED: [&str; 2] = ["192.0.2.123", "2001:db8:4::123"];

fn fixed(family: Family) -> IpAddr {
    FIXED[usize::from(family == Family::V6)].parse().unwrap()
}

fn dynamic(family: Family) -> IpAddr {
    if family == Family::V4 { "192.168.1.2" } else { "fd01::2" }.parse().unwrap()
}

struct Home {
    client: Host,
    server: Host,
    /// Of the fixed line.
    provider: Host,
    net: Internet,
}

impl Home {
    /// With the dynamic line; the fixed one is not there yet.
    fn new(name: &str, mode: Mode) -> Self {
        let net = Internet::new(name, mode);
        let client = net.host("client", 2);
        let server = net.lab.host("server").unwrap();
        let provider = net.provider(1);
        dynamic_line(&net, &server);
        Self { client, server, provider, net }
    }

    /// Asks the server's DNS at the fixed address.
    fn ask(&self, family: Family, more: &str) -> anyhow::Result<()> {
        let server = format!("@{}", fixed(family));
        let mut argv = vec!["dig", &server, "www.home.example", "A", "+short", "+time=2", "+tries=1"];
        argv.extend(more.split_whitespace());
        let answer = self.client.run(&argv)?;
        anyhow::ensure!(answer.trim() == FIXED[0], "{answer:?}");
        Ok(())
    }

    /// Point to point, with an address of the provider that does not change: as long as the value lives.
    fn dial(&self) -> TunPump {
        let ends = [(&self.server, "ppp0"), (&self.provider, "line")];
        let [ours, theirs] = ends.map(|(host, name)| Tun::create(host, name, TunKind::Tun).unwrap());
        for (host, name, own, peer) in [
            (&self.server, "ppp0", FIXED, ["192.0.2.1", "2001:db8:4::1"]),
            (&self.provider, "line", ["192.0.2.1", "2001:db8:4::1"], FIXED),
        ] {
            host.ip(&format!("link set {name} mtu 1492")).unwrap();
            host.ip(&format!("addr add {} peer {} dev {name}", own[0], peer[0])).unwrap();
            host.ip(&format!("addr add {} peer {} dev {name} nodad", own[1], peer[1])).unwrap();
        }
        TunPump::between(ours, theirs).unwrap()
    }
}

fn dns_and_mail_answer_at_the_fixed_address(mode: Mode) {
    let home = Home::new("twolines", mode);
    let Home { client, server, net, .. } = &home;
    let _line = home.dial();
    let _dns = dns_server(server);
    let mail = mail_servers(server);
    let mut forwarder = Forwarder::named(&net.lab, server, "pins");
    let message = std::env::temp_dir().join(format!("{}-mail.txt", net.lab.id()));
    net.lab.delete_at_end(&message).unwrap();
    fs::write(&message, format!("Subject: by the fixed line\r\n\r\n{}", "One of many lines.\r\n".repeat(500))).unwrap();
    let mails = |family: Family| {
        let url = format!("smtp://{}", at(fixed(family), 25));
        let file = message.to_str().unwrap();
        let addresses = ["--mail-from", "somebody@client.example", "--mail-rcpt", "us@home.example"];
        let argv = ["curl", "--silent", "--show-error", "--max-time", "5", &url, "--upload-file", file];
        let sent = client.run(&[&argv[..], &addresses].concat());
        sent.with_context(|| mail.iter().map(Spawned::output).collect::<String>())
    };
    home.ask(Family::V4, "").unwrap_err();
    load(&mut forwarder, mode, "two-lines-at-home/forwarder.toml");
    for default in ["via 192.168.1.1", "dev ppp0"] {
        server.ip(&format!("route replace default {default}")).unwrap();
        server.ip(&format!("-6 route replace default {}", default.replace("192.168.1.1", "fd01::1"))).unwrap();
        for family in Family::ALL {
            let told = |error| panic!("default {default}, {family:?}: {error:#}\n{:#?}", forwarder.stats());
            home.ask(family, "").unwrap_or_else(told);
            home.ask(family, "+tcp").unwrap_or_else(told);
            mails(family).map_or_else(told, drop);
            // The machine's own connections: by the default route, and by the source that they are bound to.
            let there = at(elsewhere(family, 2), 80);
            let _answering = serve(client, there);
            let free = transfer(server, None, there).unwrap();
            assert_eq!(free.ip() == fixed(family), default == "dev ppp0", "{default}: seen as {free}");
            assert_eq!(transfer(server, Some(at(fixed(family), 0)), there).unwrap().ip(), fixed(family));
            assert_eq!(transfer(server, Some(at(dynamic(family), 0)), there).unwrap().ip(), customer(0, family, 7));
            // Both lines at the same time, one in either direction.
            let service = serve(server, at(fixed(family), 81));
            let mut open = [
                EchoStream::connect(client, service.address(), None).unwrap(),
                EchoStream::connect(server, there, Some(at(dynamic(family), 0))).unwrap(),
            ];
            for _ in 0..5 {
                for stream in &mut open {
                    stream.exchange(b"both lines").unwrap();
                }
            }
        }
    }
    server.ip("route replace default via 192.168.1.1").unwrap();
    server.ip("-6 route replace default via fd01::1").unwrap();
    forwarder.succeed(&["remove", "fixed"]);
    for family in Family::ALL {
        home.ask(family, "").unwrap_err();
        assert_lost(client, at(fixed(family), 25));
    }
}

/// By `forwarder run`, which is there before the line is.
fn the_fixed_line_comes_late_fails_and_redials(mode: Mode) {
    let home = Home::new("linefails", mode);
    let Home { client, server, provider, net } = &home;
    let mut forwarder = Forwarder::named(&net.lab, server, "pins");
    forwarder.config = example("two-lines-at-home/forwarder.toml");
    let daemon = Daemon::start(&forwarder, Setting { mode, shape: Shape::TwoArmed }, &[]);
    let status = forwarder.succeed(&["status"]);
    assert!(status.contains("ppp0") && status.contains("waiting"), "{status}");
    let works = |about: &str| {
        let deadline = Instant::now() + 2 * patience();
        for family in Family::ALL {
            while let Err(error) = home.ask(family, "+tcp") {
                assert!(Instant::now() < deadline, "{about}, {family:?}: {error:#}\n{:#?}", forwarder.stats());
            }
        }
    };
    // What the server's own connections from the fixed address are seen as.
    let seen_as = |family: Family| {
        let there = at(elsewhere(family, 2), 80);
        let _answering = serve(client, there);
        transfer(server, Some(at(fixed(family), 0)), there).unwrap().ip()
    };
    let line = home.dial();
    let _dns = dns_server(server);
    works("it is there");

    // Nothing comes back any more, though the line seems to be there: its fallback takes over what the server itself sends.
    let deaf =
        "table netdev deaf { chain everything { type filter hook ingress device \"line\" priority 0; policy drop; }; }";
    provider.run(&["nft", deaf]).unwrap();
    daemon.says("uplink pppoe is down: ");
    for family in Family::ALL {
        assert_eq!(seen_as(family), customer(0, family, 7));
    }
    provider.run(&["nft", "delete table netdev deaf"]).unwrap();
    daemon.says("uplink pppoe is up");
    works("it is good again");
    for family in Family::ALL {
        assert_eq!(seen_as(family), fixed(family));
    }

    // It hangs up, and dials again: another device with the same name.
    let before = server.ifindex("ppp0").unwrap();
    drop(line);
    daemon.says("uplink pppoe is down: ppp0 is not there");
    server.ip("link add gap type veth peer name gape").unwrap();
    let _line = home.dial();
    let index = server.ifindex("ppp0").unwrap();
    assert_ne!(index, before);
    daemon.says(&format!("(index {index})"));
    works("it has redialled");
    for family in Family::ALL {
        assert_eq!(seen_as(family), fixed(family));
    }
}

/// Behind somebody's router, which hides its customers behind whatever address it has got.
fn dynamic_line(net: &Internet, server: &Host) {
    let router = net.lab.host("router").unwrap();
    router.enable_kernel_forwarding().unwrap();
    net.connect(0, &net.provider(0), &router, "outside", 7);
    default_by(&router, 0);
    router
        .run(&["nft", "table inet nat { chain out { type nat hook postrouting priority srcnat; oifname \"outside\" masquerade; }; }"])
        .unwrap();
    net.lab.link(server, "eth0", &router, "inside", net.options).unwrap();
    for (host, name, number) in [(server, "eth0", 2), (&router, "inside", 1)] {
        host.address(name, &format!("192.168.1.{number}/24")).unwrap();
        host.address(name, &format!("fd01::{number}/64")).unwrap();
    }
    server.route("default", "via 192.168.1.1").unwrap();
    server.route("default", "via fd01::1").unwrap();
    // It takes the fixed address for one of its network, so that it is of use when the other line fails.
    router.route("192.0.2.123/32", "via 192.168.1.2").unwrap();
    router.route("2001:db8:4::123/128", "via fd01::2").unwrap();
}

fn dns_server(host: &Host) -> Spawned {
    let listen = format!("--listen-address={}", FIXED.join(","));
    let record = format!("--host-record=www.home.example,{}", FIXED.join(","));
    let options = ["--no-daemon", "--no-resolv", "--no-hosts", "--bind-interfaces", "--conf-file=/dev/null"];
    let more = ["--user=root", "--pid-file=", "--log-facility=-", &listen, &record];
    let server = host.spawn(&[&["dnsmasq"], &options[..], &more].concat()).unwrap();
    server.wait_for_line(|line| line.contains("started")).unwrap();
    server
}

/// One for each family.
fn mail_servers(host: &Host) -> [Spawned; 2] {
    FIXED.map(|address| {
        let listen = format!("{address}:25");
        // Debian's, whatever other Python there is.
        let argv = ["/usr/bin/python3", "-u", "/usr/bin/aiosmtpd", "-n", "-d", "-l", &listen];
        let server = host.spawn(&argv).unwrap();
        server.wait_for_line(|line| line.contains("listening")).unwrap();
        server
    })
}
