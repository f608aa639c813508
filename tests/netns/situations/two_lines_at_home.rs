//! A server with a fixed-address line (a tun device plays PPP) and a dynamic one behind somebody's router. DNS and mail
//! answer at the fixed address; everything else uses the other line.

use std::fs;

use anyhow::Context as _;
use forwarder_lab::{Family, Host, Spawned, Tun, TunKind, TunPump};

use super::internet::{Internet, at, customer, default_by, elsewhere};
use super::{assert_lost, in_both_modes, load, serve, transfer};
use crate::forwarder::Forwarder;
use crate::setting::Mode;

in_both_modes!(dns_and_mail_answer_at_the_fixed_address);

const FIXED: [&str; 2] = ["192.0.2.123", "2001:db8:4::123"];

fn dns_and_mail_answer_at_the_fixed_address(mode: Mode) {
    let net = Internet::new("twolines", mode);
    let client = net.host("client", 2);
    let server = net.lab.host("server").unwrap();
    let _line = fixed_line(&net, &server);
    dynamic_line(&net, &server);
    let _dns = dns_server(&server);
    let mail = mail_servers(&server);
    let mut forwarder = Forwarder::named(&net.lab, &server, "pins");
    let message = std::env::temp_dir().join(format!("{}-mail.txt", net.lab.id()));
    net.lab.delete_at_end(&message).unwrap();
    fs::write(&message, format!("Subject: by the fixed line\r\n\r\n{}", "One of many lines.\r\n".repeat(500))).unwrap();
    let asks = |family: Family, more: &str| {
        let server = format!("@{}", FIXED[usize::from(family == Family::V6)]);
        let mut argv = vec!["dig", &server, "www.home.example", "A", "+short", "+time=2", "+tries=1"];
        argv.extend(more.split_whitespace());
        let answer = client.run(&argv)?;
        anyhow::ensure!(answer.trim() == FIXED[0], "{answer:?}");
        Ok(())
    };
    let mails = |family: Family| {
        let url = format!("smtp://{}", at(FIXED[usize::from(family == Family::V6)].parse().unwrap(), 25));
        let file = message.to_str().unwrap();
        let addresses = ["--mail-from", "somebody@client.example", "--mail-rcpt", "us@home.example"];
        let argv = ["curl", "--silent", "--show-error", "--max-time", "5", &url, "--upload-file", file];
        let sent = client.run(&[&argv[..], &addresses].concat());
        sent.with_context(|| mail.iter().map(Spawned::output).collect::<String>())
    };
    asks(Family::V4, "").unwrap_err();
    load(&mut forwarder, mode, "two-lines-at-home/forwarder.toml");
    for default in ["via 192.168.1.1", "dev ppp0"] {
        server.ip(&format!("route replace default {default}")).unwrap();
        server.ip(&format!("-6 route replace default {}", default.replace("192.168.1.1", "fd01::1"))).unwrap();
        for family in Family::ALL {
            let told = |error| panic!("default {default}, {family:?}: {error:#}\n{:#?}", forwarder.stats());
            asks(family, "").unwrap_or_else(told);
            asks(family, "+tcp").unwrap_or_else(told);
            mails(family).map_or_else(told, drop);
            // The machine's own connections: by the default route, and by the source that they are bound to.
            let there = at(elsewhere(family, 2), 80);
            let _answering = serve(&client, there);
            let fixed = FIXED[usize::from(family == Family::V6)].parse().unwrap();
            let free = transfer(&server, None, there).unwrap();
            assert_eq!(free.ip() == fixed, default == "dev ppp0", "{default}: seen as {free}");
            assert_eq!(transfer(&server, Some(at(fixed, 0)), there).unwrap().ip(), fixed);
            let dynamic = at(if family == Family::V4 { "192.168.1.2" } else { "fd01::2" }.parse().unwrap(), 0);
            assert_eq!(transfer(&server, Some(dynamic), there).unwrap().ip(), customer(0, family, 7));
        }
    }
    server.ip("route replace default via 192.168.1.1").unwrap();
    forwarder.succeed(&["remove", "fixed"]);
    asks(Family::V4, "").unwrap_err();
    assert_lost(&client, at(FIXED[0].parse().unwrap(), 25));
}

/// Point to point, with an address of the provider that does not change.
fn fixed_line(net: &Internet, server: &Host) -> TunPump {
    let provider = net.provider(1);
    let ends =
        [(server, "ppp0"), (&provider, "line")].map(|(host, name)| Tun::create(host, name, TunKind::Tun).unwrap());
    let [ours, theirs] = ends;
    for (host, name, own, peer) in [
        (server, "ppp0", ["192.0.2.123", "2001:db8:4::123"], ["192.0.2.1", "2001:db8:4::1"]),
        (&provider, "line", ["192.0.2.1", "2001:db8:4::1"], ["192.0.2.123", "2001:db8:4::123"]),
    ] {
        host.ip(&format!("link set {name} mtu 1492")).unwrap();
        host.ip(&format!("addr add {} peer {} dev {name}", own[0], peer[0])).unwrap();
        host.ip(&format!("addr add {} peer {} dev {name} nodad", own[1], peer[1])).unwrap();
    }
    TunPump::between(ours, theirs).unwrap()
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
