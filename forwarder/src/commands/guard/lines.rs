//! What keeps a `[[steer]]` from working that is not in the configuration: the kernel has to send the machine's own packets
//! at all, and has to take what comes in by the line.

use std::collections::BTreeSet;

use crate::{
    config::{Compiled, Line},
    machine::{Kernel, Machine},
};

/// A sentence for each obstacle.
pub fn obstacles(compiled: &Compiled, machine: &Machine) -> Vec<String> {
    let Some(kernel) = &machine.kernel else { return Vec::new() };
    // `forwarder run` adds a default route itself.
    let is_added = machine.followed && compiled.fallback_route;
    let mut sentences = Vec::new();
    for steer in &compiled.steers {
        let label = format!("steer \"{}\": ", steer.name);
        for v6 in [false, true] {
            let lines: Vec<&Line> = steer.lines.iter().filter(|line| line.from.addr().is_ipv6() == v6).collect();
            if lines.is_empty() {
                continue;
            }
            let missing = default_route(kernel, &lines, v6).filter(|_| !is_added);
            sentences.extend(missing.map(|sentence| label.clone() + &sentence));
            if v6 {
                continue;
            }
            let strict = |line: &&&Line| kernel.strict.contains(&line.interface) && !is_default(kernel, line);
            let names: BTreeSet<&str> = lines.iter().filter(strict).map(|line| line.interface_name.as_str()).collect();
            sentences.extend(names.into_iter().map(|name| {
                format!(
                    "{label}reverse-path filtering of {name} is strict, and the kernel knows of no way back by it: it drops what \
                     comes in there for services of this machine; try: sysctl -w net.ipv4.conf.{name}.rp_filter=2"
                )
            }));
        }
    }
    sentences
}

fn is_default(kernel: &Kernel, line: &Line) -> bool {
    let [v4, _] = &kernel.default_by;
    v4.contains(&line.interface)
}

/// That the kernel sends nothing to elsewhere.
fn default_route(kernel: &Kernel, lines: &[&Line], v6: bool) -> Option<String> {
    let [v4_by, v6_by] = &kernel.default_by;
    let (family, option, by) = if v6 { ("IPv6", " -6", v6_by) } else { ("IPv4", "", v4_by) };
    let line = lines.iter().find(|line| line.interface != 0).filter(|_| by.is_empty())?;
    let via = line.gateway.map(|gateway| format!("via {gateway} ")).unwrap_or_default();
    Some(format!(
        "this machine has no default route for {family}, so the kernel sends nothing to elsewhere that could be steered; try, \
         of the lowest preference: ip{option} route add default {via}dev {} metric 4000000; or `forwarder run`, which adds one",
        line.interface_name
    ))
}

#[cfg(test)]
mod tests;
