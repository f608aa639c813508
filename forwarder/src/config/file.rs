//! A configuration file as typed: every value with its place, nothing yet said about what the values mean.
//!
//! Read from the TOML syntax tree rather than by serde, which stops at the first key it does not know.

mod reader;
mod tables;

use super::{
    diagnostics::Position,
    report::Report,
    rule::{Placed, TypedForward},
};

/// A file. What was missing or of a wrong type is reported already, and `None` here.
#[derive(Clone, Debug, Default)]
pub(super) struct File {
    pub(super) interfaces: Vec<Placed<String>>,
    pub(super) mode: Option<Placed<String>>,
    pub(super) log: Option<Placed<String>>,
    pub(super) mss_clamp: Option<Placed<Switch>>,
    pub(super) fallback_route: Option<Placed<bool>>,
    pub(super) limits: Vec<(&'static str, Placed<i64>)>,
    pub(super) timeouts: Vec<(&'static str, Placed<String>)>,
    pub(super) forwards: Vec<FileForward>,
    pub(super) masquerades: Vec<FileMasquerade>,
    pub(super) steers: Vec<FileSteer>,
    pub(super) uplinks: Vec<FileUplink>,
    pub(super) neighbors: Vec<FileNeighbor>,
}

/// A `[[forward]]`.
#[derive(Clone, Debug, Default)]
pub(super) struct FileForward {
    pub(super) place: Option<Position>,
    pub(super) name: Option<Placed<String>>,
    pub(super) listen: Option<Placed<Vec<Placed<String>>>>,
    pub(super) protocol: Option<Placed<Vec<Placed<String>>>>,
    pub(super) to: Option<Placed<Vec<Placed<String>>>>,
    pub(super) source: Option<Placed<String>>,
    pub(super) allow: Option<Placed<Vec<Placed<String>>>>,
    pub(super) stateless: Option<Placed<bool>>,
    pub(super) mss_clamp: Option<Placed<Switch>>,
}

/// `true`, `false` or a number.
#[derive(Clone, Copy, Debug)]
pub(super) enum Switch {
    Is(bool),
    Number(i64),
}

impl FileForward {
    /// "rule "web": ", to begin what is said about it.
    pub(super) fn label(&self) -> String {
        self.name.as_ref().map_or_else(String::new, |name| format!("rule \"{}\": ", name.value))
    }
}

/// A `[[masquerade]]`.
#[derive(Clone, Debug, Default)]
pub(super) struct FileMasquerade {
    pub(super) place: Option<Position>,
    pub(super) name: Option<Placed<String>>,
    pub(super) from: Option<Placed<Vec<Placed<String>>>>,
    pub(super) out: Option<Placed<String>>,
    pub(super) address: Option<Placed<Vec<Placed<String>>>>,
    pub(super) filtering: Option<Placed<String>>,
}

impl FileMasquerade {
    /// "masquerade "home": ", to begin what is said about it.
    pub(super) fn label(&self) -> String {
        self.name.as_ref().map_or_else(|| "masquerade: ".to_owned(), |name| format!("masquerade \"{}\": ", name.value))
    }
}

/// A `[[steer]]`.
#[derive(Clone, Debug, Default)]
pub(super) struct FileSteer {
    pub(super) place: Option<Position>,
    pub(super) name: Option<Placed<String>>,
    pub(super) from: Option<Placed<Vec<Placed<String>>>>,
    pub(super) protocol: Option<Placed<Vec<Placed<String>>>>,
    pub(super) port: Option<Placed<String>>,
    pub(super) interface: Option<Placed<String>>,
    pub(super) gateway: Option<Placed<Vec<Placed<String>>>>,
    pub(super) uplink: Option<Placed<String>>,
    pub(super) fallback: Option<Placed<Vec<Placed<String>>>>,
}

impl FileSteer {
    /// "steer "line-b": ", to begin what is said about it.
    pub(super) fn label(&self) -> String {
        self.name.as_ref().map_or_else(|| "steer: ".to_owned(), |name| format!("steer \"{}\": ", name.value))
    }
}

/// An `[[uplink]]`.
#[derive(Clone, Debug, Default)]
pub(super) struct FileUplink {
    pub(super) name: Option<Placed<String>>,
    pub(super) interface: Option<Placed<String>>,
    pub(super) gateway: Option<Placed<Vec<Placed<String>>>>,
    pub(super) probe: Option<Placed<Vec<Placed<String>>>>,
    pub(super) interval: Option<Placed<String>>,
    pub(super) fall: Option<Placed<i64>>,
    pub(super) rise: Option<Placed<i64>>,
}

impl FileUplink {
    /// "uplink "fibre": ", to begin what is said about it.
    pub(super) fn label(&self) -> String {
        self.name.as_ref().map_or_else(|| "uplink: ".to_owned(), |name| format!("uplink \"{}\": ", name.value))
    }
}

/// A `[[neighbor]]`.
#[derive(Clone, Debug, Default)]
pub(super) struct FileNeighbor {
    pub(super) place: Option<Position>,
    pub(super) name: Option<Placed<String>>,
    pub(super) interface: Option<Placed<String>>,
    /// `for`.
    pub(super) addresses: Option<Placed<Vec<Placed<String>>>>,
    pub(super) via: Option<Placed<String>>,
    pub(super) answer: Option<Placed<String>>,
}

impl FileNeighbor {
    /// "neighbor "home": ", to begin what is said about it.
    pub(super) fn label(&self) -> String {
        self.name.as_ref().map_or_else(|| "neighbor: ".to_owned(), |name| format!("neighbor \"{}\": ", name.value))
    }
}

impl From<&TypedForward> for FileForward {
    fn from(typed: &TypedForward) -> Self {
        let list = |texts: &[String]| Placed::nowhere(texts.iter().cloned().map(Placed::nowhere).collect::<Vec<_>>());
        let given = |texts: &[String]| (!texts.is_empty()).then(|| list(texts));
        Self {
            place: None,
            name: Some(Placed::nowhere(typed.name.clone())),
            listen: Some(list(&typed.listen)),
            protocol: given(&typed.protocol),
            to: Some(list(std::slice::from_ref(&typed.to))),
            source: typed.source.clone().map(Placed::nowhere),
            allow: given(&typed.allow),
            stateless: typed.stateless.map(Placed::nowhere),
            mss_clamp: None,
        }
    }
}

/// The keys of `[limits]`.
pub(super) const LIMITS: [&str; 3] = ["flows", "new_flows", "rules"];
/// The keys of `[timeouts]`.
pub(super) const TIMEOUTS: [&str; 8] =
    ["tcp_opening", "tcp_established", "tcp_closing", "tcp_reset", "udp_opening", "udp_established", "icmp", "other"];

/// Reads a file; what is wrong with it goes to `report`. After errors in the TOML itself nothing else is looked at:
/// what a broken line was meant to be is anybody's guess.
pub(super) fn read(text: &str, report: &mut Report) -> File {
    match reader::parse(text, report) {
        (document, mut reader) if !reader.report.has_errors() => reader.document(document.get_ref()),
        _ => File::default(),
    }
}

/// Only says what is wrong with the TOML itself.
pub(super) fn read_syntax(text: &str, report: &mut Report) {
    reader::parse(text, report);
}
