//! A web server that tells each client the address it saw.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;

use anyhow::Result;

use crate::host::Host;
use crate::server::{Listener, Server, is_a_server};
use crate::service::{Bell, Peers, impatient};

/// An HTTP/1.1 server inside a host. Whatever is asked, the answer is the client's address and port as text.
pub struct WebServer(Server);

is_a_server!(WebServer);

impl WebServer {
    /// Listens on `address`; port 0 picks one.
    pub fn start(host: &Host, address: SocketAddr) -> Result<Self> {
        let listener = Listener { kind: "http", open: TcpListener::bind, address: TcpListener::local_addr };
        Ok(Self(Server::start(host, address, &listener, accept)?))
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
