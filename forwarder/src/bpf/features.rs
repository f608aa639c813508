//! What the running kernel must have, asked of the kernel itself and not of its version number.

use anyhow::{Context as _, Result, bail};
use aya::{
    maps::MapType,
    programs::{ProgramType, SchedClassifier, TcAttachType},
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};

/// Map types of the object, with the names the kernel's documentation has for them.
const MAPS: [(MapType, &str); 6] = [
    (MapType::Hash, "hash maps"),
    (MapType::LruHash, "LRU hash maps"),
    (MapType::LpmTrie, "longest-prefix-match maps"),
    (MapType::PerCpuArray, "per-CPU arrays"),
    (MapType::Queue, "queue maps"),
    (MapType::RingBuf, "ring buffers"),
];

/// Fails with one sentence when the kernel lacks something that every load needs.
pub fn require() -> Result<()> {
    let lacking = lacking().context("cannot find out what the kernel's BPF can do")?;
    let Some(what) = lacking else { return Ok(()) };
    let release = nix::sys::utsname::uname()
        .map_or_else(|_| "of this machine".to_owned(), |name| name.release().to_string_lossy().into_owned());
    bail!("the kernel ({release}) has no {what}, which forwarder needs; Linux 6.1 or newer has it");
}

fn lacking() -> Result<Option<&'static str>> {
    if !is_program_supported(ProgramType::SchedClassifier)? {
        return Ok(Some("BPF programs for traffic control (CONFIG_NET_CLS_BPF)"));
    }
    if !is_program_supported(ProgramType::Xdp)? {
        return Ok(Some("XDP programs"));
    }
    for (map, name) in MAPS {
        if !is_map_supported(map)? {
            return Ok(Some(name));
        }
    }
    let classifier = ProgramType::SchedClassifier;
    for (helper, name) in [
        (BpfHelper::BPF_FUNC_timer_init, "BPF timers"),
        (BpfHelper::BPF_FUNC_loop, "bpf_loop"),
        (BpfHelper::BPF_FUNC_redirect_neigh, "bpf_redirect_neigh"),
        (BpfHelper::BPF_FUNC_fib_lookup, "bpf_fib_lookup"),
    ] {
        if !is_helper_supported(classifier, helper)? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Whether TC programs can be attached by a link (tcx, Linux 6.6), which outlives the command when pinned.
pub fn has_tcx() -> bool {
    // Kernels before tcx do not know the attach type.
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}
