//! The same packets through forwarder and through nftables: every difference is a bug, or has a name in `differences.rs` and
//! a reason in `docs/netfilter-differences.md`.
//!
//! `plan.rs` says the rules in both languages, `twin.rs` builds a lab for each, `generate.rs` makes packets up (`packet.rs`)
//! that belong to flows (`flow.rs`), `compare.rs` runs them and compares. What is made up depends on the seed alone:
//! `FORWARDER_ORACLE_SEED`; how much, on `FORWARDER_ORACLE_PACKETS`. `cargo xtask oracle` sets both, and hears how it goes
//! (`FORWARDER_ORACLE_REPORT`). What a name explains is shown like what none does if it is given as
//! `FORWARDER_ORACLE_WITHOUT`.
//!
//! In the same lab, `floods.rs` and `floods_outwards.rs`: what happens to flows while others do their worst.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod compare;
mod differences;
mod floods;
mod floods_outwards;
mod flow;
#[allow(dead_code, reason = "it serves the end-to-end tests too")]
#[path = "../netns/forwarder.rs"]
mod forwarder;
mod generate;
mod packet;
mod plan;
#[allow(dead_code, reason = "it serves the end-to-end tests too")]
#[path = "../netns/setting.rs"]
mod setting;
mod twin;
mod view;

use std::env;

use forwarder_lab::Family;
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use compare::Oracle;
use plan::Source;
use setting::Mode;

/// Of each setting, where nobody says otherwise.
const PACKETS: usize = 4000;

fn number(name: &str, otherwise: u64) -> u64 {
    env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// What one CPU sends is processed there, in its order.
fn stay_on_one_cpu() {
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu().unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
}

fn compare(family: Family, source: Source, mode: Mode) {
    let seed = number("FORWARDER_ORACLE_SEED", 1);
    let packets = number("FORWARDER_ORACLE_PACKETS", PACKETS as u64) as usize;
    stay_on_one_cpu();
    let began = std::time::Instant::now();
    match Oracle::new(seed, family, source, mode).run(packets) {
        Ok(report) => println!("seed {seed}, {:.1} s: {report}", began.elapsed().as_secs_f32()),
        Err(report) => panic!("FORWARDER_ORACLE_SEED={seed}: {report}"),
    }
}

macro_rules! settings {
    ($($name:ident: $family:ident $source:ident $mode:ident),* $(,)?) => { $(
        #[test]
        fn $name() {
            compare(Family::$family, Source::$source, Mode::$mode);
        }
    )* };
}

settings! {
    fixed_v4_native: V4 Fixed Native,
    fixed_v4_tc: V4 Fixed Tc,
    fixed_v6_native: V6 Fixed Native,
    fixed_v6_tc: V6 Fixed Tc,
    masquerade_v4_native: V4 Masquerade Native,
    masquerade_v4_tc: V4 Masquerade Tc,
    masquerade_v6_native: V6 Masquerade Native,
    masquerade_v6_tc: V6 Masquerade Tc,
    outgoing_v4_native: V4 Outgoing Native,
    outgoing_v4_tc: V4 Outgoing Tc,
    outgoing_v6_native: V6 Outgoing Native,
    outgoing_v6_tc: V6 Outgoing Tc,
    prefix_v4_native: V4 Prefix Native,
    prefix_v4_tc: V4 Prefix Tc,
    prefix_v6_native: V6 Prefix Native,
    prefix_v6_tc: V6 Prefix Tc,
    preserve_v4_native: V4 Preserve Native,
    preserve_v4_tc: V4 Preserve Tc,
    preserve_v6_native: V6 Preserve Native,
    preserve_v6_tc: V6 Preserve Tc,
}
