//! `reload`, and what it shares with `add`, `remove` and the daemon: from what runs to what is wanted, by the difference.

use std::{collections::BTreeSet, fs, io::Write, net::IpAddr, path::Path};

use anyhow::{Context as _, Result, bail};
use forwarder_common::abi::Rule;

use super::{
    Instance, as_followed, describe_masquerades, describe_neighbors, describe_rules, describe_steers, guard,
    read_config, require_privileges,
};
use crate::{
    bpf::{self, tables::Tables},
    cli::Reload,
    config::{Compiled, Config, Family, FamilyTables, LogLevel, Mode},
    machine::{Machine, netlink::Netlink, sockets},
    reconcile::{self, Changes},
    serve::{egress, elsewhere, fallback_route, groups},
    state::{State, StateFile, uplinks},
};

/// What became of the rules, and of flows whose rule or address is gone.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// By rule.
    pub changes: Changes,
    /// Whether anything was written.
    pub any: bool,
    /// The addresses that the machine has lost since, if no rule names them any more.
    pub lost: BTreeSet<IpAddr>,
    /// How many flows ended with them, or with their rule.
    pub ended: usize,
}

/// Runs the command.
pub async fn run(pins: &Path, options: &Reload, out: &mut dyn Write) -> Result<()> {
    require_privileges()?;
    let file = StateFile::of(pins);
    let _lock = file.lock()?;
    let mut instance = Instance::open(pins)?;
    instance.must_be_here()?;
    let reloaded = reload(&mut instance, options).await?;
    for warning in &reloaded.warnings {
        eprintln!("{warning}");
    }
    file.wake_daemon();
    report(out, &reloaded.applied.changes)
}

/// A file that was read and is in force.
#[derive(Clone, Debug)]
pub struct Reloaded {
    /// What became of the rules.
    pub applied: Applied,
    /// What there is to say short of errors, ready to be printed.
    pub warnings: Vec<String>,
}

/// Puts a configuration file into force; the caller holds the lock.
pub async fn reload(instance: &mut Instance, options: &Reload) -> Result<Reloaded> {
    let path = match (&options.config, &instance.state.config_path) {
        (Some(path), _) => fs::canonicalize(path).unwrap_or_else(|_| path.clone()),
        (None, Some(path)) => path.clone(),
        (None, None) => bail!("it was loaded without a configuration; name one: forwarder reload --config FILE"),
    };
    let draft = read_config(&path)?;
    let (machine, _) = Netlink::connect()?.machine(&draft.backends()).await?;
    let machine = as_followed(machine, &instance.file)?;
    let (mut config, compiled) = draft.compile(&machine)?;
    let mut warnings: Vec<String> = compiled.warnings.iter().map(ToString::to_string).collect();
    let differences = keep_what_load_decided(&mut config, instance);
    if !options.force {
        guard::refuse_to_cut_ssh(&compiled)?;
    }
    instance.state.config_path = Some(path);
    let applied = apply(instance, config, &compiled, &machine)?;
    let services = guard::shadowed_services(&compiled, &sockets::listeners());
    let obstacles = guard::lines::obstacles(&compiled, &machine);
    warnings.extend(
        differences.into_iter().chain(services).chain(obstacles).map(|sentence| format!("warning: {sentence}")),
    );
    Ok(Reloaded { applied, warnings })
}

/// Interfaces, mode, log level and limits change only with `unload` and `load`; a sentence for each that differs.
fn keep_what_load_decided(config: &mut Config, instance: &Instance) -> Vec<String> {
    let running = &instance.state.config;
    let differs = !config.interfaces.is_empty() && config.interfaces != running.interfaces;
    // What the file leaves out was perhaps said on the command line of `load`.
    let mode = config.mode != Mode::default() && config.mode != running.mode;
    let log = config.log != LogLevel::default() && config.log != running.log;
    let differences =
        [("interfaces", differs), ("mode", mode), ("log level", log), ("limits", config.limits != running.limits)];
    config.interfaces.clone_from(&running.interfaces);
    config.mode = running.mode;
    config.log = running.log;
    config.limits = running.limits;
    let sentence =
        |(what, _)| format!("{what} of the configuration differ from what was loaded; unload and load to change them");
    differences.into_iter().filter(|(_, differs)| *differs).map(sentence).collect()
}

/// Turns what runs into `config`. Nothing changes unless all of it fits.
pub fn apply(instance: &mut Instance, config: Config, compiled: &Compiled, machine: &Machine) -> Result<Applied> {
    let mut tables = Tables::open(&instance.pins)?;
    let running = tables.running(instance.state.counters.clone())?;
    let plan = reconcile::plan(&running, compiled)?;
    let before = instance.state.clone();
    let old_generation = running.generation;
    let mut lost: BTreeSet<IpAddr> = before.addresses.difference(&machine.addresses()).copied().collect();
    keep_named(&mut lost, &compiled.v4);
    keep_named(&mut lost, &compiled.v6);
    let state = &mut instance.state;
    state.rules = describe_rules(&config, compiled);
    state.masquerades = describe_masquerades(&config, compiled);
    state.steers = describe_steers(&config, compiled);
    state.uplinks = uplinks::describe(&config, machine, &state.uplinks);
    state.neighbors = describe_neighbors(&config, compiled);
    state.waiting = compiled.warnings.waiting().map(str::to_owned).collect();
    state.config = config;
    state.counters = plan.counters_meanwhile;
    // Before the first write: a command that dies half-way must not leave counters that nobody knows.
    instance.file.update(&instance.state)?;
    // Before the first line is, and not before the last has gone: no packet of ours finds its line half in force.
    let steers = !instance.state.config.steers.is_empty();
    let attached = if steers {
        egress::attach_all(&instance.pins, &mut instance.state)
            .and_then(|()| elsewhere::keep(&instance.pins, &mut instance.state, machine))
    } else {
        Ok(())
    };
    if let Err(error) = attached.and_then(|()| tables.execute(&plan.operations)) {
        return Err(match restore(&tables, instance, before, old_generation) {
            Ok(()) => error.context("nothing was changed"),
            Err(worse) => error.context(format!(
                "the change stopped half-way and could not be taken back ({worse:#}); packets see the old or the new rules; \
                 repeat the command, or unload and load"
            )),
        });
    }
    if !steers {
        egress::detach_all(&instance.pins, &mut instance.state)?;
        elsewhere::keep(&instance.pins, &mut instance.state, machine)?;
        fallback_route::remove(&mut instance.state.fallback_routes)?;
    }
    let removed: Vec<u32> = plan.changes.removed.iter().map(|(_, counter)| *counter).collect();
    let ended =
        if removed.is_empty() && lost.is_empty() { 0 } else { bpf::flows::end(&instance.pins, &removed, &lost)? };
    instance.state.counters = plan.counters;
    groups::receive(&mut instance.state, compiled)?;
    // Last: should this process die before, the next change ends the flows.
    instance.state.addresses = machine.addresses();
    instance.file.update(&instance.state)?;
    Ok(Applied { changes: plan.changes, any: !plan.operations.is_empty(), lost, ended })
}

/// Flows of an address that a rule names by itself go on without the address, as the rule does.
fn keep_named<A: Family>(lost: &mut BTreeSet<IpAddr>, tables: &FamilyTables<A>) {
    if lost.is_empty() {
        return;
    }
    for rule in &tables.rules {
        let Rule { listen, source, .. } = rule.body;
        lost.remove(&listen.ip());
        lost.remove(&source.ip());
    }
}

/// Puts the state file back where no write of the plan has taken effect; else the maps have gone too far.
fn restore(tables: &Tables, instance: &mut Instance, before: State, old_generation: u32) -> Result<()> {
    if tables.settings()?.generation != old_generation {
        bail!("the new rules are in force already");
    }
    if before.config.steers.is_empty() {
        egress::detach_all(&instance.pins, &mut instance.state)?;
    }
    for one in instance.state.elsewhere.iter().filter(|one| !before.elsewhere.contains(one)) {
        elsewhere::detach(&instance.pins, one)?;
    }
    instance.state = before;
    instance.file.write(&instance.state).context("the state file")
}

/// Warns of rules that take clients from services of this machine.
pub fn warn_of_shadowed_services(compiled: &Compiled) {
    for sentence in guard::shadowed_services(compiled, &sockets::listeners()) {
        eprintln!("warning: {sentence}");
    }
}

/// Prints what changed.
pub fn report(out: &mut dyn Write, changes: &Changes) -> Result<()> {
    let removed: Vec<String> = changes.removed.iter().map(|(name, _)| name.clone()).collect();
    for (what, names) in [("added", &changes.added), ("changed", &changes.changed), ("removed", &removed)] {
        if !names.is_empty() {
            writeln!(out, "{what}: {}", names.join(", "))?;
        }
    }
    let unchanged = changes.unchanged.len();
    writeln!(out, "{unchanged} rule{} unchanged", if unchanged == 1 { "" } else { "s" })?;
    Ok(())
}
