//! `cargo xtask bench`: packet rates of forwarder next to what else a machine can do.

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::Message;
use clap::Args;

use crate::{setup, workspace};

/// Measure packet rates: the machine's limit, kernel forwarding, nftables, and forwarder
///
/// Builds in release mode and runs everything on one CPU between network namespaces, so compare ratios of one run, not
/// numbers of two machines. Options are those of the bench itself: --quick, --filter WORD, --json FILE, …; `cargo xtask
/// bench -- --help` lists them.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Options of the bench itself
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    bench: Vec<String>,
}

/// Seconds that a lab waits for an event that must come. Benches keep the CPU busy, with other programs beside them.
const PATIENCE: &str = "FORWARDER_LAB_PATIENCE";
/// The bench, and what it measures.
const PACKAGES: [&str; 2] = ["forwarder-bench", "forwarder"];

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::check_machine()?;
    setup::ensure()?;
    let [bench, forwarder] = build()?;
    let mut command = Command::new(bench);
    if env::var_os(PATIENCE).is_none() {
        command.env(PATIENCE, "60");
    }
    let status =
        command.arg("--forwarder").arg(forwarder).args(&options.bench).status().context("cannot start the bench")?;
    if !status.success() {
        bail!("the bench failed ({status})");
    }
    Ok(())
}

/// Builds the programs of [`PACKAGES`], each in release mode.
fn build() -> Result<[PathBuf; 2]> {
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--release", "--locked", "--message-format=json-render-diagnostics"]);
    cargo.args(PACKAGES.iter().flat_map(|package| ["--package", package]));
    let built = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !built.status.success() {
        bail!("building the release binaries failed; cargo's messages are above");
    }
    let mut programs = PACKAGES.map(|_| None);
    for message in Message::parse_stream(built.stdout.as_slice()) {
        if let Message::CompilerArtifact(artifact) = message.context("cannot read cargo's messages")? {
            for (package, program) in PACKAGES.iter().zip(&mut programs) {
                if artifact.target.name == *package && artifact.executable.is_some() {
                    *program = artifact.executable.clone().map(PathBuf::from);
                }
            }
        }
    }
    let [bench, forwarder] = programs;
    Ok([bench.context("cargo built no forwarder-bench")?, forwarder.context("cargo built no forwarder")?])
}
