//! The server behind: answers requests, takes bytes, gives bytes.
//!
//! A connection is for one thing, which its first byte says:
//! [`REQUEST`]: requests of [`REQUEST_BYTES`], of which each begins with that byte and a number; each answer, of
//! [`ANSWER_BYTES`], begins and ends with the same number. [`UPLOAD`]: bytes from the client, then, from the
//! server, how many they were (u64, big-endian). [`DOWNLOAD`]: milliseconds (u32, big-endian); bytes for as long. Bytes end
//! with a mark, since not every relay hands on that one side alone has finished.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

pub(super) const REQUEST: u8 = b'R';
pub(super) const UPLOAD: u8 = b'U';
pub(super) const DOWNLOAD: u8 = b'D';
pub(super) const REQUEST_BYTES: usize = 128;
pub(super) const ANSWER_BYTES: usize = 1024;
pub(super) const NUMBER_BYTES: usize = 8;

/// Connections that are served at a time.
pub(super) const SERVED: usize = 48;
const STACK: usize = 256 * 1024;

/// What no byte of the pattern is.
const END: u8 = 0xff;
/// The period of the pattern that transfers consist of.
const PERIOD: usize = 251;
/// A multiple of the period.
const BLOCK: usize = PERIOD * 512;

/// Serves on this address, from when `ready` is called until it fails.
pub(super) fn serve(address: SocketAddr, ready: impl FnOnce()) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    let serve = || {
        while let Ok((stream, _)) = listener.accept() {
            // The client notices if something goes wrong, and says so.
            let _ = serve_one(stream);
        }
    };
    thread::scope(|scope| -> Result<()> {
        for _ in 0..SERVED {
            let builder = thread::Builder::new().stack_size(STACK);
            builder.spawn_scoped(scope, serve).context("cannot start a serving thread")?;
        }
        ready();
        Ok(())
    })
}

fn serve_one(mut stream: TcpStream) -> io::Result<()> {
    let mut purpose = [0];
    stream.read_exact(&mut purpose)?;
    match purpose {
        [REQUEST] => {
            stream.set_nodelay(true)?;
            answer(&mut stream)
        }
        [UPLOAD] => {
            let received = take(&mut stream)?;
            stream.write_all(&received.to_be_bytes())
        }
        [DOWNLOAD] => {
            let mut milliseconds = [0; 4];
            stream.read_exact(&mut milliseconds)?;
            give(&mut stream, Duration::from_millis(u32::from_be_bytes(milliseconds).into())).map(drop)
        }
        _ => Ok(()),
    }
}

/// Answers requests, the first of which has begun.
fn answer(stream: &mut TcpStream) -> io::Result<()> {
    let (mut request, mut answer) = ([0; REQUEST_BYTES], [0; ANSWER_BYTES]);
    let mut begun = 1;
    loop {
        let Some(rest) = request.get_mut(begun..) else { return Ok(()) };
        if let Err(error) = stream.read_exact(rest) {
            return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(()) } else { Err(error) };
        }
        if let Some(number) = request.get(1..=NUMBER_BYTES) {
            answer.iter_mut().zip(number).for_each(|(byte, number)| *byte = *number);
            answer.iter_mut().rev().zip(number.iter().rev()).for_each(|(byte, number)| *byte = *number);
        }
        stream.write_all(&answer)?;
        begun = 0;
    }
}

/// Writes the pattern for so long, and the end mark: how many bytes of pattern it was.
pub(super) fn give(stream: &mut TcpStream, duration: Duration) -> io::Result<u64> {
    let block: Vec<u8> = (0..PERIOD as u8).cycle().take(BLOCK).collect();
    let (begun, mut sent) = (Instant::now(), 0);
    while begun.elapsed() < duration {
        stream.write_all(&block)?;
        sent += block.len() as u64;
    }
    stream.write_all(&[END])?;
    Ok(sent)
}

/// Reads to the end mark: how many bytes it was. An error if what came is not the pattern.
pub(super) fn take(stream: &mut TcpStream) -> io::Result<u64> {
    let mut block = vec![0; BLOCK];
    let mut received: u64 = 0;
    loop {
        let mut count = stream.read(&mut block)?;
        let ended = count > 0 && block.get(count - 1) == Some(&END);
        count -= usize::from(ended);
        let Some(last) = block.get(..count).and_then(<[u8]>::last) else {
            return if ended { Ok(received) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        };
        // The first and the last byte of each read: what is lost, doubled or moved shows, and looking costs nothing.
        let is_pattern = |byte: u8, at: u64| u64::from(byte) == at % PERIOD as u64;
        let right = block.first().is_some_and(|first| is_pattern(*first, received));
        received += count as u64;
        if !right || !is_pattern(*last, received - 1) {
            return Err(io::Error::other("other bytes arrived than were sent"));
        }
        if ended {
            return Ok(received);
        }
    }
}
