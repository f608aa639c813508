//! How TCP connections end, and how they do not.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use forwarder_lab::etherparse::PacketBuilder;
use forwarder_lab::{EchoStream, Family, TcpServer, Topology, patience};

use crate::config::{rule, source};
use crate::forwarder::Forwarder;
use crate::setting::{Setting, Source, public_address};
use crate::snapshot::far_end;

in_every_setting!(a_half_closed_connection_goes_on, a_forged_reset_ends_nothing);

const PORT: u16 = 80;
/// What the side that goes on sends: bytes.
const REST: usize = 3_000_000;

fn start(name: &str, setting: Setting) -> (Topology, Forwarder) {
    let net = setting.network(name);
    let forwarder = Forwarder::on(&net);
    let mut config = String::new();
    for family in Family::ALL {
        let to = net.backend(family, Source::Masquerade.home_port());
        config += &rule(&format!("{family:?}"), target(&net, family), to, &source("masquerade"));
    }
    forwarder.load(setting, &config);
    (net, forwarder)
}

fn target(net: &Topology, family: Family) -> SocketAddr {
    (public_address(net, Source::Masquerade, family), PORT).into()
}

/// One side says that it is done; the other goes on sending (RFC 9293 section 3.6). Both ways round.
fn a_half_closed_connection_goes_on(setting: Setting) {
    let (net, forwarder) = start("halfclose", setting);
    for family in Family::ALL {
        for client_closes_first in [true, false] {
            let backend = net.backend(family, Source::Masquerade.home_port());
            let listener = net.home.enter(|| TcpListener::bind(backend)).unwrap().unwrap();
            let at_home = thread::spawn(move || {
                let stream = listener.accept().unwrap().0;
                if client_closes_first { send_the_rest(stream) } else { close_and_receive(stream) }
            });
            let to = target(&net, family);
            let stream = net.client.enter(|| TcpStream::connect_timeout(&to, patience())).unwrap().unwrap();
            let here = if client_closes_first { close_and_receive(stream) } else { send_the_rest(stream) };
            let there = at_home.join().unwrap();
            let received = if client_closes_first { here } else { there };
            assert_eq!(received, REST, "{family:?}, {client_closes_first}, {:#?}", forwarder.stats());
        }
    }
}

fn close_and_receive(mut stream: TcpStream) -> usize {
    stream.set_read_timeout(Some(patience())).unwrap();
    stream.write_all(b"this is all").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut received = vec![];
    stream.read_to_end(&mut received).unwrap()
}

fn send_the_rest(mut stream: TcpStream) -> usize {
    stream.set_read_timeout(Some(patience())).unwrap();
    let mut request = String::new();
    stream.read_to_string(&mut request).unwrap();
    assert_eq!(request, "this is all");
    stream.write_all(&vec![7; REST]).unwrap();
    0
}

/// A RST that does not belong there, from whichever end: both ends ignore it, and so must what is between them.
fn a_forged_reset_ends_nothing(setting: Setting) {
    let (net, forwarder) = start("forged", setting);
    let (neighbour, interface) = far_end(&net);
    for family in Family::ALL {
        let server = TcpServer::start(&net.home, net.backend(family, Source::Masquerade.home_port())).unwrap();
        let mut stream = EchoStream::connect(&net.client, target(&net, family), None).unwrap();
        stream.exchange(b"before").unwrap();
        let client = SocketAddr::new(net.client_address(family), stream.local().unwrap().port());
        let seen = server.wait_for_peers(1).unwrap()[0];
        let backwards = (net.backend(family, Source::Masquerade.home_port()), seen);
        let forwards = (client, target(&net, family));
        for (from, to) in [forwards, backwards] {
            let frame = reset(&net, from, to);
            // What comes from home arrives at another interface where there are two.
            let (host, interface) =
                if from == client || net.router.is_some() { (neighbour, interface) } else { (&net.home, "eth0") };
            let before = forwarder.stats().forwarded();
            host.send_frame(interface, &frame).unwrap();
            stream.exchange(b"after").unwrap();
            stream.exchange(b"and on").unwrap();
            assert!(forwarder.stats().forwarded() > before);
        }
        let flows = forwarder.flows();
        let flow = flows.iter().find(|flow| flow["client"] == client.to_string()).unwrap();
        assert_eq!(flow["state"], "established", "{flow:#}");
        stream.close().unwrap();
    }
}

/// A RST far outside of any window, to the forwarder.
fn reset(net: &Topology, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let inner = net.interfaces().last().copied().unwrap_or("eth0");
    let outside = |address: IpAddr| Family::ALL.map(|family| net.client_address(family)).contains(&address);
    let interface = if outside(from.ip()) { "eth0" } else { inner };
    let mac: Vec<u8> =
        net.forwarder.mac(interface).unwrap().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0x99, 0], mac.try_into().unwrap());
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        ends => panic!("{ends:?} are of two families"),
    };
    let mut frame = vec![];
    ip.tcp(from.port(), to.port(), 0x7eed_0000, 0).rst().write(&mut frame, &[]).unwrap();
    frame
}
