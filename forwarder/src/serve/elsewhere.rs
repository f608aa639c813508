//! The programs for what the machine itself sends, on interfaces that are not served: wherever routing may send what is
//! to be steered, before it is.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::{
    bpf::{
        attach::{self, Side, TcAttachment},
        features,
    },
    machine::{Interface, Machine, is_there, netlink},
    serve::egress,
    state::State,
};

/// An interface that is not served and has the program for what leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elsewhere {
    /// Its name when that was attached.
    pub name: String,
    /// The kernel's index.
    pub index: u32,
    /// How it hangs on it.
    pub how: TcAttachment,
}

impl Elsewhere {
    /// What tells its link from those of slots, and of others like it.
    const fn pin(index: u32) -> u32 {
        (1 << 31) | index
    }
}

/// Where they are wanted: by routes that lead elsewhere, on interfaces that are not served.
pub fn wanted<'m>(state: &State, machine: &'m Machine) -> Vec<&'m Interface> {
    let Some(kernel) = machine.kernel.as_ref().filter(|_| !state.config.steers.is_empty()) else { return Vec::new() };
    let served: BTreeSet<&str> = state.config.interfaces.iter().map(|name| name.value.as_str()).collect();
    let is_served = |one: &Interface| {
        served.contains(one.name.as_str()) || state.interfaces.iter().any(|other| other.index == one.index)
    };
    let led_to = machine.interfaces.iter().filter(|one| kernel.leads_by.contains(&one.index));
    led_to.filter(|one| one.name != "lo" && !is_served(one)).collect()
}

/// Attaches them where they are wanted and not there yet, and removes those that are wanted no more.
pub fn keep(pins: &Path, state: &mut State, machine: &Machine) -> Result<()> {
    let wanted = wanted(state, machine);
    let is_wanted = |one: &Elsewhere| wanted.iter().any(|other| other.index == one.index && other.name == one.name);
    let (stay, go): (Vec<_>, Vec<_>) = std::mem::take(&mut state.elsewhere).into_iter().partition(is_wanted);
    state.elsewhere = stay;
    for one in &go {
        detach(pins, one)?;
    }
    let by_clsact = state.interfaces.iter().any(|one| matches!(one.tc, TcAttachment::Clsact { .. }));
    let tcx = features::has_tcx() && !by_clsact;
    for interface in wanted {
        if state.elsewhere.iter().any(|one| one.index == interface.index) {
            continue;
        }
        // What a command that died half-way may have left.
        attach::release_egress(pins, Elsewhere::pin(interface.index))?;
        let mut program = egress::prepared(pins, state.config.log as u8, interface.has_link_header)?;
        let how = attach::tc(&mut program, &interface.name, Side::Egress, tcx, Elsewhere::pin(interface.index), pins)?;
        state.elsewhere.push(Elsewhere { name: interface.name.clone(), index: interface.index, how });
    }
    Ok(())
}

/// Removes one, if its interface is still there.
pub fn detach(pins: &Path, one: &Elsewhere) -> Result<()> {
    attach::release_egress(pins, Elsewhere::pin(one.index))?;
    let TcAttachment::Clsact { added_qdisc } = one.how else { return Ok(()) };
    if !is_there(&one.name, one.index) {
        return Ok(());
    }
    attach::remove_filter(&one.name, Side::Egress)?;
    if added_qdisc {
        netlink::remove_unused_clsact(one.index)
            .with_context(|| format!("cannot remove the clsact qdisc of {}", one.name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
