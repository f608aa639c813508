//! What all servers inside a host have in common: they listen, and remember who has come.

use std::io;
use std::net::SocketAddr;

use anyhow::{Context as _, Result};

use crate::host::Host;
use crate::service::{Bell, Peers, Service, when_free};

/// A server inside a host. It ends when it is dropped.
pub struct Server {
    address: SocketAddr,
    peers: Peers,
    _service: Service,
}

/// A socket that waits for whoever comes: how to open it, and where it then is.
pub(crate) struct Listener<S> {
    /// For messages.
    pub(crate) kind: &'static str,
    pub(crate) open: fn(SocketAddr) -> io::Result<S>,
    pub(crate) address: fn(&S) -> io::Result<SocketAddr>,
}

impl Server {
    /// Opens a socket as `host` and starts a thread for it.
    pub(crate) fn start<S: Send + 'static>(
        host: &Host,
        address: SocketAddr,
        listener: &Listener<S>,
        serve: fn(&S, &Peers, &Bell),
    ) -> Result<Self> {
        let open = listener.open;
        let socket = host
            .enter(|| when_free(|| open(address)))?
            .with_context(|| format!("cannot listen on {address} ({}) on host {}", listener.kind, host.name()))?;
        let address = (listener.address)(&socket)?;
        let peers = Peers::default();
        let seen = peers.clone();
        let service = Service::start(move |bell| serve(&socket, &seen, bell))?;
        Ok(Self { address, peers, _service: service })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The clients' addresses as the server saw them, one for each connection or datagram, in order.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.peers.all()
    }

    /// Waits until `count` connections or datagrams have arrived since the start.
    pub fn wait_for_peers(&self, count: usize) -> Result<Vec<SocketAddr>> {
        self.peers.wait_for(count)
    }
}

/// Makes a kind of server one.
macro_rules! is_a_server {
    ($kind:ident) => {
        impl std::ops::Deref for $kind {
            type Target = $crate::server::Server;

            fn deref(&self) -> &Self::Target {
                &self.0
            }
        }
    };
}

pub(crate) use is_a_server;
