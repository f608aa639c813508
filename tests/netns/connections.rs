//! How TCP connections end, and how they do not.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use forwarder_lab::etherparse::{PacketBuilder, TransportSlice};
use forwarder_lab::{EchoStream, Family, Frame, TcpServer, Topology, patience, when_free};

use crate::config::{rule, source};
use crate::forwarder::Forwarder;
use crate::setting::{Setting, Source, public_address};
use crate::snapshot::far_end;
use crate::untouched::mac;

in_every_setting!(
    a_half_closed_connection_goes_on,
    a_forged_reset_ends_nothing,
    an_idle_connection_outlives_what_is_forged,
);

const PORT: u16 = 80;
/// What the side that goes on sends: bytes.
const REST: usize = 3_000_000;

fn start(name: &str, setting: Setting) -> (Topology, Forwarder) {
    start_with(name, setting, "")
}

fn start_with(name: &str, setting: Setting, more: &str) -> (Topology, Forwarder) {
    let net = setting.network(name);
    let forwarder = Forwarder::on(&net);
    let mut config = more.to_owned();
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
            let listener = net.home.enter(|| when_free(|| TcpListener::bind(backend))).unwrap().unwrap();
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

/// A connection over forwarder, and how it looks on both sides.
struct Connection {
    stream: EchoStream,
    _server: TcpServer,
    /// From the client to what it sees, from the backend to what that sees; each with a sequence number that is as far
    /// from its sender's as can be.
    ends: [(SocketAddr, SocketAddr, u32); 2],
}

fn connect(net: &Topology, family: Family) -> Connection {
    let backend = net.backend(family, Source::Masquerade.home_port());
    let server = TcpServer::start(&net.home, backend).unwrap();
    let capture = net.client.capture("eth0").unwrap();
    let mut stream = EchoStream::connect(&net.client, target(net, family), None).unwrap();
    stream.exchange(b"before").unwrap();
    let port = stream.local().unwrap().port();
    let answer = capture.wait_for(|frame| syn_ack_to(frame, port).is_some()).unwrap();
    let (client_at, backend_at) = syn_ack_to(&answer, port).unwrap();
    let client = SocketAddr::new(net.client_address(family), port);
    let seen = server.wait_for_peers(1).unwrap()[0];
    let far = |sequence: u32| sequence.wrapping_add(1 << 31);
    let ends = [(client, target(net, family), far(client_at)), (backend, seen, far(backend_at))];
    Connection { stream, _server: server, ends }
}

/// Of a SYN-ACK to this port: what it acknowledges, and its own number.
fn syn_ack_to(frame: &Frame, port: u16) -> Option<(u32, u32)> {
    match frame.parse().ok()?.transport? {
        TransportSlice::Tcp(tcp) if tcp.syn() && tcp.ack() && tcp.destination_port() == port => {
            Some((tcp.acknowledgment_number(), tcp.sequence_number()))
        }
        _ => None,
    }
}

fn state(forwarder: &Forwarder, client: SocketAddr) -> String {
    let flows = forwarder.flows();
    let flow = flows.iter().find(|flow| flow["client"] == client.to_string());
    flow.unwrap_or_else(|| panic!("no flow of {client} in {flows:#?}"))["state"].as_str().unwrap().to_owned()
}

/// A RST that does not belong there, from whichever end: both ends ignore it, and so must what is between them.
fn a_forged_reset_ends_nothing(setting: Setting) {
    let (net, forwarder) = start("forged", setting);
    for family in Family::ALL {
        let mut connection = connect(&net, family);
        for (from, to, sequence) in connection.ends {
            let before = forwarder.stats().forwarded();
            forge(&net, from, to, sequence, End::Reset);
            connection.stream.exchange(b"after").unwrap();
            connection.stream.exchange(b"and on").unwrap();
            assert!(forwarder.stats().forwarded() > before);
        }
        assert_eq!(state(&forwarder, connection.ends[0].0), "established");
        connection.stream.close().unwrap();
    }
}

/// Nobody says anything after the RST or FIN that was forged: the flow lives as long as that of any idle connection.
fn an_idle_connection_outlives_what_is_forged(setting: Setting) {
    let (net, forwarder) = start_with("idle", setting, "[timeouts]\ntcp_reset = \"1s\"\ntcp_closing = \"1s\"\n");
    let mut idle: Vec<Connection> = Family::ALL.map(|family| connect(&net, family)).into();
    for connection in &idle {
        for (from, to, sequence) in connection.ends {
            for end in [End::Reset, End::Fin] {
                let capture = net.home.capture("eth0").unwrap();
                forge(&net, from, to, sequence, end);
                if from == connection.ends[0].0 {
                    // It is forwarded: the end host judges.
                    let is_it = |frame: &Frame| match frame.parse().ok().and_then(|packet| packet.transport) {
                        Some(TransportSlice::Tcp(tcp)) => tcp.sequence_number() == sequence,
                        _ => false,
                    };
                    capture.wait_for(is_it).unwrap();
                }
                assert_eq!(state(&forwarder, connection.ends[0].0), "established");
            }
        }
    }
    // One that is truly reset meanwhile, by its own end: as it goes, the others would.
    for family in Family::ALL {
        let backend = net.backend(family, Source::Masquerade.home_port());
        let mut reset = EchoStream::connect(&net.client, target(&net, family), None).unwrap();
        reset.exchange(b"reset").unwrap();
        let client = reset.local().unwrap();
        reset.reset().unwrap();
        assert_eq!(state(&forwarder, client), "reset", "to {backend}");
    }
    assert_eq!(forwarder.wait_for_flows(|count| count <= 2), 2);
    for connection in &mut idle {
        assert_eq!(state(&forwarder, connection.ends[0].0), "established");
        connection.stream.exchange(b"still there").unwrap();
    }
}

/// What ends a connection.
#[derive(Clone, Copy)]
enum End {
    Reset,
    Fin,
}

/// Sends the forwarder what ends a connection, but may be far outside of any window.
fn forge(net: &Topology, from: SocketAddr, to: SocketAddr, sequence: u32, end: End) {
    let inner = net.interfaces().last().copied().unwrap_or("eth0");
    let outside = Family::ALL.map(|family| net.client_address(family)).contains(&from.ip());
    let interface = if outside { "eth0" } else { inner };
    let to_us = mac(&net.forwarder.mac(interface).unwrap());
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0x99, 0], to_us);
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        ends => panic!("{ends:?} are of two families"),
    };
    let tcp = ip.tcp(from.port(), to.port(), sequence, 0);
    let tcp = match end {
        End::Reset => tcp.rst(),
        End::Fin => tcp.fin().ack(7),
    };
    let mut frame = vec![];
    tcp.write(&mut frame, &[]).unwrap();
    // What comes from home arrives at another interface where there are two.
    let (host, interface) = if outside || net.router.is_some() { far_end(net) } else { (&net.home, "eth0") };
    host.send_frame(interface, &frame).unwrap();
}
