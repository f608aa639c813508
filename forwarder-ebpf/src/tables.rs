//! The core's tables over the BPF maps.

use core::{
    ffi::c_void,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    ptr::{self, NonNull},
};

use aya_ebpf::{
    bindings::__sk_buff,
    btf_maps::lpm_trie::Key,
    helpers::{bpf_get_prandom_u32, bpf_loop},
};
use forwarder_common::{
    abi::{
        AllowKey, Datagram, DatagramKey, Direction, Endpoint, Flow, FlowKey, RangeKey, Rule, RuleRef, Settings, Ticks,
    },
    address::Address,
    answer::About,
    flow_state::FlowState,
    packet::Packet,
    parse::Parsed,
    tables::{At, Draft, Ends, Event, FlowEntry, Hop, NotInserted, Repeat, Repeated, Room, Tables, Way},
    window::Reached,
};

use crate::{
    clock::now,
    count, endpoints, held,
    maps::{ANSWERS, Maps},
    new_flows, protected,
    routing::{self, Routed},
    sockets::{Socket, Sockets},
    sweep,
};

/// The maps of one family, as one packet sees them.
pub(crate) struct KernelTables<M> {
    /// The program's own argument, for helpers.
    pub(crate) context: *mut c_void,
    /// The settings in force.
    pub(crate) settings: &'static Settings,
    /// Which rules are in force for this packet.
    pub(crate) generation: u32,
    /// When the program started.
    pub(crate) now: Ticks,
    /// The hook.
    pub(crate) at: At,
    family: PhantomData<M>,
}

impl<M: Maps> KernelTables<M> {
    /// For the packet of `context`, the program's own argument.
    #[inline(always)]
    pub(crate) fn new(context: *mut c_void, settings: &'static Settings, at: At) -> Self {
        // SAFETY: a word of the settings, which live as long as the program. Volatile, so that it is read only here.
        let generation = unsafe { (&raw const settings.generation).read_volatile() };
        Self { context, settings, generation, now: now(), at, family: PhantomData }
    }

    /// For look-ups of rules, in this generation: no packet, no time.
    #[inline(always)]
    pub(crate) const fn of_rules(settings: &'static Settings, generation: u32) -> Self {
        Self { context: ptr::null_mut(), settings, generation, now: 0, at: At::Tc, family: PhantomData }
    }
}

/// A flow entry in a map. The kernel keeps the memory valid until the program ends, even if the entry goes.
///
/// Never null: so `None` is a null pointer, and not a pointer that nobody has set, which the verifier refuses to see
/// copied.
pub(crate) struct Entry<A>(NonNull<Flow<A>>);

impl<A> Clone for Entry<A> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}
impl<A> Copy for Entry<A> {}

impl<A: Address> FlowEntry<A> for Entry<A> {
    #[inline(always)]
    fn get(self) -> Flow<A> {
        // SAFETY: a value pointer from a lookup in this program run. Another CPU may write counters meanwhile: they
        // are whole words, and nothing is decided by them.
        unsafe { self.0.as_ptr().read() }
    }

    #[inline(always)]
    fn is_of(self, key: &FlowKey<A>) -> bool {
        protected::is_of(self.0.as_ptr(), key)
    }

    #[inline(always)]
    fn seen(self, now: Ticks, bytes: u32) {
        // SAFETY: as above. Two CPUs counting the same flow at once may lose a count, never more.
        unsafe {
            (*self.0.as_ptr()).packets += 1;
            (*self.0.as_ptr()).bytes += u64::from(bytes);
            (*self.0.as_ptr()).last_seen = now;
        }
    }

    #[inline(always)]
    fn refresh(self, now: Ticks) {
        // SAFETY: as above; a single word.
        unsafe { (*self.0.as_ptr()).last_seen = now };
    }

    #[inline(always)]
    fn set_state(self, state: FlowState) {
        // SAFETY: as above; a single byte.
        unsafe { (*self.0.as_ptr()).state = state as u8 };
    }

    #[inline(always)]
    fn await_acknowledgment(self, acknowledgment: u32) {
        // SAFETY: as above; a single word.
        unsafe { (*self.0.as_ptr()).sweep_slot = acknowledgment };
    }

    #[inline(always)]
    fn note_reached(self, reached: Reached) {
        // SAFETY: as above; a single word.
        unsafe { (*self.0.as_ptr()).sweep_slot = reached.0 };
    }
}

/// What `bpf_loop` calls. Returns 1 to stop.
unsafe extern "C" fn step<R: Repeated>(attempt: u32, state: *mut R) -> i64 {
    // SAFETY: `repeat` passes its own exclusive reference.
    let state = unsafe { &mut *state };
    i64::from(state.step(attempt) == Repeat::Done)
}

/// This CPU's memory for a draft.
pub(crate) struct ScratchDraft<A>(*mut Draft<A>);

impl<A> Deref for ScratchDraft<A> {
    type Target = Draft<A>;

    #[inline(always)]
    fn deref(&self) -> &Draft<A> {
        // SAFETY: a pointer to this CPU's own copy of an array value, valid while the program runs; integers only.
        unsafe { &*self.0 }
    }
}

impl<A> DerefMut for ScratchDraft<A> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Draft<A> {
        // SAFETY: as above; the core holds one draft at a time, and programs of a CPU run to completion one after the other.
        unsafe { &mut *self.0 }
    }
}

impl<M: Routed + Sockets> Tables<M::Address> for KernelTables<M> {
    type Entry = Entry<M::Address>;
    type Draft = ScratchDraft<M::Address>;

    #[inline(always)]
    fn keep(&self, parsed: Parsed<M::Address>) {
        if let Some(memory) = M::parsed().get_ptr_mut(0) {
            // SAFETY: a pointer to this CPU's own copy of an array value, valid while the program runs; programs of a
            // CPU that use it run to completion one after the other.
            unsafe { memory.write(parsed) };
        }
    }

    #[inline(always)]
    fn kept(&self) -> Option<&Parsed<M::Address>> {
        M::parsed().get(0)
    }

    #[inline(always)]
    fn draft(&self) -> Option<Self::Draft> {
        M::drafts().get_ptr_mut(0).map(ScratchDraft)
    }

    #[inline(always)]
    fn settings(&self) -> &Settings {
        self.settings
    }

    #[inline(always)]
    fn generation(&self) -> u32 {
        self.generation
    }

    #[inline(always)]
    fn now(&self) -> Ticks {
        self.now
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn established(&self, key: &FlowKey<M::Address>) -> Option<Self::Entry> {
        NonNull::new(protected::find::<M>(key)?).map(Entry)
    }

    #[inline(always)]
    fn embryonic(&self, key: &FlowKey<M::Address>) -> Option<Self::Entry> {
        if !protected::has_new_flows() {
            return None;
        }
        NonNull::new(new_flows::find::<M>(key, self.now)?).map(Entry)
    }

    #[inline(always)]
    fn may_be_new(&self, key: &FlowKey<M::Address>) -> bool {
        protected::has_new_flows() && new_flows::may_have::<M>(key)
    }

    #[inline(always)]
    fn embryonic_or_room(&self, key: &FlowKey<M::Address>) -> Result<Self::Entry, Room> {
        let flow = new_flows::find_or_room::<M>(key, self.now)?;
        NonNull::new(flow).map(Entry).ok_or(Room::UNKNOWN)
    }

    #[inline(always)]
    fn fetch(&self, room: Room) {
        new_flows::fetch::<M>(room);
    }

    #[inline(always)]
    fn insert_in_room(
        &self,
        key: &FlowKey<M::Address>,
        flow: &Flow<M::Address>,
        room: Room,
    ) -> Result<(), NotInserted> {
        new_flows::enter::<M>(key, flow, self.now, room)
    }

    #[inline(always)]
    fn remove_embryonic(&self, key: &FlowKey<M::Address>) {
        M::remove(key);
    }

    #[inline(always)]
    fn protect(
        &self,
        forward: (&FlowKey<M::Address>, &mut Flow<M::Address>),
        reply: (&FlowKey<M::Address>, &Flow<M::Address>),
    ) -> Result<(), NotInserted> {
        sweep::enter::<M>(forward, reply)
    }

    #[inline(always)]
    fn remove_established(&self, forward: &FlowKey<M::Address>, reply: &FlowKey<M::Address>, sweep_slot: u32) {
        sweep::remove::<M>(forward, reply, sweep_slot);
    }

    #[inline(always)]
    fn slot_of(&self, endpoint: &Endpoint<M::Address>) -> u32 {
        endpoints::slot_of::<M>(endpoint, self.generation)
    }

    #[inline(always)]
    fn named(&self, endpoint: &Endpoint<M::Address>) -> Option<&Rule<M::Address>> {
        endpoints::rule_of::<M>(endpoint, self.generation)
    }

    #[inline(always)]
    fn endpoint(&self, endpoint: &Endpoint<M::Address>) -> Option<RuleRef> {
        // SAFETY: copied at once; the loader replaces entries, it never writes into one.
        unsafe { M::endpoints().get(endpoint) }.copied()
    }

    #[inline(always)]
    fn range(&self, key: &RangeKey<M::Address>) -> Option<RuleRef> {
        // SAFETY: `RangeKey` is a prefix length followed by exactly the trie's data, and both are plain bytes.
        let key = unsafe { &*(&raw const *key).cast::<Key<M::RangeData>>() };
        M::ranges().get(key).copied()
    }

    #[inline(always)]
    fn has_ranges(&self) -> bool {
        self.settings.flags & M::HAS_RANGES != 0
    }

    #[inline(always)]
    fn rule(&self, slot: u32) -> Option<&Rule<M::Address>> {
        M::rules().get(slot)
    }

    #[inline(always)]
    fn allows(&self, list: u32, client: M::Address) -> bool {
        let bits = 8 * (size_of::<AllowKey<M::Address>>() - size_of::<u32>()) as u32;
        let key = AllowKey { prefix_len: bits, list, address: client };
        // SAFETY: as for `range`.
        let key = unsafe { &*(&raw const key).cast::<Key<M::AllowData>>() };
        M::allow().get(key).is_some()
    }

    #[inline(always)]
    fn datagram(&self, key: &DatagramKey<M::Address>) -> Option<Datagram<M::Address>> {
        // SAFETY: copied at once. Should another CPU reuse the entry meanwhile, a fragment goes astray.
        unsafe { M::datagrams().get(key) }.copied()
    }

    #[inline(always)]
    fn note_datagram(&self, key: &DatagramKey<M::Address>, datagram: &Datagram<M::Address>) {
        // Without a note, the other fragments are lost: there is nobody to tell.
        let _ = M::datagrams().insert(key, datagram, 0);
    }

    /// From the context itself: that is where helpers find the packet.
    #[inline(always)]
    fn hold(&self, key: &DatagramKey<M::Address>, _packet: &impl Packet, network: usize, length: u32) -> bool {
        held::hold::<M>(self.context, self.now, key, network as u32, length)
    }

    #[inline(always)]
    fn holds(&self, key: &DatagramKey<M::Address>) -> bool {
        held::holds::<M>(key, self.now)
    }

    #[inline(always)]
    fn repeat<R: Repeated>(&self, times: u32, state: &mut R) {
        // SAFETY: the callback has the type that the helper calls, and `state` outlives the call.
        unsafe { bpf_loop(times, step::<R> as *mut c_void, (&raw mut *state).cast(), 0) };
    }

    #[inline(always)]
    fn socket_connected(&self, arriving: &FlowKey<M::Address>) -> bool {
        M::find_socket(self.context, arriving) == Socket::Connected
    }

    #[inline(always)]
    fn socket_takes(&self, arriving: &FlowKey<M::Address>) -> bool {
        M::find_socket(self.context, arriving) != Socket::None
    }

    #[inline(always)]
    fn next_hop(&self, ends: &Ends<M::Address>) -> Hop {
        routing::next_hop::<M>(self, ends)
    }

    #[inline(always)]
    fn known_next_hop(&self, ends: &Ends<M::Address>) -> Hop {
        routing::known_next_hop::<M>(self, ends)
    }

    #[inline(always)]
    fn way(&self, ends: &Ends<M::Address>) -> Way {
        routing::way::<M>(self, ends)
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        // SAFETY: only asked at TC, where the program's argument is an skb.
        unsafe { (*self.context.cast::<__sk_buff>()).ifindex }
    }

    #[inline(always)]
    fn mtu(&self, src: M::Address, dst: M::Address) -> u32 {
        routing::mtu::<M>(self, src, dst)
    }

    #[inline(always)]
    fn keep_answerer(&self, answerer: M::Address) {
        if let Some(answers) = ANSWERS.get_ptr_mut(0) {
            // SAFETY: this CPU's own copy of an array value, valid while the program runs; the field has room for the
            // longer address, and both are words.
            unsafe { (&raw mut (*answers).answerer).cast::<M::Address>().write(answerer) };
        }
    }

    #[inline(always)]
    fn answerer(&self) -> Option<M::Address> {
        let answers = ANSWERS.get_ptr_mut(0)?;
        // SAFETY: as above.
        Some(unsafe { (&raw const (*answers).answerer).cast::<M::Address>().read() })
    }

    #[inline(always)]
    fn may_answer(&self, about: About) -> bool {
        let Some(answers) = ANSWERS.get_ptr_mut(0) else { return false };
        // SAFETY: as above; programs of a CPU that use it run one after the other.
        let [mtu, other, probe] = unsafe { &mut (*answers).budgets };
        let budget = match about {
            About::Mtu => mtu,
            About::Other => other,
            About::Probe => probe,
        };
        budget.take(self.now, about)
    }

    #[inline(always)]
    fn count_forwarded(&self, counter: u32, direction: Direction, bytes: u32) {
        count::forwarded(counter, direction, bytes);
    }

    #[inline(always)]
    fn count(&self, counter: u32, event: Event) {
        count::event(counter, event);
    }
}
