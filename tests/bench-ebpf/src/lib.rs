//! What the bench and its BPF programs agree on.
#![no_std]

/// 64-bit words of a frame that is generated or kept as a sample: room for the longest, zero after its end.
pub const FRAME_WORDS: usize = 9;
/// A frame with room for the longest.
pub type Frame = [u64; FRAME_WORDS];

/// What is written and compared of an IPv4 frame, in bytes, and how long the shortest is: what Ethernet asks for (64 with
/// the check sequence that no program sees).
pub const LENGTH_V4: usize = 60;
/// The same for IPv6: headers and a flow number.
pub const LENGTH_V6: usize = 66;

/// In a lab, flows come from 2 to the power of this many addresses.
pub const CLIENT_BITS: u32 = 4;
/// So many.
pub const CLIENTS: u32 = 1 << CLIENT_BITS;

/// How many samples the sink keeps.
pub const SAMPLES: u32 = 256;
/// The sink keeps every n-th frame: a power of two.
pub const SAMPLE_EVERY: u64 = 1024;

/// A flow, by its number: which listen, client and client port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEnds {
    /// Which port of the forwarder.
    pub listen: u32,
    /// Which address they come from.
    pub client: u32,
    /// Counts up from 0 within each listen and client.
    pub port: u32,
}

impl FlowEnds {
    /// The ends of flow number `flow`, where flows go to 2 to the power of `listen_bits` ports, and come from 2 to the
    /// power of `client_bits` addresses; both are below 16.
    #[inline(always)]
    pub const fn of(flow: u32, listen_bits: u32, client_bits: u32) -> Self {
        let others = flow >> (listen_bits & 15);
        let listen = flow - (others << (listen_bits & 15));
        let port = others >> (client_bits & 15);
        Self { listen, client: others - (port << (client_bits & 15)), port }
    }
}

/// What the generator sends; the single entry of `GENERATOR`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Generator {
    /// The frame of a flow, but for what differs between flows, which is zero.
    pub frame: Frame,
    /// The flow of the next frame is `first` plus this.
    pub next: u32,
    /// Added to `next` after each frame, modulo `mask + 1`; odd, so that each flow has its turn.
    pub stride: u32,
    /// Number of flows, a power of two, less one.
    pub mask: u32,
    /// The lowest flow.
    pub first: u32,
    /// Ones' complement sum of the words that the transport checksum covers, as loaded from the frame; not folded.
    pub transport_sum: u32,
    /// The same for the IPv4 header.
    pub header_sum: u32,
    /// The last 16 bits of client number 0's address; host order.
    pub client: u16,
    /// Client port number 0; host order.
    pub client_port: u16,
    /// Port of listen number 0; host order.
    pub listen_port: u16,
    /// How many addresses flows come from: 2 to the power of this.
    pub client_bits: u16,
    /// The interface that redirecting by number sends out of.
    pub out: u32,
    /// How many ports flows go to: 2 to the power of this.
    pub listen_bits: u32,
}

/// What a sink waits for and what came; `SINKS` has one for the backend and one for the client.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Sink {
    /// Frames with the address that is waited for.
    pub received: u64,
    /// Any other.
    pub stray: u64,
    /// The last 32 bits of the address, as loaded from the frame.
    pub address: u32,
    /// 1 for IPv6.
    pub is_v6: u32,
    /// 1 to send each frame back to where it came from.
    pub reflect: u32,
    /// Length of the frames that are waited for, in bytes.
    pub length: u32,
}

/// What came by a real wire; the single entry of `WIRE`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Wire {
    /// UDP frames to the port that is waited for.
    pub received: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The port; host order.
    pub port: u32,
    /// Always 0.
    pub padding: u32,
}

/// The sink on the backend's side: waits for a destination.
pub const BACKEND_SINK: u32 = 0;
/// The sink on the client's side: waits for a source.
pub const CLIENT_SINK: u32 = 1;

/// The device the generator sends out of, in `DEVICES`.
pub const DEVICE_GENERATOR: u32 = 0;
/// The device the limit sends out of.
pub const DEVICE_LIMIT: u32 = 1;
/// The device the backend's sink sends back out of: its own.
pub const DEVICE_REFLECT: u32 = 2;
