//! Runs the binary on the host `forwarder` of a network, and reads what it says.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use forwarder_lab::{Host, Lab, Topology, patience};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::setting::Setting;

/// One instance: pins, state and configuration of its own. Everything goes with the lab, whatever the test does.
pub(crate) struct Forwarder {
    pub(crate) host: Host,
    pub(crate) pins: PathBuf,
    pub(crate) config: PathBuf,
    binary: PathBuf,
    interfaces: Vec<&'static str>,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// `forwarder stats --format json`.
#[derive(Debug, Deserialize)]
pub(crate) struct Stats {
    pub(crate) rules: Vec<RuleStats>,
    pub(crate) interfaces: Vec<InterfaceStats>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RuleStats {
    pub(crate) name: String,
    pub(crate) forward: Traffic,
    pub(crate) reply: Traffic,
    pub(crate) flows: u64,
    pub(crate) denied: u64,
    pub(crate) unprotected: u64,
    pub(crate) port_clashes: u64,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct InterfaceStats {
    pub(crate) xdp: BTreeMap<String, u64>,
    pub(crate) tc: BTreeMap<String, u64>,
    pub(crate) egress: BTreeMap<String, u64>,
}

/// `forwarder list --format json`.
#[derive(Debug, Deserialize)]
pub(crate) struct List {
    pub(crate) rules: Vec<ListedRule>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ListedRule {
    pub(crate) name: String,
    pub(crate) stateless: bool,
}

#[derive(Debug, Deserialize)]
struct Flows {
    flows: Vec<serde_json::Value>,
    mappings: Vec<serde_json::Value>,
}

impl Forwarder {
    /// An instance on the network's forwarder, not loaded.
    pub(crate) fn on(net: &Topology) -> Self {
        Self::another_on(net, "pins")
    }

    /// One more instance beside others on the same host.
    pub(crate) fn another_on(net: &Topology, name: &str) -> Self {
        Self::named(&net.lab, &net.forwarder, name).serving(net.interfaces())
    }

    /// An instance on any host, for the interfaces of its configuration.
    pub(crate) fn named(lab: &Lab, host: &Host, name: &str) -> Self {
        let pins = lab.pins(name).unwrap();
        let id = pins.file_name().unwrap().to_str().unwrap();
        let config = env::temp_dir().join(format!("{id}.toml"));
        let run = Path::new("/run/forwarder");
        for suffix in ["json", "lock", "daemon"] {
            lab.delete_at_end(&run.join(format!("{id}.{suffix}"))).unwrap();
        }
        lab.delete_at_end(&config).unwrap();
        Self { host: host.clone(), pins, config, binary: binary(), interfaces: Vec::new() }
    }

    /// The same, for other interfaces than the network's usual ones.
    pub(crate) fn serving(self, interfaces: &[&'static str]) -> Self {
        Self { interfaces: interfaces.to_vec(), ..self }
    }

    /// Writes the configuration file.
    pub(crate) fn configure(&self, text: &str) {
        fs::write(&self.config, text).unwrap();
    }

    /// Loads this configuration on the interfaces of the network.
    pub(crate) fn load(&self, setting: Setting, config: &str) -> String {
        self.configure(config);
        self.succeed(&self.load_arguments(setting))
    }

    /// What `load` is given.
    pub(crate) fn load_arguments(&self, setting: Setting) -> Vec<&str> {
        let mut arguments = vec!["load", "--mode", setting.mode_word(), "--config", self.config.to_str().unwrap()];
        arguments.extend(self.interfaces.iter().flat_map(|name| ["--iface", name]));
        arguments
    }

    /// The command line for these arguments.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.host.command(&self.binary);
        command.arg("--pins").arg(&self.pins).args(arguments);
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        end(self.command(arguments))
    }

    /// Runs a command that must succeed; what it printed.
    pub(crate) fn succeed(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.code, Some(0), "forwarder {}\n{ended}", arguments.join(" "));
        ended.stdout
    }

    fn json<T: DeserializeOwned>(&self, command: &str) -> T {
        let printed = self.succeed(&[command, "--format", "json"]);
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("forwarder {command}: {error} in\n{printed}"))
    }

    pub(crate) fn stats(&self) -> Stats {
        self.json("stats")
    }

    pub(crate) fn list(&self) -> List {
        self.json("list")
    }

    /// The flows there are now.
    pub(crate) fn flows(&self) -> Vec<serde_json::Value> {
        self.json::<Flows>("flows").flows
    }

    /// The mappings of masqueraded hosts there are now.
    pub(crate) fn mappings(&self) -> Vec<serde_json::Value> {
        self.json::<Flows>("flows").mappings
    }

    /// How many flows there are now.
    pub(crate) fn flow_count(&self) -> usize {
        self.flows().len()
    }

    /// Waits until the number of flows is what `wanted` accepts. (The kernel tells nobody: ask until it is so.)
    pub(crate) fn wait_for_flows(&self, wanted: impl Fn(usize) -> bool) -> usize {
        let deadline = Instant::now() + 3 * patience();
        loop {
            let count = self.flow_count();
            if wanted(count) {
                return count;
            }
            assert!(Instant::now() < deadline, "there are {count} flows");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Stats {
    /// The counters of one rule.
    pub(crate) fn rule(&self, name: &str) -> RuleStats {
        let rule = self.rules.iter().find(|rule| rule.name == name);
        rule.unwrap_or_else(|| panic!("no rule {name:?} in {self:?}")).clone()
    }

    /// How many packets XDP and TC have forwarded.
    pub(crate) fn forwarded(&self) -> (u64, u64) {
        let sum = |outcomes: &BTreeMap<String, u64>| -> u64 {
            outcomes.iter().filter(|(name, _)| name.starts_with("forwarded")).map(|(_, count)| count).sum()
        };
        (
            self.interfaces.iter().map(|interface| sum(&interface.xdp)).sum(),
            self.interfaces.iter().map(|interface| sum(&interface.tc)).sum(),
        )
    }

    /// How often this outcome happened, on all interfaces and hooks.
    pub(crate) fn outcome(&self, name: &str) -> u64 {
        let hooks = self.interfaces.iter().flat_map(|interface| [&interface.xdp, &interface.tc]);
        hooks.map(|outcomes| outcomes.get(name).copied().unwrap_or_default()).sum()
    }

    /// How often this outcome happened to packets of the machine's own, on all interfaces.
    pub(crate) fn egress(&self, name: &str) -> u64 {
        self.interfaces.iter().filter_map(|interface| interface.egress.get(name)).sum()
    }

    /// Every reason for which packets were dropped, their senders told or not.
    pub(crate) fn drops(&self) -> BTreeMap<&str, u64> {
        let mut drops = BTreeMap::new();
        for interface in &self.interfaces {
            for (name, count) in interface.xdp.iter().chain(&interface.tc) {
                if (name.starts_with("drop_") || name.starts_with("answered_")) && *count > 0 {
                    *drops.entry(name.as_str()).or_default() += count;
                }
            }
        }
        drops
    }
}

impl List {
    pub(crate) fn names(&self) -> Vec<&str> {
        self.rules.iter().map(|rule| rule.name.as_str()).collect()
    }

    pub(crate) fn is_stateless(&self, name: &str) -> bool {
        let rule = self.rules.iter().find(|rule| rule.name == name);
        rule.unwrap_or_else(|| panic!("no rule {name:?} in {self:?}")).stateless
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ended with {:?}\n{}{}", self.code, self.stdout, self.stderr)
    }
}

/// Runs a command to its end.
pub(crate) fn end(mut command: Command) -> Ended {
    // Whoever tests over SSH must not be in the way of rules for port 22.
    let output = command.env_remove("SSH_CONNECTION").output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// `FORWARDER_BIN`, or what cargo builds now for the profile that these tests were built with.
pub(crate) fn binary() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| env::var_os("FORWARDER_BIN").map_or_else(build, PathBuf::from)).clone()
}

fn build() -> PathBuf {
    // This program is TARGET/PROFILE/deps/NAME.
    let this = env::current_exe().unwrap();
    let profile = this.ancestors().nth(2).unwrap();
    let target = profile.parent().unwrap();
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", "forwarder", "--manifest-path"]);
    // Cargo describes this package to us, not to what it builds next.
    for (name, _) in
        env::vars().filter(|(name, _)| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST"))
    {
        cargo.env_remove(name);
    }
    cargo.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"));
    cargo.arg("--target-dir").arg(target);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let built = end(cargo);
    assert_eq!(built.code, Some(0), "cargo build {built}");
    profile.join("forwarder")
}
