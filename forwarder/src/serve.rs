//! Serving an interface: its programs, loaded with its globals, pinned, attached. What `load` does for every interface, and
//! the daemon for one that appears later or comes back as another.

pub mod egress;
pub mod elsewhere;
pub mod fallback_route;
pub mod groups;

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::programs::{SchedClassifier, Xdp};

use crate::{
    bpf::{
        attach::{self, Side, TcAttachment, XdpKind},
        features, interfaces,
        load::{self, Globals, Sizes},
        mode::{self, Choice, Facts},
        tables::{self, Tables},
    },
    config::Mode,
    machine::{
        ethtool,
        netlink::Link,
        xdp_features::{self, XdpFeatures},
    },
    state::{AttachedInterface, State},
    undo::Undo,
};

/// Which hook serves the interface, and why.
pub fn choose(requested: Mode, link: &Link) -> Choice {
    let driver = ethtool::driver(&link.interface.name);
    let facts = Facts {
        kind: link.kind.as_deref(),
        driver: driver.as_deref(),
        has_link_header: link.interface.has_link_header,
        redirects: xdp_features::of(link.interface.index).ok().map(XdpFeatures::redirects),
    };
    mode::choose(requested, facts)
}

/// The TC ingress program of an interface; also the name of its pin.
pub const fn ingress_program(has_link_header: bool) -> &'static str {
    if has_link_header { load::TC } else { load::TC_L3 }
}

/// The programs of an interface. Those of TC are the same for all: verifying them takes a while, attaching does not.
pub struct Programs {
    tc: SchedClassifier,
    /// None where nothing is steered.
    egress: Option<SchedClassifier>,
    /// None where XDP is not to be used.
    xdp: Option<Xdp>,
}

/// Opens the programs of an interface that are pinned, and loads and pins the others; nothing is attached yet.
pub fn prepare(pins: &Path, sizes: &Sizes, state: &State, slot: u32, link: &Link) -> Result<Programs> {
    let has_link_header = link.interface.has_link_header;
    let tc = ingress_program(has_link_header);
    let egress = (!state.config.steers.is_empty()).then(|| egress::program(has_link_header));
    let wants_xdp = choose(state.config.mode, link).mode != Mode::Tc;
    let xdp = attach::xdp_pin(slot);
    let missing: Vec<&str> = [tc].into_iter().chain(egress).filter(|name| !attach::is_pinned(pins, name)).collect();
    let xdp_is_missing = wants_xdp && !attach::is_pinned(pins, &xdp);
    if !missing.is_empty() || xdp_is_missing {
        let mac = link.interface.mac.unwrap_or_default();
        let globals = Globals { slot, mac, log_level: state.config.log as u8, record: false };
        let mut bpf = load::open(pins, sizes, globals)?;
        for name in missing {
            attach::pin_program(load::classifier(&mut bpf, name)?, pins, name)?;
        }
        if xdp_is_missing {
            attach::pin_program(load::xdp(&mut bpf, slot)?, pins, &xdp)?;
        }
    }
    Ok(Programs {
        tc: attach::classifier(pins, tc)?,
        egress: egress.map(|name| attach::classifier(pins, name)).transpose()?,
        xdp: if wants_xdp { attach::xdp_program(pins, slot)? } else { None },
    })
}

/// Attaches TC.
pub fn attach_tc(
    pins: &Path,
    programs: &mut Programs,
    slot: u32,
    link: &Link,
    tcx: bool,
    undo: &mut Undo<'_>,
) -> Result<AttachedInterface> {
    let name = &link.interface.name;
    let mut attached = AttachedInterface {
        name: name.clone(),
        index: link.interface.index,
        mac: link.interface.mac,
        slot,
        mode: Mode::Tc,
        why: String::new(),
        tc: TcAttachment::Tcx,
        egress: None,
        vlan_stripping_off: false,
        xdp_out: false,
    };
    interfaces::serve(pins, attached.index, attached.seen_by_programs())?;
    let tc = attach::tc(&mut programs.tc, name, Side::Ingress, tcx, slot, pins)?;
    attached.tc = tc;
    if let TcAttachment::Clsact { .. } = tc {
        let attached = attached.clone();
        undo.push(format!("removing the TC filter of {name}"), move || {
            crate::commands::unload::remove_filter(&attached)
        });
    }
    if let Some(program) = &mut programs.egress {
        egress::attach(pins, program, &mut attached)?;
        let attached = attached.clone();
        undo.push(format!("removing the TC filter of {name}"), move || egress::remove_filter(&attached));
    }
    Ok(attached)
}

/// Attaches XDP where the mode has it. A driver's refusal is an error, except that `auto` then uses TC.
pub fn attach_xdp(
    pins: &Path,
    programs: &mut Programs,
    link: &Link,
    requested: Mode,
    attached: &mut AttachedInterface,
    undo: &mut Undo<'_>,
) -> Result<()> {
    let Choice { mode, why } = choose(requested, link);
    attached.why = why;
    let kind = match mode {
        Mode::Native => XdpKind::Native,
        Mode::Generic => XdpKind::Generic,
        Mode::Tc | Mode::Auto => return Ok(()),
    };
    let name = &link.interface.name;
    // A NIC that takes VLAN tags out would show XDP the packets of every VLAN as its own.
    if kind == XdpKind::Native && ethtool::strips_vlan_tags(name) {
        match ethtool::set_vlan_stripping(name, false) {
            Ok(()) => {
                attached.vlan_stripping_off = true;
                let name = name.clone();
                undo.push(format!("switching rx-vlan-offload of {name} on again"), move || {
                    ethtool::set_vlan_stripping(&name, true)
                });
            }
            Err(error) => {
                let error = error.context(format!(
                    "{name} takes VLAN tags out of packets before XDP sees them, and those of its VLANs would be taken for its own"
                ));
                return fall_back(error, requested, attached);
            }
        }
    }
    let program = programs.xdp.as_mut().context("its XDP program is not loaded")?;
    match attach::xdp(program, name, link.interface.index, kind, attached.slot, pins) {
        Ok(()) => attached.mode = mode,
        Err(error) => {
            if std::mem::take(&mut attached.vlan_stripping_off) {
                ethtool::set_vlan_stripping(name, true)?;
            }
            return fall_back(error, requested, attached);
        }
    }
    Ok(())
}

fn fall_back(error: anyhow::Error, requested: Mode, attached: &mut AttachedInterface) -> Result<()> {
    if requested != Mode::Auto {
        return Err(error);
    }
    attached.why = format!("native XDP does not work: {error:#}");
    Ok(())
}

/// Finds out whether XDP elsewhere may send out of the interface.
pub fn ask_whether_out(attached: &mut AttachedInterface) {
    if attached.mode != Mode::Native {
        return;
    }
    // Kernels before 6.3 do not say; then the driver that runs our program is trusted to take its packets.
    attached.xdp_out = xdp_features::of(attached.index).map_or(true, XdpFeatures::takes_redirected);
    if !attached.xdp_out {
        attached.why += "; XDP cannot send out of it (a veth needs GRO at its other end), so that goes by TC";
    }
}

/// Attaches to an interface that the running instance does not serve yet: it has appeared, or is another than it was.
/// What it had in this slot goes; TC last, so that no packet of an interface that stays finds nothing.
pub fn attach_anew(
    pins: &Path,
    state: &State,
    slot: u32,
    link: &Link,
    before: Option<&AttachedInterface>,
) -> Result<AttachedInterface> {
    let by_clsact = |attached: &AttachedInterface| matches!(attached.tc, TcAttachment::Clsact { .. });
    let tcx = features::has_tcx() && !state.interfaces.iter().any(by_clsact);
    if let Some(before) = before.filter(|before| before.index == link.interface.index) {
        crate::commands::unload::remove_filter(before)?;
    }
    let held = attach::release_links(pins, slot)?;
    // Its XDP program is still good if it would be the same.
    if before.is_none_or(|before| before.mac != link.interface.mac) {
        attach::release_program(pins, &attach::xdp_pin(slot))?;
    }
    let sizes = tables::map_sizes(&Tables::open(pins)?.sizes());
    let mut programs = prepare(pins, &sizes, state, slot, link)?;
    let mut undo = Undo::default();
    let owned = pins.to_owned();
    undo.push("detaching from an interface", move || attach::release_links(&owned, slot).map(drop));
    let mut attached = attach_tc(pins, &mut programs, slot, link, tcx, &mut undo)?;
    drop(held);
    let requested = state.config.mode;
    attach_xdp(pins, &mut programs, link, requested, &mut attached, &mut undo)
        .with_context(|| format!("cannot attach XDP to {}", link.interface.name))?;
    ask_whether_out(&mut attached);
    undo.keep();
    Ok(attached)
}
