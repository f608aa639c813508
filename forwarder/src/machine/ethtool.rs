//! Questions to a network driver by the ethtool ioctl, which every driver and kernel answers.

use std::{
    ffi::CStr,
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

/// `ETHTOOL_GDRVINFO` of linux/ethtool.h.
const GET_DRIVER_INFO: u32 = 0x03;
/// `ETHTOOL_GFLAGS`.
const GET_FLAGS: u32 = 0x25;
/// `ETHTOOL_SFLAGS`.
const SET_FLAGS: u32 = 0x26;
/// `ETH_FLAG_RXVLAN`: the NIC takes VLAN tags out of received frames.
const FLAG_RX_VLAN: u32 = 1 << 8;

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    /// Version, firmware, bus and sizes, which nobody here reads.
    rest: [u8; 160],
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// The name of the driver behind an interface, such as `mlx5_core` or `veth`; `None` when it does not say.
pub fn driver(interface: &str) -> Option<String> {
    let mut info = DriverInfo { command: GET_DRIVER_INFO, driver: [0; 32], rest: [0; 160] };
    ask(interface, &mut info).ok()?;
    let name = CStr::from_bytes_until_nul(&info.driver).ok()?.to_str().ok()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// Whether the NIC takes VLAN tags out of received frames, so that XDP does not see them.
pub fn strips_vlan_tags(interface: &str) -> bool {
    flags(interface).is_ok_and(|flags| flags & FLAG_RX_VLAN != 0)
}

/// Switches the removal of VLAN tags on or off.
pub fn set_vlan_stripping(interface: &str, on: bool) -> Result<()> {
    let old = flags(interface)?;
    let new = if on { old | FLAG_RX_VLAN } else { old & !FLAG_RX_VLAN };
    let mut value = Value { command: SET_FLAGS, data: new };
    ask(interface, &mut value).with_context(|| format!("the driver of {interface} does not switch rx-vlan-offload"))?;
    // Some drivers accept the request and leave the flag as it was.
    if flags(interface)? != new {
        bail!("the driver of {interface} keeps rx-vlan-offload as it is");
    }
    Ok(())
}

fn flags(interface: &str) -> Result<u32> {
    let mut value = Value { command: GET_FLAGS, data: 0 };
    ask(interface, &mut value).with_context(|| format!("cannot read the offloads of {interface}"))?;
    Ok(value.data)
}

/// Sends `request`, one of the structures above, and lets the kernel answer in place.
fn ask<T>(interface: &str, request: &mut T) -> Result<()> {
    let socket: OwnedFd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .context("cannot open a socket")?;
    // SAFETY: `ifreq` is a plain C structure of integers and a pointer; all zero is a valid value of it.
    let mut header: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0: the name must end with one.
    let room = header.ifr_name.len() - 1;
    if interface.len() > room {
        bail!("interface names have at most {room} characters: {interface}");
    }
    for (to, from) in header.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed() as libc::c_char;
    }
    header.ifr_ifru.ifru_data = std::ptr::from_mut(request).cast();
    // SAFETY: `header` outlives the call, its data points to `request`, which is exclusively ours for the call
    // and as large as the command in its first word says the kernel writes.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut header) };
    Errno::result(result).map(drop).context("SIOCETHTOOL")
}
