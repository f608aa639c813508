//! The BPF object inside this binary, and what its maps look like.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::maps::MapType;
use aya_obj::generated::bpf_map_type;

/// The compiled programs of `forwarder-ebpf`: an ELF file, aligned for the parser.
pub static BPF_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/forwarder-ebpf"));

/// What a map of the object holds; what two versions must agree on to share it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MapLayout {
    /// The kind of map.
    pub map_type: MapType,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
}

/// Name, number of the type, bytes of a key and of a value, as the build script found them in the object.
#[allow(clippy::unreadable_literal, reason = "written by a program")]
static LAYOUTS: &[(&str, u32, u32, u32)] = include!(concat!(env!("OUT_DIR"), "/layouts.rs"));

/// The object's maps that are pinned, by name: all but the sections with its global variables, which every interface has
/// its own of.
pub fn layouts() -> Result<BTreeMap<&'static str, MapLayout>> {
    LAYOUTS
        .iter()
        .map(|&(name, number, key_size, value_size)| {
            let map_type = bpf_map_type::try_from(number)
                .ok()
                .and_then(|map_type| MapType::try_from(map_type).ok())
                .with_context(|| format!("map {name} of the BPF object is of an unknown type"))?;
            Ok((name, MapLayout { map_type, key_size, value_size }))
        })
        .collect()
}
