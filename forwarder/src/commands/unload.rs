//! `unload`: nothing is forwarded any more, and the machine is as it was before `load`.

use std::{fs, io::Write, path::Path};

use anyhow::{Context as _, Error, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{not_loaded, pins_option, require_privileges};
use crate::{
    bpf::{
        attach::{self, TcAttachment},
        bpffs,
    },
    cli::Unload,
    machine::{ethtool, is_there, netlink, sysctl},
    serve::{egress, elsewhere, fallback_route},
    state::{AttachedInterface, State, StateFile},
};

/// Runs the command.
pub fn run(pins: &Path, options: &Unload, out: &mut dyn Write) -> Result<()> {
    require_privileges()?;
    let file = StateFile::of(pins);
    let _lock = file.lock()?;
    let state = match file.read() {
        Ok(state) => state,
        Err(_) if options.force => None,
        Err(error) => return Err(error),
    };
    let has_pins = pins.exists();
    let Some(state) = state else {
        return unload_remains(pins, &file, has_pins, options.force, out);
    };
    let here = state.is_here()?;
    if !here && !options.force {
        bail!(
            "{} was loaded in another network namespace; enter it: nsenter --net=/run/netns/NAME forwarder{} unload; \
             or, if that namespace is gone: forwarder{} unload --force",
            pins.display(),
            pins_option(pins),
            pins_option(pins)
        );
    }
    let mut failures = Vec::new();
    // The filters hold the programs where there is no tcx; XDP first, so that its packets still find TC.
    failures.extend(attach::remove_pins(pins).err());
    if here {
        restore(&state, &mut failures);
    }
    if state.mounted_bpffs && is_empty(Path::new(bpffs::MOUNT_POINT)) {
        failures.extend(bpffs::unmount().err());
    }
    failures.extend(file.remove().err());
    // One that this process cannot see, in another PID namespace, is process 0.
    if let Some(daemon) = file.daemon().filter(|process| *process > 0) {
        // It would find out with the next change of the machine.
        let _ = kill(Pid::from_raw(daemon), Signal::SIGTERM);
    }
    if !failures.is_empty() {
        let all: Vec<String> = failures.iter().map(|error| format!("{error:#}")).collect();
        bail!("unloaded, but not everything is as it was before:\n  {}", all.join("\n  "));
    }
    let names: Vec<&str> = state.interfaces.iter().map(|one| one.name.as_str()).collect();
    writeln!(out, "forwarder is unloaded from {}", names.join(", "))?;
    Ok(())
}

/// Unloads pins that no state describes.
fn unload_remains(pins: &Path, file: &StateFile, has_pins: bool, force: bool, out: &mut dyn Write) -> Result<()> {
    if !has_pins && !file.path().exists() {
        bail!("{}", not_loaded(pins));
    }
    if !force {
        bail!(
            "{} has pins, but {} is missing, which says what else to restore; to remove the pins alone: forwarder{} unload --force",
            pins.display(),
            file.path().display(),
            pins_option(pins)
        );
    }
    attach::remove_pins(pins)?;
    file.remove()?;
    writeln!(out, "removed {}", pins.display())?;
    Ok(())
}

/// Puts back what `load` changed besides the pins.
fn restore(state: &State, failures: &mut Vec<Error>) {
    for interface in &state.interfaces {
        failures.extend(remove_filter(interface).err());
        if interface.vlan_stripping_off && is_there(&interface.name, interface.index) {
            failures.extend(ethtool::set_vlan_stripping(&interface.name, true).err());
        }
    }
    failures.extend(state.elsewhere.iter().filter_map(|one| elsewhere::detach(&state.pins, one).err()));
    for name in &state.all_multicast {
        failures.extend(netlink::set_all_multicast(name, false).err());
    }
    failures.extend(fallback_route::remove(&mut state.fallback_routes.clone()).err());
    if state.sysctls.is_empty() {
        return;
    }
    match StateFile::another_here(state) {
        // The other instance needs the settings too, and puts them back when it goes.
        Ok(Some((file, mut other))) => {
            other.sysctls.extend(state.sysctls.iter().cloned());
            failures.extend(file.write(&other).err());
        }
        Ok(None) => failures.extend(state.sysctls.iter().filter_map(|sysctl| sysctl::restore(sysctl).err())),
        Err(error) => failures.push(error),
    }
}

/// Removes our TC filters where there is no tcx, and the qdisc if `load` added it and nobody else uses it.
pub fn remove_filter(interface: &AttachedInterface) -> Result<()> {
    egress::remove_filter(interface)?;
    let TcAttachment::Clsact { added_qdisc } = interface.tc else { return Ok(()) };
    if !is_there(&interface.name, interface.index) {
        return Ok(());
    }
    attach::remove_filter(&interface.name, attach::Side::Ingress)?;
    if added_qdisc {
        netlink::remove_unused_clsact(interface.index)
            .with_context(|| format!("cannot remove the clsact qdisc of {}", interface.name))?;
    }
    Ok(())
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}
