//! The maps, and how generic code finds those of its address family.
//!
//! The sizes here are placeholders: the loader sets them from the configuration's limits.

use aya_ebpf::{
    Global,
    bindings::{bpf_spin_lock, bpf_timer},
    btf_maps::{Array, DevMap, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, Queue},
    macros::btf_map,
};
use forwarder_common::{
    abi::{
        AllowKey, Bucket, Datagram, DatagramKey, Endpoint, FlowHash, FlowKey, FlowSlot, INTERFACE_SLOTS,
        InterfaceCounters, KnownInterface, MEANINGS, Meaning, NEXT_HOPS, NextHop, RangeKey, Rule, RuleCounters,
        RuleRef, SMALL_INDICES, Settings, Ticks,
    },
    address::{Address, V4, V6},
    answer::{About, Budget},
    parse::Parsed,
    tables::{Draft, Hop},
};

use crate::cut::Carried;
use crate::held::{Held, MARKS, Place, RINGS, SLOTS};
use crate::per_cpu::PerCpuTable;

/// Set by the loader for the XDP program of each interface: its slot in `INTERFACE_COUNTERS`. The TC programs, which take
/// much longer to verify, serve all interfaces, and look that up.
#[unsafe(no_mangle)]
pub(crate) static INTERFACE_SLOT: Global<u32> = Global::new(0);
/// Likewise its MAC address, as the first eight bytes of a frame for it are loaded, without what is the sender's.
#[unsafe(no_mangle)]
pub(crate) static INTERFACE_MAC: Global<u64> = Global::new(0);
/// Set by tests: 1 to write `LAST_VERDICT`.
#[unsafe(no_mangle)]
pub(crate) static RECORD: Global<u8> = Global::new(0);

const FLOWS: usize = 1;
const RULES: usize = 1;

/// `BPF_F_MMAPABLE`: such an array begins on a page, so its slots are whole cache lines.
pub(crate) const ON_PAGES: usize = 1 << 10;

type Flows<A> = Array<FlowSlot<A>, FLOWS, ON_PAGES>;
/// Protected flows, each with its slot in [`Flows`], and above that its home.
type FlowKeys<A> = HashMap<FlowKey<A>, u64, FLOWS>;
type NewFlows<A> = Array<Bucket<A>, FLOWS, ON_PAGES>;
type Datagrams<A> = LruHashMap<DatagramKey<A>, Datagram<A>, FLOWS>;
type HeldFragments<A> = HashMap<Place, Held<A>, { (RINGS * SLOTS) as usize }>;
type Holding<A> = PerCpuArray<Held<A>, 1>;
type Endpoints<A> = HashMap<Endpoint<A>, RuleRef, RULES>;
type Rules<A> = Array<Rule<A>, RULES>;
type Meanings<A> = PerCpuTable<Meaning<A>, { MEANINGS as usize }>;
type NextHops<A> = PerCpuTable<NextHop<A>, { NEXT_HOPS as usize }>;
type SweepKeys<A> = Array<FlowKey<A>, FLOWS>;
type FreeSlots = Queue<u32, FLOWS>;
type Drafts<A> = PerCpuArray<Draft<A>, 1>;
type ParsedPacket<A> = PerCpuArray<Parsed<A>, 1>;
/// The data of a key after its prefix length, as the trie wants it: bytes.
type Trie<const BYTES: usize, V> = LpmTrie<[u8; BYTES], V, RULES>;

/// Bytes of a trie key after its prefix length.
const fn trie_data<K>() -> usize {
    size_of::<K>() - size_of::<u32>()
}
type Ranges4 = Trie<{ trie_data::<RangeKey<V4>>() }, RuleRef>;
type Ranges6 = Trie<{ trie_data::<RangeKey<V6>>() }, RuleRef>;
type Allow4 = Trie<{ trie_data::<AllowKey<V4>>() }, u32>;
type Allow6 = Trie<{ trie_data::<AllowKey<V6>>() }, u32>;

#[btf_map]
pub(crate) static SETTINGS: Array<Settings, 1> = Array::new();
/// By interface index.
#[btf_map]
pub(crate) static INTERFACES: HashMap<u32, KnownInterface, 1024> = HashMap::new();
/// By interface index, where it is small: the slot of a served interface plus 1. The rest is looked up in [`INTERFACES`].
#[btf_map]
pub(crate) static SLOTS_BY_INDEX: Array<u32, { SMALL_INDICES as usize }> = Array::new();
/// By interface slot: the program that begins flows at XDP. The loader fills it; what is not there TC does.
#[btf_map]
pub(crate) static BEGIN: ProgramArray<{ INTERFACE_SLOTS as usize }> = ProgramArray::new();
/// By interface slot: the program for IPv6 at XDP. Likewise.
#[btf_map]
pub(crate) static XDP_V6: ProgramArray<{ INTERFACE_SLOTS as usize }> = ProgramArray::new();
/// By interface slot: the interfaces that XDP may send out of. Redirecting by an entry here spares the kernel to look the
/// interface up by its index.
#[btf_map]
pub(crate) static OUT: DevMap<{ INTERFACE_SLOTS as usize }> = DevMap::new();
#[btf_map]
pub(crate) static RULE_COUNTERS: PerCpuArray<RuleCounters, RULES> = PerCpuArray::new();
#[btf_map]
pub(crate) static INTERFACE_COUNTERS: PerCpuArray<InterfaceCounters, { INTERFACE_SLOTS as usize }> = PerCpuArray::new();
/// Frames redirected and lost: refused by the kernel, not taken by a driver.
#[btf_map]
pub(crate) static REDIRECT_LOSSES: PerCpuArray<u64, 2> = PerCpuArray::new();
/// What a packet carries that is being cut.
#[btf_map]
pub(crate) static CARRIED: PerCpuArray<Carried, 1> = PerCpuArray::new();
/// A piece of a packet whose checksum is worked out.
#[btf_map]
pub(crate) static PIECE: PerCpuArray<Piece, 1> = PerCpuArray::new();
/// How keys become slots of `FLOWS_*` and buckets of `EMBRYONIC_*`.
#[btf_map]
pub(crate) static FLOW_HASH: Array<FlowHash, 1> = Array::new();
/// For buckets of new flows, by their number modulo [`LOCKS`].
#[btf_map]
pub(crate) static NEW_FLOW_LOCKS: Array<Lock, { LOCKS as usize }> = Array::new();
#[btf_map]
pub(crate) static SWEEP: Array<Sweep, 1> = Array::new();
/// When fragments were last kept, by the hash of their datagram.
#[btf_map]
pub(crate) static HELD_MARKS: Array<Ticks, { MARKS as usize }> = Array::new();
/// How many fragments each ring has taken, IPv4 and IPv6.
#[btf_map]
pub(crate) static HELD_RINGS: Array<u64, { 2 * RINGS as usize }> = Array::new();
/// What a step of the complete path leaves behind for the next.
#[btf_map]
pub(crate) static WAY_OUT: PerCpuArray<Hop, 1> = PerCpuArray::new();
/// A question to the kernel's routing, and its answer: a program's stack has no room for them.
#[btf_map]
pub(crate) static FIB_LOOKUP: PerCpuArray<[u64; 8], 1> = PerCpuArray::new();
#[btf_map]
pub(crate) static ANSWERS: PerCpuArray<Answers, 1> = PerCpuArray::new();
#[btf_map]
pub(crate) static LAST_VERDICT: Array<[u32; 8], 1> = Array::new();

#[btf_map]
pub(crate) static ENDPOINTS_V4: Endpoints<V4> = HashMap::new();
#[btf_map]
pub(crate) static RANGES_V4: Ranges4 = LpmTrie::new();
#[btf_map]
pub(crate) static ALLOW_V4: Allow4 = LpmTrie::new();
#[btf_map]
pub(crate) static RULES_V4: Rules<V4> = Array::new();
#[btf_map]
pub(crate) static FLOWS_V4: Flows<V4> = Array::new();
#[btf_map]
pub(crate) static ESTABLISHED_V4: FlowKeys<V4> = HashMap::new();
#[btf_map]
pub(crate) static EMBRYONIC_V4: NewFlows<V4> = Array::new();
#[btf_map]
pub(crate) static DATAGRAMS_V4: Datagrams<V4> = LruHashMap::new();
#[btf_map]
pub(crate) static HELD_V4: HeldFragments<V4> = HashMap::new();
#[btf_map]
pub(crate) static HOLDING_V4: Holding<V4> = PerCpuArray::new();
#[btf_map]
pub(crate) static MEANINGS_V4: Meanings<V4> = Array::new();
#[btf_map]
pub(crate) static NEXT_HOPS_V4: NextHops<V4> = Array::new();
#[btf_map]
pub(crate) static SWEEP_KEYS_V4: SweepKeys<V4> = Array::new();
#[btf_map]
pub(crate) static FREE_SLOTS_V4: FreeSlots = Queue::new();
#[btf_map]
pub(crate) static DRAFTS_V4: Drafts<V4> = PerCpuArray::new();
#[btf_map]
pub(crate) static PARSED_V4: ParsedPacket<V4> = PerCpuArray::new();

#[btf_map]
pub(crate) static ENDPOINTS_V6: Endpoints<V6> = HashMap::new();
#[btf_map]
pub(crate) static RANGES_V6: Ranges6 = LpmTrie::new();
#[btf_map]
pub(crate) static ALLOW_V6: Allow6 = LpmTrie::new();
#[btf_map]
pub(crate) static RULES_V6: Rules<V6> = Array::new();
#[btf_map]
pub(crate) static FLOWS_V6: Flows<V6> = Array::new();
#[btf_map]
pub(crate) static ESTABLISHED_V6: FlowKeys<V6> = HashMap::new();
#[btf_map]
pub(crate) static EMBRYONIC_V6: NewFlows<V6> = Array::new();
#[btf_map]
pub(crate) static DATAGRAMS_V6: Datagrams<V6> = LruHashMap::new();
#[btf_map]
pub(crate) static HELD_V6: HeldFragments<V6> = HashMap::new();
#[btf_map]
pub(crate) static HOLDING_V6: Holding<V6> = PerCpuArray::new();
#[btf_map]
pub(crate) static MEANINGS_V6: Meanings<V6> = Array::new();
#[btf_map]
pub(crate) static NEXT_HOPS_V6: NextHops<V6> = Array::new();
#[btf_map]
pub(crate) static SWEEP_KEYS_V6: SweepKeys<V6> = Array::new();
#[btf_map]
pub(crate) static FREE_SLOTS_V6: FreeSlots = Queue::new();
#[btf_map]
pub(crate) static DRAFTS_V6: Drafts<V6> = PerCpuArray::new();
#[btf_map]
pub(crate) static PARSED_V6: ParsedPacket<V6> = PerCpuArray::new();

/// The most bytes that `bpf_csum_diff` takes at once before Linux 6.14.
pub(crate) const PIECE_BYTES: u32 = 512;
/// A piece of a packet: one word longer, for the verifier does not see that rounding up to whole words stays inside.
pub(crate) type Piece = [u32; PIECE_BYTES as usize / 4 + 1];
/// What answers to senders are limited by, on one CPU, and what is being worked out about one.
#[repr(C)]
pub(crate) struct Answers {
    /// Indexed by [`forwarder_common::answer::About`].
    pub(crate) budgets: [Budget; About::COUNT],
    /// The address that an answer comes from, of either family; network order.
    pub(crate) answerer: V6,
}

/// How many locks there are: so many that two CPUs seldom want the same one, and few enough to stay in a CPU's cache.
pub(crate) const LOCKS: u32 = 1024;

/// The kernel finds the lock by the name of its type, in a record.
#[repr(C)]
pub(crate) struct Lock {
    /// Held for some hundred instructions.
    pub(crate) lock: bpf_spin_lock,
}

/// The sweeper's timer and how far it has come.
#[repr(C)]
pub(crate) struct Sweep {
    /// Fires, sweeps a bounded number of flows, and starts itself again.
    pub(crate) timer: bpf_timer,
    /// The next slot to look at, for IPv4 and for IPv6.
    pub(crate) next: [u32; 2],
}

/// The maps of one address family.
pub(crate) trait Maps {
    /// Its addresses.
    type Address: Address + 'static;
    /// The data of its [`RangeKey`].
    type RangeData: 'static;
    /// The data of its [`AllowKey`].
    type AllowData: 'static;

    /// `AF_INET` or `AF_INET6`.
    const ADDRESS_FAMILY: u8;
    /// Its bit of [`forwarder_common::abi::setting_flags`] that says there are ranges.
    const HAS_RANGES: u32;

    fn endpoints() -> &'static Endpoints<Self::Address>;
    fn ranges() -> &'static LpmTrie<Self::RangeData, RuleRef, RULES>;
    fn allow() -> &'static LpmTrie<Self::AllowData, u32, RULES>;
    fn rules() -> &'static Rules<Self::Address>;
    fn flows() -> &'static Flows<Self::Address>;
    fn established() -> &'static FlowKeys<Self::Address>;
    fn embryonic() -> &'static NewFlows<Self::Address>;
    fn datagrams() -> &'static Datagrams<Self::Address>;
    fn held() -> &'static HeldFragments<Self::Address>;
    fn holding() -> &'static Holding<Self::Address>;
    fn next_hops() -> &'static NextHops<Self::Address>;
    fn meanings() -> &'static Meanings<Self::Address>;
    fn sweep_keys() -> &'static SweepKeys<Self::Address>;
    fn free_slots() -> &'static FreeSlots;
    fn drafts() -> &'static Drafts<Self::Address>;
    fn parsed() -> &'static ParsedPacket<Self::Address>;
}

macro_rules! maps {
    ($name:ident, $address:ty, $family:literal, $ranges_flag:ident, $endpoints:ident, $ranges:ident,
     $allow:ident, $rules:ident, $flows:ident, $established:ident, $embryonic:ident, $datagrams:ident, $held:ident, $holding:ident, $next_hops:ident, $meanings:ident, $keys:ident, $slots:ident, $drafts:ident, $parsed:ident) => {
        /// The maps of this family.
        pub(crate) struct $name;
        impl Maps for $name {
            type Address = $address;
            type RangeData = [u8; trie_data::<RangeKey<$address>>()];
            type AllowData = [u8; trie_data::<AllowKey<$address>>()];
            const ADDRESS_FAMILY: u8 = $family;
            const HAS_RANGES: u32 = forwarder_common::abi::setting_flags::$ranges_flag;
            #[inline(always)]
            fn endpoints() -> &'static Endpoints<$address> {
                &$endpoints
            }
            #[inline(always)]
            fn ranges() -> &'static LpmTrie<Self::RangeData, RuleRef, RULES> {
                &$ranges
            }
            #[inline(always)]
            fn allow() -> &'static LpmTrie<Self::AllowData, u32, RULES> {
                &$allow
            }
            #[inline(always)]
            fn rules() -> &'static Rules<$address> {
                &$rules
            }
            #[inline(always)]
            fn flows() -> &'static Flows<$address> {
                &$flows
            }
            #[inline(always)]
            fn established() -> &'static FlowKeys<$address> {
                &$established
            }
            #[inline(always)]
            fn embryonic() -> &'static NewFlows<$address> {
                &$embryonic
            }
            #[inline(always)]
            fn datagrams() -> &'static Datagrams<$address> {
                &$datagrams
            }
            #[inline(always)]
            fn held() -> &'static HeldFragments<$address> {
                &$held
            }
            #[inline(always)]
            fn holding() -> &'static Holding<$address> {
                &$holding
            }
            #[inline(always)]
            fn next_hops() -> &'static NextHops<$address> {
                &$next_hops
            }
            #[inline(always)]
            fn meanings() -> &'static Meanings<$address> {
                &$meanings
            }
            #[inline(always)]
            fn sweep_keys() -> &'static SweepKeys<$address> {
                &$keys
            }
            #[inline(always)]
            fn free_slots() -> &'static FreeSlots {
                &$slots
            }
            #[inline(always)]
            fn drafts() -> &'static Drafts<$address> {
                &$drafts
            }
            #[inline(always)]
            fn parsed() -> &'static ParsedPacket<$address> {
                &$parsed
            }
        }
    };
}

maps!(
    MapsV4,
    V4,
    2,
    RANGES_V4,
    ENDPOINTS_V4,
    RANGES_V4,
    ALLOW_V4,
    RULES_V4,
    FLOWS_V4,
    ESTABLISHED_V4,
    EMBRYONIC_V4,
    DATAGRAMS_V4,
    HELD_V4,
    HOLDING_V4,
    NEXT_HOPS_V4,
    MEANINGS_V4,
    SWEEP_KEYS_V4,
    FREE_SLOTS_V4,
    DRAFTS_V4,
    PARSED_V4
);
maps!(
    MapsV6,
    V6,
    10,
    RANGES_V6,
    ENDPOINTS_V6,
    RANGES_V6,
    ALLOW_V6,
    RULES_V6,
    FLOWS_V6,
    ESTABLISHED_V6,
    EMBRYONIC_V6,
    DATAGRAMS_V6,
    HELD_V6,
    HOLDING_V6,
    NEXT_HOPS_V6,
    MEANINGS_V6,
    SWEEP_KEYS_V6,
    FREE_SLOTS_V6,
    DRAFTS_V6,
    PARSED_V6
);
