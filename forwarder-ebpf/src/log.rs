//! What `forwarder log` shows. The level is a constant of the loaded program: the verifier removes what is off, so
//! that it costs nothing.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use aya_log_ebpf::{
    info,
    macro_support::{Level, level_enabled},
};
use forwarder_common::{
    abi::FlowKey,
    address::{V4, V6, wire_bytes},
    verdict::{Kind, Outcome},
};

/// Whether anything is logged of packets.
#[inline(always)]
pub(crate) fn is_on() -> bool {
    level_enabled(Level::Info)
}

/// Logs how a packet left the TC program: at level info what is dropped, at debug also what is forwarded, at trace
/// also what is passed. The key is asked for only then.
#[inline(always)]
pub(crate) fn verdict<'k, A: Logged + 'k>(
    context: *mut __sk_buff,
    outcome: Outcome,
    key: impl FnOnce() -> Option<&'k FlowKey<A>>,
) {
    let level = match outcome.kind() {
        Kind::Drop | Kind::Answer => Level::Info,
        Kind::Forward | Kind::Hold => Level::Debug,
        Kind::Pass => Level::Trace,
    };
    if is_on()
        && level_enabled(level)
        && let Some(key) = key()
    {
        A::log(context, outcome as u32, key);
    }
}

/// An address that can be logged. The outcome goes as its number: the program has no strings to choose from.
pub(crate) trait Logged: Sized {
    fn log(context: *mut __sk_buff, outcome: u32, key: &FlowKey<Self>);
}

/// One record; `{:i}` shows an address.
macro_rules! record {
    ($context:ident, $outcome:ident, $key:ident, $src:expr, $dst:expr) => {
        info!(
            &TcContext::new($context),
            "outcome {} protocol {} from {:i} port {} to {:i} port {}",
            $outcome,
            $key.protocol,
            $src,
            u16::from_be($key.src_port),
            $dst,
            u16::from_be($key.dst_port)
        )
    };
}

impl Logged for V4 {
    #[inline(never)]
    fn log(context: *mut __sk_buff, outcome: u32, key: &FlowKey<V4>) {
        record!(context, outcome, key, u32::from_be(key.src), u32::from_be(key.dst));
    }
}

impl Logged for V6 {
    #[inline(never)]
    fn log(context: *mut __sk_buff, outcome: u32, key: &FlowKey<V6>) {
        record!(context, outcome, key, wire_bytes(key.src), wire_bytes(key.dst));
    }
}
