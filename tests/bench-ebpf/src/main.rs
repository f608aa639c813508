//! The bench's programs: they make frames, pass them on as fast as the kernel can, and count them.
#![no_std]
#![no_main]

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup,
        xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS},
    },
    btf_maps::{Array, DevMap, PerCpuArray},
    helpers::{bpf_fib_lookup, bpf_redirect},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use forwarder_bench_ebpf::{
    BACKEND_SINK, CLIENT_SINK, DEVICE_GENERATOR, DEVICE_LIMIT, DEVICE_REFLECT, FlowEnds, Frame, Generator, LENGTH_V4,
    LENGTH_V6, SAMPLE_EVERY, SAMPLES, Sink, Wire,
};

#[btf_map]
static GENERATOR: Array<Generator, 1> = Array::new();
#[btf_map]
static SINKS: Array<Sink, 2> = Array::new();
#[btf_map]
static WIRE: PerCpuArray<Wire, 1> = PerCpuArray::new();
#[btf_map]
static SAMPLED: Array<Frame, { SAMPLES as usize }> = Array::new();
#[btf_map]
static DEVICES: DevMap<3> = DevMap::new();

const ETHERNET: usize = 14;
const UDP: u8 = 17;

/// Where things stand in a frame; without options and extension headers these are constants.
trait Layout {
    const LENGTH: usize;
    const TRANSPORT: usize;
    const SOURCE: usize;
    /// Bytes of an address.
    const ADDRESS: usize;
    /// Of the TTL or hop limit.
    const TTL: usize;
    const ETHERTYPE: u16;
    /// Of the protocol, or the next header.
    const PROTOCOL: usize;
    /// The first byte, as far as it is always the same, and how far that is: version, and that there are no options.
    const FIRST: u8;
    const FIRST_MASK: u8;
    /// `AF_INET` or `AF_INET6`.
    const ADDRESS_FAMILY: u8;
    /// Of the header checksum, if there is one.
    const HEADER_CHECKSUM: Option<usize>;

    const DESTINATION: usize = Self::SOURCE + Self::ADDRESS;
    /// The UDP checksum.
    const CHECKSUM: usize = Self::TRANSPORT + 6;
    /// The flow number, in the payload.
    const NUMBER: usize = Self::TRANSPORT + 8;
}

struct V4;
impl Layout for V4 {
    const LENGTH: usize = LENGTH_V4;
    const TRANSPORT: usize = ETHERNET + 20;
    const SOURCE: usize = ETHERNET + 12;
    const ADDRESS: usize = 4;
    const TTL: usize = ETHERNET + 8;
    const ETHERTYPE: u16 = 0x0800;
    const PROTOCOL: usize = ETHERNET + 9;
    const FIRST: u8 = 0x45;
    const FIRST_MASK: u8 = 0xff;
    const ADDRESS_FAMILY: u8 = 2;
    const HEADER_CHECKSUM: Option<usize> = Some(ETHERNET + 10);
}

struct V6;
impl Layout for V6 {
    const LENGTH: usize = LENGTH_V6;
    const TRANSPORT: usize = ETHERNET + 40;
    const SOURCE: usize = ETHERNET + 8;
    const ADDRESS: usize = 16;
    const TTL: usize = ETHERNET + 7;
    const ETHERTYPE: u16 = 0x86dd;
    const PROTOCOL: usize = ETHERNET + 6;
    const FIRST: u8 = 0x60;
    const FIRST_MASK: u8 = 0xf0;
    const ADDRESS_FAMILY: u8 = 10;
    const HEADER_CHECKSUM: Option<usize> = None;
}

/// The beginning of a frame of at least `L::LENGTH` bytes.
#[inline(always)]
fn frame<L: Layout>(context: &XdpContext) -> Option<*mut u8> {
    let start = context.data();
    if start + L::LENGTH > context.data_end() {
        return None;
    }
    Some(start as *mut u8)
}

/// # Safety
/// The two bytes exist. All fields that this is used for are at even offsets.
#[inline(always)]
unsafe fn load(frame: *mut u8, offset: usize) -> u16 {
    // SAFETY: the caller's promise; frames start at even addresses.
    unsafe { frame.add(offset).cast::<u16>().read() }
}

/// # Safety
/// As for [`load`].
#[inline(always)]
unsafe fn store(frame: *mut u8, offset: usize, word: u16) {
    // SAFETY: the caller's promise; frames start at even addresses.
    unsafe { frame.add(offset).cast::<u16>().write(word) }
}

/// Folded and complemented: what a checksum field holds (RFC 1071).
#[inline(always)]
const fn checksum(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    !(((once & 0xffff) + (once >> 16)) as u16)
}

/// Writes the next flow's frame and sends it towards the forwarder.
///
/// All of it, each time: live frames are recycled with what was last written into them.
#[inline(always)]
fn generate<L: Layout>(context: &XdpContext) -> Option<u32> {
    let frame = frame::<L>(context)?;
    let generator = GENERATOR.get_ptr_mut(0)?;
    // SAFETY: a pointer to an array value, valid while the program runs; the bench runs one generator at a time and
    // writes the record only in between.
    let generator = unsafe { &mut *generator };
    let flow = generator.first + generator.next;
    generator.next = (generator.next + generator.stride) & generator.mask;

    let [w0, w1, w2, w3, w4, w5, w6, w7, w8] = generator.frame;
    // SAFETY: `frame` found `L::LENGTH` bytes; a frame to be sent starts at the beginning of a page plus a headroom
    // that is a multiple of 8.
    unsafe {
        let words = frame.cast::<u64>();
        words.write(w0);
        words.add(1).write(w1);
        words.add(2).write(w2);
        words.add(3).write(w3);
        words.add(4).write(w4);
        words.add(5).write(w5);
        words.add(6).write(w6);
        if L::LENGTH > 64 {
            words.add(7).write(w7);
            words.add(8).cast::<u16>().write(w8 as u16);
        } else {
            words.add(7).cast::<u32>().write(w7 as u32);
        }
    }

    let ends = FlowEnds::of(flow, generator.listen_bits, generator.client_bits.into());
    let address = generator.client.wrapping_add(ends.client as u16).to_be();
    let source = generator.client_port.wrapping_add(ends.port as u16).to_be();
    let destination = generator.listen_port.wrapping_add(ends.listen as u16).to_be();
    let (low, high) = (flow as u16, (flow >> 16) as u16);
    let sum = generator.transport_sum
        + u32::from(address)
        + u32::from(source)
        + u32::from(destination)
        + u32::from(low)
        + u32::from(high);
    let udp = match checksum(sum) {
        0 => 0xffff,
        other => other,
    };
    // SAFETY: all within `L::LENGTH`, at even offsets.
    unsafe {
        store(frame, L::SOURCE + L::ADDRESS - 2, address);
        if let Some(offset) = L::HEADER_CHECKSUM {
            store(frame, offset, checksum(generator.header_sum + u32::from(address)));
        }
        store(frame, L::TRANSPORT, source);
        store(frame, L::TRANSPORT + 2, destination);
        store(frame, L::CHECKSUM, udp);
        store(frame, L::NUMBER, low);
        store(frame, L::NUMBER + 2, high);
    }
    DEVICES.redirect(DEVICE_GENERATOR, 0).ok()
}

/// Makes IPv4 frames.
#[xdp]
fn generate_v4(context: XdpContext) -> u32 {
    generate::<V4>(&context).unwrap_or(XDP_ABORTED)
}

/// Makes IPv6 frames.
#[xdp]
fn generate_v6(context: XdpContext) -> u32 {
    generate::<V6>(&context).unwrap_or(XDP_ABORTED)
}

/// The limit: sends everything on as it came, with the fastest redirect the kernel has.
#[xdp]
fn limit(_: XdpContext) -> u32 {
    DEVICES.redirect(DEVICE_LIMIT, 0).unwrap_or(XDP_ABORTED)
}

/// The same by interface number, which the kernel has to look up.
#[xdp]
fn limit_by_index(_: XdpContext) -> u32 {
    let Some(generator) = GENERATOR.get(0) else { return XDP_ABORTED };
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect(generator.out, 0) as u32 }
}

/// Routes IPv4 as the kernel would, asking it for each packet, and translates nothing: what XDP routers do.
#[xdp]
fn route_v4(context: XdpContext) -> u32 {
    route::<V4>(&context).unwrap_or(XDP_PASS)
}

/// The same for IPv6.
#[xdp]
fn route_v6(context: XdpContext) -> u32 {
    route::<V6>(&context).unwrap_or(XDP_PASS)
}

#[inline(always)]
fn route<L: Layout>(context: &XdpContext) -> Option<u32> {
    let frame = frame::<L>(context)?;
    // SAFETY: integers, and unions of integers, for which zero is a value.
    let mut lookup: FibLookup = unsafe { core::mem::zeroed() };
    lookup.family = L::ADDRESS_FAMILY;
    lookup.l4_protocol = UDP;
    // SAFETY: `frame` found `L::LENGTH` bytes. Of the addresses' unions those members are used that the family names; for
    // both, source and destination are as long as in the packet.
    unsafe {
        lookup.ifindex = (*context.ctx).ingress_ifindex;
        lookup.__bindgen_anon_1.tot_len = (context.data_end() - context.data() - ETHERNET) as u16;
        let (source, destination) =
            ((&raw mut lookup.__bindgen_anon_3).cast::<u16>(), (&raw mut lookup.__bindgen_anon_4).cast::<u16>());
        let mut word = 0;
        while word < L::ADDRESS / 2 {
            source.add(word).write(load(frame, L::SOURCE + 2 * word));
            destination.add(word).write(load(frame, L::DESTINATION + 2 * word));
            word += 1;
        }
    }
    // SAFETY: the record is alive and of the size given.
    let answer = unsafe { bpf_fib_lookup(context.as_ptr(), &raw mut lookup, size_of::<FibLookup>() as i32, 0) };
    if answer != i64::from(BPF_FIB_LKUP_RET_SUCCESS) {
        return None;
    }
    // SAFETY: all within `L::LENGTH`, and but for the TTL's single byte at even offsets; the look-up, which succeeded, has
    // set both link addresses, which are 12 bytes in a row, destination last.
    unsafe {
        let ttl = frame.add(L::TTL);
        ttl.write(ttl.read().wrapping_sub(1));
        if let Some(offset) = L::HEADER_CHECKSUM {
            // One less in the high byte of a word is 0x0100 more in the checksum (RFC 1624).
            let sum = u32::from(u16::from_be(load(frame, offset))) + 0x0100;
            store(frame, offset, ((sum + (sum >> 16)) as u16).to_be());
        }
        for (at, byte) in lookup.dmac.into_iter().chain(lookup.smac).enumerate() {
            frame.add(at).write(byte);
        }
        Some(bpf_redirect(lookup.ifindex, 0) as u32)
    }
}

/// Counts what reaches the backend.
#[xdp]
fn backend_sink(context: XdpContext) -> u32 {
    sink::<BACKEND_SINK>(&context)
}

/// Counts what reaches the client.
#[xdp]
fn client_sink(context: XdpContext) -> u32 {
    sink::<CLIENT_SINK>(&context)
}

#[inline(always)]
fn sink<const WHICH: u32>(context: &XdpContext) -> u32 {
    let Some(sink) = SINKS.get_ptr_mut(WHICH) else { return XDP_ABORTED };
    // SAFETY: a pointer to an array value, valid while the program runs; everything runs on one CPU.
    let sink = unsafe { &mut *sink };
    let action = if sink.is_v6 == 0 { take::<V4, WHICH>(context, sink) } else { take::<V6, WHICH>(context, sink) };
    action.unwrap_or_else(|| {
        sink.stray += 1;
        XDP_DROP
    })
}

/// Counts a frame with the right address, keeps some, and sends it back if told so.
#[inline(always)]
fn take<L: Layout, const WHICH: u32>(context: &XdpContext, sink: &mut Sink) -> Option<u32> {
    let frame = frame::<L>(context)?;
    let end = if WHICH == BACKEND_SINK { L::DESTINATION } else { L::SOURCE } + L::ADDRESS;
    // SAFETY: `frame` found `L::LENGTH` bytes, and addresses start at even offsets.
    let address = unsafe { u32::from(load(frame, end - 4)) | u32::from(load(frame, end - 2)) << 16 };
    let length = (context.data_end() - context.data()) as u32;
    if address != sink.address || length != sink.length {
        return None;
    }
    if WHICH == BACKEND_SINK && sink.received & (SAMPLE_EVERY - 1) == 0 {
        keep::<L>(frame, (sink.received / SAMPLE_EVERY) as u32 & (SAMPLES - 1));
    }
    sink.received += 1;
    if sink.reflect == 0 {
        return Some(XDP_DROP);
    }
    // SAFETY: all within `L::LENGTH`, at even offsets. Sums do not notice that their words change places.
    unsafe {
        swap(frame, 0, 6, 6);
        swap(frame, L::SOURCE, L::DESTINATION, L::ADDRESS);
        swap(frame, L::TRANSPORT, L::TRANSPORT + 2, 2);
    }
    // Not XDP_TX, which veth brings only to a peer that has an XDP program.
    DEVICES.redirect(DEVICE_REFLECT, 0).ok()
}

/// Counts the UDP frames to one port of a real machine, keeps some, and lets everything else pass.
#[xdp]
fn wire_sink(context: XdpContext) -> u32 {
    arrived::<V4>(&context).or_else(|| arrived::<V6>(&context)).unwrap_or(XDP_PASS)
}

#[inline(always)]
fn arrived<L: Layout>(context: &XdpContext) -> Option<u32> {
    let frame = frame::<L>(context)?;
    let wire = WIRE.get_ptr_mut(0)?;
    // SAFETY: a pointer to this CPU's value, valid while the program runs, which nothing else on this CPU writes.
    let wire = unsafe { &mut *wire };
    // SAFETY: all within the `L::LENGTH` bytes that `frame` found, at even offsets but for the single bytes.
    let is_wanted = unsafe {
        load(frame, 12) == L::ETHERTYPE.to_be()
            && frame.add(ETHERNET).read() & L::FIRST_MASK == L::FIRST
            && frame.add(L::PROTOCOL).read() == UDP
            && u32::from(u16::from_be(load(frame, L::TRANSPORT + 2))) == wire.port
    };
    if !is_wanted {
        return None;
    }
    if wire.received & (SAMPLE_EVERY - 1) == 0 {
        keep::<L>(frame, (wire.received / SAMPLE_EVERY) as u32 & (SAMPLES - 1));
    }
    wire.received += 1;
    wire.bytes += (context.data_end() - context.data()) as u64;
    Some(XDP_DROP)
}

#[inline(always)]
fn keep<L: Layout>(frame: *mut u8, slot: u32) {
    let Some(sample) = SAMPLED.get_ptr_mut(slot) else { return };
    let sample = sample.cast::<u16>();
    let mut word = 0;
    while word < L::LENGTH / 2 {
        // SAFETY: `L::LENGTH` bytes exist in the frame and fit the sample.
        unsafe { sample.add(word).write(load(frame, 2 * word)) };
        word += 1;
    }
}

/// # Safety
/// As for [`load`], for `length` bytes from both offsets.
#[inline(always)]
unsafe fn swap(frame: *mut u8, a: usize, b: usize, length: usize) {
    let mut offset = 0;
    while offset < length {
        // SAFETY: the caller's promise.
        unsafe {
            let (x, y) = (load(frame, a + offset), load(frame, b + offset));
            store(frame, a + offset, y);
            store(frame, b + offset, x);
        }
        offset += 2;
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
