//! A TCP server and clients that check every byte.
//!
//! A connection begins with one byte that says what it is for. [`ECHO`]: everything is sent back. [`TRANSFER`]: two u64
//! (big-endian), how many bytes the client sends and how many it wants; then the client's bytes; then the server's answer:
//! the SHA-256 of what arrived, the client's address as it saw it (one length byte, text), the bytes asked for.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use sha2::{Digest, Sha256};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::host::Host;
use crate::server::{Listener, Server, is_a_server};
use crate::service::{Bell, Peers, impatient, patience, silence, when_free};

const ECHO: u8 = b'E';
const TRANSFER: u8 = b'T';
const CHUNK: usize = 64 * 1024;
/// A server thread needs little; a thousand of them should not need much.
const STACK: usize = 256 * 1024;

/// A TCP server inside a host, for [`Transfer`], [`EchoStream`] and [`Crowd`].
pub struct TcpServer(Server);

is_a_server!(TcpServer);

impl TcpServer {
    /// Listens on `address`; port 0 picks one.
    pub fn start(host: &Host, address: SocketAddr) -> Result<Self> {
        let listener = Listener { kind: "tcp", open: listen, address: TcpListener::local_addr };
        Ok(Self(Server::start(host, address, &listener, accept)?))
    }
}

/// One connection that moves bytes both ways and compares their SHA-256.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    target: SocketAddr,
    from: Option<SocketAddr>,
    upload: u64,
    download: u64,
}

/// What a [`Transfer`] saw. The sums of both directions were right, otherwise there would be an error instead.
#[derive(Clone, Copy, Debug)]
pub struct Transferred {
    /// The client's own end.
    pub local: SocketAddr,
    /// The client's end as the server saw it.
    pub seen_as: SocketAddr,
}

impl Transfer {
    /// A transfer with the server at `target`, of no bytes as yet.
    pub fn to(target: SocketAddr) -> Self {
        Self { target, from: None, upload: 0, download: 0 }
    }

    /// Connects from this address and port instead of any.
    #[must_use]
    pub fn from(self, from: SocketAddr) -> Self {
        Self { from: Some(from), ..self }
    }

    /// How many bytes go to the server.
    #[must_use]
    pub fn upload(self, bytes: u64) -> Self {
        Self { upload: bytes, ..self }
    }

    /// How many bytes come back.
    #[must_use]
    pub fn download(self, bytes: u64) -> Self {
        Self { download: bytes, ..self }
    }

    /// An error if a connection comes about, rather than being refused or not answered at all.
    pub fn must_fail(self, host: &Host) -> Result<()> {
        let connected = connect_within(silence(), host, self.target, self.from);
        ensure!(connected.is_err(), "host {}, tcp to {}: it is connected", host.name(), self.target);
        Ok(())
    }

    /// Does it, as `host`.
    pub fn run(self, host: &Host) -> Result<Transferred> {
        self.attempt(host).with_context(|| format!("host {}, tcp to {}", host.name(), self.target))
    }

    fn attempt(self, host: &Host) -> Result<Transferred> {
        let mut stream = connect(host, self.target, self.from)?;
        let mut header = vec![TRANSFER];
        header.extend(self.upload.to_be_bytes());
        header.extend(self.download.to_be_bytes());
        stream.write_all(&header)?;
        let sent = send_pattern(&mut stream, self.upload).context("sending")?;
        let mut arrived = [0; 32];
        stream.read_exact(&mut arrived).context("waiting for the server's checksum")?;
        ensure!(sent == arrived, "the server received other bytes than were sent");
        let mut length = [0];
        stream.read_exact(&mut length)?;
        let mut seen_as = vec![0; usize::from(length[0])];
        stream.read_exact(&mut seen_as)?;
        let received = hash_exactly(&mut stream, self.download).context("receiving")?;
        ensure!(received == pattern_sum(self.download), "other bytes arrived than the server sent");
        let end = stream.read(&mut [0]).context("waiting for the end of the connection")?;
        ensure!(end == 0, "the server sent more than was asked for");
        stream.shutdown(Shutdown::Both)?;
        Ok(Transferred { local: stream.local_addr()?, seen_as: String::from_utf8(seen_as)?.parse()? })
    }
}

/// A connection on which every message comes back.
pub struct EchoStream(TcpStream);

impl EchoStream {
    /// Connects as `host`; `from` fixes the client's own address and port.
    pub fn connect(host: &Host, target: SocketAddr, from: Option<SocketAddr>) -> Result<Self> {
        let context = || format!("host {}, tcp to {target}", host.name());
        let mut stream = connect(host, target, from).with_context(context)?;
        stream.write_all(&[ECHO]).with_context(context)?;
        Ok(Self(stream))
    }

    /// The client's own end.
    pub fn local(&self) -> Result<SocketAddr> {
        Ok(self.0.local_addr()?)
    }

    /// Sends a message and waits for it to come back.
    pub fn exchange(&mut self, message: &[u8]) -> Result<()> {
        self.0.write_all(message).context("sending")?;
        let mut back = vec![0; message.len()];
        self.0.read_exact(&mut back).context("waiting for the echo")?;
        ensure!(back == message, "the echo differs from what was sent");
        Ok(())
    }

    /// Closes and waits until the server has closed as well.
    pub fn close(mut self) -> Result<()> {
        self.0.shutdown(Shutdown::Write)?;
        let rest = self.0.read(&mut [0]).context("waiting for the server to close")?;
        ensure!(rest == 0, "unexpected data at the end");
        Ok(())
    }

    /// Ends the connection with a RST, at once. (Closing would wait for the copies of the descriptor that programs
    /// which other threads are just starting hold for a moment.)
    pub fn reset(self) -> Result<()> {
        let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
        let length = size_of::<libc::sockaddr>() as libc::socklen_t;
        // SAFETY: the kernel reads `length` bytes from `nowhere`, which is alive and of that size.
        let result = unsafe { libc::connect(self.0.as_raw_fd(), &raw const nowhere, length) };
        Errno::result(result).context("cannot reset the connection")?;
        Ok(())
    }
}

/// Many connections open at the same time.
pub struct Crowd(Vec<EchoStream>);

impl Crowd {
    /// Opens `count` connections to a [`TcpServer`] and leaves all of them open.
    pub fn connect(host: &Host, target: SocketAddr, count: usize) -> Result<Self> {
        let open = |n| EchoStream::connect(host, target, None).with_context(|| format!("connection {n} of {count}"));
        (0..count).map(open).collect::<Result<_>>().map(Self)
    }

    /// The clients' own ends.
    pub fn locals(&self) -> Result<Vec<SocketAddr>> {
        self.0.iter().map(EchoStream::local).collect()
    }

    /// Sends a message of its own over each connection, and only then collects the echoes.
    pub fn exchange(&mut self) -> Result<()> {
        let message = |n: usize| format!("message of connection {n:08}");
        for (n, stream) in self.0.iter_mut().enumerate() {
            stream.0.write_all(message(n).as_bytes()).with_context(|| format!("sending on connection {n}"))?;
        }
        for (n, stream) in self.0.iter_mut().enumerate() {
            let mut back = vec![0; message(n).len()];
            stream.0.read_exact(&mut back).with_context(|| format!("waiting for the echo on connection {n}"))?;
            ensure!(back == message(n).as_bytes(), "connection {n} received another one's bytes");
        }
        Ok(())
    }

    /// Closes them all in an orderly way.
    pub fn close(self) -> Result<()> {
        self.0.into_iter().try_for_each(EchoStream::close)
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(4096)?;
    Ok(socket.into())
}

fn connect(host: &Host, target: SocketAddr, from: Option<SocketAddr>) -> Result<TcpStream> {
    connect_within(patience(), host, target, from)
}

fn connect_within(limit: Duration, host: &Host, target: SocketAddr, from: Option<SocketAddr>) -> Result<TcpStream> {
    let connect = || -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
        if let Some(from) = from {
            socket.set_reuse_address(true)?;
            socket.bind(&SockAddr::from(from))?;
        }
        socket.connect_timeout(&SockAddr::from(target), limit).map_err(|error| match error.kind() {
            // Of a connect, this means that the port's last connection with this very target is still closing.
            ErrorKind::AddrNotAvailable => ErrorKind::AddrInUse.into(),
            _ => error,
        })?;
        let stream = TcpStream::from(socket);
        impatient(&stream)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    host.enter(|| when_free(connect))?.context("cannot connect")
}

fn accept(listener: &TcpListener, peers: &Peers, bell: &Bell) {
    while bell.wait_for(&[listener.as_fd()]) {
        let Ok((stream, peer)) = listener.accept() else {
            continue;
        };
        peers.add(peer);
        let serve = move || {
            // The client notices when something goes wrong, and says so.
            let _ = serve(stream, peer);
        };
        if thread::Builder::new().stack_size(STACK).spawn(serve).is_err() {
            eprintln!("the test server cannot start another thread; the connection is closed");
        }
    }
}

fn serve(mut stream: TcpStream, peer: SocketAddr) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut purpose = [0];
    stream.read_exact(&mut purpose)?;
    match purpose[0] {
        ECHO => echo(&mut stream)?,
        TRANSFER => {
            let (mut upload, mut download) = ([0; 8], [0; 8]);
            stream.read_exact(&mut upload)?;
            stream.read_exact(&mut download)?;
            let sum = hash_exactly(&mut stream, u64::from_be_bytes(upload))?;
            let peer = peer.to_string();
            stream.write_all(&sum)?;
            stream.write_all(&[u8::try_from(peer.len())?])?;
            stream.write_all(peer.as_bytes())?;
            send_pattern(&mut stream, u64::from_be_bytes(download))?;
        }
        other => bail!("unknown purpose {other}"),
    }
    Ok(())
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => stream.write_all(buffer.get(..length).unwrap_or_default())?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Bytes that do not compress and do not repeat at any packet boundary: xorshift64.
struct Pattern(u64);

impl Pattern {
    fn of(length: u64) -> impl Iterator<Item = Vec<u8>> {
        let mut pattern = Self(length | 1 << 63);
        let mut left = length;
        std::iter::from_fn(move || {
            let size = left.min(CHUNK as u64);
            left -= size;
            (size > 0).then(|| pattern.chunk(size as usize))
        })
    }

    fn chunk(&mut self, length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = std::iter::repeat_with(|| self.next()).take(length.div_ceil(8)).flatten().collect();
        bytes.truncate(length);
        bytes
    }

    fn next(&mut self) -> [u8; 8] {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.to_be_bytes()
    }
}

fn pattern_sum(length: u64) -> [u8; 32] {
    let mut hash = Sha256::new();
    Pattern::of(length).for_each(|chunk| hash.update(chunk));
    hash.finalize().into()
}

fn send_pattern(stream: &mut TcpStream, length: u64) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    for chunk in Pattern::of(length) {
        hash.update(&chunk);
        stream.write_all(&chunk)?;
    }
    Ok(hash.finalize().into())
}

fn hash_exactly(stream: &mut TcpStream, length: u64) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut left = length;
    let mut buffer = vec![0; CHUNK];
    while left > 0 {
        let want = left.min(CHUNK as u64) as usize;
        let got = stream.read(buffer.get_mut(..want).unwrap_or_default())?;
        if got == 0 {
            let text = format!("the connection ended {left} bytes too early");
            return Err(io::Error::new(ErrorKind::UnexpectedEof, text));
        }
        hash.update(buffer.get(..got).unwrap_or_default());
        left -= got as u64;
    }
    Ok(hash.finalize().into())
}
