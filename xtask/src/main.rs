//! Development tasks of forwarder: `cargo xtask <command>`.
//!
//! One file per command, each with its own options. What several commands share: `setup` (the toolchain and the tools of
//! the machine), `workspace` (where we are, which cargo) and `progress` (long steps with a name and a time).

mod bench;
mod demo;
mod dist;
mod fuzz;
mod oracle;
mod progress;
mod reproduce;
mod setup;
mod test;
mod vm;
mod workspace;

// What the build scripts build with, so that both always agree.
#[allow(dead_code, reason = "the build scripts use the rest")]
#[path = "../../forwarder/build/bpf_object.rs"]
mod bpf_object;
#[path = "../../forwarder/build/bpf_toolchain.rs"]
mod bpf_toolchain;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Development tasks of forwarder.
///
/// On a fresh machine start with `cargo xtask demo` (see it work) or `cargo xtask test` (see it hold). Both first do what
/// `cargo xtask setup` does; afterwards plain `cargo build` and `cargo test` work too.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Options),
    Setup(setup::Options),
    Test(test::Options),
    Bench(bench::Options),
    Oracle(oracle::Options),
    Fuzz(fuzz::Options),
    Reproduce(reproduce::Options),
    Dist(dist::Options),
    Vm(vm::VmArgs),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo(options) => setup::check_machine().and_then(|_kernel| demo::run(&options)),
        Command::Setup(options) => setup::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Oracle(options) => oracle::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Reproduce(options) => reproduce::run(&options),
        Command::Dist(options) => dist::run(&options),
        Command::Vm(options) => {
            setup::ensure().and_then(|_ready| setup::ensure_guests()).and_then(|()| vm::run(&options))
        }
    };
    if let Err(error) = result {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
