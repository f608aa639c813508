//! forwarder, by its own command line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use forwarder_lab::{Family, Host, Topology};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A loaded forwarder. It goes with the network.
pub(crate) struct Forwarder {
    host: Host,
    binary: PathBuf,
    pins: PathBuf,
}

/// How much of a complaint is shown: there may be one for each of a hundred thousand rules.
const MOST_LINES: usize = 12;

#[derive(Deserialize)]
struct Status {
    memory_bytes: u64,
    tables: Vec<Table>,
}

#[derive(Deserialize)]
struct Table {
    table: String,
    used: u64,
}

#[derive(Deserialize)]
struct List {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    name: String,
    stateless: bool,
}

#[derive(Deserialize)]
struct Stats {
    interfaces: Vec<Interface>,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
    xdp: BTreeMap<String, u64>,
    tc: BTreeMap<String, u64>,
}

/// Packets forwarded from the client's side so far, by each hook.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Forwarded {
    pub(crate) xdp: u64,
    pub(crate) tc: u64,
}

impl Forwarder {
    /// Loads this configuration onto both interfaces of the network.
    pub(crate) fn load(net: &Topology, binary: &Path, mode: &str, config: &str) -> Result<Self> {
        let this = Self::prepare(net, binary)?;
        let config = super::file(net, "toml", config)?;
        this.command(&[
            "load",
            "--iface",
            "eth0",
            "--iface",
            "eth1",
            "--mode",
            mode,
            "--config",
            &config.to_string_lossy(),
        ])?;
        Ok(this)
    }

    /// One that is not loaded yet.
    pub(crate) fn prepare(net: &Topology, binary: &Path) -> Result<Self> {
        let pins = net.lab.pins("pins")?;
        let id = pins.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for extension in ["json", "lock"] {
            net.lab.delete_at_end(&Path::new("/run/forwarder").join(format!("{id}.{extension}")))?;
        }
        Ok(Self { host: net.forwarder.clone(), binary: binary.to_owned(), pins })
    }

    /// Makes sure that all rules are stateless, or that none is.
    pub(crate) fn check_stateless(&self, stateless: bool) -> Result<()> {
        match self.json::<List>("list")?.rules.iter().find(|rule| rule.stateless != stateless) {
            Some(rule) => {
                bail!("rule {} is stateless: {}, which is not what this measures", rule.name, rule.stateless)
            }
            None => Ok(()),
        }
    }

    /// How many flows of this address family are in the protected table, the only one that XDP uses.
    pub(crate) fn established(&self, family: Family) -> Result<u64> {
        let wanted = if family == Family::V4 { "IPv4 established flows" } else { "IPv6 established flows" };
        let tables = self.json::<Status>("status")?.tables;
        let table = tables.iter().find(|table| table.table == wanted);
        Ok(table.with_context(|| format!("forwarder status shows no table {wanted:?}"))?.used)
    }

    /// Kernel memory of its maps and programs, in bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        Ok(self.json::<Status>("status")?.memory_bytes)
    }

    /// What has been forwarded from the client's side.
    pub(crate) fn forwarded(&self) -> Result<Forwarded> {
        let stats: Stats = self.json("stats")?;
        let outer = stats.interfaces.iter().find(|one| one.name == "eth0");
        let outer = outer.context("forwarder stats shows no interface eth0")?;
        let sum = |outcomes: &BTreeMap<String, u64>| -> u64 {
            outcomes.iter().filter(|(name, _)| name.starts_with("forwarded")).map(|(_, count)| count).sum()
        };
        Ok(Forwarded { xdp: sum(&outer.xdp), tc: sum(&outer.tc) })
    }

    /// All that it counts, for an error that explains.
    pub(crate) fn everything(&self) -> String {
        let text = |result: Result<String>| result.unwrap_or_else(|error| format!("{error:#}"));
        text(self.command(&["status"])) + &text(self.command(&["stats"]))
    }

    fn json<T: DeserializeOwned>(&self, command: &str) -> Result<T> {
        let printed = self.command(&[command, "--format", "json"])?;
        serde_json::from_str(&printed)
            .with_context(|| format!("cannot read what forwarder {command} printed: {printed}"))
    }

    /// Runs one of its commands to the end: what it printed.
    pub(crate) fn command(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.host.command(&self.binary);
        // Whoever measures over SSH is not cut off by rules in a namespace.
        command.env_remove("SSH_CONNECTION").arg("--pins").arg(&self.pins).args(arguments);
        let output = command.output().with_context(|| format!("cannot start {}", self.binary.display()))?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            let complaint: Vec<&str> = complaint.trim().lines().take(MOST_LINES).collect();
            bail!("forwarder {} ended with {}: {}", arguments.join(" "), output.status, complaint.join("\n"));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
