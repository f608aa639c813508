//! `cargo xtask oracle`: the differential test against nftables, as long as one likes.

mod table;

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::Message;
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::{progress::Step, setup, workspace::cargo};

/// Send the same made-up packets through forwarder and through nftables, and compare what comes out
///
/// One setting after the other, a setting being a source mode, an IP version and where forwarder processes packets. At the
/// end, tables say what was compared, and how often both differ on purpose, by the names of docs/netfilter-differences.md.
/// What nothing explains is shown with its packets, and is an error. A short run is part of `cargo xtask test`. What is sent
/// depends on the seed alone.
#[derive(Args, Debug)]
#[command(after_help = "\
    cargo xtask oracle                               all settings, 100,000 packets each: about 25 minutes
    cargo xtask oracle --packets 4000 --seed 7       all settings, quickly
    cargo xtask oracle --source prefix --family v6   only some; also --mode
    FORWARDER_ORACLE_WITHOUT=NAME cargo xtask oracle   show what a name explains as if it were not explained")]
pub(crate) struct Options {
    /// How many packets, of each setting
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    packets: u32,

    /// Where the random numbers begin
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,

    /// Only this source mode
    #[arg(long)]
    source: Option<Source>,

    /// Only this family
    #[arg(long)]
    family: Option<Family>,

    /// Only this mode
    #[arg(long)]
    mode: Option<Mode>,
}

/// Which source address the server sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Source {
    /// A certain one
    Fixed,
    /// That of the forwarder
    Masquerade,
    /// `[[masquerade]]`: hosts behind go out
    Outgoing,
    /// A prefix onto a prefix
    Prefix,
    /// The client's
    Preserve,
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

#[derive(Clone, Copy, Debug)]
struct Setting {
    source: Source,
    family: Family,
    mode: Mode,
}

/// What became of a setting.
struct Ran {
    setting: Setting,
    took: Duration,
    counts: Counts,
    /// It ended otherwise than by its verdict on the differences.
    broke: bool,
}

/// How many packets were sent and compared.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    sent: u64,
    same: u64,
    explained: BTreeMap<String, u64>,
    unexplained: u64,
}

impl Setting {
    /// Those that are asked for.
    fn chosen(options: &Options) -> Vec<Self> {
        fn variants<T: ValueEnum + PartialEq + Copy>(only: Option<T>) -> Vec<T> {
            T::value_variants().iter().copied().filter(|variant| only.is_none_or(|only| only == *variant)).collect()
        }
        let mut settings = Vec::new();
        for source in variants(options.source) {
            for family in variants(options.family) {
                settings.extend(variants(options.mode).into_iter().map(|mode| Self { source, family, mode }));
            }
        }
        settings
    }

    /// The name of its test.
    fn name(self) -> String {
        format!("{}_{}_{}", word(&self.source), word(&self.family), word(&self.mode))
    }
}

/// As on the command line.
fn word(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

impl Counts {
    /// Of a line that the test says, if it is one.
    fn parse(line: &str) -> Option<Self> {
        let line: Value = serde_json::from_str(line).ok()?;
        let number = |name: &str| line.get(name)?.as_u64();
        let explained = line.get("explained")?.as_object()?;
        Some(Self {
            sent: number("sent")?,
            same: number("same")?,
            explained: explained.iter().filter_map(|(name, count)| Some((name.clone(), count.as_u64()?))).collect(),
            unexplained: number("unexplained")?,
        })
    }

    fn explained(&self) -> u64 {
        self.explained.values().sum()
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::check_machine()?;
    setup::ensure()?;
    let test = build()?;
    let mut all = Vec::new();
    for setting in Setting::chosen(options) {
        all.push(compare(&test, setting, options)?);
    }
    println!("\nSeed {}.\n\n{}\n{}", options.seed, table::settings(&all), table::names(&all));
    if all.iter().any(|ran| ran.broke || ran.counts.unexplained > 0) {
        bail!("forwarder and nftables differ without explanation, or could not be compared; see above");
    }
    Ok(())
}

/// Builds the test program.
fn build() -> Result<PathBuf> {
    let mut cargo = cargo();
    cargo.args(["test", "--no-run", "--package", "forwarder-tests", "--test", "oracle"]);
    cargo.arg("--message-format=json-render-diagnostics");
    let built = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !built.status.success() {
        bail!("building the test failed; cargo's messages are above");
    }
    for message in Message::parse_stream(built.stdout.as_slice()) {
        if let Message::CompilerArtifact(artifact) = message.context("cannot read cargo's messages")?
            && artifact.target.name == "oracle"
            && let Some(program) = artifact.executable
        {
            return Ok(program.into());
        }
    }
    bail!("cargo built no test program")
}

/// One setting, with its progress; what it has against forwarder, or against the machine, goes to standard error.
fn compare(test: &Path, setting: Setting, options: &Options) -> Result<Ran> {
    let name = setting.name();
    let step = Step::begin(name.clone());
    let started = Instant::now();
    let mut child = Command::new(test)
        .args(["--exact", &name, "--nocapture"])
        .env("FORWARDER_ORACLE_PACKETS", options.packets.to_string())
        .env("FORWARDER_ORACLE_SEED", options.seed.to_string())
        .env("FORWARDER_ORACLE_REPORT", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", test.display()))?;
    let (mut counts, mut said) = (Counts::default(), String::new());
    for line in child.stderr.take().into_iter().flat_map(|lines| BufReader::new(lines).split(b'\n')) {
        let line = line.context("cannot read what the test says")?;
        let line = String::from_utf8_lossy(&line);
        if let Some(now) = Counts::parse(&line) {
            counts = now;
            step.message(&format!(
                "{} of {} packets, {} differ as explained, {} do not",
                counts.sent,
                options.packets,
                counts.explained(),
                counts.unexplained
            ));
        } else {
            said += &line;
            said.push('\n');
        }
    }
    let succeeded = child.wait().context("cannot wait for the test")?.success();
    if succeeded {
        step.done();
    } else {
        drop(step);
        eprint!("{said}");
    }
    let broke = !succeeded && counts.unexplained == 0;
    Ok(Ran { setting, took: started.elapsed(), counts, broke })
}
