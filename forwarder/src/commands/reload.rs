//! `reload`, and what it shares with `add` and `remove`: from what runs to what is wanted, by the difference.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::{Instance, describe_masquerades, describe_rules, guard, print_warnings, read_config, require_privileges};
use crate::{
    bpf::{self, tables::Tables},
    cli::Reload,
    config::{Compiled, Config, LogLevel, Mode},
    machine::{netlink::Netlink, sockets},
    reconcile::{self, Changes},
    state::StateFile,
};

/// Runs the command.
pub async fn run(pins: &Path, options: &Reload, out: &mut dyn Write) -> Result<()> {
    require_privileges()?;
    let _lock = StateFile::of(pins).lock()?;
    let mut instance = Instance::open(pins)?;
    instance.must_be_here()?;
    let path = match (&options.config, &instance.state.config_path) {
        (Some(path), _) => fs::canonicalize(path).unwrap_or_else(|_| path.clone()),
        (None, Some(path)) => path.clone(),
        (None, None) => bail!("it was loaded without a configuration; name one: forwarder reload --config FILE"),
    };
    let draft = read_config(&path)?;
    let (machine, _) = Netlink::connect()?.machine(&draft.backends()).await?;
    let (mut config, compiled) = draft.compile(&machine)?;
    print_warnings(&compiled.warnings);
    keep_what_load_decided(&mut config, &instance);
    if !options.force {
        guard::refuse_to_cut_ssh(&compiled)?;
    }
    instance.state.config_path = Some(PathBuf::from(&path));
    let changes = apply(&mut instance, config, &compiled)?;
    report(out, &changes)
}

/// Interfaces, mode, log level and limits change only with `unload` and `load`; says so where they differ.
fn keep_what_load_decided(config: &mut Config, instance: &Instance) {
    let running = &instance.state.config;
    let differs = !config.interfaces.is_empty() && config.interfaces != running.interfaces;
    // What the file leaves out was perhaps said on the command line of `load`.
    let mode = config.mode != Mode::default() && config.mode != running.mode;
    let log = config.log != LogLevel::default() && config.log != running.log;
    for (what, differs) in
        [("interfaces", differs), ("mode", mode), ("log level", log), ("limits", config.limits != running.limits)]
    {
        if differs {
            eprintln!(
                "warning: {what} of the configuration differ from what was loaded; unload and load to change them"
            );
        }
    }
    config.interfaces.clone_from(&running.interfaces);
    config.mode = running.mode;
    config.log = running.log;
    config.limits = running.limits;
}

/// Turns what runs into `config`. Nothing changes unless all of it fits.
pub fn apply(instance: &mut Instance, config: Config, compiled: &Compiled) -> Result<Changes> {
    let mut tables = Tables::open(&instance.pins)?;
    let running = tables.running(instance.state.counters.clone())?;
    let plan = reconcile::plan(&running, compiled)?;
    let before = instance.state.clone();
    let old_generation = running.generation;
    instance.state.rules = describe_rules(&config, compiled);
    instance.state.masquerades = describe_masquerades(&config, compiled);
    instance.state.config = config;
    instance.state.counters = plan.counters_meanwhile;
    // Before the first write: a command that dies half-way must not leave counters that nobody knows.
    instance.file.write(&instance.state)?;
    if let Err(error) = tables.execute(&plan.operations) {
        return Err(match restore(&tables, instance, before, old_generation) {
            Ok(()) => error.context("nothing was changed"),
            Err(worse) => error.context(format!(
                "the change stopped half-way and could not be taken back ({worse:#}); packets see the old or the new rules; \
                 repeat the command, or unload and load"
            )),
        });
    }
    instance.state.counters = plan.counters;
    instance.file.write(&instance.state)?;
    let removed: Vec<u32> = plan.changes.removed.iter().map(|(_, counter)| *counter).collect();
    if !removed.is_empty() {
        bpf::flows::end(&instance.pins, &removed)?;
    }
    for sentence in guard::shadowed_services(compiled, &sockets::listeners()) {
        eprintln!("warning: {sentence}");
    }
    Ok(plan.changes)
}

/// Puts the state file back where no write of the plan has taken effect; else the maps have gone too far.
fn restore(tables: &Tables, instance: &mut Instance, before: crate::state::State, old_generation: u32) -> Result<()> {
    if tables.settings()?.generation != old_generation {
        bail!("the new rules are in force already");
    }
    instance.state = before;
    instance.file.write(&instance.state).context("the state file")
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
