//! The programs for what the machine itself sends: on every interface that is served, as long as there is a `[[steer]]`.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::programs::SchedClassifier;

use crate::{
    bpf::{
        attach::{self, Programs, Side, TcAttachment},
        load::{self, Ebpf, Globals},
        tables::{self, Tables},
    },
    commands::unload::is_there,
    state::{AttachedInterface, State},
};

/// Pins the program for an interface's slot; it is not attached yet.
pub fn pin(pins: &Path, bpf: &mut Ebpf, has_link_header: bool, slot: u32) -> Result<()> {
    let program = if has_link_header { load::EGRESS } else { load::EGRESS_L3 };
    attach::pin_program(load::classifier(bpf, program)?, pins, "egress", slot)
}

/// Attaches it, in the way that the program for what arrives is.
pub fn attach(pins: &Path, program: &mut SchedClassifier, attached: &mut AttachedInterface) -> Result<()> {
    let tcx = attached.tc == TcAttachment::Tcx;
    let how = attach::tc(program, &attached.name, Side::Egress, tcx, attached.slot, pins)?;
    attached.egress = Some(how);
    Ok(())
}

/// Attaches them to all interfaces that are there and do not have them yet: something is steered now.
pub fn attach_all(pins: &Path, state: &mut State) -> Result<()> {
    let log_level = state.config.log as u8;
    for attached in state.interfaces.iter_mut().filter(|one| one.egress.is_none() && is_there(one)) {
        let slot = attached.slot;
        // What a command that died half-way may have left.
        attach::release_egress(pins, slot)?;
        let sizes = tables::map_sizes(&Tables::open(pins)?.sizes());
        let globals = Globals { slot, mac: attached.mac.unwrap_or_default(), log_level, record: false };
        pin(pins, &mut load::open(pins, &sizes, globals)?, attached.mac.is_some(), slot)?;
        let mut program = Programs::open(pins, slot)?.egress.context("a program that was pinned just now is gone")?;
        attach(pins, &mut program, attached)?;
    }
    Ok(())
}

/// Removes them from all interfaces: nothing is steered any more.
pub fn detach_all(pins: &Path, state: &mut State) -> Result<()> {
    for attached in &mut state.interfaces {
        attach::release_egress(pins, attached.slot)?;
        remove_filter(attached)?;
        attached.egress = None;
    }
    Ok(())
}

/// Removes the filter where there is no tcx.
pub fn remove_filter(attached: &AttachedInterface) -> Result<()> {
    if !matches!(attached.egress, Some(TcAttachment::Clsact { .. })) || !is_there(attached) {
        return Ok(());
    }
    attach::remove_filter(&attached.name, Side::Egress)
}
