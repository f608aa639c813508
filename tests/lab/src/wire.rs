//! Many frames at once: sent as they are, and received as they arrive, without a wait for each.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{MsgFlags, recv, send, setsockopt};

use crate::capture::{ETHERTYPE_ANY, set_packet_option};
use crate::host::Host;
use crate::service::readable_before;

/// How much waits to be collected, in bytes of the kernel's memory.
const RECEIVED: usize = 8 << 20;
const LARGEST: usize = 65_536 + 64;

/// A packet socket on one Ethernet interface that sends frames as they are and collects what the interface receives, but
/// not what it sends. For tests of many packets; [`Capture`](crate::Capture) tells more about each.
pub struct Wire {
    socket: OwnedFd,
    described: String,
}

impl Host {
    /// Opens a [`Wire`] on `interface`. It collects from now on.
    pub fn wire(&self, interface: &str) -> Result<Wire> {
        let described = format!("wire at {interface} of host {}", self.name());
        let socket = self.packet_socket(interface, ETHERTYPE_ANY).with_context(|| described.clone())?;
        set_packet_option(&socket, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
        setsockopt(&socket, RcvBufForce, &RECEIVED)?;
        Ok(Wire { socket, described })
    }
}

impl Wire {
    /// Sends a frame, from the destination MAC on.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty()).with_context(|| self.described.clone())?;
        Ok(())
    }

    /// A frame that has arrived, if there is one. One with a VLAN tag comes without it.
    pub fn received(&self) -> Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; LARGEST];
        match recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => {
                bytes.truncate(length);
                Ok(Some(bytes))
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(errno) => Err(errno).with_context(|| self.described.clone()),
        }
    }

    /// The next frame; `None` when there is none within `limit`.
    pub fn receive_within(&self, limit: Duration) -> Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(frame) = self.received()? {
                return Ok(Some(frame));
            }
            if !readable_before(self.socket.as_fd(), deadline)? {
                return Ok(None);
            }
        }
    }
}
