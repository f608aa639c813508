//! The commands, one file each: from what was typed to what is printed.

pub mod add;
pub mod check;
pub mod flows;
pub mod guard;
pub mod list;
pub mod load;
pub mod log;
pub mod reload;
pub mod remove;
pub mod stats;
pub mod status;
pub mod table;
pub mod unload;

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Error, Result, anyhow, bail};

use crate::{
    bpf::layout,
    config::{Compiled, Config, Diagnostics, Draft, Forward, Line, Listen, Steer},
    machine::Machine,
    reconcile::DoesNotFit,
    state::{DIRECTORY, State, StateFile, uplinks},
};

/// What was typed or configured cannot be done: exit status 2.
#[derive(Debug)]
pub struct InvalidInput(String);

impl fmt::Display for InvalidInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidInput {}

/// An error about the input; exit status 2.
pub fn invalid(what: impl Into<String>) -> Error {
    InvalidInput(what.into()).into()
}

/// The exit status for an error: 2 when the input was wrong, else 1.
pub fn exit_status(error: &Error) -> u8 {
    let input = error.is::<InvalidInput>() || error.is::<Diagnostics>() || error.is::<DoesNotFit>();
    if input { 2 } else { 1 }
}

/// An error as it is printed: what was being done, down to what stood in the way.
pub fn describe_error(error: &Error) -> String {
    // Problems of a configuration start with their places, as compilers and editors like it.
    if error.is::<Diagnostics>() { format!("{error:#}") } else { format!("forwarder: {error:#}") }
}

/// Whether the error is only that nobody reads our output any more (`forwarder flows | head`).
pub fn is_broken_pipe(error: &Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// A loaded instance.
#[derive(Debug)]
pub struct Instance {
    /// Where it is pinned.
    pub pins: PathBuf,
    /// Where its state is.
    pub file: StateFile,
    /// Its state.
    pub state: State,
}

impl Instance {
    /// The instance pinned in `pins`, with maps that this program understands.
    pub fn open(pins: &Path) -> Result<Self> {
        let file = StateFile::of(pins);
        let Some(state) = file.read()? else {
            if pins.exists() {
                bail!(
                    "the load into {} did not finish, or {} was deleted; try: forwarder{} unload --force",
                    pins.display(),
                    file.path().display(),
                    pins_option(pins)
                );
            }
            bail!("{}", not_loaded(pins));
        };
        if !pins.exists() {
            bail!(
                "the pins {} are gone, though {} says they were loaded; this mount namespace may not see them. \
                 If they are really gone: forwarder{} unload --force, then load again",
                pins.display(),
                file.path().display(),
                pins_option(pins)
            );
        }
        if let Some(mismatch) = layout::compare(pins)? {
            bail!(
                "{} was loaded by forwarder {}, this is {}, and the maps differ: {mismatch}; unload with the version \
                 that loaded it, or with forwarder{} unload --force",
                pins.display(),
                state.program,
                env!("CARGO_PKG_VERSION"),
                pins_option(pins)
            );
        }
        Ok(Self { pins: pins.to_owned(), file, state })
    }

    /// Fails when this process is in another network namespace than the instance.
    pub fn must_be_here(&self) -> Result<()> {
        if self.state.is_here()? {
            return Ok(());
        }
        bail!(
            "{} was loaded in another network namespace; enter it: nsenter --net=/run/netns/NAME forwarder ...",
            self.pins.display()
        );
    }
}

/// What to say when nothing is loaded, and what is loaded elsewhere.
fn not_loaded(pins: &Path) -> String {
    let others: Vec<String> = fs::read_dir(DIRECTORY)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".json").map(str::to_owned))
        .collect();
    let elsewhere =
        if others.is_empty() { String::new() } else { format!(" (loaded with other --pins: {})", others.join(", ")) };
    format!("not loaded: nothing is pinned in {}; start with: forwarder load --iface NAME{elsewhere}", pins.display())
}

/// The option to repeat in advice; empty for the default.
fn pins_option(pins: &Path) -> String {
    if pins == Path::new(crate::cli::DEFAULT_PINS) { String::new() } else { format!(" --pins {}", pins.display()) }
}

/// Reads a configuration file; a missing file is wrong input.
pub fn read_config(path: &Path) -> Result<Draft> {
    let text = fs::read_to_string(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            invalid(format!("cannot read {}: No such file or directory; is the path right?", path.display()))
        }
        io::ErrorKind::InvalidData => invalid(format!("{} is not UTF-8 text", path.display())),
        io::ErrorKind::IsADirectory => invalid(format!("{} is a directory, not a file", path.display())),
        _ => anyhow!(error).context(format!("cannot read {}", path.display())),
    })?;
    Ok(Draft::read(&path.to_string_lossy(), &text))
}

/// Fails with one sentence when the process may not do what every changing command does.
pub fn require_privileges() -> Result<()> {
    /// `CAP_NET_ADMIN` and `CAP_SYS_ADMIN` of linux/capability.h.
    const NEEDED: [u32; 2] = [12, 21];
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok())
        .unwrap_or(0);
    if NEEDED.iter().all(|capability| effective & (1 << capability) != 0) {
        return Ok(());
    }
    bail!("this needs root (the capabilities CAP_NET_ADMIN and CAP_SYS_ADMIN); try: sudo forwarder ...");
}

/// As [`require_privileges`], for commands that only read maps.
pub fn require_reading() -> Result<()> {
    require_privileges()
}

/// Prints what reading or compiling had to say short of errors.
pub fn print_warnings(warnings: &Diagnostics) {
    if !warnings.is_empty() {
        eprintln!("{warnings}");
    }
}

/// What `list` and the state say about the rules of a configuration on this machine.
pub fn describe_rules(config: &Config, compiled: &Compiled) -> Vec<crate::state::RuleState> {
    config
        .forwards
        .iter()
        .zip(&compiled.rules)
        .map(|(forward, summary)| crate::state::RuleState {
            name: forward.name.value.clone(),
            listen: describe_listens(forward, &summary.listens),
            protocol: forward.protocol.iter().flatten().map(|protocol| protocol.value.to_string()).collect(),
            to: forward.to.value.to_string(),
            source: forward.source.value.to_string(),
            allow: forward.allow.iter().map(|prefix| prefix.value.to_string()).collect(),
            stateless: summary.stateless.is_ok(),
            hairpin: summary.hairpin.map(|hairpin| crate::state::HairpinState {
                clients: hairpin.clients.to_string(),
                source: hairpin.source.to_string(),
            }),
            mss_clamp: config.mss_clamp(forward).to_string(),
            why_not_stateless: summary.stateless.clone().err(),
        })
        .collect()
}

/// The listens as they are here; as written where none is here yet.
fn describe_listens(forward: &Forward, here: &[Listen]) -> Vec<String> {
    if here.is_empty() {
        return forward.listen.iter().map(|listen| format!("{} (waiting)", listen.value)).collect();
    }
    here.iter().map(ToString::to_string).collect()
}

/// What `list` and the state say about the masquerades of a configuration on this machine.
pub fn describe_masquerades(config: &Config, compiled: &Compiled) -> Vec<crate::state::MasqueradeState> {
    let way = |way: &crate::config::WayOut| crate::state::WayOutState {
        from: way.from.to_string(),
        out: way.interface_name.clone(),
        address: way.address.to_string(),
    };
    config
        .masquerades
        .iter()
        .zip(&compiled.masquerades)
        .map(|(masquerade, summary)| crate::state::MasqueradeState {
            name: masquerade.name.value.clone(),
            ways: summary.ways.iter().map(way).collect(),
            filtering: masquerade.filtering.value.to_string(),
        })
        .collect()
}

/// The machine with what the daemon of an instance knows of it, if there is one: that what is missing is waited for, and
/// which lines do not work.
pub fn as_followed(machine: Machine, file: &StateFile) -> Result<Machine> {
    if file.daemon().is_none() {
        return Ok(machine);
    }
    let down = file.read()?.map(|state| uplinks::probed_down(&state.uplinks)).unwrap_or_default();
    Ok(Machine { followed: true, down, ..machine })
}

/// What `list` and the state say about the steers of a configuration.
pub fn describe_steers(config: &Config, compiled: &Compiled) -> Vec<crate::state::SteerState> {
    let leaves_by = |steer: &Steer, line: &Line| match (&line.uplink, &steer.uplink) {
        _ if line.interface == 0 => "nothing: the line is down".to_owned(),
        (Some(now), Some(own)) if *now != own.value => format!("{} ({now} in its place)", line.interface_name),
        _ => line.interface_name.clone(),
    };
    config
        .steers
        .iter()
        .zip(&compiled.steers)
        .map(|(steer, summary)| crate::state::SteerState {
            leaves_by: summary
                .lines
                .iter()
                .map(|line| leaves_by(steer, line))
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
            name: steer.name.value.clone(),
            from: steer.from.iter().map(|prefix| prefix.value.to_string()).collect(),
            protocol: steer.protocol.iter().flatten().map(|protocol| protocol.value.to_string()).collect(),
            port: steer.port.map(|ports| ports.value.to_string()),
            interface: steer.interface.value.clone(),
            gateway: steer.gateway.iter().map(|gateway| gateway.value.to_string()).collect(),
        })
        .collect()
}

/// Steers as a table.
pub fn steer_table(steers: &[crate::state::SteerState]) -> String {
    let mut table = table::table(["STEER", "FROM", "PACKETS", "LINE", "GATEWAY"]);
    for steer in steers {
        table.add_row([
            steer.name.clone(),
            steer.from.join("\n"),
            steer.kinds(),
            steer.leaves_by.join("\n"),
            steer.gateway.join("\n"),
        ]);
    }
    table::text(&table)
}

/// Masquerades as a table.
pub fn masquerade_table(masquerades: &[crate::state::MasqueradeState]) -> String {
    let mut table = table::table(["MASQUERADE", "FROM", "OUT", "ADDRESS", "FILTERING"]);
    for masquerade in masquerades {
        let column = |part: fn(&crate::state::WayOutState) -> &str| {
            let cells: Vec<&str> = masquerade.ways.iter().map(part).collect();
            if cells.is_empty() { "(waiting)".to_owned() } else { cells.join("\n") }
        };
        table.add_row([
            masquerade.name.clone(),
            column(|way| &way.from),
            column(|way| &way.out),
            column(|way| &way.address),
            masquerade.filtering.clone(),
        ]);
    }
    table::text(&table)
}

/// What `list` and the state say about the neighbours that a configuration answers for on this machine.
pub fn describe_neighbors(config: &Config, compiled: &Compiled) -> Vec<crate::state::NeighborState> {
    config
        .neighbors
        .iter()
        .zip(&compiled.neighbors)
        .map(|(neighbor, summary)| crate::state::NeighborState {
            name: neighbor.name.value.clone(),
            interface: neighbor.interface.value.clone(),
            addresses: summary.asked.iter().map(|asked| asked.addresses.to_string()).collect(),
            via: neighbor.via.value.clone(),
            answer: neighbor.answer.value.to_string(),
        })
        .collect()
}

/// Neighbours answered for, as a table.
pub fn neighbor_table(neighbors: &[crate::state::NeighborState]) -> String {
    let mut table = table::table(["NEIGHBOR", "ASKED ON", "FOR", "VIA", "ANSWER"]);
    for neighbor in neighbors {
        let addresses = neighbor.addresses.join("\n");
        table.add_row([
            neighbor.name.clone(),
            neighbor.interface.clone(),
            if addresses.is_empty() { "(waiting)".to_owned() } else { addresses },
            neighbor.via.clone(),
            neighbor.answer.clone(),
        ]);
    }
    table::text(&table)
}
