//! What stands in the middle, set up as a user would.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use forwarder_bench_ebpf::LISTENS;
use forwarder_lab::{Family, Host, Topology};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::addresses::{Addresses, BACKEND_PORT, LISTEN_PORT};
use crate::row::{Hook, Row};

/// DNAT for each listen and masquerade towards the backend.
pub(crate) fn nftables(row: Row, net: &Topology, addresses: &Addresses) -> Result<()> {
    let table = if row.family == Family::V4 { "ip" } else { "ip6" };
    let mut rules = format!("table {table} bench {{\nchain in {{ type nat hook prerouting priority dstnat;\n");
    for (listen, backend) in listens(addresses) {
        let _ = writeln!(rules, "{table} daddr {} udp dport {} dnat to {backend}", listen.ip(), listen.port());
    }
    rules += "}\nchain out { type nat hook postrouting priority srcnat;\noifname eth1 masquerade\n}\n}\n";
    let file = env::temp_dir().join(format!("{}.nft", net.lab.id()));
    net.lab.delete_at_end(&file)?;
    fs::write(&file, rules).with_context(|| format!("cannot write {}", file.display()))?;
    net.forwarder.run(&["nft", "-f", &file.to_string_lossy()]).map(drop)
}

/// Each listen and where it leads.
fn listens(addresses: &Addresses) -> impl Iterator<Item = (SocketAddr, SocketAddr)> {
    let (listen, backend) = (addresses.listen, addresses.destination);
    (0..LISTENS as u16).map(move |n| ((listen, LISTEN_PORT + n).into(), (backend, BACKEND_PORT + n).into()))
}

/// A loaded forwarder. It goes with the network.
pub(crate) struct Forwarder {
    host: Host,
    binary: PathBuf,
    pins: PathBuf,
}

#[derive(Deserialize)]
struct Status {
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
    pub(crate) fn load(
        row: Row,
        hook: Hook,
        masquerade: bool,
        net: &Topology,
        addresses: &Addresses,
        binary: &Path,
    ) -> Result<Self> {
        let pins = net.lab.pins("pins")?;
        let id = pins.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let config = env::temp_dir().join(format!("{id}.toml"));
        net.lab.delete_at_end(&config)?;
        net.lab.delete_at_end(&Path::new("/run/forwarder").join(format!("{id}.json")))?;
        let source = if masquerade { "masquerade" } else { "preserve" };
        let mut text = format!("[limits]\nflows = {}\n", row.flows);
        for (number, (listen, backend)) in listens(addresses).enumerate() {
            let _ = write!(
                text,
                "\n[[forward]]\nname = \"bench-{number}\"\nlisten = \"{listen}\"\nprotocol = \"udp\"\nto = \"{backend}\"\n\
                 source = \"{source}\"\n"
            );
        }
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let this = Self { host: net.forwarder.clone(), binary: binary.to_owned(), pins };
        let mode = if hook == Hook::Xdp { "native" } else { "tc" };
        let config = config.to_string_lossy();
        this.command(&["load", "--iface", "eth0", "--iface", "eth1", "--mode", mode, "--config", &config])?;
        if let Some(rule) = this.json::<List>("list")?.rules.iter().find(|rule| rule.stateless == masquerade) {
            bail!("rule {} is stateless: {}, which is not what this row measures", rule.name, rule.stateless);
        }
        Ok(this)
    }

    /// How many flows of this address family are in the protected table, the only one that XDP uses.
    pub(crate) fn established(&self, family: Family) -> Result<u64> {
        let wanted = if family == Family::V4 { "IPv4 established flows" } else { "IPv6 established flows" };
        let tables = self.json::<Status>("status")?.tables;
        let table = tables.iter().find(|table| table.table == wanted);
        Ok(table.with_context(|| format!("forwarder status shows no table {wanted:?}"))?.used)
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

    fn command(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.host.command(&self.binary);
        // Whoever measures over SSH is not cut off by rules in a namespace.
        command.env_remove("SSH_CONNECTION").arg("--pins").arg(&self.pins).args(arguments);
        let output = command.output().with_context(|| format!("cannot start {}", self.binary.display()))?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            bail!("forwarder {} ended with {}: {}", arguments.join(" "), output.status, complaint.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
