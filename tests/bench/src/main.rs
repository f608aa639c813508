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
mod apps;
mod check;
mod control;
mod cpu;
mod document;
mod establish;
mod forwarding;
mod frame;
mod groups;
mod machine;
mod measure;
mod network;
mod options;
mod programs;
mod progress;
mod rates;
mod report;
mod row;
mod rules;
mod samples;
mod selection;
mod statistics;
mod wire;

use std::fs::File;
use std::iter;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Parser as _;

use crate::apps::End;
use crate::groups::Group;
use crate::machine::Machine;
use crate::measure::Plan;
use crate::options::Options;
use crate::progress::Progress;
use crate::report::Report;
use crate::selection::Selection;

fn main() -> ExitCode {
    let ended = match End::of_this_process() {
        Some(end) => end.run(),
        None => run(&Options::parse()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    match (&options.iface, options.peer, options.port) {
        (Some(iface), Some(peer), _) => {
            return wire::generate(iface, peer, options.flows, options.seconds, options.rate);
        }
        (Some(iface), None, Some(port)) => return wire::sink(iface, port, options.seconds),
        (Some(_), None, None) => bail!("--iface needs --peer ADDR:PORT to send to, or --sink --port PORT to count"),
        (None, ..) => {}
    }
    let work = Work::new(&Selection::new(&options.filter, options.quick), options);
    if work.names().next().is_none() {
        bail!("no row's name contains {}; --list shows them", options.filter.join(" or "));
    }
    if options.list {
        work.names().for_each(|name| println!("{name}"));
        return Ok(());
    }
    let binaries: Vec<&Path> = iter::once(&options.forwarder).chain(&options.beside).map(PathBuf::as_path).collect();
    if options.from.is_none()
        && let Some(missing) = binaries.iter().find(|binary| !binary.is_file())
    {
        bail!("{} is no file; cargo xtask bench builds the first and passes it", missing.display());
    }
    let json = options.json.as_ref().map(|path| {
        File::create(path).with_context(|| format!("cannot write {}", path.display())).map(|file| (path, file))
    });
    // Said before the measuring, not after it.
    let json = json.transpose()?;
    let report = match &options.from {
        Some(file) => Report::read(file)?,
        None => work.measure(options, &binaries)?,
    };
    println!("{report}");
    if let Some((path, file)) = json {
        serde_json::to_writer_pretty(file, &report).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(directory) = &options.report {
        document::write(&report, directory)?;
    }
    if options.check { check_ratios(&report, options, &binaries) } else { Ok(()) }
}

/// Compares with the thresholds. What does not hold is measured again, so that only what is twice too bad is a regression.
fn check_ratios(report: &Report, options: &Options, binaries: &[&Path]) -> Result<()> {
    let thresholds = check::thresholds()?;
    let mut checked = check::check(report, &thresholds);
    if checked.is_empty() {
        bail!("nothing to check: thresholds.toml is about other rows than were measured");
    }
    let doubtful = check::doubtful(&checked);
    if !doubtful.is_empty() {
        println!("{}\nOnce more, since not all of them hold:", check::list(&checked));
        let again = Work::new(&Selection::Names(doubtful), options).measure(options, binaries)?;
        println!("{again}");
        checked = checked.into_iter().map(|one| if one.holds() { one } else { one.again(&again) }).collect();
    }
    println!("{}", check::list(&checked));
    let failed = checked.iter().filter(|one| !one.holds()).count();
    if failed > 0 {
        bail!("{failed} of {} ratios do not hold", checked.len());
    }
    Ok(())
}

/// Everything that is to be measured.
struct Work {
    groups: Vec<Group>,
    rates: Plan,
    apps: apps::Plan,
    control: control::Plan,
}

impl Work {
    fn new(selection: &Selection, options: &Options) -> Self {
        let quick = options.quick;
        let rounds = |usual: usize, few: usize| options.rounds.unwrap_or(if quick { few } else { usual }).max(1);
        let length = |usual, short| Duration::from_millis(if quick { short } else { usual });
        Self {
            groups: groups::matching(selection),
            rates: Plan { rounds: rounds(9, 4), length: length(100, 30), in_order: options.in_order },
            apps: apps::Plan::new(selection, rounds(5, 3), length(1000, 400)),
            control: control::Plan::new(selection, rounds(5, 1)),
        }
    }

    fn names(&self) -> impl Iterator<Item = String> {
        let rates = self.groups.iter().flat_map(|group| group.rows.iter().map(ToString::to_string));
        rates.chain(self.apps.names()).chain(self.control.names())
    }

    fn measure(self, options: &Options, binaries: &[&Path]) -> Result<Report> {
        let machine = Machine::read(&options.forwarder);
        let groups: Vec<Group> = self.groups.into_iter().map(|group| group.with_binaries(binaries.len())).collect();
        let steps: usize = groups.iter().map(|group| measure::steps(group, &self.rates)).sum();
        let progress = Progress::new(steps + self.apps.steps() + self.control.steps())?;
        let rates = if groups.is_empty() {
            None
        } else {
            // In a thread of its own, which is bound to one CPU with all that it starts.
            let rates = || rates::run(&groups, &self.rates, binaries, options.cpu, &progress);
            let rates = std::thread::scope(|scope| scope.spawn(rates).join());
            Some(rates.map_err(|_| anyhow!("the measuring thread died"))??)
        };
        let apps = (self.apps.names().next().is_some())
            .then(|| apps::run(&self.apps, &options.forwarder, &options.peers, &progress));
        let control =
            (self.control.names().next().is_some()).then(|| control::run(&self.control, &options.forwarder, &progress));
        Ok(Report { machine, rates, apps: apps.transpose()?, control: control.transpose()? })
    }
}
