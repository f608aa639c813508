//! Rules that change, and programs that go, while packets come.

use std::net::SocketAddr;

use forwarder_lab::{EchoStream, Family, Steady, TcpServer, Topology, Transfer, UdpEcho};

use crate::config::{rule, source as source_key};
use crate::forwarder::Forwarder;
use crate::setting::{Setting, Source, public_address};
use crate::snapshot::{Snapshot, assert_unchanged};

in_every_setting!(reload_under_traffic, add_and_remove, unload_under_traffic);

/// Enough exchanges for every table to have been asked many times.
const MANY: u64 = 100;

/// TCP and UDP, preserved and masqueraded, v4 and v6, all at once.
struct Traffic {
    running: Vec<Steady>,
    _servers: (Vec<TcpServer>, Vec<UdpEcho>),
}

const KINDS: [(Source, Family); 3] =
    [(Source::Preserve, Family::V4), (Source::Masquerade, Family::V4), (Source::Masquerade, Family::V6)];

fn name((source, family): (Source, Family)) -> String {
    format!("steady-{}-{family:?}", source.name())
}

fn config(net: &Topology) -> String {
    let rules = KINDS.map(|kind @ (source, family)| {
        let listen = SocketAddr::new(public_address(net, source, family), 80);
        rule(&name(kind), listen, net.backend(family, source.home_port()), &source_key(source.name()))
    });
    rules.concat()
}

/// A rule beside the steady ones.
fn extra(net: &Topology, name: &str, port: u16) -> String {
    rule(name, net.public(Family::V4, port), net.backend(Family::V4, port), "")
}

impl Traffic {
    fn start(net: &Topology) -> Self {
        let (mut tcp, mut udp, mut running) = (Vec::new(), Vec::new(), Vec::new());
        for (source, family) in KINDS {
            let home = net.backend(family, source.home_port());
            let target = SocketAddr::new(public_address(net, source, family), 80);
            tcp.push(TcpServer::start(&net.home, home).unwrap());
            udp.push(UdpEcho::start(&net.home, home).unwrap());
            running.push(Steady::tcp(&net.client, target).unwrap());
            running.push(Steady::udp(&net.client, target).unwrap());
        }
        Self { running, _servers: (tcp, udp) }
    }

    fn goes_on(&self) {
        Steady::all_go_on(&self.running, MANY).unwrap();
    }

    fn stop(self) {
        for steady in self.running {
            steady.stop().unwrap();
        }
    }
}

fn works(net: &Topology, port: u16) {
    let _server = TcpServer::start(&net.home, net.backend(Family::V4, port)).unwrap();
    Transfer::to(net.public(Family::V4, port)).upload(5000).download(5000).run(&net.client).unwrap();
}

fn is_refused(net: &Topology, port: u16) {
    let target = net.public(Family::V4, port);
    let refused = EchoStream::connect(&net.client, target, None).err().map(|error| format!("{error:#}"));
    assert!(refused.as_ref().is_some_and(|error| error.contains("refused")), "{target}: {refused:?}");
}

fn reload_under_traffic(setting: Setting) {
    let net = setting.network("reload");
    let forwarder = Forwarder::on(&net);
    forwarder.load(setting, &(config(&net) + &extra(&net, "old", 1001)));
    works(&net, 1001);
    let traffic = Traffic::start(&net);
    traffic.goes_on();
    let begun = |kind| forwarder.stats().rule(&name(kind)).flows;
    let before = KINDS.map(begun);
    for round in 0..5 {
        forwarder.configure(&(extra(&net, "new", 1002) + &config(&net)));
        forwarder.succeed(&["reload"]);
        works(&net, 1002);
        is_refused(&net, 1001);
        traffic.goes_on();
        // What does not validate changes nothing.
        forwarder.configure(&config(&net).replace("listen", "listne"));
        let refused = forwarder.run(&["reload"]);
        assert_eq!(refused.code, Some(2), "{refused}");
        works(&net, 1002);
        forwarder.configure(&(config(&net) + &extra(&net, "old", 1001)));
        forwarder.succeed(&["reload"]);
        works(&net, 1001);
        is_refused(&net, 1002);
        traffic.goes_on();
        assert_eq!(KINDS.map(begun), before, "round {round}: unchanged rules keep their flows and counters");
    }
    traffic.stop();
    let stats = forwarder.stats();
    for kind in KINDS {
        // One exchange is a packet each way, TCP and UDP, and every round saw MANY of them twice.
        let counted = stats.rule(&name(kind));
        assert!(counted.forward.packets > 20 * MANY && counted.reply.packets > 20 * MANY, "{counted:?}");
    }
}

fn add_and_remove(setting: Setting) {
    let net = setting.network("add");
    let forwarder = Forwarder::on(&net);
    let config = format!("# Written by hand.\n{}", config(&net));
    forwarder.load(setting, &config);
    let traffic = Traffic::start(&net);
    let listen = |port| net.public(Family::V4, port).to_string();
    let to = |port| net.backend(Family::V4, port).to_string();

    forwarder.succeed(&["add", "passing", &listen(1001), &to(1001)]);
    forwarder.succeed(&["add", "staying", &listen(1002), &to(1002), "--save"]);
    works(&net, 1001);
    works(&net, 1002);
    let again = forwarder.run(&["add", "passing", &listen(1003), &to(1003)]);
    assert!(matches!(again.code, Some(1 | 2)) && again.stderr.contains("passing"), "{again}");
    let text = std::fs::read_to_string(&forwarder.config).unwrap();
    assert!(
        text.starts_with("# Written by hand.\n") && text.contains("staying") && !text.contains("passing"),
        "{text}"
    );

    forwarder.succeed(&["reload"]);
    is_refused(&net, 1001);
    works(&net, 1002);
    forwarder.succeed(&["remove", "staying", "--save"]);
    is_refused(&net, 1002);
    forwarder.succeed(&["reload"]);
    assert!(!forwarder.list().names().contains(&"staying"));
    assert_eq!(std::fs::read_to_string(&forwarder.config).unwrap().trim(), config.trim());
    let missing = forwarder.run(&["remove", "staying"]);
    assert!(matches!(missing.code, Some(1 | 2)) && missing.stderr.contains("staying"), "{missing}");
    traffic.goes_on();
    traffic.stop();
}

fn unload_under_traffic(setting: Setting) {
    let net = setting.network("unload");
    let forwarder = Forwarder::on(&net);
    let before = Snapshot::of(&forwarder);
    for _ in 0..2 {
        forwarder.load(setting, &config(&net));
        let traffic = Traffic::start(&net);
        traffic.goes_on();
        forwarder.succeed(&["unload"]);
        // The client's next packet finds the forwarder itself, which knows nothing of the connection.
        let failure = traffic.running[0].wait_for_failure().unwrap();
        assert!(failure.contains("reset"), "{failure}");
        assert_unchanged(&before, &forwarder, "after unload");
    }
}
