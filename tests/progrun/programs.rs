//! The kernel's verifier takes every program, and what they cost is as it is on record.
//!
//! `FORWARDER_RECORD=1 cargo test -p forwarder-tests --test progrun -- every_program_loads` writes `recorded.toml` anew, for
//! the running kernel's series: in review it shows what a change costs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aya::maps::MapInfo;
use aya::programs::Program;
use serde::{Deserialize, Serialize};

use crate::{stack, world};

/// What may be more than on record without anybody having to say so, in percent: compilers differ.
const TOLERANCE: u32 = 5;

/// `recorded.toml`.
#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct Recorded {
    /// Bytes of key and value of each map's entries.
    entries: BTreeMap<String, u32>,
    /// Bytes of stack of each program.
    stack: BTreeMap<String, u32>,
    /// By kernel series and program.
    kernel: BTreeMap<String, BTreeMap<String, Cost>>,
}

/// What a program costs on a kernel.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
struct Cost {
    /// Instructions that the verifier looked at; it gives up at a million.
    verified: u32,
    /// Bytes of the program as the kernel has rewritten it.
    bytes: u32,
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("progrun/recorded.toml")
}

/// Such as 6.12.
fn series() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    release.split(['.', '-']).take(2).collect::<Vec<_>>().join(".")
}

/// Compares with what is on record, or records.
fn compare(costs: &BTreeMap<String, Cost>, entries: &BTreeMap<String, u32>) {
    let mut recorded: Recorded =
        std::fs::read_to_string(path()).map_or_else(|_| Recorded::default(), |text| toml::from_str(&text).unwrap());
    let (series, depths) = (series(), stack::depths());
    for (name, now) in &depths {
        assert!(*now <= stack::LIMIT, "{name}: {now} bytes of stack are refused by kernels before 6.8");
    }
    if std::env::var_os("FORWARDER_RECORD").is_some() {
        recorded.entries.clone_from(entries);
        recorded.stack = depths;
        recorded.kernel.insert(series, costs.clone());
        std::fs::write(path(), toml::to_string(&recorded).unwrap()).unwrap();
        return;
    }
    assert_eq!(entries, &recorded.entries, "bytes of maps' entries; FORWARDER_RECORD=1 records them");
    for (name, now) in depths {
        let then = recorded.stack[&name];
        let most = then + then * TOLERANCE / 100;
        assert!(now <= most, "{name}: {now} bytes of stack, {then} on record; FORWARDER_RECORD=1 records it");
    }
    let Some(known) = recorded.kernel.get(&series) else {
        println!("nothing is on record for Linux {series}");
        return;
    };
    for (name, cost) in costs {
        let Cost { verified, bytes } = known[name];
        for (what, now, then) in [("instructions verified", cost.verified, verified), ("bytes", cost.bytes, bytes)] {
            let most = then + then * TOLERANCE / 100 + 64;
            assert!(now <= most, "{name}: {now} {what}, {then} on record; FORWARDER_RECORD=1 records it");
        }
    }
}

#[test]
fn every_program_loads() {
    world::with("", |world| {
        let mut seen = vec![];
        let mut costs = BTreeMap::new();
        for (name, program) in world.bpf().programs_mut() {
            let info = match program {
                Program::Xdp(xdp) => {
                    // Some are loaded already.
                    if xdp.fd().is_err() {
                        xdp.load().unwrap_or_else(|error| panic!("{name}: {error}"));
                    }
                    xdp.info()
                }
                Program::SchedClassifier(tc) => {
                    if tc.fd().is_err() {
                        tc.load().unwrap_or_else(|error| panic!("{name}: {error}"));
                    }
                    tc.info()
                }
                Program::RawTracePoint(tracepoint) => {
                    if tracepoint.fd().is_err() {
                        tracepoint.load().unwrap_or_else(|error| panic!("{name}: {error}"));
                    }
                    tracepoint.info()
                }
                _ => panic!("{name} is of another type"),
            };
            let info = info.unwrap();
            let (verified, size) = (info.verified_instruction_count(), info.size_translated());
            let cost = Cost { verified: verified.unwrap(), bytes: size.unwrap() };
            println!("{name}: {cost:?}");
            costs.insert(name.to_owned(), cost);
            seen.push(name.to_owned());
        }
        seen.sort();
        assert_eq!(
            seen,
            [
                "forwarder_devmap_xmit",
                "forwarder_egress",
                "forwarder_egress_l3",
                "forwarder_pass",
                "forwarder_redirect_err",
                "forwarder_sweep",
                "forwarder_tc",
                "forwarder_tc_l3",
                "forwarder_xdp",
                "forwarder_xdp_begin",
                "forwarder_xdp_v6"
            ]
        );
        let pins = world.pins.join("maps");
        let maps = std::fs::read_dir(if pins.exists() { &pins } else { &world.pins }).unwrap();
        let entries = maps.filter_map(|entry| {
            let path = entry.unwrap().path();
            let info = MapInfo::from_pin(&path).ok()?;
            Some((path.file_name()?.to_str()?.to_owned(), info.key_size() + info.value_size()))
        });
        compare(&costs, &entries.collect());
    });
}
