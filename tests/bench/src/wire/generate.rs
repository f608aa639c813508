//! The sending machine.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::programs::Xdp;
use forwarder_bench_ebpf::{DEVICE_GENERATOR, Generator};
use forwarder_lab::Family;

use super::route::Route;
use crate::addresses::{CLIENT_PORT, Ends};
use crate::frame;
use crate::programs::{OBJECT, Record, array, generate as make, generator_name, set_device, xdp};

/// Frames at a time: some milliseconds, so that it ends, and keeps its pace, in time.
const CHUNK: u32 = 8192;
/// As many flows as there are ports.
const MOST_FLOWS: u32 = 1 << 15;

/// Sends UDP frames of so many flows to `peer` by `interface`, for so long, at most `rate` a second if that is not 0.
pub(crate) fn generate(interface: &str, peer: SocketAddr, flows: u32, seconds: u64, rate: u64) -> Result<()> {
    let flows = flows.clamp(1, MOST_FLOWS).next_power_of_two();
    let route = Route::to(peer.ip(), interface)?;
    let ends = Ends {
        source_mac: route.source_mac,
        destination_mac: route.next_hop_mac,
        source: route.source,
        destination: peer.ip(),
        source_port: CLIENT_PORT,
        destination_port: peer.port(),
        ttl: 64,
    };
    let family = if peer.is_ipv4() { Family::V4 } else { Family::V6 };
    let length = frame::head(family);
    let generator = frame::generator_between(&ends, family, length)?;

    let index = nix::net::if_::if_nametoindex(interface).with_context(|| format!("no interface {interface:?}"))?;
    let mut bpf = Ebpf::load(OBJECT).context("the kernel refuses the bench's BPF programs")?;
    set_device(&mut bpf, DEVICE_GENERATOR, index).with_context(|| format!("{interface} takes no frames from XDP"))?;
    xdp(&mut bpf, generator_name(family))?.load().context("the kernel refuses the generator")?;
    array(&mut bpf, "GENERATOR")?.set(0, Record(Generator { mask: flows - 1, ..generator }), 0)?;
    let program: &Xdp = xdp(&mut bpf, generator_name(family))?;

    println!("sending {flows} flows from {} to {peer} by {interface} for {seconds} s", route.source);
    let (begun, duration) = (Instant::now(), Duration::from_secs(seconds));
    let mut sent: u64 = 0;
    while begun.elapsed() < duration {
        make(program, index, length, CHUNK)?;
        sent += u64::from(CHUNK);
        if let Some(due) = sent.checked_mul(1_000_000).and_then(|sent| sent.checked_div(rate)) {
            thread::sleep(Duration::from_micros(due).saturating_sub(begun.elapsed()));
        }
    }
    let took = begun.elapsed().as_secs_f64();
    if sent == 0 {
        bail!("no time to send anything");
    }
    println!("sent {sent} frames of {length} bytes in {took:.1} s: {:.3} Mpps", sent as f64 / took / 1e6);
    Ok(())
}
