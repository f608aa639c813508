//! Frames as they are on the wire: seen, and sent.
//!
//! A packet socket sees what the interface's driver hands to the kernel: not the frames that XDP took, but what arrives at
//! the far end of the link.

use std::io::{self, IoSliceMut};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
use nix::errno::Errno;
use nix::libc::{self, sockaddr_ll, tpacket_auxdata};
use nix::sys::socket::{
    ControlMessageOwned, LinkAddr, MsgFlags, SockaddrLike, bind, recvmsg, sendto, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::host::Host;
use crate::service::{patience, readable_before};

const LARGEST: usize = 65_536 + 64;
const QUEUE: usize = 32 << 20;
/// Of an Ethernet header: a VLAN tag comes after the two addresses.
const ADDRESSES: usize = 12;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
/// `ETH_P_ALL`, in host order.
pub(crate) const ETHERTYPE_ANY: u16 = 0x0003;

/// What a packet's transport checksum is to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Still to be filled in by the hardware, which a veth does not have (`CHECKSUM_PARTIAL`).
    Partial,
    /// Complete; whether it is right nobody has looked.
    Complete,
    /// Complete, and verified on its way in (`CHECKSUM_UNNECESSARY`), as NICs and GRO do.
    Verified,
}

/// One frame that an interface received or sent.
#[derive(Clone, Debug)]
pub struct Frame {
    /// From the destination MAC on, with any VLAN tag in its place; on a device without Ethernet, from the IP header on.
    pub bytes: Vec<u8>,
    /// Whether the captured interface sent it (otherwise it received it).
    pub outgoing: bool,
    /// What the kernel says of the transport checksum.
    pub checksum: Checksum,
    has_ethernet: bool,
}

impl Frame {
    /// The layers of the frame.
    pub fn parse(&self) -> Result<SlicedPacket<'_>> {
        if self.has_ethernet {
            Ok(SlicedPacket::from_ethernet(&self.bytes)?)
        } else {
            Ok(SlicedPacket::from_ip(&self.bytes)?)
        }
    }

    /// Source and destination of an IP packet.
    pub fn addresses(&self) -> Option<(IpAddr, IpAddr)> {
        match self.parse().ok()?.net? {
            NetSlice::Ipv4(ip) => Some((ip.header().source_addr().into(), ip.header().destination_addr().into())),
            NetSlice::Ipv6(ip) => Some((ip.header().source_addr().into(), ip.header().destination_addr().into())),
            NetSlice::Arp(_) => None,
        }
    }

    /// Whether it is an ICMP or ICMPv6 echo request.
    pub fn is_echo_request(&self) -> bool {
        let Ok(packet) = self.parse() else { return false };
        match packet.transport {
            Some(TransportSlice::Icmpv4(icmp)) => matches!(icmp.icmp_type(), Icmpv4Type::EchoRequest(_)),
            Some(TransportSlice::Icmpv6(icmp)) => matches!(icmp.icmp_type(), Icmpv6Type::EchoRequest(_)),
            _ => false,
        }
    }

    /// Whether these bytes occur anywhere in it.
    pub fn contains(&self, bytes: &[u8]) -> bool {
        self.bytes.windows(bytes.len().max(1)).any(|window| window == bytes)
    }
}

/// A packet socket on one interface. It collects from the moment it is made; frames wait in it until they are asked for.
pub struct Capture {
    socket: OwnedFd,
    described: String,
}

impl Host {
    /// Starts to capture everything that `interface` receives and sends, whoever it is for.
    pub fn capture(&self, interface: &str) -> Result<Capture> {
        let described = format!("capture on {interface} of host {}", self.name());
        let socket = self.packet_socket(interface, ETHERTYPE_ANY).with_context(|| described.clone())?;
        Ok(Capture { socket, described })
    }

    /// Sends one frame as it is: from the destination MAC on, or, on a device without Ethernet, from the IP header on.
    pub fn send_frame(&self, interface: &str, frame: &[u8]) -> Result<()> {
        let context = || format!("cannot send a frame on {interface} of host {}", self.name());
        let socket = self.sending_socket().with_context(context)?;
        let ethertype = match frame.first().map(|first| first >> 4) {
            Some(4) => ETHERTYPE_IPV4,
            _ => ETHERTYPE_IPV6,
        };
        // Only a device without Ethernet looks at the protocol given here.
        let to = link_address(self.ifindex(interface)?, ethertype)?;
        sendto(socket.as_raw_fd(), frame, &to, MsgFlags::empty()).with_context(context)?;
        Ok(())
    }

    /// One for all frames that the host sends: to close a packet socket takes the kernel an RCU grace period.
    fn sending_socket(&self) -> Result<&OwnedFd> {
        if let Some(socket) = self.sender().get() {
            return Ok(socket);
        }
        // Protocol 0: this socket receives nothing.
        let open = || Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)));
        let socket = self.enter(open)?.context("cannot open a packet socket")?;
        Ok(self.sender().get_or_init(|| socket.into()))
    }

    pub(crate) fn packet_socket(&self, interface: &str, protocol: u16) -> Result<OwnedFd> {
        let ifindex = self.ifindex(interface)?;
        // Protocol 0 first: nothing of other interfaces gets in before the socket is bound to one.
        let open = || Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)));
        let socket = self.enter(open)?.context("cannot open a packet socket")?;
        let socket = OwnedFd::from(socket);
        setsockopt(&socket, sockopt::RcvBufForce, &QUEUE)?;
        set_packet_option(&socket, libc::PACKET_AUXDATA, &1_i32)?;
        let promiscuous = libc::packet_mreq {
            mr_ifindex: i32::try_from(ifindex)?,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        set_packet_option(&socket, libc::PACKET_ADD_MEMBERSHIP, &promiscuous)?;
        bind(socket.as_raw_fd(), &link_address(ifindex, protocol)?)?;
        Ok(socket)
    }
}

impl Capture {
    /// The next frame that `wanted` accepts; those before it are thrown away. An error when none comes in time.
    pub fn wait_for(&self, wanted: impl Fn(&Frame) -> bool) -> Result<Frame> {
        match self.next_within(patience(), wanted)? {
            Some(frame) => Ok(frame),
            None => bail!("{}: the awaited frame did not come within {:?}", self.described, patience()),
        }
    }

    /// The next frame that `wanted` accepts, or `None` when none comes within `limit`.
    pub fn next_within(&self, limit: Duration, wanted: impl Fn(&Frame) -> bool) -> Result<Option<Frame>> {
        let deadline = Instant::now() + limit;
        while readable_before(self.socket.as_fd(), deadline)? {
            if let Some(frame) = self.receive()?.filter(&wanted) {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// All frames up to, without it, the first that `last` accepts: typically one sent on purpose as an end mark. Shows
    /// what did *not* arrive without waiting for it.
    pub fn until(&self, last: impl Fn(&Frame) -> bool) -> Result<Vec<Frame>> {
        let deadline = Instant::now() + patience();
        let mut frames = Vec::new();
        while readable_before(self.socket.as_fd(), deadline)? {
            match self.receive()? {
                Some(frame) if last(&frame) => return Ok(frames),
                frame => frames.extend(frame),
            }
        }
        bail!("{}: the end mark did not come within {:?}", self.described, patience())
    }

    fn receive(&self) -> Result<Option<Frame>> {
        let mut bytes = vec![0; LARGEST];
        let mut control = nix::cmsg_space!(tpacket_auxdata);
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        let received =
            recvmsg::<LinkAddr>(self.socket.as_raw_fd(), &mut buffers, Some(&mut control), MsgFlags::MSG_DONTWAIT);
        let message = match received {
            Ok(message) => message,
            // The interface went down; what was queued is still to come.
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => return Ok(None),
            Err(errno) => return Err(errno).with_context(|| self.described.clone()),
        };
        let auxdata = message.cmsgs()?.find_map(|control| auxdata(&control));
        let address = message.address.context("a frame without a link address")?;
        let length = message.bytes;
        let outgoing = address.pkttype() == libc::PACKET_OUTGOING;
        let has_ethernet = address.hatype() == libc::ARPHRD_ETHER || address.hatype() == libc::ARPHRD_LOOPBACK;
        bytes.truncate(length);
        let status = auxdata.map_or(0, |auxdata| auxdata.tp_status);
        if let Some(auxdata) = auxdata.filter(|_| status & libc::TP_STATUS_VLAN_VALID != 0) {
            let tpid =
                if status & libc::TP_STATUS_VLAN_TPID_VALID == 0 { ETHERTYPE_VLAN } else { auxdata.tp_vlan_tpid };
            let tag = [tpid.to_be_bytes(), auxdata.tp_vlan_tci.to_be_bytes()].concat();
            let at = ADDRESSES.min(bytes.len());
            bytes.splice(at..at, tag);
        }
        let checksum = if status & libc::TP_STATUS_CSUMNOTREADY != 0 {
            Checksum::Partial
        } else if status & libc::TP_STATUS_CSUM_VALID != 0 {
            Checksum::Verified
        } else {
            Checksum::Complete
        };
        Ok(Some(Frame { bytes, outgoing, checksum, has_ethernet }))
    }
}

fn auxdata(control: &ControlMessageOwned) -> Option<tpacket_auxdata> {
    let ControlMessageOwned::Unknown(control) = control else {
        return None;
    };
    let header = control.cmsg_header;
    let is_auxdata = header.cmsg_level == libc::SOL_PACKET
        && header.cmsg_type == libc::PACKET_AUXDATA
        && control.data_bytes.len() >= size_of::<tpacket_auxdata>();
    // SAFETY: the kernel's answer is at least as long as the structure, which is plain integers; no alignment is assumed.
    is_auxdata.then(|| unsafe { control.data_bytes.as_ptr().cast::<tpacket_auxdata>().read_unaligned() })
}

pub(crate) fn set_packet_option<T>(socket: &OwnedFd, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes from `value`, which is alive and of that size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    Errno::result(result)?;
    Ok(())
}

fn link_address(ifindex: u32, protocol: u16) -> Result<LinkAddr> {
    let raw = sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: i32::try_from(ifindex)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: `raw` is a complete sockaddr_ll, its family says so and the length given is its own.
    let address = unsafe {
        LinkAddr::from_raw(std::ptr::from_ref(&raw).cast(), Some(size_of::<sockaddr_ll>() as libc::socklen_t))
    };
    address.context("not a link address")
}
