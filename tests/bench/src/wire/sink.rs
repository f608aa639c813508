//! The counting machine.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::Ebpf;
use aya::maps::{PerCpuArray, PerCpuValues};
use aya::programs::XdpMode;
use forwarder_bench_ebpf::{Frame, SAMPLE_EVERY, SAMPLES, Wire};
use forwarder_lab::etherparse::{NetSlice, SlicedPacket, TransportSlice};

use crate::programs::{OBJECT, Record, array, xdp};

/// Counts the UDP packets that arrive by `interface` for `port`, for so many seconds; everything else passes.
pub(crate) fn sink(interface: &str, port: u16, seconds: u64) -> Result<()> {
    let mut bpf = Ebpf::load(OBJECT).context("the kernel refuses the bench's BPF programs")?;
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error).context("cannot count the CPUs")?;
    let empty = Record(Wire { port: port.into(), ..Wire::default() });
    counters(&mut bpf)?.set(0, PerCpuValues::try_from(vec![empty; cpus])?, 0)?;
    let program = xdp(&mut bpf, "wire_sink")?;
    program.load().context("the kernel refuses the sink")?;
    // It goes with this process, however that ends.
    if program.attach(interface, XdpMode::Driver).is_err() {
        program.attach(interface, XdpMode::Skb).with_context(|| format!("cannot attach to {interface}"))?;
        println!("{interface}'s driver has no XDP: counting costs more here, and may be what limits the rate");
    }
    println!("counting UDP to port {port} on {interface} for {seconds} s");
    let (begun, mut before) = (Instant::now(), Wire::default());
    for second in 1..=seconds {
        thread::sleep(Duration::from_secs(second).saturating_sub(begun.elapsed()));
        let now = total(&mut bpf)?;
        println!("{:.3} Mpps", (now.received - before.received) as f64 / 1e6);
        before = now;
    }
    let Wire { received, bytes, .. } = before;
    if received == 0 {
        bail!("nothing arrived for port {port}");
    }
    let right = check(&mut bpf, received)?;
    println!("received {received} frames of {} bytes; {right} of them looked at, all right", bytes / received);
    Ok(())
}

fn counters(bpf: &mut Ebpf) -> Result<PerCpuArray<&mut aya::maps::MapData, Record<Wire>>> {
    let map = bpf.map_mut("WIRE").context("the bench's BPF object has no map WIRE")?;
    Ok(PerCpuArray::try_from(map)?)
}

fn total(bpf: &mut Ebpf) -> Result<Wire> {
    let all = counters(bpf)?.get(&0, 0)?;
    Ok(all.iter().fold(Wire::default(), |sum, Record(one)| Wire {
        received: sum.received + one.received,
        bytes: sum.bytes + one.bytes,
        ..sum
    }))
}

/// Works out the checksums of the frames that were kept: how many there were. Each CPU begins with the first slot.
fn check(bpf: &mut Ebpf, received: u64) -> Result<usize> {
    let kept = received.div_ceil(SAMPLE_EVERY).min(SAMPLES.into()) as u32;
    let map = array::<Frame>(bpf, "SAMPLED")?;
    let mut right = 0;
    for slot in 0..kept {
        let words = map.get(&slot, 0).context("cannot read a sample")?;
        let frame: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        if frame.iter().all(|byte| *byte == 0) {
            continue;
        }
        let packet = SlicedPacket::from_ethernet(&frame).context("a frame that arrived is no packet")?;
        let (Some(net), Some(TransportSlice::Udp(udp))) = (packet.net, packet.transport) else {
            bail!("a frame that arrived is not UDP");
        };
        let header = udp.to_header();
        let sum = match &net {
            NetSlice::Ipv4(ip) => {
                let header_sum = ip.header().to_header().calc_header_checksum();
                ensure!(ip.header().header_checksum() == header_sum, "a frame arrived with a wrong header checksum");
                header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload())?
            }
            NetSlice::Ipv6(ip) => header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload())?,
            NetSlice::Arp(_) => bail!("a frame that arrived is ARP"),
        };
        ensure!(header.checksum == sum, "a frame arrived with the UDP checksum {:04x}, not {sum:04x}", header.checksum);
        right += 1;
    }
    Ok(right)
}
