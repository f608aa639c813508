//! Where programs hang on interfaces, and how they outlive the command that put them there.

use std::{fmt, fs, os::fd::AsFd as _, path::Path};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    pin::PinError,
    programs::{
        LinkOrder, ProgramError, ProgramInfo, RawTracePoint, SchedClassifier, TcAttachType, TcHandle, Xdp, XdpMode,
        links::{FdLink, Link as _, PinnedLink},
        loaded_programs,
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, qdisc_add_clsact},
    },
};
use aya_obj::programs::XdpAttachType;
use serde::{Deserialize, Serialize};

use crate::machine::extack;

/// Where pinned links are, below the pins of the maps.
pub const LINKS: &str = "links";
/// Where pinned programs are, below the pins of the maps.
pub const PROGRAMS: &str = "programs";

/// Priority of our filter where there is no tcx: early, but not the very first.
pub const PRIORITY: u16 = 0x0f0d;
/// Its handle.
const HANDLE: TcHandle = TcHandle::new(0, 0x0f0d);

/// How a TC program hangs on its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "by")]
pub enum TcAttachment {
    /// By a pinned tcx link (Linux 6.6).
    Tcx,
    /// By a filter on the `clsact` qdisc.
    Clsact {
        /// Whether `load` had to add the qdisc.
        added_qdisc: bool,
    },
}

/// Which XDP a program runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpKind {
    /// In the driver, before the kernel makes a socket buffer.
    Native,
    /// In the kernel, after that: for tests, and where nothing else is there.
    Generic,
}

impl XdpKind {
    const fn mode(self) -> XdpMode {
        match self {
            Self::Native => XdpMode::Driver,
            Self::Generic => XdpMode::Skb,
        }
    }

    /// `XDP_FLAGS_DRV_MODE` and `XDP_FLAGS_SKB_MODE` of linux/if_link.h.
    const fn flags(self) -> u32 {
        match self {
            Self::Native => 1 << 2,
            Self::Generic => 1 << 1,
        }
    }
}

/// Attaches an XDP program by a link pinned as `links/xdp_SLOT`.
pub fn xdp(program: &mut Xdp, interface: &str, index: u32, kind: XdpKind, slot: u32, pins: &Path) -> Result<()> {
    let link = match program.attach_to_if_index(index, kind.mode()) {
        Ok(id) => program.take_link(id).context("the XDP link vanished")?,
        Err(error) => return Err(refused(program, interface, index, kind, &error)),
    };
    let Ok(link) = FdLink::try_from(link) else {
        // aya fell back to netlink, which no pin can hold and nothing would ever remove.
        extack::detach(index, kind.flags())?;
        bail!("the kernel attaches XDP to {interface} only for as long as the command runs; try --mode tc");
    };
    let path = pins.join(LINKS).join(format!("xdp_{slot}"));
    link.pin(&path).with_context(|| format!("cannot pin the XDP link as {}", path.display()))?;
    Ok(())
}

/// Attaches a raw tracepoint program by a link pinned as `links/NAME`.
pub fn tracepoint(program: &mut RawTracePoint, tracepoint: &str, pins: &Path) -> Result<()> {
    program.load().with_context(|| format!("cannot load the program that watches {tracepoint}"))?;
    let id = program.attach(tracepoint).with_context(|| format!("cannot watch the tracepoint {tracepoint}"))?;
    let link = FdLink::from(program.take_link(id).context("the tracepoint link vanished")?);
    let path = pins.join(LINKS).join(tracepoint);
    link.pin(&path).with_context(|| format!("cannot pin the tracepoint link as {}", path.display()))?;
    Ok(())
}

/// What the driver has against the program, in its own words where it has any.
fn refused(program: &Xdp, interface: &str, index: u32, kind: XdpKind, error: &ProgramError) -> anyhow::Error {
    let errno = match error {
        ProgramError::SyscallError(error) => error.io_error.to_string(),
        other => format!("{:#}", anyhow!("{other:?}")),
    };
    let words = program
        .fd()
        .ok()
        .and_then(|fd| extack::why_refused(index, fd.as_fd(), kind.flags()).ok())
        .and_then(|answer| answer.text);
    let name = match kind {
        XdpKind::Native => "native",
        XdpKind::Generic => "generic",
    };
    match words {
        Some(words) => {
            anyhow!("{interface} refuses {name} XDP: \"{words}\" ({errno}); change that, or load with --mode tc")
        }
        None => anyhow!("{interface} refuses {name} XDP: {errno}; load with --mode tc"),
    }
}

/// Which way packets go that a TC program sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// They arrive.
    Ingress,
    /// They leave.
    Egress,
}

impl Side {
    const fn kind(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    /// What begins the names of pins.
    pub const fn pin(self) -> &'static str {
        match self {
            Self::Ingress => "tc",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// Attaches a TC program to one side of an interface, by a link pinned as `links/tc_SLOT` or `links/egress_SLOT` where
/// there is tcx.
pub fn tc(
    program: &mut SchedClassifier,
    interface: &str,
    side: Side,
    tcx: bool,
    slot: u32,
    pins: &Path,
) -> Result<TcAttachment> {
    if tcx {
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = program
            .attach_with_options(interface, side.kind(), options)
            .with_context(|| format!("cannot attach to the TC {side} of {interface}"))?;
        let link = program.take_link(id).context("the TC link vanished")?;
        let link = FdLink::try_from(link).context("the TC link cannot be pinned")?;
        let path = pins.join(LINKS).join(format!("{}_{slot}", side.pin()));
        link.pin(&path).with_context(|| format!("cannot pin the TC link as {}", path.display()))?;
        return Ok(TcAttachment::Tcx);
    }
    // Fails when there is one already, or an `ingress` qdisc, which takes our filter as well.
    let added_qdisc = qdisc_add_clsact(interface).is_ok();
    let options = TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, handle: HANDLE, classid: None });
    let id = program
        .attach_with_options(interface, side.kind(), options)
        .with_context(|| format!("cannot add a filter to the TC {side} of {interface}"))?;
    let link = program.take_link(id).context("the TC filter vanished")?;
    // Dropping it would remove the filter, which must outlive this process.
    std::mem::forget(link);
    Ok(TcAttachment::Clsact { added_qdisc })
}

/// Removes the filter that [`tc`] made where there is no tcx.
pub fn remove_filter(interface: &str, side: Side) -> Result<()> {
    SchedClassifierLink::attached(interface, side.kind(), PRIORITY, HANDLE, None)
        .with_context(|| format!("cannot find {interface}"))?
        .detach()
        .with_context(|| format!("cannot remove our filter from the TC {side} of {interface}"))
}

/// Makes the directories that links and programs are pinned in.
pub fn make_directories(pins: &Path) -> Result<()> {
    for directory in [pins.to_owned(), pins.join(LINKS), pins.join(PROGRAMS)] {
        fs::create_dir_all(&directory).with_context(|| format!("cannot make the directory {}", directory.display()))?;
    }
    Ok(())
}

/// A loaded program that can be pinned.
pub trait Pinnable {
    /// Pins it at `path`.
    fn pin_at(&mut self, path: &Path) -> Result<(), PinError>;
}

impl Pinnable for Xdp {
    fn pin_at(&mut self, path: &Path) -> Result<(), PinError> {
        self.pin(path)
    }
}

impl Pinnable for SchedClassifier {
    fn pin_at(&mut self, path: &Path) -> Result<(), PinError> {
        self.pin(path)
    }
}

/// The name of an interface's own XDP program below `programs`.
pub fn xdp_pin(slot: u32) -> String {
    format!("xdp_{slot}")
}

/// Pins a program as `programs/NAME`, so that later commands find it.
pub fn pin_program(program: &mut impl Pinnable, pins: &Path, name: &str) -> Result<()> {
    let path = pins.join(PROGRAMS).join(name);
    program.pin_at(&path).with_context(|| format!("cannot pin a program as {}", path.display()))
}

/// Removes everything pinned in `pins`: XDP detaches first, then TC, then the maps go. No error when nothing is there.
pub fn remove_pins(pins: &Path) -> Result<()> {
    let links = pins.join(LINKS);
    let mut names: Vec<_> =
        fs::read_dir(&links).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    // "xdp_0" comes after "tc_0".
    names.sort();
    for name in names.iter().rev() {
        let path = links.join(name);
        // A link whose last holder is a file in bpffs goes some time after the file. One that a process holds goes when
        // that closes it, and the next `load` finds the interface free.
        let held = PinnedLink::from_pin(&path).ok();
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        drop(held);
    }
    match fs::remove_dir_all(pins) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", pins.display()))
        }
        _ => Ok(()),
    }
}

/// Whether a program is pinned as `programs/NAME`.
pub fn is_pinned(pins: &Path, name: &str) -> bool {
    pins.join(PROGRAMS).join(name).exists()
}

/// Opens the TC program pinned as `programs/NAME`.
pub fn classifier(pins: &Path, name: &str) -> Result<SchedClassifier> {
    let path = pins.join(PROGRAMS).join(name);
    SchedClassifier::from_pin(&path).with_context(|| format!("cannot open the pinned program {}", path.display()))
}

/// Opens an interface's XDP program; none where that was not to be used.
pub fn xdp_program(pins: &Path, slot: u32) -> Result<Option<Xdp>> {
    let path = pins.join(PROGRAMS).join(xdp_pin(slot));
    if !path.exists() {
        return Ok(None);
    }
    Xdp::from_pin(&path, XdpAttachType::Interface)
        .map(Some)
        .with_context(|| format!("cannot open the pinned program {}", path.display()))
}

/// Removes the links pinned for an interface's slot. XDP is detached; a TC link lives as long as what is returned, so that
/// another program can take its place first.
pub fn release_links(pins: &Path, slot: u32) -> Result<Option<PinnedLink>> {
    let [xdp, egress, tc] = ["xdp", "egress", "tc"].map(|hook| pins.join(LINKS).join(format!("{hook}_{slot}")));
    detach(&xdp)?;
    detach(&egress)?;
    let held = PinnedLink::from_pin(&tc).ok();
    remove_if_there(&tc)?;
    Ok(held)
}

/// Removes the link of an interface's slot for what leaves.
pub fn release_egress(pins: &Path, slot: u32) -> Result<()> {
    detach(&pins.join(LINKS).join(format!("{}_{slot}", Side::Egress.pin())))
}

/// Removes a pinned link and detaches it. As in [`remove_pins`]: what a process holds goes when that closes it.
fn detach(path: &Path) -> Result<()> {
    let detached = PinnedLink::from_pin(path).ok();
    remove_if_there(path)?;
    drop(detached);
    Ok(())
}

/// Removes the program pinned as `programs/NAME`; where it is attached it stays so.
pub fn release_program(pins: &Path, name: &str) -> Result<()> {
    remove_if_there(&pins.join(PROGRAMS).join(name))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The kernel's id of the program pinned as `programs/NAME`.
pub fn pinned_program(pins: &Path, name: &str) -> Result<u32> {
    let path = pins.join(PROGRAMS).join(name);
    let info =
        ProgramInfo::from_pin(&path).with_context(|| format!("cannot open the pinned program {}", path.display()))?;
    Ok(info.id())
}

/// The name of a loaded program, for messages; `None` when it is gone.
pub fn program_name(id: u32) -> Option<String> {
    let info = loaded_programs().filter_map(Result::ok).find(|info| info.id() == id)?;
    info.name_as_str().filter(|name| !name.is_empty()).map(str::to_owned)
}

/// Whether the program `id` is attached to the TC ingress of an interface by tcx.
pub fn is_attached_by_tcx(interface: &str, id: u32) -> bool {
    SchedClassifier::query_tcx(interface, TcAttachType::Ingress)
        .is_ok_and(|(_, programs)| programs.iter().any(|program| program.id() == id))
}
