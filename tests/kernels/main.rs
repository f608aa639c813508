//! What users' kernels have and this machine's may lack: WireGuard, VXLAN, VLANs, bonds, virtio NICs, or TC without tcx.
//!
//! `cargo xtask vm` runs this in its guests, where whatever a test needs has to be there. Elsewhere a test that needs more
//! than the kernel has is left out, and it is said why.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(dead_code, reason = "modules of the end-to-end tests have more than these need")]

mod bonds;
#[path = "../netns/config.rs"]
mod config;
#[path = "../netns/forwarder.rs"]
mod forwarder;
mod hooks;
#[path = "../netns/situations/internet.rs"]
mod internet;
#[path = "../netns/lines.rs"]
mod lines;
mod needs;
#[path = "../netns/setting.rs"]
mod setting;
mod tunnels;
mod virtio;
mod vlans;
mod wireguard;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use needs::Need::{self, Bond, VirtioNics, Vlan, Vxlan, WireGuard};

/// The name of a test, what it needs, and the test.
type Test = (&'static str, &'static [Need], fn());

const TESTS: [Test; 12] = [
    ("bonds::in_and_out_and_when_a_port_fails", &[Bond], bonds::in_and_out_and_when_a_port_fails),
    ("bonds::native_xdp", &[Bond], bonds::native_xdp),
    ("tunnels::to_home", &[Vxlan], tunnels::to_home),
    ("tunnels::from_clients", &[Vxlan], tunnels::from_clients),
    ("virtio::auto_takes_tc", &[VirtioNics], virtio::auto_takes_tc),
    ("virtio::native_between_one_queue_and_many", &[VirtioNics], virtio::native_between_one_queue_and_many),
    ("virtio::native_with_fewer_queues_than_cpus", &[VirtioNics], virtio::native_with_fewer_queues_than_cpus),
    ("virtio::a_nic_that_cannot_says_why", &[VirtioNics], virtio::a_nic_that_cannot_says_why),
    ("vlans::rules_on_vlans", &[Vlan], vlans::rules_on_vlans),
    ("vlans::the_parent_leaves_its_vlans_alone", &[Vlan], vlans::the_parent_leaves_its_vlans_alone),
    ("wireguard::backend", &[WireGuard], wireguard::backend),
    ("wireguard::uplink", &[WireGuard], wireguard::uplink),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = TESTS.into_iter().map(|(name, needs, test)| trial(name, needs, test)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(name: &'static str, needs: &[Need], test: fn()) -> Trial {
    let Some(lacking) = needs.iter().find_map(|need| need.lacking()) else {
        return Trial::test(name, move || {
            test();
            Ok(())
        });
    };
    if !needs::everything_is_to_be_there() {
        eprintln!("{name} is left out: {lacking}");
    }
    let failed = move || Err(lacking.into());
    Trial::test(name, failed).with_ignored_flag(!needs::everything_is_to_be_there())
}
