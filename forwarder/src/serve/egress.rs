//! The programs for what the machine itself sends: on every interface that is served, as long as there is a `[[steer]]`.

use std::path::Path;

use anyhow::Result;
use aya::programs::SchedClassifier;

use crate::{
    bpf::{
        attach::{self, Side, TcAttachment},
        load::{self, Globals},
        tables::{self, Tables},
    },
    machine::is_there,
    state::{AttachedInterface, State},
};

/// The program of an interface; also the name of its pin.
pub const fn program(has_link_header: bool) -> &'static str {
    if has_link_header { load::EGRESS } else { load::EGRESS_L3 }
}

/// Opens the program where it is pinned, and loads and pins it where it is not.
pub fn prepared(pins: &Path, log_level: u8, has_link_header: bool) -> Result<SchedClassifier> {
    let name = program(has_link_header);
    if !attach::is_pinned(pins, name) {
        let sizes = tables::map_sizes(&Tables::open(pins)?.sizes());
        let globals = Globals { slot: 0, mac: [0; 6], log_level, record: false };
        let mut bpf = load::open(pins, &sizes, globals)?;
        attach::pin_program(load::classifier(&mut bpf, name)?, pins, name)?;
    }
    attach::classifier(pins, name)
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
    for attached in state.interfaces.iter_mut().filter(|one| one.egress.is_none() && is_there(&one.name, one.index)) {
        let slot = attached.slot;
        // What a command that died half-way may have left.
        attach::release_egress(pins, slot)?;
        attach(pins, &mut prepared(pins, log_level, attached.mac.is_some())?, attached)?;
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
    [load::EGRESS, load::EGRESS_L3].iter().try_for_each(|name| attach::release_program(pins, name))
}

/// Removes the filter where there is no tcx.
pub fn remove_filter(attached: &AttachedInterface) -> Result<()> {
    if !matches!(attached.egress, Some(TcAttachment::Clsact { .. })) || !is_there(&attached.name, attached.index) {
        return Ok(());
    }
    attach::remove_filter(&attached.name, Side::Egress)
}
