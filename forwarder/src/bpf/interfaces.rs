//! What the programs know about interfaces that packets may leave by.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData};

use super::load::pinned;

/// XDP may redirect out of it: its driver runs our program, so its queues are ready for XDP.
const XDP_OUT: u32 = 1;
/// It takes packets without an Ethernet header.
const NO_LINK_HEADER: u32 = 1 << 1;

/// Enters the interfaces without link headers, and those that native XDP is attached to; all others are removed. Says
/// whether anything changed.
pub fn write(pins: &Path, headerless: &[u32], native: impl Iterator<Item = u32>) -> Result<bool> {
    let mut map: HashMap<MapData, u32, u32> = pinned(pins, "INTERFACES", Map::HashMap)?;
    let mut wanted: BTreeMap<u32, u32> = BTreeMap::new();
    for (index, flag) in headerless.iter().map(|index| (*index, NO_LINK_HEADER)).chain(native.map(|i| (i, XDP_OUT))) {
        *wanted.entry(index).or_default() |= flag;
    }
    let known: BTreeMap<u32, u32> = map.iter().collect::<Result<_, _>>().context("cannot read map INTERFACES")?;
    if known == wanted {
        return Ok(false);
    }
    for index in known.into_keys().filter(|index| !wanted.contains_key(index)) {
        map.remove(&index).with_context(|| format!("cannot remove interface {index} from map INTERFACES"))?;
    }
    for (index, flags) in wanted {
        map.insert(index, flags, 0).with_context(|| format!("cannot enter interface {index} into map INTERFACES"))?;
    }
    Ok(true)
}
