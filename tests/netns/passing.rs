//! Hosts behind forwarder that go out with an address of it, and are reached by their own all the same: by the kernel.

use std::net::SocketAddr;

use forwarder_lab::{EchoStream, Family, Ping, TcpServer, Transfer, UdpEcho, UdpSocketIn};

use crate::masquerade::{everybody, inside, outside, received, seen_by, start, udp};
use crate::setting::Setting;

in_every_setting!(what_the_kernel_forwards_is_answered_as_it_came);

const PORT: u16 = 700;

/// Bulk TCP, datagrams, large ones and echoes from the world; what the hosts begin themselves goes out masqueraded.
fn what_the_kernel_forwards_is_answered_as_it_came(setting: Setting) {
    const BYTES: u64 = 1_000_000;
    let test = start("passing", setting, &everybody());
    let (net, forwarder) = (&test.net, &test.forwarder);
    net.forwarder.enable_kernel_forwarding().unwrap();
    if let Some(router) = &net.router {
        // Where the world asks for the hosts behind is forwarder, too.
        for (family, to, vps) in [("-4", "10.8.0.0/24", "203.0.113.7"), ("-6", "fd08::/64", "2001:db8:3::7")] {
            router.ip(&format!("{family} route add {to} via {vps} table 101")).unwrap();
            router.ip(&format!("{family} rule add iif client lookup 101")).unwrap();
        }
        net.forwarder.sysctl("net.ipv4.conf.all.send_redirects", "0").unwrap();
        net.forwarder.sysctl("net.ipv4.conf.eth0.send_redirects", "0").unwrap();
    }
    for family in Family::ALL {
        let host = inside(family, 20);
        let about = |what: &str| format!("{family:?}, {what}: {:#?}", forwarder.stats());
        let tcp = TcpServer::start(&net.home, (host, PORT).into()).unwrap();
        let moved = Transfer::to(tcp.address()).upload(BYTES).download(BYTES).run(&net.client);
        moved.unwrap_or_else(|error| panic!("{}: {error:#}", about("tcp")));
        let mut stays = EchoStream::connect(&net.client, tcp.address(), None).unwrap();
        stays.exchange(b"before").unwrap();
        let datagrams = UdpEcho::start(&net.home, (host, PORT).into()).unwrap();
        let socket = UdpSocketIn::connect(&net.client, datagrams.address(), None).unwrap();
        for size in [1, 1000, 5000] {
            socket.exchange(&vec![7; size]).unwrap_or_else(|error| panic!("{}: {error:#}", about("udp")));
        }
        let ping = Ping::to(host).count(3).run(&net.client);
        ping.unwrap_or_else(|error| panic!("{}: {error:#}", about("ping")));
        let world = udp(&net.client, (outside(family, 3), PORT));
        let own = udp(&net.home, (host, 4000));
        assert_eq!(seen_by(&own, &world, "own").ip(), net.public_address(family));
        world.send_to(b"by its own address", SocketAddr::new(host, 4000)).unwrap();
        assert_eq!(received(&own, "by its own address").1, world.local_addr().unwrap());
        stays.exchange(b"after").unwrap();
    }
    // The two of the world that were answered by the rule; the rest was the kernel's.
    assert_eq!(forwarder.flow_count(), 2, "{:#?}", forwarder.flows());
    assert!(forwarder.stats().drops().is_empty(), "{:#?}", forwarder.stats());
}
