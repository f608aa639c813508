//! `cargo xtask bench`: forwarder next to what else a machine can do.

mod peers;

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::Message;
use clap::Args;

use crate::{setup, workspace};

/// Measure forwarder next to what the machine can do and to what people use today
///
/// Builds in release mode and measures between network namespaces, which go away also when it is interrupted: packet rates
/// beside a bare XDP redirect, kernel forwarding, nftables and iptables; applications over TCP, beside HAProxy, nginx, socat
/// and realm too; loading and changing rules. Compare ratios of one run, not numbers of two machines.
#[derive(Args, Debug)]
#[command(after_help = "\
    cargo xtask bench --quick                        a rough answer, in about a minute once built
    cargo xtask bench --quick --check                fail if a ratio is worse than tests/bench/thresholds.toml allows
    cargo xtask bench --filter v4/xdp --json FILE    only some rows; --list shows all
    cargo xtask bench --filter tcp/bulk,tcp/light    applications: only these loads
    cargo xtask bench --report                       everything, and write docs/benchmarks.md with its plots
    cargo xtask bench --iface eth1 --peer 203.0.113.7:8000    between real machines: send frames to a forwarder
    cargo xtask bench --sink --iface eth2 --port 9000         and, on the machine behind it, count what arrives
    cargo xtask bench -- --help                      every option")]
pub(crate) struct Options {
    /// Options of the bench itself
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    bench: Vec<String>,
}

/// Seconds that a lab waits for an event that must come. Benches keep the CPU busy, with other programs beside them.
const PATIENCE: &str = "FORWARDER_LAB_PATIENCE";
/// Words of filters that ask for relays.
const RELAYS: [&str; 4] = ["haproxy", "nginx", "socat", "realm"];
/// The bench, and what it measures.
const PACKAGES: [&str; 2] = ["forwarder-bench", "forwarder"];

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::check_machine()?;
    setup::ensure()?;
    let [bench, forwarder] = build()?;
    let mut command = Command::new(bench);
    if needs_peers(&options.bench) {
        command.arg("--peers").arg(peers::ensure());
    }
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

/// Whether rows of relays may be measured.
fn needs_peers(options: &[String]) -> bool {
    let has = |words: &[&str]| options.iter().any(|option| words.contains(&option.as_str()));
    if has(&["--list", "--help", "-h", "--from", "--iface", "--peers"]) {
        return false;
    }
    if options.iter().any(|option| option.starts_with("--filter")) {
        return has(&RELAYS) || options.iter().any(|option| option.contains("tcp"));
    }
    !has(&["--quick"])
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
