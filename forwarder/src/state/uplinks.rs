//! What is remembered of the lines: whether they work, since when, and how often that changed.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{config::Config, machine::Machine};

/// A line as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkState {
    /// Its name.
    pub name: String,
    /// The interface that it leaves by.
    pub interface: String,
    /// The routers at its other end.
    pub gateway: Vec<String>,
    /// Who is asked whether it works.
    pub probe: Vec<String>,
    /// Whether it works.
    pub up: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What its probes say against it: not all that can be wrong with a line is found out by them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_failed: Option<String>,
    /// Since when: seconds since 1970.
    pub since: u64,
    /// How often it went down or came up since `load`.
    pub changes: u64,
}

/// The lines of a configuration as they are now; `before` is what was known of them.
pub fn describe(config: &Config, machine: &Machine, before: &[UplinkState]) -> Vec<UplinkState> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let uplinks = config.uplinks.iter().map(|uplink| {
        let why = uplink.trouble(machine);
        let up = why.is_none();
        let name = uplink.name.value.clone();
        let before = before.iter().find(|state| state.name == name);
        let (since, changes) = match before {
            Some(before) if before.up == up => (before.since, before.changes),
            Some(before) => (now, before.changes + 1),
            None => (now, 0),
        };
        UplinkState {
            interface: uplink.interface.value.clone(),
            gateway: uplink.gateway.iter().map(|gateway| gateway.value.to_string()).collect(),
            probe: uplink.probe.iter().map(|probe| probe.value.to_string()).collect(),
            up,
            why,
            probe_failed: machine.down.get(&name).cloned(),
            since,
            changes,
            name,
        }
    });
    uplinks.collect()
}

/// The lines that do not work by their probes: [`Machine::down`].
pub fn probed_down(uplinks: &[UplinkState]) -> BTreeMap<String, String> {
    uplinks.iter().filter_map(|uplink| Some((uplink.name.clone(), uplink.probe_failed.clone()?))).collect()
}
