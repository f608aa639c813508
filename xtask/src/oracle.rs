//! `cargo xtask oracle`: the differential test against nftables, as long as one likes.

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::{setup, workspace::cargo};

/// Send the same made-up packets through forwarder and through nftables, and compare what comes out
///
/// A short run is part of `cargo xtask test`. What is sent depends on the seed alone; a difference is printed with the seed
/// that finds it again. Where both differ on purpose: docs/netfilter-differences.md.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// How many packets, of each family, source and mode
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    packets: u32,

    /// Where the random numbers begin
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,

    /// Only this family
    #[arg(long)]
    family: Option<Family>,

    /// Only this mode
    #[arg(long)]
    mode: Option<Mode>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Family {
    V4,
    V6,
}

/// As in `forwarder load --mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Native,
    Tc,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::check_machine()?;
    setup::ensure()?;
    let tests = ["fixed", "masquerade", "outgoing", "prefix", "preserve"].iter().flat_map(|source| {
        let families = [(Family::V4, "v4"), (Family::V6, "v6")];
        let modes = [(Mode::Native, "native"), (Mode::Tc, "tc")];
        families.into_iter().filter(|(family, _)| options.family.is_none_or(|only| only == *family)).flat_map(
            move |(_, family)| {
                let wanted = modes.into_iter().filter(|(mode, _)| options.mode.is_none_or(|only| only == *mode));
                wanted.map(move |(_, mode)| format!("{source}_{family}_{mode}"))
            },
        )
    });
    let status = cargo()
        .args(["test", "--package", "forwarder-tests", "--test", "oracle", "--", "--nocapture", "--exact"])
        .args(tests)
        .env("FORWARDER_ORACLE_PACKETS", options.packets.to_string())
        .env("FORWARDER_ORACLE_SEED", options.seed.to_string())
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("forwarder and nftables differ without explanation; the packets are above");
    }
    Ok(())
}
