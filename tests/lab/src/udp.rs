//! UDP: an echo server, and a client whose every datagram must come back.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::host::Host;
use crate::server::{Listener, Server, is_a_server};
use crate::service::{Bell, Peers, patience, readable_before, when_free};

const LARGEST: usize = 65_536;

/// A UDP server inside a host that sends every datagram back to where it came from.
pub struct UdpEcho(Server);

is_a_server!(UdpEcho);

impl UdpEcho {
    /// Listens on `address`, which must not be a wildcard (replies must come from the address that was asked); port 0
    /// picks one.
    pub fn start(host: &Host, address: SocketAddr) -> Result<Self> {
        ensure!(!address.ip().is_unspecified(), "a UDP echo server needs an address of its own, not {address}");
        let listener = Listener { kind: "udp", open: UdpSocket::bind, address: UdpSocket::local_addr };
        Ok(Self(Server::start(host, address, &listener, echo)?))
    }
}

/// A UDP socket inside a host, connected to one target.
pub struct UdpSocketIn {
    socket: UdpSocket,
    described: String,
}

impl UdpSocketIn {
    /// Opens it as `host`; `from` fixes the socket's own address and port.
    pub fn connect(host: &Host, target: SocketAddr, from: Option<SocketAddr>) -> Result<Self> {
        let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let open = || -> io::Result<UdpSocket> {
            let socket = match from {
                Some(from) => when_free(|| UdpSocket::bind(from))?,
                None => UdpSocket::bind(any)?,
            };
            socket.connect(target)?;
            Ok(socket)
        };
        let described = format!("host {}, udp to {target}", host.name());
        let socket = host.enter(open)?.with_context(|| described.clone())?;
        Ok(Self { socket, described })
    }

    /// The socket's own end.
    pub fn local(&self) -> Result<SocketAddr> {
        Ok(self.socket.local_addr()?)
    }

    /// Sends one datagram, and does not wait.
    pub fn send(&self, datagram: &[u8]) -> Result<()> {
        self.socket.send(datagram).with_context(|| self.described.clone())?;
        Ok(())
    }

    /// Waits for the next datagram; `None` when there was none within `limit`.
    pub fn receive(&self, limit: Duration) -> Result<Option<Vec<u8>>> {
        if !readable_before(self.socket.as_fd(), Instant::now() + limit)? {
            return Ok(None);
        }
        let mut buffer = vec![0; LARGEST];
        let length = self.socket.recv(&mut buffer).with_context(|| self.described.clone())?;
        buffer.truncate(length);
        Ok(Some(buffer))
    }

    /// Sends one datagram and waits for it to come back.
    pub fn exchange(&self, datagram: &[u8]) -> Result<()> {
        self.send(datagram)?;
        match self.receive(patience())? {
            Some(back) if back == datagram => Ok(()),
            Some(back) => {
                bail!("{}: {} bytes came back, other than the {} sent", self.described, back.len(), datagram.len())
            }
            None => bail!("{}: no echo within {:?}", self.described, patience()),
        }
    }
}

fn echo(socket: &UdpSocket, peers: &Peers, bell: &Bell) {
    let mut buffer = vec![0; LARGEST];
    while bell.wait_for(&[socket.as_fd()]) {
        // Errors here are the echoes of ICMP errors: the next datagram is none the worse for them.
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        peers.add(peer);
        let _ = socket.send_to(buffer.get(..length).unwrap_or_default(), peer);
    }
}
