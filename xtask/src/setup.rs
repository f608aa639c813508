//! `cargo xtask setup`: everything building, tests, demo and bench need, from Debian 12 with git, a Rust toolchain and
//! root.
//!
//! What is there already is used and left alone, so a second run only looks, in well under a second.

mod machine;
mod packages;
mod toolchain;

use anyhow::Result;
use clap::Args;

pub(crate) use machine::check as check_machine;
use packages::{BUILD_TOOLS, GUEST_TOOLS, RUN_TOOLS};
pub(crate) use toolchain::{Ready, Subcommand, bpf_clippy};

/// Prepare this machine: the BPF compiler and linker, and the network tools of tests and demo
///
/// Uses what the machine has: a rustup nightly with rust-src or Debian's compiler for BPF, an installed bpf-linker, any
/// tool in the search path. Installs only what is missing, with apt-get and cargo install, which needs root. Safe to run
/// again at any time; `demo`, `test` and `bench` begin with it by themselves.
#[derive(Args, Debug, Default)]
pub(crate) struct Options {
    /// Also install what only some commands need: QEMU for `vm`, cargo-deny for the licence check of `test`, cargo-fuzz
    #[arg(long)]
    pub(crate) dev: bool,
}

/// The command itself: prepares the machine and says what was found.
pub(crate) fn run(options: &Options) -> Result<()> {
    let ready = ensure()?;
    if options.dev {
        ensure_guests()?;
        Subcommand::Deny.ensure()?;
        Subcommand::Fuzz.ensure()?;
    }
    println!("BPF compiler  {} ({})", ready.toolchain.name, ready.toolchain.version);
    println!("BPF linker    {}", ready.linker.display());
    match check_machine() {
        Ok(kernel) => println!("kernel        {kernel}, runs forwarder"),
        // Building is possible all the same.
        Err(reason) => println!("kernel        builds forwarder but cannot run it: {reason:#}"),
    }
    println!("Ready: cargo build · cargo xtask demo · cargo xtask test");
    Ok(())
}

/// Makes sure that the machine has what building and running needs; installs what it lacks.
///
/// Does not ask whether this kernel and user may load BPF programs: that is [`check_machine`], for commands that do.
pub(crate) fn ensure() -> Result<Ready> {
    packages::ensure(&[BUILD_TOOLS, RUN_TOOLS].concat())?;
    let ready = toolchain::ensure_bpf()?;
    toolchain::ensure_components()?;
    Ok(ready)
}

/// Makes sure that the machine can boot the guests of `cargo xtask vm`.
pub(crate) fn ensure_guests() -> Result<()> {
    packages::ensure(GUEST_TOOLS)
}
