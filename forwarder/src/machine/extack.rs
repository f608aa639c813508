//! Why a driver refuses an XDP program, in its own words.
//!
//! `bpf_link_create` yields a bare errno. The same attachment over rtnetlink carries the driver's sentence in the
//! extended acknowledgement ("disable GRO_HW/CSUM first"), so after a refusal we ask once more, there.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use anyhow::{Context as _, Result, bail};
use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NlaBuffer, NlasIterator},
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkMessage, LinkXdp},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

/// `XDP_FLAGS_UPDATE_IF_NOEXIST` of linux/if_link.h.
const IF_NONE_ATTACHED: u32 = 1;
/// `NLMSG_ERROR`.
const MESSAGE_ERROR: u16 = 2;
/// `NLM_F_ACK_TLVS`: attributes follow the error.
const HAS_ATTRIBUTES: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`.
const ATTRIBUTE_TEXT: u16 = 1;

/// What the kernel answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// 0 or an errno.
    pub errno: i32,
    /// The sentence of the driver or of the kernel's XDP code.
    pub text: Option<String>,
}

/// Asks why `program` cannot be attached; `flags` are the mode bits of `XDP_FLAGS_*`.
///
/// When it can be attached after all, it is detached again at once: attachments over netlink are not ours.
pub fn why_refused(interface: u32, program: BorrowedFd<'_>, flags: u32) -> Result<Answer> {
    let answer = set_xdp(interface, program.as_raw_fd(), flags | IF_NONE_ATTACHED)?;
    if answer.errno == 0 {
        detach(interface, flags)?;
    }
    Ok(answer)
}

/// Removes a program that was attached over netlink; `flags` are the mode bits of `XDP_FLAGS_*`.
pub fn detach(interface: u32, flags: u32) -> Result<()> {
    let answer = set_xdp(interface, -1, flags)?;
    if answer.errno != 0 {
        let error = std::io::Error::from_raw_os_error(answer.errno);
        return Err(error).context("cannot detach the XDP program over netlink");
    }
    Ok(())
}

fn set_xdp(interface: u32, program: i32, flags: u32) -> Result<Answer> {
    let mut socket = Socket::new(NETLINK_ROUTE).context("cannot open a netlink socket")?;
    socket.bind_auto().context("cannot bind a netlink socket")?;
    socket.connect(&SocketAddr::new(0, 0)).context("cannot connect a netlink socket")?;
    socket.set_ext_ack(true).context("the kernel has no extended acknowledgements")?;
    // Without this the answer repeats the request, and the attributes come after it.
    socket.set_cap_ack(true).context("the kernel has no capped acknowledgements")?;

    let mut link = LinkMessage::default();
    link.header.index = interface;
    link.attributes.push(LinkAttribute::Xdp(vec![LinkXdp::Fd(program), LinkXdp::Flags(flags)]));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::SetLink(link));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    nest_last_attribute(&mut bytes);
    socket.send(&bytes, 0).context("cannot send a netlink request")?;
    let (reply, _) = socket.recv_from_full().context("no answer over netlink")?;
    parse(&reply)
}

/// Marks `IFLA_XDP` as nested, which newer kernels insist on: it is the only attribute of the request.
fn nest_last_attribute(request: &mut [u8]) {
    // Netlink header 16, link header 16, attribute length 2: then the high byte of its type.
    const TYPE: usize = 16 + 16 + 2;
    if let Some(kind) = request.get_mut(TYPE..).and_then(|rest| rest.first_chunk_mut()) {
        *kind = (u16::from_ne_bytes(*kind) | 0x8000).to_ne_bytes();
    }
}

fn parse(reply: &[u8]) -> Result<Answer> {
    let message = NetlinkBuffer::new_checked(reply).context("a garbled netlink answer")?;
    if message.message_type() != MESSAGE_ERROR {
        bail!("an unexpected netlink answer of type {}", message.message_type());
    }
    let payload = message.payload();
    let (code, rest) = payload.split_first_chunk().context("a short netlink answer")?;
    // The header of our request follows, then the attributes.
    let attributes = rest.get(16..).unwrap_or_default();
    let text = if message.flags() & HAS_ATTRIBUTES == 0 { None } else { text(attributes) };
    Ok(Answer { errno: -i32::from_ne_bytes(*code), text })
}

fn text(attributes: &[u8]) -> Option<String> {
    NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|attribute: &NlaBuffer<_>| attribute.kind() == ATTRIBUTE_TEXT)
        .map(|attribute| String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').trim().to_owned())
}
