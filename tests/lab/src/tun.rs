//! tun and tap devices, and a cable between two of them: what a tunnel or a PPP line looks like to both hosts.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result, ensure};
use nix::libc;

use crate::host::Host;
use crate::service::{Bell, Service};

nix::ioctl_write_int!(
    /// Turns an open `/dev/net/tun` into the device that the `ifreq` names.
    tunsetiff, b'T', 202);

const LARGEST: usize = 65_536;

/// What the device carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunKind {
    /// IP packets, without Ethernet.
    Tun,
    /// Ethernet frames.
    Tap,
}

/// A tun or tap device; it exists as long as this value.
pub struct Tun(File);

impl Tun {
    /// Makes the device and sets it up (which it is usable from: addresses and routes come after).
    pub fn create(host: &Host, name: &str, kind: TunKind) -> Result<Self> {
        let context = || format!("cannot make {name} on host {} (is /dev/net/tun there?)", host.name());
        let device = host.enter(|| open(name, kind))?.with_context(context)?;
        host.ip(&format!("link set {name} up"))?;
        Ok(Self(device))
    }
}

/// Carries packets between two devices, of the same kind, in user space.
pub struct TunPump {
    _service: Service,
}

impl TunPump {
    /// Connects the two.
    pub fn between(a: Tun, b: Tun) -> Result<Self> {
        let service = Service::start(move |bell| pump(&a.0, &b.0, bell))?;
        Ok(Self { _service: service })
    }
}

fn open(name: &str, kind: TunKind) -> Result<File> {
    ensure!(!name.is_empty() && name.len() < libc::IFNAMSIZ, "an interface name has 1 to 15 bytes, not {name:?}");
    let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let kind = match kind {
        TunKind::Tun => libc::IFF_TUN,
        TunKind::Tap => libc::IFF_TAP,
    };
    let flags = (kind | libc::IFF_NO_PI) as i16;
    let request = libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    // SAFETY: the kernel reads, and writes the name back into, an ifreq that outlives the call.
    unsafe { tunsetiff(device.as_raw_fd(), std::ptr::from_ref(&request).addr() as libc::c_ulong) }?;
    Ok(device)
}

fn pump(a: &File, b: &File, bell: &Bell) {
    let mut buffer = vec![0; LARGEST];
    while bell.wait_for(&[a.as_fd(), b.as_fd()]) {
        for (mut from, mut to) in [(a, b), (b, a)] {
            loop {
                match from.read(&mut buffer) {
                    // A full queue or a device that is down drops the packet, as a line does.
                    Ok(length) => drop(to.write(buffer.get(..length).unwrap_or_default())),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        }
    }
}
