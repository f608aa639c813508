//! A packet socket on one line: a probe has to leave by that line and no other, whatever the routing says, and its answer
//! has to be seen before a filter of the reverse path drops it.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike as _, bind, recv, sendto, socket,
    },
};
use tokio::io::unix::AsyncFd;

/// `ETH_P_IP` and `ETH_P_IPV6`, host order.
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Bare IP packets of one family on one interface (packet(7), `SOCK_DGRAM`).
pub(super) struct LineSocket {
    descriptor: AsyncFd<OwnedFd>,
    index: u32,
    protocol: u16,
}

impl LineSocket {
    /// Hears what arrives by the interface with this index.
    pub(super) fn open(index: u32, v6: bool) -> io::Result<Self> {
        let protocol = if v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        // Of no protocol until it is bound: it hears nothing of other interfaces.
        let descriptor = socket(AddressFamily::Packet, SockType::Datagram, flags, None)?;
        // What steers the machine's own packets must not steer the probe of one line to another.
        bypass_queues(&descriptor)?;
        bind(descriptor.as_raw_fd(), &address(index, protocol, [0; 6])?)?;
        // SAFETY: the descriptor is owned by what is made here, which neither closes nor gives it away.
        let descriptor = unsafe { AsyncFd::register(descriptor)? };
        Ok(Self { descriptor, index, protocol })
    }

    /// Sends an IP packet to the station with this link address; any will do where the line has no link header.
    pub(super) fn send(&self, packet: &[u8], to: [u8; 6]) -> io::Result<()> {
        let to = address(self.index, self.protocol, to)?;
        sendto(self.descriptor.as_raw_fd(), packet, &to, MsgFlags::empty())?;
        Ok(())
    }

    /// Waits for the next packet; returns how many bytes of it are in `buffer`.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.descriptor.readable().await?;
            let received = ready.try_io(|descriptor| Ok(recv(descriptor.as_raw_fd(), buffer, MsgFlags::empty())?));
            if let Ok(received) = received {
                return received;
            }
        }
    }
}

/// `PACKET_QDISC_BYPASS` of packet(7): past the device's queueing discipline and the programs of its egress.
fn bypass_queues(socket: &OwnedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    let value = (&raw const on).cast();
    // SAFETY: the kernel reads `length` bytes from `value`, which outlives the call; the socket is open.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, value, length) };
    Ok(Errno::result(result).map(drop)?)
}

/// `sockaddr_ll` of packet(7).
fn address(index: u32, protocol: u16, station: [u8; 6]) -> io::Result<LinkAddr> {
    let mut to = [0; 8];
    to[..6].copy_from_slice(&station);
    let raw = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: i32::try_from(index).map_err(|_| Errno::ENODEV)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: to,
    };
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `raw` is a whole `sockaddr_ll`, of the family that it says and the length that is given; it is copied.
    let address = unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(length)) };
    address.ok_or_else(|| Errno::EINVAL.into())
}
