//! `cargo xtask test`: every check of the project, one stage after the other.

mod tally;

use std::{
    io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use tally::Tally;

use crate::{progress::seconds, setup, workspace::cargo};

/// Run every check: format, lints, unit tests, the loaded BPF programs, and networks of namespaces
///
/// Prepares the machine first (see `cargo xtask setup`) and needs root, since it loads BPF programs and makes network
/// namespaces; the machine's own interfaces are not touched. A failed stage does not stop the later ones. The last line
/// sums up.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only these stages; may be given several times
    #[arg(long = "stage", value_name = "STAGE")]
    stages: Vec<Stage>,

    /// What to give the tests: part of a test's name, or an option of Rust's test harness
    ///
    /// For example: cargo xtask test -- checksum
    #[arg(last = true, value_name = "FILTER")]
    filters: Vec<String>,
}

/// A part of `cargo xtask test`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// cargo fmt --check
    Format,
    /// cargo clippy, warnings are errors
    Lint,
    /// cargo deny: licences and sources of dependencies; only if it is installed (cargo xtask setup --dev)
    Deny,
    /// Tests that need neither root nor a kernel: core, config, command line
    Unit,
    /// The loaded programs through BPF_PROG_TEST_RUN, and end to end between network namespaces
    Loaded,
}

impl Stage {
    fn title(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Lint => "lints",
            Self::Deny => "dependencies",
            Self::Unit => "unit tests",
            Self::Loaded => "loaded programs and networks",
        }
    }

    fn command(self, filters: &[String]) -> Command {
        let mut cargo = cargo();
        match self {
            Self::Format => {
                cargo.args(["fmt", "--all", "--check"]);
            }
            Self::Lint => {
                cargo.args(["clippy", "--workspace", "--exclude", "forwarder-ebpf"]);
                cargo.args(["--all-targets", "--", "--deny", "warnings"]);
            }
            Self::Deny => {
                cargo.args(["deny", "check", "licenses", "bans", "sources"]);
            }
            Self::Unit => {
                cargo.args(["test", "--no-fail-fast", "--workspace"]);
                cargo.args(["--exclude", "forwarder-ebpf", "--exclude", "forwarder-tests"]);
                cargo.arg("--").args(filters);
            }
            Self::Loaded => {
                cargo.args(["test", "--no-fail-fast", "--package", "forwarder-tests"]);
                cargo.arg("--").args(filters);
            }
        }
        if io::stdout().is_terminal() {
            cargo.env("CARGO_TERM_COLOR", "always");
        }
        cargo
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let chosen = |stage: &Stage| {
        if options.stages.is_empty() {
            // Somebody after one test does not wait for the rest.
            options.filters.is_empty() || matches!(stage, Stage::Unit | Stage::Loaded)
        } else {
            options.stages.contains(stage)
        }
    };
    let stages: Vec<Stage> = Stage::value_variants().iter().copied().filter(chosen).collect();
    if stages.contains(&Stage::Loaded) {
        setup::check_machine()?;
    }
    setup::ensure()?;

    let mut total = Tally::default();
    for stage in stages {
        if stage == Stage::Deny && !setup::has_cargo_deny() {
            println!("== {}: left out, cargo-deny is not installed (cargo xtask setup --dev)", stage.title());
            continue;
        }
        total.add(run_stage(stage, &options.filters)?);
    }
    println!("{total}");
    if total.failed > 0 {
        bail!("some checks failed; they are named above");
    }
    Ok(())
}

/// Runs one stage with its output shown as it comes.
fn run_stage(stage: Stage, filters: &[String]) -> Result<Tally> {
    let title = stage.title();
    println!("== {title}");
    let started = Instant::now();
    let mut child =
        stage.command(filters).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let mut tally = Tally::default();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("cannot read cargo's output")?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            tally.read(&line);
        }
    }
    let succeeded = child.wait().context("cannot wait for cargo")?.success();
    // A stage that counts nothing, or broke before it could count, counts as one check itself.
    if !succeeded && tally.failed == 0 {
        tally.failed = 1;
    }
    let result = if succeeded { "ok" } else { "FAILED" };
    println!("== {title}: {result} ({})", seconds(started.elapsed()));
    io::stdout().flush().context("cannot write to the terminal")?;
    Ok(tally)
}
