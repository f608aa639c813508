//! Whether pinned maps are the ones this version would make.
//!
//! aya opens a pinned map without looking at its sizes and reads whatever is there, so this is asked first.

use std::{fmt, path::Path};

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData, MapInfo};
use forwarder_common::abi::{Settings, VERSION};

use super::{Plain, object};

/// Pins that this version cannot use.
#[derive(Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// A map is not there.
    Missing(String),
    /// A map has another type or other sizes.
    Layout {
        /// The map.
        map: String,
        /// What is pinned.
        pinned: String,
        /// What this version has.
        ours: String,
    },
    /// The maps have another version's meaning.
    Version(u32),
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(map) => write!(f, "map {map} is missing"),
            Self::Layout { map, pinned, ours } => {
                write!(f, "map {map} is {pinned}, this version's is {ours}")
            }
            Self::Version(0) => write!(f, "the load that made them did not finish"),
            Self::Version(version) => {
                write!(f, "they have layout version {version}, this program has {VERSION}")
            }
        }
    }
}

impl std::error::Error for Mismatch {}

/// Compares every pinned map below `pins` with the object in this binary.
pub fn compare(pins: &Path) -> Result<Option<Mismatch>> {
    for (name, ours) in object::layouts()? {
        let path = pins.join(name);
        if !path.exists() {
            return Ok(Some(Mismatch::Missing(name.to_owned())));
        }
        let info =
            MapInfo::from_pin(&path).with_context(|| format!("cannot open the pinned map {}", path.display()))?;
        let map_type =
            info.map_type().with_context(|| format!("the pinned map {} is of an unknown type", path.display()))?;
        let pinned = object::MapLayout { map_type, key_size: info.key_size(), value_size: info.value_size() };
        if pinned != ours {
            return Ok(Some(Mismatch::Layout { map: name.to_owned(), pinned: describe(pinned), ours: describe(ours) }));
        }
    }
    let settings = settings(pins)?;
    Ok((settings.version != VERSION).then_some(Mismatch::Version(settings.version)))
}

fn describe(layout: object::MapLayout) -> String {
    format!("{:?} with keys of {} and values of {} bytes", layout.map_type, layout.key_size, layout.value_size)
}

fn settings(pins: &Path) -> Result<Settings> {
    let map = MapData::from_pin(pins.join("SETTINGS")).context("cannot open map SETTINGS")?;
    let map: Array<_, Plain<Settings>> = Map::Array(map).try_into().context("map SETTINGS")?;
    Ok(map.get(&0, 0).context("cannot read map SETTINGS")?.0)
}
