//! ICMP and ICMPv6 echo, with the identifier under control.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::host::Host;
use crate::service::{patience, readable_before};

const HEADER: usize = 8;
const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

/// A series of echo requests; the kernel's ping socket computes the checksum and matches replies to the identifier.
#[derive(Clone, Copy, Debug)]
pub struct Ping {
    target: IpAddr,
    identifier: u16,
    count: u16,
    payload: usize,
}

/// What a ping saw: as many good replies as there were requests.
#[derive(Clone, Copy, Debug)]
pub struct PingReply {
    /// The identifier that was used.
    pub identifier: u16,
}

impl Ping {
    /// One request of 56 bytes.
    pub fn to(target: IpAddr) -> Self {
        Self { target, identifier: 0, count: 1, payload: 56 }
    }

    /// The ICMP identifier; 0 lets the kernel choose.
    #[must_use]
    pub fn identifier(self, identifier: u16) -> Self {
        Self { identifier, ..self }
    }

    /// How many requests, one after the other.
    #[must_use]
    pub fn count(self, count: u16) -> Self {
        Self { count, ..self }
    }

    /// How many bytes after the ICMP header.
    #[must_use]
    pub fn payload(self, payload: usize) -> Self {
        Self { payload, ..self }
    }

    /// Sends the requests as `host`, each after the reply to the one before.
    pub fn run(self, host: &Host) -> Result<PingReply> {
        self.attempt(host).with_context(|| format!("host {}, ping {}", host.name(), self.target))
    }

    fn attempt(self, host: &Host) -> Result<PingReply> {
        let (domain, protocol, request, reply, any) = match self.target {
            IpAddr::V4(_) => {
                let any = IpAddr::from(Ipv4Addr::UNSPECIFIED);
                (Domain::IPV4, Protocol::ICMPV4, ECHO_REQUEST_V4, ECHO_REPLY_V4, any)
            }
            IpAddr::V6(_) => {
                let any = IpAddr::from(Ipv6Addr::UNSPECIFIED);
                (Domain::IPV6, Protocol::ICMPV6, ECHO_REQUEST_V6, ECHO_REPLY_V6, any)
            }
        };
        let mut socket = host.enter(|| Socket::new(domain, Type::DGRAM, Some(protocol)))??;
        // The port of a ping socket is its identifier.
        socket.bind(&SockAddr::from(SocketAddr::new(any, self.identifier)))?;
        socket.connect(&SockAddr::from(SocketAddr::new(self.target, 0)))?;
        for sequence in 1..=self.count {
            let mut packet = vec![request, 0, 0, 0, 0, 0];
            packet.extend(sequence.to_be_bytes());
            packet.extend((0..self.payload).map(|n| (n + usize::from(sequence)) as u8));
            socket.send(&packet).context("cannot send")?;
            if !readable_before(socket.as_fd(), Instant::now() + patience())? {
                bail!("no reply to request {sequence} of {} within {:?}", self.count, patience());
            }
            let mut answer = vec![0; packet.len() + 1];
            let length = socket.read(&mut answer).with_context(|| format!("request {sequence}"))?;
            answer.truncate(length);
            let right = answer.first() == Some(&reply) && answer.get(HEADER - 2..) == packet.get(HEADER - 2..);
            if !right {
                bail!("the reply to request {sequence} is not what was asked: {answer:02x?}");
            }
        }
        let local = socket.local_addr()?.as_socket().context("the socket has no address")?;
        Ok(PingReply { identifier: local.port() })
    }
}
