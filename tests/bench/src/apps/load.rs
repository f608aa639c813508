//! What clients do, and how long it takes.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::Load;
use super::ends::Done;
use super::server::{self, ANSWER_BYTES, DOWNLOAD, NUMBER_BYTES, REQUEST, REQUEST_BYTES, UPLOAD};

/// Connections of full load, each with one request at a time.
pub(super) const FULL: usize = 32;
/// Clients that connect anew for each request.
pub(super) const FRESH: usize = 8;
/// From one request to the next of light load.
const LIGHT_PACE: Duration = Duration::from_millis(1);
/// A reply that takes longer is a failure.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes that went over in some time.
#[derive(Clone, Copy, Debug)]
struct Moved {
    bytes: u64,
    took: Duration,
}

impl Moved {
    fn done(self) -> Done {
        let gigabits_per_second = self.bytes as f64 * 8e-9 / self.took.as_secs_f64();
        Done { values: vec![gigabits_per_second], bytes: self.bytes, cpu: Duration::ZERO }
    }
}

/// How long each exchange took, shortest first.
#[derive(Clone, Debug)]
struct Exchanges {
    sorted: Vec<Duration>,
    took: Duration,
}

impl Exchanges {
    /// Their rate, and how long they took.
    fn rate_and_times(&self) -> Done {
        let mut done = self.times();
        done.values.insert(0, self.per_second());
        done
    }

    /// How long they took.
    fn times(&self) -> Done {
        let percentiles = [0.5, 0.99, 0.999].map(|share| self.percentile(share));
        Done { values: percentiles.to_vec(), bytes: 0, cpu: Duration::ZERO }
    }

    fn per_second(&self) -> f64 {
        self.sorted.len() as f64 / self.took.as_secs_f64()
    }

    /// The time that this share of all exchanges took at most, in microseconds: exact, from all of them.
    fn percentile(&self, share: f64) -> f64 {
        let rank = (self.sorted.len() as f64 * share).ceil().max(1.0) as usize;
        self.sorted.get(rank - 1).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    }
}

/// Puts this load on the server for so long.
pub(super) fn run(load: Load, server: SocketAddr, duration: Duration) -> Result<Done> {
    Ok(match load {
        Load::Bulk => upload(server, duration, false)?.done(),
        Load::BulkNodelay => upload(server, duration, true)?.done(),
        Load::Both => both(server, duration)?.done(),
        Load::Full => full(server, duration)?.rate_and_times(),
        Load::Fresh => fresh(server, duration)?.rate_and_times(),
        Load::Light => light(server, duration)?.times(),
    })
}

/// Sends as much as goes through for so long, on one connection. Whether with `TCP_NODELAY` decides much, whoever forwards.
fn upload(to: SocketAddr, duration: Duration, nodelay: bool) -> Result<Moved> {
    let mut stream = connect(to)?;
    stream.set_nodelay(nodelay)?;
    let begun = Instant::now();
    stream.write_all(&[UPLOAD])?;
    let sent = server::give(&mut stream, duration).context("sending")?;
    let mut received = [0; 8];
    stream.read_exact(&mut received).context("waiting for the server's count")?;
    let bytes = u64::from_be_bytes(received);
    ensure!(bytes == sent, "of {sent} bytes the server received {bytes}");
    Ok(Moved { bytes, took: begun.elapsed() })
}

/// The other way.
fn download(from: SocketAddr, duration: Duration) -> Result<Moved> {
    let mut stream = connect(from)?;
    let begun = Instant::now();
    stream.write_all(&[DOWNLOAD])?;
    stream.write_all(&(duration.as_millis() as u32).to_be_bytes())?;
    let bytes = server::take(&mut stream).context("receiving")?;
    Ok(Moved { bytes, took: begun.elapsed() })
}

/// Both at the same time, on a connection each.
fn both(server: SocketAddr, duration: Duration) -> Result<Moved> {
    let (up, down) = thread::scope(|scope| {
        let down = scope.spawn(|| download(server, duration));
        (upload(server, duration, false), down.join().map_err(|_| anyhow!("a client died")))
    });
    let (up, down) = (up?, down??);
    Ok(Moved { bytes: up.bytes + down.bytes, took: up.took.max(down.took) })
}

/// Many connections that stay; each sends its next request as soon as it has its answer.
fn full(server: SocketAddr, duration: Duration) -> Result<Exchanges> {
    let client = |begun: Instant| -> Result<Vec<Duration>> {
        let mut stream = connect(server)?;
        let mut times = Vec::new();
        while begun.elapsed() < duration {
            times.push(exchange(&mut stream, times.len() as u64)?);
        }
        Ok(times)
    };
    crowd(FULL, client)
}

/// A connection for each request.
fn fresh(server: SocketAddr, duration: Duration) -> Result<Exchanges> {
    let client = |begun: Instant| -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        while begun.elapsed() < duration {
            let started = Instant::now();
            let mut stream = connect(server)?;
            exchange(&mut stream, times.len() as u64)?;
            times.push(started.elapsed());
        }
        Ok(times)
    };
    crowd(FRESH, client)
}

/// One connection, with a request now and then.
fn light(server: SocketAddr, duration: Duration) -> Result<Exchanges> {
    let client = |begun: Instant| -> Result<Vec<Duration>> {
        let mut stream = connect(server)?;
        let mut times: Vec<Duration> = Vec::new();
        while begun.elapsed() < duration {
            times.push(exchange(&mut stream, times.len() as u64)?);
            let next = LIGHT_PACE * times.len() as u32;
            thread::sleep(next.saturating_sub(begun.elapsed()));
        }
        Ok(times)
    };
    crowd(1, client)
}

/// So many clients at the same time, all in the namespace of this thread.
fn crowd(size: usize, client: impl Fn(Instant) -> Result<Vec<Duration>> + Sync) -> Result<Exchanges> {
    let begun = Instant::now();
    let mut sorted = thread::scope(|scope| -> Result<Vec<Duration>> {
        let clients: Vec<_> = (0..size).map(|_| scope.spawn(|| client(begun))).collect();
        let mut all = Vec::new();
        for client in clients {
            all.extend(client.join().map_err(|_| anyhow!("a client died"))??);
        }
        Ok(all)
    })?;
    let took = begun.elapsed();
    if sorted.is_empty() {
        bail!("not one exchange was completed");
    }
    sorted.sort_unstable();
    Ok(Exchanges { sorted, took })
}

fn exchange(stream: &mut TcpStream, number: u64) -> Result<Duration> {
    let begun = Instant::now();
    let number = number.to_be_bytes();
    let mut request = [0; REQUEST_BYTES];
    request.iter_mut().zip([REQUEST].iter().chain(&number)).for_each(|(byte, value)| *byte = *value);
    stream.write_all(&request).context("sending a request")?;
    let mut answer = [0; ANSWER_BYTES];
    stream.read_exact(&mut answer).context("waiting for an answer")?;
    let took = begun.elapsed();
    let ends = (answer.get(..NUMBER_BYTES), answer.get(ANSWER_BYTES - NUMBER_BYTES..));
    ensure!(ends == (Some(&number[..]), Some(&number[..])), "the answer is to another request");
    Ok(took)
}

fn connect(server: SocketAddr) -> Result<TcpStream> {
    let connect = || -> io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    };
    connect().with_context(|| format!("cannot connect to {server}"))
}

/// Waits until somebody answers there: relays need a moment to start.
pub(super) fn wait_for(server: SocketAddr) -> Result<()> {
    let begun = Instant::now();
    loop {
        let answered = connect(server).and_then(|mut stream| exchange(&mut stream, 1));
        match answered {
            Ok(_) => return Ok(()),
            Err(error) if begun.elapsed() > PATIENCE => return Err(error).context("nobody answers"),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}
