//! The router at the other end of a line, as the kernel's neighbour table knows it (RFC 826, RFC 4861 section 7.3).

use std::net::IpAddr;

use anyhow::{Context as _, Result};

use crate::machine::netlink::{Neighbour, Netlink};

/// Whether the router has confirmed, since it was last asked, that it is there; and asks it anew.
///
/// The kernel does the asking. Whoever has answered is not asked by broadcast, but by a question of its own.
pub(super) async fn is_there(netlink: &Netlink, index: u32, gateway: IpAddr) -> Result<bool> {
    let known = neighbour(netlink, index, gateway).await?;
    netlink.ask_neighbour(index, gateway, known).await?;
    Ok(known.is_some_and(|neighbour| neighbour.confirmed))
}

/// Its link address; if the kernel has none, it is asked for, and known the next time.
pub(super) async fn link_address(netlink: &Netlink, index: u32, gateway: IpAddr) -> Result<Option<[u8; 6]>> {
    let known = neighbour(netlink, index, gateway).await?;
    if known.is_none() {
        netlink.ask_neighbour(index, gateway, None).await?;
    }
    Ok(known.map(|neighbour| neighbour.link_address))
}

async fn neighbour(netlink: &Netlink, index: u32, gateway: IpAddr) -> Result<Option<Neighbour>> {
    netlink.neighbour(index, gateway).await.with_context(|| format!("cannot look for {gateway} among the neighbours"))
}
