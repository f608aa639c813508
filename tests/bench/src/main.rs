//! `forwarder-bench`: packet rates on one CPU, each next to the limit in the same moment.
//!
//! Every row of the result has a network of its own (client, forwarder, backend), all of them up at the same time, so
//! that repetitions of all rows can take turns: what the machine does besides hits all of them alike. A row's ratio is
//! its rate divided by the limit's measured immediately before.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "counts become rates and shares, of which three digits mean something"
)]
#![allow(
    clippy::many_single_char_names,
    clippy::similar_names,
    reason = "bytes of an address and times of a CPU have no better names"
)]

mod addresses;
mod cpu;
mod establish;
mod forwarding;
mod frame;
mod machine;
mod measure;
mod network;
mod programs;
mod report;
mod row;
mod samples;
mod statistics;

use std::fs::File;
use std::iter;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;

use crate::measure::Plan;
use crate::report::Report;
use crate::row::Row;

/// Measure packet rates: the machine's limit, kernel forwarding, nftables, and forwarder
///
/// Everything runs on one CPU between network namespaces: compare ratios of one run, not numbers of two machines.
#[derive(Debug, Parser)]
#[command(name = "forwarder-bench", version)]
struct Options {
    /// The forwarder binary to measure, built with --release
    #[arg(long, value_name = "FILE")]
    forwarder: PathBuf,
    /// Another forwarder binary, measured in turn with the first: how much a change of the programs gains
    #[arg(long, value_name = "FILE")]
    beside: Vec<PathBuf>,
    /// Only rows whose name contains one of these words, e.g. v4, xdp, masquerade/64k, nftables
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    filter: Vec<String>,
    /// Fewer and shorter repetitions: a rough answer in less than a minute
    #[arg(long)]
    quick: bool,
    /// How often each row is measured
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Visit flows in the order they were made; by default the order is scattered, as between unrelated clients
    #[arg(long)]
    in_order: bool,
    /// Also write everything that was measured to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The CPU everything runs on; by default the last one
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,
    /// Print the names of the rows and end
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let rows = row::matching(&options.filter);
    if rows.is_empty() {
        bail!("no row's name contains {}; --list shows them", options.filter.join(" or "));
    }
    if options.list {
        for row in &rows {
            println!("{row}");
        }
        return Ok(());
    }
    let binaries: Vec<&Path> = iter::once(&options.forwarder).chain(&options.beside).map(PathBuf::as_path).collect();
    if let Some(missing) = binaries.iter().find(|binary| !binary.is_file()) {
        bail!("{} is no file; cargo xtask bench builds the first and passes it", missing.display());
    }
    let rows: Vec<Row> = rows.into_iter().flat_map(|row| row.with_binaries(binaries.len())).collect();
    let cpu = cpu::pin(options.cpu)?;
    let machine = machine::Machine::read(&options.forwarder, cpu.number());
    let plan = Plan {
        rounds: options.rounds.unwrap_or(if options.quick { 4 } else { 21 }).max(1),
        length: Duration::from_millis(if options.quick { 30 } else { 100 }),
        in_order: options.in_order,
    };
    let json = options.json.as_ref().map(|path| {
        File::create(path).with_context(|| format!("cannot write {}", path.display())).map(|file| (path, file))
    });
    // Said before the measuring, not after it.
    let json = json.transpose()?;
    let results = measure::run(&rows, &plan, &binaries, &cpu)?;
    let report = Report::new(machine, &plan, &results);
    println!("{report}");
    if let Some((path, file)) = json {
        serde_json::to_writer_pretty(file, &report).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
