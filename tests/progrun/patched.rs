//! The object with one of the kernel's helpers answering always the same: every call of it is replaced by the answer.

use std::ops::Range;

use forwarder::bpf::object::BPF_OBJECT;
use object::{Object as _, ObjectSection as _, SectionKind};

/// Numbers of `enum bpf_func_id` in linux/bpf.h.
pub(crate) mod helper {
    pub(crate) const MAP_UPDATE_ELEM: u32 = 2;
    pub(crate) const SKB_STORE_BYTES: u32 = 9;
    pub(crate) const L4_CSUM_REPLACE: u32 = 11;
    pub(crate) const TAIL_CALL: u32 = 12;
    pub(crate) const CLONE_REDIRECT: u32 = 13;
    pub(crate) const SKB_LOAD_BYTES: u32 = 26;
    pub(crate) const CSUM_DIFF: u32 = 28;
    pub(crate) const SKB_CHANGE_TAIL: u32 = 38;
    pub(crate) const SKB_PULL_DATA: u32 = 39;
    pub(crate) const SKB_CHANGE_HEAD: u32 = 43;
    pub(crate) const SKB_ADJUST_ROOM: u32 = 50;
    pub(crate) const REDIRECT_MAP: u32 = 51;
    pub(crate) const FIB_LOOKUP: u32 = 69;
    pub(crate) const MAP_POP_ELEM: u32 = 88;
    pub(crate) const CSUM_LEVEL: u32 = 135;
    pub(crate) const CHECK_MTU: u32 = 163;
    pub(crate) const TIMER_INIT: u32 = 169;
    pub(crate) const TIMER_START: u32 = 171;
}

/// `-ENOMEM`.
pub(crate) const NO_MEMORY: i32 = -12;

/// An object, in words: the parser wants it aligned.
pub(crate) struct Patched(Vec<u64>);

impl Patched {
    /// The object that is shipped, with this helper answering so.
    pub(crate) fn answering(helper: u32, answer: i32) -> Self {
        let mut words = vec![0_u64; BPF_OBJECT.len().div_ceil(8)];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
        bytes[..BPF_OBJECT.len()].copy_from_slice(BPF_OBJECT);
        let mut replaced = 0;
        for range in instructions(BPF_OBJECT) {
            for instruction in bytes[range].chunks_exact_mut(8).filter(|bytes| **bytes == call(helper)) {
                instruction.copy_from_slice(&load(answer));
                replaced += 1;
            }
        }
        assert!(replaced > 0, "no program calls helper {helper}");
        Self(words)
    }

    /// As the loader takes it.
    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// An instruction of eight bytes: `call helper`.
fn call(helper: u32) -> [u8; 8] {
    let [a, b, c, d] = helper.to_le_bytes();
    [0x85, 0, 0, 0, a, b, c, d]
}

/// `r0 = answer`.
fn load(answer: i32) -> [u8; 8] {
    let [a, b, c, d] = answer.to_le_bytes();
    [0xb7, 0, 0, 0, a, b, c, d]
}

/// Where the object's instructions are.
fn instructions(bytes: &[u8]) -> Vec<Range<usize>> {
    let file = object::File::parse(bytes).unwrap();
    let text = file.sections().filter(|section| section.kind() == SectionKind::Text);
    text.filter_map(|section| section.file_range())
        .map(|(from, length)| usize::try_from(from).unwrap()..usize::try_from(from + length).unwrap())
        .collect()
}
