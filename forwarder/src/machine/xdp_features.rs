//! What the kernel says an interface's driver can do with XDP (Linux 6.3 and later), over generic netlink.
//!
//! The answer is about now: a veth takes redirected frames only while its other end has GRO or an XDP program.

use anyhow::{Context as _, Result, bail};
use rtnetlink::{
    packet_core::{NlaBuffer, NlasIterator},
    sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC},
};

/// What a driver does, as bits of `enum netdev_xdp_act` in linux/netdev.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpFeatures(u64);

impl XdpFeatures {
    /// Runs programs that redirect packets (`NETDEV_XDP_ACT_REDIRECT`).
    pub const fn redirects(self) -> bool {
        self.0 & 2 != 0
    }

    /// Transmits packets that a program on another interface redirects to it (`NETDEV_XDP_ACT_NDO_XMIT`).
    pub const fn takes_redirected(self) -> bool {
        self.0 & 4 != 0
    }
}

/// `GENL_ID_CTRL`: the family that knows the others, and its command and attributes.
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `NETDEV_CMD_DEV_GET` and its attributes.
const GET_DEVICE: u8 = 1;
const DEVICE_INDEX: u16 = 1;
const DEVICE_FEATURES: u16 = 3;

/// Bytes of the headers of a netlink message and of a generic one.
const NETLINK_HEADER: usize = 16;
const HEADERS: usize = NETLINK_HEADER + 4;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `NLMSG_ERROR`.
const ERROR: u16 = 2;

/// Asks about the interface with this index; an error on kernels that do not say.
pub fn of(interface: u32) -> Result<XdpFeatures> {
    let mut socket = Socket::new(NETLINK_GENERIC).context("cannot open a generic netlink socket")?;
    socket.bind_auto().context("cannot bind a netlink socket")?;
    socket.connect(&SocketAddr::new(0, 0)).context("cannot connect a netlink socket")?;
    let family = ask(&socket, CONTROLLER, GET_FAMILY, FAMILY_NAME, b"netdev\0", FAMILY_ID)?;
    let family = u16::from_ne_bytes(*family.first_chunk().context("a short netlink answer")?);
    let features = ask(&socket, family, GET_DEVICE, DEVICE_INDEX, &interface.to_ne_bytes(), DEVICE_FEATURES)?;
    let features = features.first_chunk().context("a short netlink answer")?;
    Ok(XdpFeatures(u64::from_ne_bytes(*features)))
}

/// Sends a command with one attribute; the value of the attribute `wanted` of the answer.
fn ask(socket: &Socket, family: u16, command: u8, kind: u16, value: &[u8], wanted: u16) -> Result<Vec<u8>> {
    socket.send(&request(family, command, kind, value), 0).context("cannot send a netlink request")?;
    let (reply, _) = socket.recv_from_full().context("no answer over netlink")?;
    attribute(&reply, wanted)
}

fn request(family: u16, command: u8, kind: u16, value: &[u8]) -> Vec<u8> {
    let attribute = 4 + value.len();
    let length = HEADERS + attribute.next_multiple_of(4);
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(family.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    // Sequence number and port: one question at a time on a socket of its own.
    bytes.extend([0; 8]);
    // Version 1, two reserved bytes.
    bytes.extend([command, 1, 0, 0]);
    bytes.extend((attribute as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length, 0);
    bytes
}

fn attribute(reply: &[u8], wanted: u16) -> Result<Vec<u8>> {
    let kind = reply.get(4..6).and_then(|kind| kind.first_chunk()).context("a short netlink answer")?;
    if u16::from_ne_bytes(*kind) == ERROR {
        let code = reply.get(NETLINK_HEADER..).and_then(|code| code.first_chunk());
        let errno = code.map_or(0, |code| -i32::from_ne_bytes(*code));
        return Err(std::io::Error::from_raw_os_error(errno)).context("the kernel does not say what XDP it can do");
    }
    let attributes = reply.get(HEADERS..).unwrap_or_default();
    let found = NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|attribute: &NlaBuffer<_>| attribute.kind() & 0x3fff == wanted);
    match found {
        Some(attribute) => Ok(attribute.value().to_vec()),
        None => bail!("the kernel does not say what XDP it can do"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;

    #[test]
    fn requests_are_padded_to_words() {
        let bytes = request(0x10, 3, 2, b"netdev\0");
        assert_eq!(bytes.len(), 32);
        assert_eq!(bytes.get(..4).unwrap(), 32_u32.to_ne_bytes());
        assert_eq!(bytes.get(20..22).unwrap(), 11_u16.to_ne_bytes());
    }

    #[test]
    fn the_wanted_attribute_is_found_and_errors_are_told() {
        let mut reply = request(0x1c, 1, 1, &7_u32.to_ne_bytes());
        reply.extend(request(0, 0, 3, &6_u64.to_ne_bytes()).split_off(HEADERS));
        assert_eq!(attribute(&reply, 3).unwrap(), 6_u64.to_ne_bytes());
        attribute(&reply, 9).unwrap_err();
        let mut refused = request(ERROR, 0, 0, &[]);
        refused.splice(16..20, (-95_i32).to_ne_bytes());
        assert!(format!("{:#}", attribute(&refused, 3).unwrap_err()).contains("95"));
        attribute(&[], 3).unwrap_err();
    }
}
