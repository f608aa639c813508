//! Hearing of changes: the kernel's multicast messages about interfaces, addresses, neighbours, routes and routing rules.

use std::io;

use anyhow::{Context as _, Result};
use nix::libc;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};

/// What the kernel is asked to tell.
const GROUPS: [MulticastGroup; 9] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Nexthop,
];
/// Room for one read, in bytes: more than the kernel puts into a multicast message.
const LARGEST: usize = 64 * 1024;

/// What was heard.
#[derive(Debug)]
pub(super) enum Heard {
    /// These messages, in the kernel's order.
    Messages(Vec<RouteNetlinkMessage>),
    /// Something that was not understood, or not heard because too much came at once: look at everything.
    Anything,
}

/// A subscription. Messages wait in it from when it is made.
pub(super) struct Watch {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl Watch {
    /// Subscribes, in the network namespace of the calling thread.
    pub(super) fn start() -> Result<Self> {
        Self::subscribe().context("cannot subscribe to the kernel's messages about interfaces and routes")
    }

    fn subscribe() -> io::Result<Self> {
        let by_mask = GROUPS.iter().filter(|group| !group.need_via_add_membership());
        let mask = by_mask.fold(0, |mask, group| mask | 1 << (*group as u32 - 1));
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, mask))?;
        for group in GROUPS.iter().filter(|group| group.need_via_add_membership()) {
            socket.socket_mut().add_membership(*group as u32)?;
        }
        Ok(Self { socket, buffer: Vec::with_capacity(LARGEST) })
    }

    /// Waits for the next message, and takes along those that are there already: a change of the machine is many messages.
    pub(super) async fn next(&mut self) -> Result<Heard> {
        let mut heard = Some(Vec::new());
        self.buffer.clear();
        let mut received = self.socket.recv(&mut self.buffer).await;
        loop {
            match received {
                Ok(()) => {
                    let messages = messages(&self.buffer);
                    heard = heard.zip(messages).map(|(mut all, more)| {
                        all.extend(more);
                        all
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // More came than the socket holds; what came after is still in it.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => heard = None,
                Err(error) => return Err(error).context("cannot read the kernel's messages"),
            }
            self.buffer.clear();
            received = self.socket.socket_ref().recv(&mut self.buffer, 0).map(drop);
        }
        Ok(heard.map_or(Heard::Anything, Heard::Messages))
    }
}

/// The messages of one read; none if one of them is not understood.
fn messages(mut bytes: &[u8]) -> Option<Vec<RouteNetlinkMessage>> {
    /// `NLMSG_ALIGNTO` of linux/netlink.h.
    const ALIGNMENT: usize = 4;
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let length = NetlinkBuffer::new_checked(bytes).ok()?.length() as usize;
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes.get(..length)?).ok()?;
        match message.payload {
            NetlinkPayload::InnerMessage(message) => messages.push(message),
            NetlinkPayload::Noop => {}
            _ => return None,
        }
        bytes = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    }
    Some(messages)
}
