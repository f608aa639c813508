//! The command line: what can be typed. Each command's own file says what it does.

use std::path::PathBuf;

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};

use crate::config::{LogLevel, Mode};

/// The configuration that commands use unless they are told another.
pub const DEFAULT_CONFIG: &str = "/etc/forwarder/forwarder.toml";
/// Where everything is pinned unless `--pins` says otherwise.
pub const DEFAULT_PINS: &str = "/sys/fs/bpf/forwarder";

// A paragraph is one line: clap wraps it to the terminal's width.
const EXAMPLES: &str = "\
Examples:
  forwarder check forwarder.toml                      is the configuration right?
  forwarder load --iface eth0 --config forwarder.toml forward from now on
  forwarder add web 203.0.113.7:80 10.8.0.2:8080      one more rule, at once
  forwarder stats                                     who sends how much
  forwarder unload                                    the machine as it was

No process stays behind: the kernel forwards by itself until `forwarder unload` or the next restart. `forwarder run` is for \
machines whose addresses or interfaces change.
Exit status: 0 done, 1 it failed, 2 the input was wrong.";

/// Forwards packets in the kernel, by eBPF at XDP and TC: this machine answers for machines behind it.
#[derive(Debug, Parser)]
#[command(name = "forwarder", version, after_help = EXAMPLES)]
pub struct Cli {
    /// Where maps and links are pinned; another directory is another instance
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_PINS)]
    pub pins: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start forwarding on interfaces
    Load(Load),
    /// Stop forwarding and leave the machine as it was before `load`
    Unload(Unload),
    /// Stay and follow the machine: addresses, interfaces and routes that change; loads first if nothing is loaded
    Run(Run),
    /// Apply a changed configuration to what runs; rules that stay keep their flows and counters
    Reload(Reload),
    /// Say whether a configuration is right, and what its rules mean on this machine
    Check(Check),
    /// Add a rule to what runs
    Add(Add),
    /// Remove a rule from what runs
    Remove(Remove),
    /// Show the rules that run
    List(Show),
    /// Show interfaces, modes and how full the tables are
    Status(Show),
    /// Show counters of rules, interfaces and drop reasons
    Stats(Stats),
    /// Show the flows that are under way
    Flows(Show),
    /// Follow what the programs log, until Ctrl-C
    Log,
}

/// `load`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  forwarder load --iface eth0
  forwarder load --iface eth0 --iface eth1 --config /etc/forwarder/forwarder.toml
  forwarder load --iface eth0 --mode native       insist on XDP in the driver; its refusal is shown

Without --config, /etc/forwarder/forwarder.toml is used if it is there; without any, there are no rules until `forwarder add`.
In a network namespace: nsenter --net=/run/netns/NAME forwarder load ... (not `ip netns exec`: the pins would vanish).
Forwarded packets skip nftables, ufw and Docker's rules of this machine: use `allow` in the rules.")]
pub struct Load {
    /// An interface that packets come in by; again for more. Default: `interfaces` of the configuration
    #[arg(long, value_name = "NAME")]
    pub iface: Vec<String>,
    /// The configuration
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// auto: native XDP where the driver does it well, else TC. native, tc, generic: that one
    #[arg(long, value_name = "MODE", value_parser = mode())]
    pub mode: Option<Mode>,
    /// What the programs log, for `forwarder log`; costs nothing when off
    #[arg(long, value_name = "LEVEL", value_parser = log_level())]
    pub log: Option<LogLevel>,
    /// Load even when a rule would take the SSH connection that this command is typed in
    #[arg(long)]
    pub force: bool,
    /// Attach to TC by a filter on the clsact qdisc even where the kernel has tcx
    #[arg(long, hide = true)]
    pub no_tcx: bool,
}

/// `run`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  forwarder run                                     what systemd starts; `forwarder load` that stays
  forwarder run --iface ppp0 --config forwarder.toml

It loads if nothing is loaded, and else takes over what runs: then only --config is looked at, at a reload.
Rules that name an interface follow its addresses; interfaces may come later, go, and come back. Route changes take effect \
at once. `add`, `remove`, `reload` work as ever. SIGHUP: reads the configuration anew. SIGTERM, SIGINT: it ends, and \
forwarding goes on without it; `forwarder unload` ends both. Logs go to stderr.")]
pub struct Run {
    /// As for `load`.
    #[command(flatten)]
    pub load: Load,
}

/// `unload`
#[derive(Args, Debug)]
pub struct Unload {
    /// Unload whatever is there: pins of another version, of a load that did not finish, of another network namespace
    #[arg(long)]
    pub force: bool,
}

/// `reload`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  forwarder reload                          the file that was loaded, as it is now
  forwarder reload --config other.toml

A packet sees the rules before or after, never half of each. A configuration that is wrong or too large changes nothing.
Rules added without --save are gone after a reload. Interfaces, mode, log level and limits are those of `load`.")]
pub struct Reload {
    /// The configuration; default: the one that was loaded
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Reload even when a rule would take the SSH connection that this command is typed in
    #[arg(long)]
    pub force: bool,
}

/// `check`
#[derive(Args, Debug)]
pub struct Check {
    /// The configuration
    #[arg(value_name = "FILE", default_value = DEFAULT_CONFIG)]
    pub file: PathBuf,
}

/// `add`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  forwarder add web 203.0.113.7:80 10.8.0.2:8080
  forwarder add game 203.0.113.7:27000-27050 10.8.0.3 --protocol udp --source preserve
  forwarder add v6 '[2001:db8::7]:443' '[fd00::2]:443' --allow 2001:db8:9::/48 --save
  forwarder add all 203.0.113.8 10.8.0.4                a whole address

LISTEN is ADDR:PORT, [ADDR6]:PORT, ADDR:FIRST-LAST, ADDR, or an interface's name in place of ADDR; several with commas.")]
pub struct Add {
    /// The rule's name, unique
    pub name: String,
    /// What clients send to
    #[arg(value_delimiter = ',', required = true)]
    pub listen: Vec<String>,
    /// Where it goes: ADDR, ADDR:PORT or ADDR:FIRST-LAST
    pub to: String,
    /// tcp, udp, icmp, ... or a number; default: tcp and udp with a port, everything without
    #[arg(long, value_delimiter = ',')]
    pub protocol: Vec<String>,
    /// What the backend sees as the client: masquerade (default), preserve, or an address of this machine
    #[arg(long)]
    pub source: Option<String>,
    /// Only these clients: a prefix; several with commas
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    pub allow: Vec<String>,
    /// true: refuse the rule if it has to keep flows; false: keep flows even where none are needed
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub stateless: Option<bool>,
    /// Write the rule to the configuration file too
    #[arg(long)]
    pub save: bool,
    /// Add it even when it would take the SSH connection that this command is typed in
    #[arg(long)]
    pub force: bool,
}

/// `remove`
#[derive(Args, Debug)]
pub struct Remove {
    /// The rule's name
    pub name: String,
    /// Remove it from the configuration file too
    #[arg(long)]
    pub save: bool,
}

/// How `list`, `status` and `flows` answer.
#[derive(Args, Clone, Copy, Debug)]
pub struct Show {
    /// table: for people. json: for programs
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// `stats`
#[derive(Args, Clone, Copy, Debug)]
pub struct Stats {
    /// table: for people. json: for programs. prometheus: for its node exporter's textfile collector
    #[arg(long, value_enum, default_value_t)]
    pub format: StatsFormat,
}

/// For people or for programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// For people, for programs, or for Prometheus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum StatsFormat {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
    /// The Prometheus text exposition format.
    Prometheus,
}

fn mode() -> impl TypedValueParser<Value = Mode> {
    PossibleValuesParser::new(Mode::WORDS).map(|word| word.parse().unwrap_or_default())
}

fn log_level() -> impl TypedValueParser<Value = LogLevel> {
    PossibleValuesParser::new(LogLevel::WORDS).map(|word| word.parse().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
