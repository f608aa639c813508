//! Makes every flow of a row an established one, by packets through the forwarder itself: client, reply, client.

use anyhow::{Result, bail};

use crate::cpu::Cpu;
use crate::network::Network;
use crate::programs::Flows;

/// Flows that are made at a time; [`ROOM`] holds them by far.
const CHUNK: u32 = 1 << 13;
/// New flows that forwarder is to have room for meanwhile.
pub(crate) const ROOM: u32 = 1 << 16;
/// Packets of each flow: the first is answered, the second confirms, and one more for good measure.
const PACKETS: u32 = 3;
/// A packet may be lost in a full queue; then the whole is tried again.
const ATTEMPTS: u32 = 3;

pub(crate) fn run(network: &mut Network, cpu: &Cpu) -> Result<()> {
    let (row, mut complaint) = (network.row, String::new());
    for _ in 0..ATTEMPTS {
        let mut missing = 0;
        for first in (0..row.flows).step_by(CHUNK as usize) {
            let flows = Flows::in_order(first, CHUNK.min(row.flows));
            let frames = PACKETS * flows.count;
            let run = network.run(cpu, flows, frames, true)?;
            missing += u64::from(frames).saturating_sub(run.arrived.min(run.returned));
        }
        // What nftables knows, only its conntrack table tells; there, that replies came back must do.
        let Some(forwarder) = &network.forwarder else {
            if missing == 0 {
                return Ok(());
            }
            complaint = format!("{missing} packets or replies were lost");
            continue;
        };
        let established = forwarder.established(row.family)?;
        // The table is full to its limit then: once in a while one finds no place in it.
        let without_place = u64::from(row.flows).saturating_sub(established);
        if without_place <= u64::from(row.flows) / 1000 {
            return Ok(());
        }
        complaint = format!(
            "{established} of {} flows are established and {missing} packets or replies were lost; forwarder says:\n{}",
            row.flows,
            forwarder.everything()
        );
    }
    bail!("{complaint}")
}
