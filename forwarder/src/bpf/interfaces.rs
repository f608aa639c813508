//! What the programs know about interfaces that packets arrive at or may leave by.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData};
use forwarder_common::abi::{KnownInterface, interface_flags};

use super::{Plain, load::pinned};

type Interfaces = HashMap<MapData, u32, Plain<KnownInterface>>;

fn open(pins: &Path) -> Result<Interfaces> {
    pinned(pins, "INTERFACES", Map::HashMap)
}

fn insert(map: &mut Interfaces, index: u32, interface: KnownInterface) -> Result<()> {
    map.insert(index, Plain(interface), 0)
        .with_context(|| format!("cannot enter interface {index} into map INTERFACES"))
}

/// Enters the interface with this index, before programs are attached to it: they count what they see in its slot.
pub fn serve(pins: &Path, index: u32, interface: KnownInterface) -> Result<()> {
    let mut map = open(pins)?;
    let known = map.get(&index, 0).map_or(0, |Plain(known)| known.flags);
    insert(&mut map, index, KnownInterface { flags: interface.flags | known, ..interface })
}

/// Enters the interfaces without link headers, and those that are served; all others are removed. Says whether anything
/// changed.
pub fn write(pins: &Path, headerless: &[u32], served: impl Iterator<Item = (u32, KnownInterface)>) -> Result<bool> {
    let mut map = open(pins)?;
    let mut wanted: BTreeMap<u32, KnownInterface> = served.collect();
    for index in headerless {
        wanted.entry(*index).or_default().flags |= interface_flags::NO_LINK_HEADER;
    }
    let known = map
        .iter()
        .map(|entry| entry.map(|(index, Plain(interface))| (index, interface)))
        .collect::<Result<BTreeMap<_, _>, _>>()
        .context("cannot read map INTERFACES")?;
    if known == wanted {
        return Ok(false);
    }
    for index in known.into_keys().filter(|index| !wanted.contains_key(index)) {
        map.remove(&index).with_context(|| format!("cannot remove interface {index} from map INTERFACES"))?;
    }
    for (index, interface) in wanted {
        insert(&mut map, index, interface)?;
    }
    Ok(true)
}
