//! Whether what arrived is what should have: a fast way that is wrong must not score.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};

use crate::addresses::Addresses;
use crate::frame;
use crate::row::Row;

/// Compares samples, byte for byte, with frames built from scratch: link addresses, TTL, addresses, ports, both
/// checksums; what follows is zero in all of them, and their length the sink has compared. With masquerade, whose ports are
/// for the forwarder to choose, no two flows may look the same at a time.
pub(crate) fn check(samples: &[Vec<u8>], addresses: &Addresses, row: Row) -> Result<()> {
    let family = row.family;
    let mut seen: HashMap<(u16, u16), u32> = HashMap::new();
    for sample in samples {
        let flow = u32::from_ne_bytes(field(sample, frame::number(family))?);
        let source_port = u16::from_be_bytes(field(sample, frame::transport(family))?);
        let wanted = addresses.arriving(flow, source_port);
        let mut expected = frame::build(&wanted, flow, frame::length(row))?;
        expected.truncate(frame::head(family));
        if *sample != expected {
            bail!("a packet of flow {flow} arrived wrong:\n  {}\nshould be\n  {}", hex(sample), hex(&expected));
        }
        // New flows push out old ones, whose ports others then get.
        if !row.fresh
            && wanted.source != addresses.sent(flow).source
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
