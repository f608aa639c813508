//! `add`: one more rule, at once.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{Instance, as_followed, guard, print_warnings, reload, require_privileges};
use crate::{
    cli::{Add, DEFAULT_CONFIG},
    config::{self, TypedForward, edit},
    machine::netlink::Netlink,
    state::{StateFile, write_atomically},
};

/// Runs the command.
pub async fn run(pins: &Path, options: &Add, out: &mut dyn Write) -> Result<()> {
    require_privileges()?;
    let file = StateFile::of(pins);
    let _lock = file.lock()?;
    let mut instance = Instance::open(pins)?;
    instance.must_be_here()?;
    let typed = TypedForward {
        name: options.name.clone(),
        listen: options.listen.clone(),
        protocol: options.protocol.clone(),
        to: options.to.clone(),
        source: options.source.clone(),
        allow: options.allow.clone(),
        stateless: options.stateless,
    };
    let config = instance.state.config.with(&typed)?;
    let (machine, _) = Netlink::connect()?.machine(&config.backends()).await?;
    let machine = as_followed(machine, &file)?;
    let compiled = config::compile(&config, &machine)?;
    print_warnings(&compiled.warnings);
    if !options.force {
        guard::refuse_to_cut_ssh(&compiled)?;
    }
    // What can go wrong with the file goes wrong before the rule runs.
    let saved =
        options.save.then(|| SavedConfig::open(&instance, |text| Ok(edit::add_forward(text, &typed)?))).transpose()?;
    reload::apply(&mut instance, config, &compiled, &machine)?;
    reload::warn_of_shadowed_services(&compiled);
    writeln!(out, "added: {}", options.name)?;
    if let Some(saved) = saved {
        return saved.write(&mut instance, out);
    }
    writeln!(out, "It is gone after the next reload; --save writes it to the configuration too.")?;
    Ok(())
}

/// A changed text of the configuration file, not yet written.
pub struct SavedConfig {
    path: PathBuf,
    text: String,
    mode: u32,
}

impl SavedConfig {
    /// Reads the configuration file of the instance and changes its text.
    pub fn open(instance: &Instance, change: impl FnOnce(&str) -> Result<String>) -> Result<Self> {
        let path = instance.state.config_path.clone().unwrap_or_else(|| DEFAULT_CONFIG.into());
        let (old, mode) = match fs::read_to_string(&path) {
            Ok(text) => {
                let metadata = fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
                (text, metadata.permissions().mode() & 0o7777)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (String::new(), 0o644),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let text = change(&old)?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory).with_context(|| format!("cannot make the directory {}", directory.display()))?;
        // Writing beside the file tells now whether writing it will work.
        let probe = path.with_extension(format!("probe-{}", std::process::id()));
        write_atomically(&probe, b"", mode).with_context(|| {
            format!(
                "cannot save to {}; nothing was changed (leave --save out to change only what runs)",
                path.display()
            )
        })?;
        fs::remove_file(&probe).with_context(|| format!("cannot remove {}", probe.display()))?;
        Ok(Self { path, text, mode })
    }

    /// Writes the file.
    pub fn write(self, instance: &mut Instance, out: &mut dyn Write) -> Result<()> {
        write_atomically(&self.path, self.text.as_bytes(), self.mode).context("the change runs, but is not saved")?;
        writeln!(out, "saved: {}", self.path.display())?;
        if instance.state.config_path.is_none() {
            instance.state.config_path = Some(self.path);
            instance.file.write(&instance.state)?;
        }
        Ok(())
    }
}
