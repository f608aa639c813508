//! `cargo xtask fuzz`: libFuzzer on a target, or the differential test against the loaded programs, as long as one likes.

use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    setup::{self, Subcommand},
    workspace::{cargo, target_dir},
};

/// Give a fuzz target as many inputs as there is time for
///
/// What is found is written to a file whose name is the last thing said. What libFuzzer has learnt is kept in the build
/// directory, fuzz/corpus/TARGET, for the next time. A bounded run of every target, always with the same inputs, is part of
/// `cargo xtask test`.
#[derive(Args, Debug)]
#[command(after_help = "\
    cargo xtask fuzz packets                       for a minute
    cargo xtask fuzz config --seconds 600
    cargo xtask fuzz differential --packets 1000000 --seed 7")]
pub(crate) struct Options {
    /// What to fuzz
    target: Target,

    /// How long; not for differential
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,

    /// How many packets; only for differential
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    packets: u32,

    /// Where the random numbers begin
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    /// Any packets, one after the other, through the core of both hooks
    Packets,
    /// ICMP errors about packets that were forwarded
    Errors,
    /// Datagrams in pieces
    Fragments,
    /// Configuration files
    Config,
    /// The same packets through the core and through the loaded programs; needs root
    Differential,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.target == Target::Differential {
        return differential(options);
    }
    Subcommand::Fuzz.ensure()?;
    let target = options.target.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let built = target_dir();
    let corpus = built.join("fuzz/corpus").join(&target);
    let artifacts = built.join("fuzz/artifacts").join(&target);
    std::fs::create_dir_all(&artifacts).with_context(|| format!("cannot make {}", artifacts.display()))?;
    if !corpus.exists() {
        let mut seeds = cargo();
        seeds.args(["run", "--package", "forwarder-fuzz", "--bin", "forwarder-fuzz", "--", &target]).arg(&corpus);
        succeed(seeds)?;
    }
    let mut fuzz = cargo();
    // The code has no unsafe, so a sanitizer would find nothing; without one, a stable compiler does.
    fuzz.args(["fuzz", "run", "--sanitizer", "none", "--features", "libfuzzer", &target]).arg(&corpus);
    fuzz.arg("--").arg(format!("-max_total_time={}", options.seconds)).arg(format!("-seed={}", options.seed));
    // The tables in memory keep removed entries, as the kernel's do; here until the end.
    fuzz.args(["-rss_limit_mb=8192", "-print_final_stats=1"]);
    fuzz.arg(format!("-artifact_prefix={}/", artifacts.display()));
    fuzz.env("RUSTC_BOOTSTRAP", "1");
    succeed(fuzz)
}

fn differential(options: &Options) -> Result<()> {
    setup::check_machine()?;
    setup::ensure()?;
    let mut test = cargo();
    test.args(["test", "--package", "forwarder-tests", "--test", "progrun", "--", "differential::", "--nocapture"]);
    test.env("FORWARDER_DIFFERENTIAL_PACKETS", options.packets.to_string());
    test.env("FORWARDER_DIFFERENTIAL_SEED", options.seed.to_string());
    succeed(test)
}

fn succeed(mut command: Command) -> Result<()> {
    let status = command.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("it found something, or could not run; see above");
    }
    Ok(())
}
