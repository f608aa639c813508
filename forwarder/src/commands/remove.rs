//! `remove`: one rule less, at once. Its flows end with it.

use std::{io::Write, path::Path};

use anyhow::Result;

use super::{Instance, add::SavedConfig, as_followed, invalid, print_warnings, reload, require_privileges};
use crate::{
    cli::Remove,
    config::{self, edit},
    machine::netlink::Netlink,
    state::StateFile,
};

/// Runs the command.
pub async fn run(pins: &Path, options: &Remove, out: &mut dyn Write) -> Result<()> {
    require_privileges()?;
    let file = StateFile::of(pins);
    let _lock = file.lock()?;
    let mut instance = Instance::open(pins)?;
    instance.must_be_here()?;
    let config = instance.state.config.without(&options.name)?;
    let (machine, _) = Netlink::connect()?.machine(&config.backends()).await?;
    let machine = as_followed(machine, &file)?;
    let compiled = config::compile(&config, &machine)?;
    print_warnings(&compiled.warnings);
    let saved = options
        .save
        .then(|| {
            SavedConfig::open(&instance, |text| {
                edit::remove_rule(text, &options.name)?.ok_or_else(|| {
                    invalid(format!("the configuration has no rule \"{}\" to remove; leave --save out", options.name))
                })
            })
        })
        .transpose()?;
    reload::apply(&mut instance, config, &compiled, &machine)?;
    reload::warn_of_shadowed_services(&compiled);
    writeln!(out, "removed: {}", options.name)?;
    match saved {
        Some(saved) => saved.write(&mut instance, out),
        None => Ok(()),
    }
}
