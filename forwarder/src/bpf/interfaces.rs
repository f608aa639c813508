//! What the programs know about interfaces that packets arrive at or may leave by.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result};
use aya::maps::{Array, DevMap, HashMap, Map, MapData};
use forwarder_common::abi::{KnownInterface, SMALL_INDICES, interface_flags};

use super::{Plain, load::pinned};

/// The maps that interfaces stand in.
struct Interfaces {
    known: HashMap<MapData, u32, Plain<KnownInterface>>,
    slots: Array<MapData, u32>,
    out: DevMap<MapData>,
}

impl Interfaces {
    fn open(pins: &Path) -> Result<Self> {
        let known = pinned(pins, "INTERFACES", Map::HashMap)?;
        Ok(Self { known, slots: pinned(pins, "SLOTS_BY_INDEX", Map::Array)?, out: pinned(pins, "OUT", Map::DevMap)? })
    }

    fn insert(&mut self, index: u32, interface: KnownInterface) -> Result<()> {
        // Before the programs know that they may send there. The kernel removes it when the interface goes.
        if interface.flags & interface_flags::XDP_OUT != 0 {
            self.out
                .set(interface.slot.into(), index, None, 0)
                .with_context(|| format!("cannot enter interface {index} into map OUT"))?;
        }
        self.known
            .insert(index, Plain(interface), 0)
            .with_context(|| format!("cannot enter interface {index} into map INTERFACES"))?;
        let served = interface.flags & interface_flags::SERVED != 0;
        self.set_slot(index, if served { u32::from(interface.slot) + 1 } else { 0 })
    }

    fn remove(&mut self, index: u32) -> Result<()> {
        self.set_slot(index, 0)?;
        self.known.remove(&index).with_context(|| format!("cannot remove interface {index} from map INTERFACES"))
    }

    fn set_slot(&mut self, index: u32, slot_plus_1: u32) -> Result<()> {
        if index >= SMALL_INDICES {
            return Ok(());
        }
        self.slots
            .set(index, slot_plus_1, 0)
            .with_context(|| format!("cannot enter interface {index} into map SLOTS_BY_INDEX"))
    }
}

/// Enters the interface with this index, before programs are attached to it: they count what they see in its slot.
pub fn serve(pins: &Path, index: u32, interface: KnownInterface) -> Result<()> {
    let mut map = Interfaces::open(pins)?;
    let known = map.known.get(&index, 0).map_or(0, |Plain(known)| known.flags);
    map.insert(index, KnownInterface { flags: interface.flags | known, ..interface })
}

/// Enters the interfaces without link headers, and those that are served; all others are removed. Says whether anything
/// changed.
pub fn write(pins: &Path, headerless: &[u32], served: impl Iterator<Item = (u32, KnownInterface)>) -> Result<bool> {
    let mut map = Interfaces::open(pins)?;
    let mut wanted: BTreeMap<u32, KnownInterface> = served.collect();
    for index in headerless {
        wanted.entry(*index).or_default().flags |= interface_flags::NO_LINK_HEADER;
    }
    let known = map
        .known
        .iter()
        .map(|entry| entry.map(|(index, Plain(interface))| (index, interface)))
        .collect::<Result<BTreeMap<_, _>, _>>()
        .context("cannot read map INTERFACES")?;
    if known == wanted {
        return Ok(false);
    }
    for index in known.into_keys().filter(|index| !wanted.contains_key(index)) {
        map.remove(index)?;
    }
    for (index, interface) in wanted {
        map.insert(index, interface)?;
    }
    Ok(true)
}
