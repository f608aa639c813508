//! The `forwarder` command.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::Parser as _;
use forwarder::{
    cli::{Cli, Command},
    commands::{self, add, check, flows, list, load, log, reload, remove, stats, status, unload},
    daemon,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")
        .and_then(|runtime| runtime.block_on(run(&cli)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if commands::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed as well; then only the status tells.
            drop(writeln!(io::stderr(), "{}", commands::describe_error(&error)));
            ExitCode::from(commands::exit_status(&error))
        }
    }
}

async fn run(cli: &Cli) -> Result<()> {
    let pins = &cli.pins;
    let out = &mut io::stdout().lock();
    match &cli.command {
        Command::Load(options) => load::run(pins, options, out).await,
        Command::Run(options) => daemon::run(pins, options).await,
        Command::Unload(options) => unload::run(pins, options, out),
        Command::Reload(options) => reload::run(pins, options, out).await,
        Command::Check(options) => check::run(pins, options, out).await,
        Command::Add(options) => add::run(pins, options, out).await,
        Command::Remove(options) => remove::run(pins, options, out).await,
        Command::List(options) => list::run(pins, *options, out),
        Command::Status(options) => status::run(pins, *options, out).await,
        Command::Stats(options) => stats::run(pins, *options, out),
        Command::Flows(options) => flows::run(pins, *options, out),
        Command::Log => log::run(pins),
    }?;
    Ok(out.flush()?)
}
