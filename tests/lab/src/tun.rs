//! tun and tap devices, and a cable between two of them: what a tunnel or a PPP line looks like to both hosts.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::libc;

use crate::host::Host;
use crate::service::{Bell, Service, patience};

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
        let deadline = Instant::now() + patience();
        // A child that another thread is just starting holds the files of this process until it executes its program: so
        // long, an earlier device of this name lives on after its value.
        let device = loop {
            match host.enter(|| open(name, kind))? {
                Err(error) if is_in_use(&error) && Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
                made => break made.with_context(context)?,
            }
        };
        host.ip(&format!("link set {name} up"))?;
        Ok(Self(device))
    }

    /// Gives the device something to receive: an IP packet, or a frame of a tap device.
    ///
    /// # Errors
    /// What the kernel says of it.
    pub fn receives(&self, packet: &[u8]) -> Result<()> {
        (&self.0).write_all(packet).context("cannot write to the device")
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

fn is_in_use(error: &anyhow::Error) -> bool {
    error.downcast_ref() == Some(&Errno::EBUSY)
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
