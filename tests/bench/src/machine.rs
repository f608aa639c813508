//! Where it was measured.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    /// Programs that wanted a CPU in the minute before: more than there are CPUs means that others disturbed.
    #[serde(default)]
    pub(crate) load: f64,
    pub(crate) kernel: String,
    pub(crate) forwarder: String,
    pub(crate) nftables: String,
}

impl Machine {
    pub(crate) fn read(forwarder: &Path) -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let models = || info.lines().filter_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let unknown = || "unknown".to_owned();
        Self {
            cpu: models().next().map_or_else(unknown, |(_, model)| model.to_owned()),
            cpus: models().count(),
            load: load.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or_default(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| unknown(), |text| text.trim().into()),
            forwarder: says(forwarder.as_os_str()).unwrap_or_else(unknown),
            nftables: says("nft".as_ref()).unwrap_or_else(unknown),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cpus, load, kernel, forwarder, nftables } = self;
        write!(f, "{cpu}, {cpus} CPUs (load at the beginning: {load}) · Linux {kernel} · {forwarder} · {nftables}")
    }
}

fn says(program: &std::ffi::OsStr) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
