//! Throw-away networks for the tests, the demo and the bench.
//!
//! A [`Lab`] is a set of [`Host`]s, each a network namespace, joined by veth pairs. Everything a lab makes carries its
//! unique name and is removed when the lab is dropped, when the process is interrupted, or, should the process have been
//! killed, when the next lab is made. The root namespace is never touched, apart from entries below `/run`.
//!
//! ```no_run
//! use forwarder_lab::{Family, Offloads, TcpServer, Topology, Transfer};
//!
//! # fn main() -> anyhow::Result<()> {
//! let net = Topology::two_armed("example", Offloads::Native)?;
//! let server = TcpServer::start(&net.home, net.backend(Family::V4, 8080))?;
//! net.forwarder.ip("route show")?;
//! let moved = Transfer::to(server.address()).upload(10_000).run(&net.client)?;
//! assert_eq!(moved.seen_as.ip(), net.client_address(Family::V4));
//! # Ok(())
//! # }
//! ```

mod capture;
mod checksum;
mod host;
mod http;
mod lab;
mod link;
mod ping;
mod process;
mod record;
mod server;
mod service;
mod steady;
mod tcp;
mod topology;
mod tun;
mod udp;
mod wire;

pub use capture::{Capture, Checksum, Frame};
pub use etherparse;
pub use host::Host;
pub use http::WebServer;
pub use lab::Lab;
pub use link::{LinkOptions, Offloads};
pub use ping::{Ping, PingReply};
pub use process::Spawned;
pub use server::Server;
pub use service::{patience, silence, when_free};
pub use steady::Steady;
pub use tcp::{Crowd, EchoStream, TcpServer, Transfer, Transferred};
pub use topology::{Family, Shape, Topology};
pub use tun::{Tun, TunKind, TunPump};
pub use udp::{UdpEcho, UdpSocketIn};
pub use wire::Wire;
