//! Whether a socket of this machine would take a packet: its ports are not for masquerading.
//!
//! TCP and UDP look up apart, each with its own release: the verifier follows a reference only along one kind.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    helpers::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use forwarder_common::{
    abi::FlowKey,
    address::{V4, V6},
    wire::protocol,
};

use crate::maps::{Maps, MapsV4, MapsV6};

/// `BPF_F_CURRENT_NETNS`: the network namespace of the packet's device.
const CURRENT_NETNS: u64 = u64::MAX;

/// `TCP_LISTEN` of the kernel's socket states.
const TCP_LISTEN: u32 = 10;

/// What socket of this machine would take a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Socket {
    /// None.
    None,
    /// One that waits for connections.
    Listening,
    /// One that is connected, or connecting; with UDP any that is bound.
    Connected,
}

/// How a family's sockets are looked up.
pub(crate) trait Sockets: Maps {
    /// The socket that would take a packet with this key.
    fn find_socket(context: *mut c_void, arriving: &FlowKey<Self::Address>) -> Socket;
}

/// `T` is one of the members of the union that `bpf_sock_tuple` is; its size says which.
#[inline(always)]
fn lookup<T>(context: *mut c_void, protocol: u32, mut tuple: T) -> Socket {
    let (tuple, size) = ((&raw mut tuple).cast::<bpf_sock_tuple>(), size_of::<T>() as u32);
    if protocol == u32::from(protocol::TCP) {
        // SAFETY: the program's own context, and a tuple of which the helper reads the size that is said; a socket that
        // is found is released when its state has been read.
        unsafe {
            let socket = bpf_skc_lookup_tcp(context, tuple, size, CURRENT_NETNS, 0);
            if !socket.is_null() {
                let state = (*socket).state;
                bpf_sk_release(socket.cast());
                return if state == TCP_LISTEN { Socket::Listening } else { Socket::Connected };
            }
        }
    } else if protocol == u32::from(protocol::UDP) {
        // SAFETY: as above.
        unsafe {
            let socket = bpf_sk_lookup_udp(context, tuple, size, CURRENT_NETNS, 0);
            if !socket.is_null() {
                bpf_sk_release(socket.cast());
                return Socket::Connected;
            }
        }
    }
    Socket::None
}

impl Sockets for MapsV4 {
    #[inline(always)]
    fn find_socket(context: *mut c_void, arriving: &FlowKey<V4>) -> Socket {
        let tuple = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            saddr: arriving.src,
            daddr: arriving.dst,
            sport: arriving.src_port,
            dport: arriving.dst_port,
        };
        lookup(context, arriving.protocol, tuple)
    }
}

impl Sockets for MapsV6 {
    #[inline(always)]
    fn find_socket(context: *mut c_void, arriving: &FlowKey<V6>) -> Socket {
        let tuple = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
            saddr: arriving.src,
            daddr: arriving.dst,
            sport: arriving.src_port,
            dport: arriving.dst_port,
        };
        lookup(context, arriving.protocol, tuple)
    }
}
