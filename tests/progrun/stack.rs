//! How much stack the programs take, read from the object as the kernel's verifier reads it (`check_max_stack_depth` in
//! kernel/bpf/verifier.c): a frame for each function on the deepest way through the calls, callbacks of loops and timers
//! included. More than 512 bytes are refused. The verifier's log has the same frames ("stack depth", at log level 4), but for
//! 24 bytes that it takes itself where it writes `bpf_loop` out, which do not count for the limit.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use aya_obj::Object;
use aya_obj::generated::bpf_insn;
use forwarder::bpf::object::BPF_OBJECT;

/// The kernel's limit (`MAX_BPF_STACK`), in bytes.
pub(crate) const LIMIT: u32 = 512;

/// What a frame is rounded up to; by kernels from 6.8 with a JIT compiler only to 16.
const ROUNDED_TO: u32 = 32;

/// The frame pointer.
const R10: u8 = 10;

/// Opcodes (Documentation/bpf/standardization/instruction-set.rst).
mod code {
    pub(super) const CALL: u8 = 0x85;
    pub(super) const LOAD_IMMEDIATE: u8 = 0x18;
    pub(super) const MOVE: u8 = 0xbf;
    pub(super) const ADD_IMMEDIATE: u8 = 0x07;
    /// Of the lower three bits: the class.
    pub(super) const CLASS: u8 = 7;
    pub(super) const LOAD: u8 = 1;
    pub(super) const STORE_IMMEDIATE: u8 = 2;
    pub(super) const STORE: u8 = 3;
    pub(super) const ARITHMETIC: [u8; 2] = [4, 7];
}

/// Values of an instruction's source register that say what its constant is: the distance to a function.
const CALLED: u8 = 1;
const TAKEN: u8 = 4;

/// Where a call leads to, or the address of which function is taken.
fn leads_to(at: usize, instruction: bpf_insn) -> Option<usize> {
    let is_function =
        matches!((instruction.code, instruction.src_reg()), (code::CALL, CALLED) | (code::LOAD_IMMEDIATE, TAKEN));
    is_function.then(|| (at + 1).checked_add_signed(instruction.imm as isize).unwrap())
}

/// Bytes below the frame pointer that a function uses.
fn frame(function: &[bpf_insn]) -> u32 {
    // Where in the frame each register points to, if it does.
    let mut points: [Option<i32>; 11] = [None; 11];
    points[usize::from(R10)] = Some(0);
    let mut lowest = 0;
    for instruction in function {
        let (to, from) = (usize::from(instruction.dst_reg()), usize::from(instruction.src_reg()));
        let class = instruction.code & code::CLASS;
        let base = match class {
            code::LOAD => points[from],
            code::STORE | code::STORE_IMMEDIATE => points[to],
            _ => None,
        };
        lowest = lowest.min(base.unwrap_or(0) + i32::from(instruction.off) * i32::from(base.is_some()));
        if instruction.code == code::CALL {
            points[..6].fill(None);
        } else if instruction.code == code::MOVE {
            points[to] = points[from];
        } else if instruction.code == code::ADD_IMMEDIATE {
            points[to] = points[to].map(|point| point + instruction.imm);
            lowest = lowest.min(points[to].unwrap_or(0));
        } else if class == code::LOAD || code::ARITHMETIC.contains(&class) || instruction.code == code::LOAD_IMMEDIATE {
            points[to] = None;
        }
    }
    lowest.unsigned_abs()
}

/// The deepest that a program's stack gets, in bytes.
fn depth(program: &[bpf_insn]) -> u32 {
    let calls: Vec<(usize, usize)> =
        (0..).zip(program).filter_map(|(at, instruction)| Some((at, leads_to(at, *instruction)?))).collect();
    let starts: BTreeSet<usize> = calls.iter().map(|(_, to)| *to).chain([0]).collect();
    let function = |start: usize| start..starts.range(start + 1..).next().copied().unwrap_or(program.len());
    let mut deepest = BTreeMap::new();
    // Until all that a function calls are known; none calls itself.
    while !deepest.contains_key(&0) {
        let known = deepest.len();
        for start in &starts {
            let range = function(*start);
            let own = frame(&program[range.clone()]).max(1).next_multiple_of(ROUNDED_TO);
            let below = calls.iter().filter(|(at, _)| range.contains(at)).map(|(_, to)| deepest.get(to).copied());
            if let Some(below) = below.collect::<Option<Vec<u32>>>() {
                deepest.insert(*start, own + below.into_iter().max().unwrap_or(0));
            }
        }
        assert!(deepest.len() > known, "functions that call each other");
    }
    deepest[&0]
}

/// The stack that each program takes, in bytes.
pub(crate) fn depths() -> BTreeMap<String, u32> {
    let mut object = Object::parse(BPF_OBJECT).unwrap();
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&sections).unwrap();
    let linked = |program: &aya_obj::Program| depth(&object.functions[&program.function_key()].instructions);
    object.programs.iter().map(|(name, program)| (name.clone(), linked(program))).collect()
}

/// An instruction: opcode, destination, source, offset, constant.
#[cfg(test)]
fn instruction(code: u8, to: u8, from: u8, offset: i16, imm: i32) -> bpf_insn {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = imm.to_le_bytes();
    aya_obj::copy_instructions(&[code, from << 4 | to, low, high, a, b, c, d]).unwrap()[0]
}

#[test]
fn frames_are_added_along_the_deepest_way() {
    const EXIT: u8 = 0x95;
    const STORE_DOUBLE: u8 = 0x7b;
    let program = [
        // Stores 8 bytes at the frame's byte -40, and calls two functions.
        instruction(STORE_DOUBLE, R10, 1, -40, 0),
        instruction(code::CALL, 0, CALLED, 0, 3),
        instruction(code::LOAD_IMMEDIATE, 2, TAKEN, 0, 7),
        instruction(0, 0, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
        // Takes the address of 33 bytes of its own; what is not of the frame does not count.
        instruction(code::MOVE, 2, R10, 0, 0),
        instruction(code::ADD_IMMEDIATE, 2, 0, 0, -33),
        instruction(code::CALL, 0, 0, 0, 1),
        instruction(STORE_DOUBLE, 2, 1, -400, 0),
        instruction(EXIT, 0, 0, 0, 0),
        // Nothing.
        instruction(EXIT, 0, 0, 0, 0),
    ];
    assert_eq!(depth(&program), 64 + 64);
    assert_eq!(depth(&program[4..]), 64);
    assert_eq!(depth(&program[10..]), 32);
}
