//! `cargo xtask bench`: packet rates of forwarder next to what else a machine can do.

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{setup, workspace};

/// Measure packet rates: the machine's limit, kernel forwarding, nftables, and forwarder
///
/// Builds in release mode and runs everything on one CPU between network namespaces, so compare ratios of one run, not
/// numbers of two machines. Options after `--` go to the bench itself; `cargo xtask bench -- --help` lists them.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Options of the bench itself
    #[arg(last = true)]
    bench: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::check_machine()?;
    setup::ensure()?;
    let status = workspace::cargo()
        .args(["run", "--release", "--package", "forwarder-bench", "--"])
        .args(&options.bench)
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("the bench failed ({status})");
    }
    Ok(())
}
