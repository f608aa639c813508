//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;

/// Where the project keeps its report: the bench is built where it stands.
const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs");

/// Measure forwarder next to what the machine can do and to what people use today
///
/// Between network namespaces: packet rates, which one CPU does all of, beside a bare XDP redirect, kernel forwarding,
/// nftables and iptables; applications over TCP; loading and changing rules. Compare ratios of one run, not numbers of two
/// machines. With --iface, between real machines instead.
#[derive(Debug, Parser)]
#[allow(clippy::struct_excessive_bools, reason = "flags of a command line are independent of each other")]
#[command(name = "forwarder-bench", version)]
pub(crate) struct Options {
    /// The forwarder binary to measure, built with --release
    #[arg(long, value_name = "FILE")]
    pub(crate) forwarder: PathBuf,
    /// Another forwarder binary, measured in turn with the first: how much a change of the programs gains
    #[arg(long, value_name = "FILE")]
    pub(crate) beside: Vec<PathBuf>,
    /// Only rows whose name contains one of these words, e.g. v4, xdp, masquerade/64k, nftables
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    pub(crate) filter: Vec<String>,
    /// Fewer and shorter repetitions: a rough answer in less than a minute
    #[arg(long)]
    pub(crate) quick: bool,
    /// Fail if a ratio is not what thresholds.toml says it must be at least (or at most)
    ///
    /// What is not is measured a second time first. Together with --quick this is what continuous integration runs.
    #[arg(long)]
    pub(crate) check: bool,
    /// How often each row is measured
    #[arg(long, value_name = "N")]
    pub(crate) rounds: Option<usize>,
    /// Visit flows in the order they were made; by default the order is scattered, as between unrelated clients
    #[arg(long)]
    pub(crate) in_order: bool,
    /// Also write everything that was measured to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write benchmarks.md and its plots, of everything that was measured, into this directory; by default docs/
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = DOCS)]
    pub(crate) report: Option<PathBuf>,
    /// Measure nothing; show, check or report what --json wrote to this file
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    pub(crate) from: Option<PathBuf>,
    /// The CPU that packet rates are measured on; by default the last one
    #[arg(long, value_name = "N")]
    pub(crate) cpu: Option<usize>,
    /// Where relays are that the machine lacks: a directory with usr/sbin and so on below it
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(crate) peers: PathBuf,
    /// Real machines: send frames by this interface to --peer, or, with --sink, count what arrives by it
    #[arg(long, value_name = "INTERFACE")]
    pub(crate) iface: Option<String>,
    /// Where frames go: what the forwarder listens on, ADDR:PORT or [ADDR6]:PORT, UDP
    #[arg(long, value_name = "ADDR:PORT", requires = "iface", conflicts_with = "sink")]
    pub(crate) peer: Option<SocketAddr>,
    /// Count the UDP packets to --port that arrive by --iface, on the machine that the forwarder forwards to
    #[arg(long, requires_all = ["iface", "port"])]
    pub(crate) sink: bool,
    /// The port that --sink counts
    #[arg(long, value_name = "PORT", requires = "sink")]
    pub(crate) port: Option<u16>,
    /// How long --peer sends or --sink counts
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) seconds: u64,
    /// How many flows --peer sends, up to 32768; a power of two
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub(crate) flows: u32,
    /// The most frames a second that --peer sends; 0: as many as go
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) rate: u64,
    /// Print the names of the rows and end
    #[arg(long)]
    pub(crate) list: bool,
}
