//! The configuration: as typed (`file`) → as meant (`validate`, all problems at once) → map contents ([`compile`](mod@compile)).

mod agreement;
mod blocks;
pub mod compile;
mod conflicts;
pub mod diagnostics;
pub mod edit;
pub mod family;
mod file;
mod interfaces;
pub mod masquerade;
mod nearest;
pub mod neighbor;
mod on_machine;
mod one_to_one;
mod report;
pub mod rule;
pub mod settings;
mod stateless;
pub mod steer;
pub mod syntax;
pub mod uplink;
mod validate;
mod view;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

pub use compile::{Compiled, FamilyTables, Hairpin, LogicalRule, RuleSummary, SettingsPart, Sizes};
pub use diagnostics::{Diagnostic, Diagnostics, Position, Severity};
pub use family::Family;
pub use masquerade::{Filtering, Masquerade, WayOut};
pub use neighbor::{Answer, Asked, Neighbor};
pub use rule::{Forward, Listen, ListenHost, Placed, Ports, Protocol, Source, Target, TypedForward};
pub use settings::{Limits, LogLevel, Mode, MssClamp, Timeouts};
pub use steer::{Line, Steer};
pub use syntax::{SyntaxError, protocol_name};
pub use uplink::{Probe, Uplink};

use crate::machine::Machine;
use file::FileForward;
use report::Report;
use stateless::Decision;
use validate::Part;
use view::View;
pub(crate) use view::forwardable;

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
    /// What TCP's segment size is lowered to, by rules that do not say it themselves.
    #[serde(default)]
    pub mss_clamp: MssClamp,
    /// Whether the daemon adds a default route where steered sources need one and there is none; none for the default, that it
    /// does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_route: Option<bool>,
    /// Sizes.
    pub limits: Limits,
    /// Lifetimes of flows.
    pub timeouts: Timeouts,
    /// The rules.
    pub forwards: Vec<Forward>,
    /// The hosts that go out with an address of ours.
    #[serde(default)]
    pub masquerades: Vec<Masquerade>,
    /// The sources that leave by a line of their own.
    #[serde(default)]
    pub steers: Vec<Steer>,
    /// The lines that are known by name.
    #[serde(default)]
    pub uplinks: Vec<Uplink>,
    /// The hosts behind us that neighbours are answered for.
    #[serde(default)]
    pub neighbors: Vec<Neighbor>,
    /// What reading the file had to say short of errors.
    #[serde(skip)]
    pub warnings: Diagnostics,
}

impl Config {
    /// The backends whose preferred source address compiling needs ([`Machine::sources`]), and what else routing is asked
    /// about ([`Machine::ways`]).
    pub fn backends(&self) -> BTreeSet<IpAddr> {
        let samples = self.neighbors.iter().flat_map(Neighbor::samples);
        self.forwards
            .iter()
            .filter(|forward| !matches!(forward.source.value, Source::Address(_)) && forward.to.prefix_len.is_none())
            .map(|forward| forward.to.address)
            .chain(samples)
            .collect()
    }

    /// The names of all rules.
    fn names(&self) -> impl Iterator<Item = &Placed<String>> {
        let masquerades = self.masquerades.iter().map(|masquerade| &masquerade.name);
        let steers = self.steers.iter().map(|steer| &steer.name);
        let neighbors = self.neighbors.iter().map(|neighbor| &neighbor.name);
        self.forwards.iter().map(|forward| &forward.name).chain(masquerades).chain(steers).chain(neighbors)
    }

    /// What a rule lowers TCP's segment size to.
    pub fn mss_clamp(&self, forward: &Forward) -> MssClamp {
        forward.mss_clamp.map_or(self.mss_clamp, |clamp| clamp.value)
    }

    /// With one more rule, as typed on the command line.
    pub fn with(&self, rule: &TypedForward) -> Result<Self, Diagnostics> {
        let mut report = Report::default();
        let part = validate::forward(&FileForward::from(rule), &mut report);
        let names = self.names().chain(&part.name);
        validate::check_names(names, &mut report);
        let views: Vec<View<'_>> = self.forwards.iter().map(View::from).chain([View::from(&part)]).collect();
        conflicts::check(&views, &view::expand(&views, None, &mut Report::default()), &mut report);
        report.include(self.warnings.clone());
        let warnings = report.finish()?;
        let mut config = Self { warnings, ..self.clone() };
        config.forwards.extend(part.into_forward());
        Ok(config)
    }

    /// Without the rule of this name.
    pub fn without(&self, name: &str) -> Result<Self, Diagnostics> {
        let mut config = self.clone();
        config.forwards.retain(|forward| forward.name.value != name);
        config.masquerades.retain(|masquerade| masquerade.name.value != name);
        config.steers.retain(|steer| steer.name.value != name);
        config.neighbors.retain(|neighbor| neighbor.name.value != name);
        if config.names().count() < self.names().count() {
            return Ok(config);
        }
        let mut report = Report::default();
        let names = self.names().map(|name| name.value.as_str());
        let hint =
            nearest::near(name, names).map_or_else(|| "`forwarder list`".to_owned(), |near| format!("\"{near}\""));
        report.error(None, format!("there is no rule \"{name}\""), hint);
        report.finish()?;
        Ok(config)
    }
}

/// A file that was read, with what could be understood of it and everything that is wrong with it so far.
///
/// Kept apart from [`Config`] so that problems which only the machine shows are reported together with the others.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Without the rules.
    config: Config,
    parts: Vec<Part>,
    report: Report,
}

impl Draft {
    /// Reads a configuration; never fails, but remembers what is wrong. `path` is for messages only.
    pub fn read(path: &str, text: &str) -> Self {
        let path: Arc<str> = Arc::from(path);
        let mut report = Report::new(Some(Arc::clone(&path)));
        let file = file::read(text, &mut report);
        let (config, parts) = validate::file(&file, &mut report);
        let names = parts.iter().filter_map(|part| part.name.as_ref());
        validate::check_names(names.chain(config.names()), &mut report);
        let routing = file.steers.is_empty() && file.neighbors.is_empty();
        if parts.is_empty() && file.masquerades.is_empty() && routing && !report.has_errors() {
            report.warning(None, "no rules: nothing will be forwarded", "a [[forward]] table with name, listen and to");
        }
        Self { config: Config { path: Some(path), ..config }, parts, report }
    }

    /// As [`Config::interfaces`], as far as they could be read.
    pub fn interfaces(&self) -> &[Placed<String>] {
        &self.config.interfaces
    }

    /// As [`Config::backends`], of the rules that could be read.
    pub fn backends(&self) -> BTreeSet<IpAddr> {
        let own_source =
            |part: &&Part| part.source.as_ref().is_some_and(|source| !matches!(source.value, Source::Address(_)));
        let backend = |part: &Part| part.to.as_ref().filter(|to| to.prefix_len.is_none()).map(|to| to.address);
        let samples = self.config.neighbors.iter().flat_map(Neighbor::samples);
        self.parts.iter().filter(own_source).filter_map(backend).chain(samples).collect()
    }

    /// The configuration, checked without a machine.
    pub fn into_config(mut self) -> Result<Config, Diagnostics> {
        let views: Vec<View<'_>> = self.parts.iter().map(View::from).collect();
        conflicts::check(&views, &view::expand(&views, None, &mut self.report), &mut self.report);
        masquerade::check_conflicts(&self.config.masquerades, &mut self.report);
        steer::check_conflicts(&self.config.steers, &mut self.report);
        neighbor::check_conflicts(&self.config.neighbors, &mut self.report);
        self.finish()
    }

    /// The configuration and its map contents, or everything that is wrong with it on this machine.
    pub fn compile(mut self, machine: &Machine) -> Result<(Config, Compiled), Diagnostics> {
        let views: Vec<View<'_>> = self.parts.iter().map(View::from).collect();
        let decisions = check_on(machine, &views, self.config.limits, &mut self.report);
        masquerade::check_conflicts(&self.config.masquerades, &mut self.report);
        steer::check_conflicts(&self.config.steers, &mut self.report);
        masquerade::resolve(&self.config.masquerades, machine, &mut self.report);
        steer::resolve(&self.config, machine, &mut self.report);
        neighbor::check_conflicts(&self.config.neighbors, &mut self.report);
        neighbor::resolve(&self.config.neighbors, machine, &mut self.report);
        let config = self.finish()?;
        let compiled = compile::compile(&config, machine, decisions);
        Ok((config, compiled))
    }

    fn finish(self) -> Result<Config, Diagnostics> {
        let warnings = self.report.finish()?;
        let forwards = self.parts.into_iter().filter_map(Part::into_forward).collect();
        Ok(Config { forwards, warnings, ..self.config })
    }
}

/// Reads a configuration and checks what can be checked without the machine.
pub fn load(path: &str, text: &str) -> Result<Config, Diagnostics> {
    Draft::read(path, text).into_config()
}

/// What the maps shall hold for this configuration on this machine.
pub fn compile(config: &Config, machine: &Machine) -> Result<Compiled, Diagnostics> {
    let mut report = Report::new(config.path.clone());
    let views: Vec<View<'_>> = config.forwards.iter().map(View::from).collect();
    let decisions = check_on(machine, &views, config.limits, &mut report);
    masquerade::resolve(&config.masquerades, machine, &mut report);
    steer::resolve(config, machine, &mut report);
    neighbor::resolve(&config.neighbors, machine, &mut report);
    report.include(config.warnings.of_the_file());
    let warnings = report.finish()?;
    Ok(Compiled { warnings, ..compile::compile(config, machine, decisions) })
}

/// Everything that the machine and the other rules have to say about rules; and which of them need flows.
fn check_on(machine: &Machine, rules: &[View<'_>], limits: Limits, report: &mut Report) -> Vec<Decision> {
    let listens = view::expand(rules, Some(machine), report);
    conflicts::check(rules, &listens, report);
    on_machine::check(rules, &listens, machine, report);
    compile::check_limit(&listens, limits, report);
    stateless::decide(rules, &listens, report)
}

#[cfg(test)]
mod tests;
