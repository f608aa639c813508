//! A web server that tells each client the address it saw.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;

use anyhow::{Context, Result};

use crate::host::Host;
use crate::service::{Bell, Peers, Service, impatient, when_free};

/// An HTTP/1.1 server inside a host. Whatever is asked, the answer is the client's address and port as text.
pub struct WebServer {
    address: SocketAddr,
    peers: Peers,
    _service: Service,
}

impl WebServer {
    /// Listens on `address`; port 0 picks one.
    pub fn start(host: &Host, address: SocketAddr) -> Result<Self> {
        let listener = host
            .enter(|| when_free(|| TcpListener::bind(address)))?
            .with_context(|| format!("cannot listen on {address} on host {}", host.name()))?;
        let address = listener.local_addr()?;
        let peers = Peers::default();
        let seen = peers.clone();
        let service = Service::start(move |bell| accept(&listener, &seen, bell))?;
        Ok(Self { address, peers, _service: service })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The clients' addresses as the server saw them, one per connection, in order.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.peers.all()
    }
}

fn accept(listener: &TcpListener, peers: &Peers, bell: &Bell) {
    while bell.wait_for(&[listener.as_fd()]) {
        let Ok((stream, peer)) = listener.accept() else {
            continue;
        };
        peers.add(peer);
        // The client notices when something goes wrong, and says so.
        thread::spawn(move || answer(&stream, peer).ok());
    }
}

fn answer(mut stream: &TcpStream, peer: SocketAddr) -> Result<()> {
    impatient(stream)?;
    for line in BufReader::new(stream).lines() {
        if line?.is_empty() {
            break;
        }
    }
    let body = format!("{peer}\n");
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close";
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    Ok(())
}
