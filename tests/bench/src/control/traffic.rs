//! Datagrams that go on and on, and how many of them do not arrive.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use forwarder_lab::{Host, patience};
use nix::sys::socket::{setsockopt, sockopt};

/// Datagrams at a time, and how often.
const BURST: u64 = 20;
const PACE: Duration = Duration::from_millis(1);
/// How long packets flow before and after what is watched.
const AROUND: Duration = Duration::from_millis(100);
/// How long the last ones have to arrive.
const LAST: Duration = Duration::from_millis(100);
const QUEUE: usize = 32 << 20;

/// What became of the datagrams.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flowed {
    pub(super) sent: u64,
    pub(super) lost: u64,
}

/// Does `action` while datagrams flow from the client to `to`, which leads to `backend`: what it gave, and how they fared.
pub(super) fn during<T>(
    client: &Host,
    to: SocketAddr,
    home: &Host,
    backend: SocketAddr,
    action: impl FnOnce() -> Result<T>,
) -> Result<(T, Flowed)> {
    let receiver = home.enter(|| receive_at(backend))??;
    let sender = client.enter(|| UdpSocket::bind("0.0.0.0:0"))?.context("cannot make a socket")?;
    let (stop_sending, stop_receiving) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let received = scope.spawn(|| {
            let (mut count, mut datagram) = (0_u64, [0; 64]);
            loop {
                // A short timeout lets it see that it is to stop.
                match receiver.recv(&mut datagram) {
                    Ok(_) => count += 1,
                    Err(_) if stop_receiving.load(Ordering::Relaxed) => return count,
                    Err(_) => {}
                }
            }
        });
        let sent = scope.spawn(|| {
            let (begun, mut bursts) = (Instant::now(), 0_u32);
            let mut sent = 0;
            while !stop_sending.load(Ordering::Relaxed) {
                sent += (0..BURST).filter(|_| sender.send_to(&[0; 32], to).is_ok()).count() as u64;
                bursts += 1;
                thread::sleep((PACE * bursts).saturating_sub(begun.elapsed()));
            }
            sent
        });
        thread::sleep(AROUND);
        let outcome = action();
        thread::sleep(AROUND);
        stop_sending.store(true, Ordering::Relaxed);
        let sent = sent.join().map_err(|_| anyhow!("the sender died"));
        thread::sleep(LAST);
        stop_receiving.store(true, Ordering::Relaxed);
        let received = received.join().map_err(|_| anyhow!("the receiver died"));
        let (sent, received) = (sent?, received?);
        Ok((outcome?, Flowed { sent, lost: sent.saturating_sub(received) }))
    })
}

/// Does `action`, which opens the way from `to` to `backend`: how long it took from its beginning to the first datagram that
/// arrived, of many that were sent all the time. Each comes from a port of its own, as from clients that just connect: a
/// flow that netfilter has seen before its rules would go on without them.
pub(super) fn first_arrival<T>(
    client: &Host,
    to: SocketAddr,
    home: &Host,
    backend: SocketAddr,
    action: impl FnOnce() -> Result<T>,
) -> Result<Duration> {
    const PACE: Duration = Duration::from_micros(200);
    let receiver = home.enter(|| receive_at(backend))??;
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let sender = scope.spawn(|| -> Result<()> {
            client.enter(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Nobody listens there yet, and the socket may be told so.
                    let _ = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(&[0; 32], to));
                    sent.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(PACE);
                }
            })
        });
        let begun = Instant::now();
        let arrived = scope.spawn(move || -> Result<Duration> {
            let mut datagram = [0; 64];
            loop {
                match receiver.recv(&mut datagram) {
                    Ok(_) => return Ok(begun.elapsed()),
                    Err(_) if begun.elapsed() < patience() => {}
                    Err(error) => return Err(error).context("no datagram arrived"),
                }
            }
        });
        let outcome = action();
        let arrived = arrived.join().map_err(|_| anyhow!("the receiver died"));
        stop.store(true, Ordering::Relaxed);
        sender.join().map_err(|_| anyhow!("the sender died"))??;
        outcome?;
        arrived?
    })
}

fn receive_at(address: SocketAddr) -> Result<UdpSocket> {
    let bind = || -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind(address)?;
        socket.set_read_timeout(Some(Duration::from_millis(10)))?;
        setsockopt(&socket, sockopt::RcvBufForce, &QUEUE)?;
        Ok(socket)
    };
    bind().with_context(|| format!("cannot receive at {address}"))
}
