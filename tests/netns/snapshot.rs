//! A host's settings, to show that they are as they were.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use forwarder_lab::Host;

use crate::forwarder::Forwarder;

/// Everything that `load` could leave behind.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    links: String,
    qdiscs: String,
    filters: String,
    addresses: String,
    routes: String,
    sysctls: BTreeMap<PathBuf, String>,
    pins: bool,
    state: bool,
}

impl Snapshot {
    pub(crate) fn of(forwarder: &Forwarder) -> Self {
        let host = &forwarder.host;
        let filters = |interface: &str| {
            ["ingress", "egress"].map(|side| host.run(&["tc", "filter", "show", "dev", interface, side]).unwrap())
        };
        let interfaces = host.ip("-o -br link show").unwrap();
        let names = interfaces.lines().filter_map(|line| line.split(['@', ' ']).next());
        let id = forwarder.pins.file_name().unwrap().to_str().unwrap();
        Self {
            // Shows XDP programs.
            links: host.ip("-d link show").unwrap(),
            qdiscs: host.run(&["tc", "qdisc", "show"]).unwrap(),
            filters: names.flat_map(filters).collect(),
            addresses: host.ip("-br addr show").unwrap(),
            routes: host.ip("route show table all").unwrap() + &host.ip("-6 route show table all").unwrap(),
            sysctls: host.enter(sysctls).unwrap(),
            pins: forwarder.pins.exists(),
            state: Path::new("/run/forwarder").join(format!("{id}.json")).exists(),
        }
    }
}

/// Fails and shows the first difference.
pub(crate) fn assert_unchanged(before: &Snapshot, forwarder: &Forwarder, occasion: &str) {
    let after = Snapshot::of(forwarder);
    for (path, value) in &before.sysctls {
        assert_eq!(Some(value), after.sysctls.get(path), "{occasion}: {}", path.display());
    }
    assert_eq!(*before, after, "{occasion}");
}

fn sysctls() -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for directory in ["/proc/sys/net/ipv4/conf", "/proc/sys/net/ipv6/conf"] {
        for interface in fs::read_dir(directory).unwrap() {
            for setting in fs::read_dir(interface.unwrap().path()).unwrap() {
                let path = setting.unwrap().path();
                // Some can only be written; a few secrets only be read once set.
                if let Ok(value) = fs::read_to_string(&path) {
                    found.insert(path, value);
                }
            }
        }
    }
    found
}

/// The host and interface that the forwarder's `eth0` is wired to.
pub(crate) fn far_end(net: &forwarder_lab::Topology) -> (&Host, &'static str) {
    net.router.as_ref().map_or((&net.client, "eth0"), |router| (router, "vps"))
}
