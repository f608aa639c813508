//! What the programs know about interfaces that packets may leave by.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData};

use super::load::pinned;

/// XDP may redirect out of it: its driver runs our program, so its queues are ready for XDP.
const XDP_OUT: u32 = 1;
/// It takes packets without an Ethernet header.
const NO_LINK_HEADER: u32 = 1 << 1;

/// Enters the interfaces without link headers, and those that native XDP is attached to.
pub fn write(pins: &Path, headerless: &[u32], native: impl Iterator<Item = u32>) -> Result<()> {
    let mut map: HashMap<MapData, u32, u32> = pinned(pins, "INTERFACES", Map::HashMap)?;
    let entries = headerless.iter().map(|index| (*index, NO_LINK_HEADER)).chain(native.map(|index| (index, XDP_OUT)));
    for (index, flags) in entries {
        map.insert(index, flags, 0).with_context(|| format!("cannot enter interface {index} into map INTERFACES"))?;
    }
    Ok(())
}
