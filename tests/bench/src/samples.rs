//! Whether what arrived is what should have: a fast way that is wrong must not score.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};
use forwarder_lab::Family;

use crate::addresses::Addresses;
use crate::frame;

/// Compares samples, byte for byte, with frames built from scratch: link addresses, TTL, addresses, ports, both
/// checksums. With masquerade, whose ports are for the forwarder to choose, no two flows may look the same.
pub(crate) fn check(samples: &[Vec<u8>], addresses: &Addresses, family: Family) -> Result<()> {
    let mut seen: HashMap<(u16, u16), u32> = HashMap::new();
    for sample in samples {
        let flow = u32::from_ne_bytes(field(sample, frame::number(family))?);
        let source_port = u16::from_be_bytes(field(sample, frame::transport(family))?);
        let wanted = addresses.arriving(flow, source_port);
        let expected = frame::build(&wanted, flow)?;
        if *sample != expected {
            bail!("a packet of flow {flow} arrived wrong:\n  {}\nshould be\n  {}", hex(sample), hex(&expected));
        }
        if wanted.source != addresses.sent(flow).source
            && let Some(other) = seen.insert((source_port, wanted.destination_port), flow)
            && other != flow
        {
            bail!("flows {other} and {flow} look the same to the backend: both come from port {source_port}");
        }
    }
    Ok(())
}

fn field<const N: usize>(frame: &[u8], offset: usize) -> Result<[u8; N]> {
    let bytes = frame.get(offset..).and_then(|rest| rest.first_chunk());
    bytes.copied().context("a sample is too short")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
