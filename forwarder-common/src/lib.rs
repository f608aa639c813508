//! The packet logic of forwarder and the layouts of its BPF maps.
//!
//! The same code runs in the XDP program, in the TC program and in host tests: it sees a packet only
//! through [`packet::Packet`] and the maps only through [`tables::Tables`]. A packet's way through it is
//! [`parse`] → [`decide`] → [`apply`] → [`verdict`]; [`fast`] and [`complete`] are the two hooks' ways to decide;
//! [`icmp_error`] is for what [`complete`] leaves to it.
//!
//! Addresses and ports are kept as they stand on the wire (network byte order, loaded as native words):
//! they are compared, copied and summed far more often than they are computed with.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "testing"))]
extern crate std;

pub mod abi;
pub mod address;
pub mod answer;
pub mod apply;
pub mod begin;
pub mod checksum;
pub mod complete;
pub mod cut;
pub mod decide;
pub mod fast;
mod find;
pub mod flow_state;
pub mod fragment;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
pub mod icmp_error;
mod mapping;
pub mod mss;
pub mod neighbor;
pub mod open_flow;
pub mod outgoing;
pub mod packet;
pub mod parse;
mod passing;
pub mod prefix;
pub mod steer;
#[cfg(any(test, feature = "testing"))]
pub mod steps;
pub mod tables;
#[cfg(any(test, feature = "testing"))]
#[cfg_attr(not(test), allow(dead_code, reason = "fuzz targets need less than tests"))]
mod test_packet;
#[cfg(any(test, feature = "testing"))]
#[cfg_attr(not(test), allow(dead_code, unused_imports, unused_macros, reason = "fuzz targets need less than tests"))]
mod test_world;
pub mod verdict;
pub mod window;
pub mod wire;
