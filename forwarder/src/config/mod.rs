//! The configuration: as typed ([`file`]) → as meant ([`validate`], all problems at once) → map contents ([`compile`]).

pub mod compile;
pub mod diagnostics;
pub mod edit;
pub mod family;
mod nearest;
pub mod rule;
pub mod settings;
pub mod syntax;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

pub use compile::{Compiled, FamilyTables, LogicalRule, RuleSummary, SettingsPart, Sizes};
pub use diagnostics::{Diagnostic, Diagnostics, Position, Severity};
pub use family::Family;
pub use rule::{Forward, Listen, ListenHost, Placed, Ports, Protocol, Source, Target, TypedForward};
pub use settings::{Limits, LogLevel, Mode, Timeouts};
pub use syntax::{SyntaxError, protocol_name};

use crate::machine::Machine;

/// A configuration as meant: every value is valid by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The file it was read from, for messages.
    #[serde(skip)]
    pub path: Option<Arc<str>>,
    /// The interfaces to serve; may be empty, when the command line names them.
    pub interfaces: Vec<Placed<String>>,
    /// How programs are attached.
    pub mode: Mode,
    /// What the programs log.
    pub log: LogLevel,
    /// Sizes.
    pub limits: Limits,
    /// Lifetimes of flows.
    pub timeouts: Timeouts,
    /// The rules.
    pub forwards: Vec<Forward>,
    /// What reading the file had to say short of errors.
    #[serde(skip)]
    pub warnings: Diagnostics,
}

impl Config {
    /// The backends whose preferred source address compiling needs ([`Machine::sources`]).
    pub fn backends(&self) -> BTreeSet<IpAddr> {
        self.forwards
            .iter()
            .filter(|forward| *forward.source == Source::Masquerade)
            .map(|forward| forward.to.address)
            .collect()
    }

    /// With one more rule, as typed on the command line.
    pub fn with(&self, _rule: &TypedForward) -> Result<Self, Diagnostics> {
        todo!()
    }

    /// Without the rule of this name.
    pub fn without(&self, _name: &str) -> Result<Self, Diagnostics> {
        todo!()
    }
}

/// A file that was read, with what could be understood of it and everything that is wrong so far.
///
/// Kept apart from [`Config`] so that problems which only the machine shows are reported together with the others.
#[derive(Clone, Debug)]
pub struct Draft {}

impl Draft {
    /// Reads a configuration; never fails, but remembers what is wrong. `path` is for messages only.
    pub fn read(_path: &str, _text: &str) -> Self {
        todo!()
    }

    /// As [`Config::backends`].
    pub fn backends(&self) -> BTreeSet<IpAddr> {
        todo!()
    }

    /// The configuration, checked without a machine.
    pub fn into_config(self) -> Result<Config, Diagnostics> {
        todo!()
    }

    /// The configuration and its map contents, or everything that is wrong with it on this machine.
    pub fn compile(self, _machine: &Machine) -> Result<(Config, Compiled), Diagnostics> {
        todo!()
    }
}

/// Reads a configuration and checks what can be checked without the machine.
pub fn load(path: &str, text: &str) -> Result<Config, Diagnostics> {
    Draft::read(path, text).into_config()
}

/// What the maps shall hold for this configuration on this machine.
pub fn compile(_config: &Config, _machine: &Machine) -> Result<Compiled, Diagnostics> {
    todo!()
}
