//! End to end: the real binary between real hosts, each a network namespace, with real clients and servers.
//!
//! `setting.rs` says how forwarder runs (mode, topology), `forwarder.rs` runs it; each other file is one subject.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

/// Makes, of each function that takes a `Setting`, one test for every setting there is.
macro_rules! in_every_setting {
    ($($name:ident),* $(,)?) => { $(
        mod $name {
            use crate::setting::Setting;
            #[test]
            fn native_two_armed() {
                super::$name(Setting::NATIVE_TWO_ARMED);
            }
            #[test]
            fn native_one_armed() {
                super::$name(Setting::NATIVE_ONE_ARMED);
            }
            #[test]
            fn tc_two_armed() {
                super::$name(Setting::TC_TWO_ARMED);
            }
            #[test]
            fn tc_one_armed() {
                super::$name(Setting::TC_ONE_ARMED);
            }
        }
    )* };
}

mod bad_input;
mod changes;
mod checksums;
mod config;
mod connections;
mod daemon;
mod flows;
mod forwarder;
mod fragments;
mod hairpin;
mod icmp_errors;
#[allow(dead_code, reason = "some kinds of lines are for other kernels: tests/kernels")]
mod lines;
mod links;
mod listens;
mod mappings;
mod masquerade;
mod neighbor;
mod next_hop;
mod own_errors;
mod passing;
mod path_mtu;
mod prefixes;
mod programs;
mod setting;
mod situations;
mod snapshot;
mod steer;
mod stun;
#[allow(dead_code, reason = "the builder serves other tests too")]
#[path = "../../forwarder-common/src/test_packet.rs"]
mod test_packet;
mod traffic;
mod untouched;
mod uplinks;

// Where the packet builder looks for the trait.
use forwarder_common::packet;
