//! `cargo xtask test`: every check of the project, one stage after the other.

mod tally;

use std::{
    env,
    io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _},
    num::NonZero,
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use tally::Tally;

use crate::{
    progress::seconds,
    setup::{self, Ready, Subcommand},
    workspace::cargo,
};

/// Run every check: format, lints, unit tests, the loaded BPF programs here and under older kernels
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
    /// cargo clippy for host and BPF, warnings are errors
    Lint,
    /// cargo machete: dependencies that nothing uses; cargo deny: licences and sources of dependencies, if it is installed
    /// (cargo xtask setup --dev)
    Deny,
    /// cargo xtask reproduce: the BPF object is the same bytes wherever it is built
    Reproduce,
    /// Tests that need no loaded program: core, config, command line
    Unit,
    /// The loaded programs through `BPF_PROG_TEST_RUN`, and end to end between network namespaces
    Loaded,
    /// cargo xtask demo, as the README shows it
    Demo,
    /// cargo xtask bench --quick --check: ratios that must hold
    Bench,
    /// Loaded programs and networks under Debian's kernels in virtual machines (cargo xtask vm)
    Kernels,
}

impl Stage {
    fn title(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Lint => "lints",
            Self::Deny => "dependencies",
            Self::Reproduce => "reproducible object",
            Self::Unit => "unit tests",
            Self::Loaded => "loaded programs and networks",
            Self::Demo => "demo",
            Self::Bench => "bench",
            Self::Kernels => "older kernels",
        }
    }

    /// Why this machine cannot have this stage, if so.
    fn missing(self) -> Option<&'static str> {
        match self {
            Self::Kernels if env::consts::ARCH != "x86_64" => Some("its virtual machine needs an x86-64 host"),
            _ => None,
        }
    }

    fn commands(self, filters: &[String], ready: &Ready) -> Result<Vec<Command>> {
        let command = |arguments: &[&str]| {
            let mut cargo = cargo();
            cargo.args(arguments);
            cargo
        };
        Ok(match self {
            Self::Format => vec![command(&["fmt", "--all", "--check"])],
            Self::Lint => {
                let mut host = command(&["clippy", "--workspace", "--exclude", "forwarder-ebpf", "--all-targets"]);
                host.args(["--", "--deny", "warnings"]);
                vec![host, setup::bpf_clippy(ready)?]
            }
            Self::Deny => {
                Subcommand::Machete.ensure()?;
                let mut checks = vec![command(&["machete"])];
                // Ten minutes to build, so nobody is made to.
                if Subcommand::Deny.exists() {
                    checks.push(command(&["deny", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"]));
                } else {
                    println!("cargo deny: left out, it is not installed (cargo xtask setup --dev)");
                }
                checks
            }
            Self::Reproduce => {
                let mut reproduce = Command::new(env::current_exe().context("cannot find the running xtask")?);
                reproduce.arg("reproduce");
                vec![reproduce]
            }
            Self::Unit => {
                let mut tests = command(&["test", "--no-fail-fast", "--workspace"]);
                tests.args(["--exclude", "forwarder-ebpf", "--exclude", "forwarder-tests", "--"]).args(filters);
                vec![tests]
            }
            Self::Loaded => {
                let tests = |targets: &[&str]| {
                    let mut tests = command(&["test", "--no-fail-fast", "--package", "forwarder-tests"]);
                    tests.args(targets.iter().flat_map(|target| ["--test", target])).arg("--").args(filters);
                    tests
                };
                let mut networks = tests(&["netns"]);
                // They wait for the network more than they work.
                let threads = 2 * thread::available_parallelism().map_or(1, NonZero::get);
                networks.env("RUST_TEST_THREADS", threads.to_string());
                vec![networks, tests(&["docs", "kernels", "oracle", "progrun"])]
            }
            Self::Demo => {
                let mut demo = Command::new(env::current_exe().context("cannot find the running xtask")?);
                // What the other stages have built already.
                demo.args(["demo", "--debug"]);
                vec![demo]
            }
            Self::Bench => {
                let mut bench = Command::new(env::current_exe().context("cannot find the running xtask")?);
                bench.args(["bench", "--quick", "--check"]);
                vec![bench]
            }
            Self::Kernels => {
                let mut kernels = Command::new(env::current_exe().context("cannot find the running xtask")?);
                kernels.args(["vm", "--timeout", "2400"]);
                if !filters.is_empty() {
                    kernels.arg("--").args(filters);
                }
                vec![kernels]
            }
        })
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
    if stages
        .iter()
        .any(|stage| matches!(stage, Stage::Unit | Stage::Loaded | Stage::Demo | Stage::Bench | Stage::Kernels))
    {
        setup::check_machine()?;
    }
    let ready = setup::ensure()?;

    let mut total = Tally::default();
    for stage in stages {
        if let Some(reason) = stage.missing() {
            println!("== {}: left out, {reason}", stage.title());
            continue;
        }
        total.add(run_stage(stage, stage.commands(&options.filters, &ready)?)?);
    }
    println!("{total}");
    if total.failed > 0 {
        bail!("some checks failed; their output is above");
    }
    Ok(())
}

/// Runs one stage with its output shown as it comes.
fn run_stage(stage: Stage, commands: Vec<Command>) -> Result<Tally> {
    let title = stage.title();
    println!("== {title}");
    let started = Instant::now();
    let mut tally = Tally::default();
    let mut succeeded = true;
    for command in commands {
        succeeded &= run_command(command, &mut tally)?;
    }
    // A stage that counts nothing, or broke before it could count, counts as one check itself.
    if !succeeded && tally.failed == 0 {
        tally.failed = 1;
    }
    let result = if succeeded { "ok" } else { "FAILED" };
    println!("== {title}: {result} ({})", seconds(started.elapsed()));
    io::stdout().flush().context("cannot write to the terminal")?;
    Ok(tally)
}

/// Runs a command, counts the test results in its output, and says whether it succeeded.
fn run_command(mut command: Command, tally: &mut Tally) -> Result<bool> {
    let program = command.get_program().to_string_lossy().into_owned();
    if io::stdout().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    // Both streams in one pipe keep their order.
    let (output, writer) = io::pipe().context("cannot make a pipe")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("cannot copy a pipe")?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    // It holds the writing ends too, and reading would never end.
    drop(command);
    for line in BufReader::new(output).split(b'\n') {
        let line = line.with_context(|| format!("cannot read the output of {program}"))?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        tally.read(&line);
    }
    Ok(child.wait().with_context(|| format!("cannot wait for {program}"))?.success())
}
