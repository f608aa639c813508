//! The default route that is there so that the kernel sends what is to be steered, where there is no other: programs see
//! only what routing has sent somewhere. It is the last that the kernel takes.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::{
    config::Compiled,
    machine::{
        Machine,
        netlink::{self, FallbackRoute, Netlink},
    },
};

/// What is needed on this machine: for each family, by the first line that there is.
pub fn needed(compiled: &Compiled, machine: &Machine) -> Vec<FallbackRoute> {
    let Some(kernel) = machine.kernel.as_ref().filter(|_| compiled.fallback_route) else { return Vec::new() };
    let leads_out = |index: u32| machine.interfaces.iter().any(|one| one.index == index && one.up);
    let lines = || compiled.steers.iter().flat_map(|steer| &steer.lines).filter(|line| leads_out(line.interface));
    let families = [false, true].into_iter().zip(&kernel.default_by).filter(|(_, by)| by.is_empty());
    families
        .filter_map(|(v6, _)| {
            let line = lines().find(|line| line.from.addr().is_ipv6() == v6)?;
            Some(FallbackRoute { v6, interface: line.interface, gateway: line.gateway })
        })
        .collect()
}

/// Adds what is missing and removes what this instance has added and needs no more; a sentence for each.
pub async fn keep(
    netlink: &Netlink,
    compiled: &Compiled,
    machine: &Machine,
    added: &mut BTreeSet<FallbackRoute>,
) -> Result<Vec<String>> {
    let Some(kernel) = &machine.kernel else { return Ok(Vec::new()) };
    let needed = needed(compiled, machine);
    let mut there = kernel.fallback_routes.clone();
    let mut sentences = Vec::new();
    // What went with its interface is nothing to remove.
    added.retain(|route| there.contains(route));
    for route in added.clone().into_iter().filter(|route| !needed.contains(route)) {
        netlink.remove_fallback_route(&route).await?;
        there.remove(&route);
        added.remove(&route);
        sentences
            .push(format!("the default route for {} that was added is removed: it is needed no more", route.family()));
    }
    // One is enough, also if another instance has added it.
    for route in needed.into_iter().filter(|route| !there.iter().any(|other| other.v6 == route.v6)) {
        netlink.add_fallback_route(&route).await?;
        added.insert(route);
        let interface = machine.interfaces.iter().find(|one| one.index == route.interface);
        let name = interface.map_or("?", |interface| &interface.name);
        sentences.push(format!(
            "there is no default route for {}: added one of the lowest preference by {name}, so that the kernel sends what is to \
             be steered",
            route.family()
        ));
    }
    Ok(sentences)
}

/// Removes what was added.
pub fn remove(added: &mut BTreeSet<FallbackRoute>) -> Result<()> {
    while let Some(route) = added.first().copied() {
        netlink::remove_fallback_route(route)?;
        added.remove(&route);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
