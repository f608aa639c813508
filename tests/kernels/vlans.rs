//! 802.1Q and 802.1ad: rules on a VLAN's interface, and VLANs of an interface that has rules.

use std::net::SocketAddr;

use forwarder_lab::{Family, TcpServer, Transfer};

use crate::forwarder::Forwarder;
use crate::hooks;
use crate::lines::{self, Line};
use crate::setting::Setting;

/// One tag on the client's side, two on that of home.
pub(crate) fn rules_on_vlans() {
    let (client_line, home_line) = (Line::Vlan(&["802.1Q"]), Line::Vlan(&["802.1ad", "802.1Q"]));
    let (net, _cables) = lines::network("vlans", client_line, home_line);
    let served = ["eth0.100", "eth1.100"];
    let forwarder = Forwarder::named(&net.lab, &net.forwarder, "pins").serving(&served);
    forwarder.load(Setting::TC_TWO_ARMED, &lines::rules(&net));
    hooks::assert_known(&forwarder, "eth0.100");
    lines::everything_crosses(&net, &forwarder, "by VLANs");
    hooks::assert_gone_after_unload(&forwarder, "eth0.100");
}

/// What arrives with a tag, for the very address and port of a rule, is the kernel's, at XDP and TC.
pub(crate) fn the_parent_leaves_its_vlans_alone() {
    let net = Setting::NATIVE_TWO_ARMED.network("parent");
    // As on a wire. Otherwise a veth hands the tag over beside the frame, where no XDP program sees it.
    net.client.features("eth0", "txvlan off").unwrap();
    for (host, number) in [(&net.client, 2), (&net.forwarder, 1)] {
        lines::tagged(host, "eth0", "eth0.100", &["802.1Q"]);
        host.address("eth0.100", &format!("192.168.100.{number}/24")).unwrap();
        host.address("eth0.100", &format!("fd64::{number}/64")).unwrap();
    }
    for (family, from, by) in [("-4", "192.168.100.2", "192.168.100.1"), ("-6", "fd64::2", "fd64::1")] {
        net.client.ip(&format!("{family} route add default via {by} dev eth0.100 table 100")).unwrap();
        net.client.ip(&format!("{family} rule add from {from} lookup 100")).unwrap();
    }
    let forwarder = Forwarder::on(&net);
    forwarder.load(Setting::NATIVE_TWO_ARMED, &lines::rules(&net));
    lines::everything_crosses(&net, &forwarder, "beside a VLAN");
    for family in Family::ALL {
        let (rule, from) = match family {
            Family::V4 => ("preserve-v4", "192.168.100.2:0"),
            Family::V6 => ("preserve-v6", "[fd64::2]:0"),
        };
        let from: SocketAddr = from.parse().unwrap();
        let before = forwarder.stats().rule(rule);
        let at = net.public(family, 80);
        let own = TcpServer::start(&net.forwarder, at).unwrap();
        let moved = Transfer::to(at).from(from).upload(100_000).download(100_000).run(&net.client);
        let moved = moved.unwrap_or_else(|error| panic!("{family:?}: {error:#}\n{:#?}", forwarder.stats()));
        assert_eq!(moved.seen_as.ip(), from.ip());
        assert_eq!(own.peers().len(), 1);
        let after = forwarder.stats().rule(rule);
        assert_eq!((after.forward, after.reply), (before.forward, before.reply), "{family:?}");
    }
}
