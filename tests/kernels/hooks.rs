//! Where TC programs hang: by tcx where the kernel has it, else as filters on `clsact`.

use std::env;

use crate::forwarder::Forwarder;

/// Asserts that they hang by what this kernel is known to have, asked of the kernel and not of forwarder.
pub(crate) fn assert_known(forwarder: &Forwarder, interface: &str) {
    let filters = forwarder.host.run(&["tc", "filter", "show", "dev", interface, "ingress"]).unwrap();
    let by_filter = filters.contains("forwarder_tc");
    let by_link = forwarder.pins.join("links/tc_0").exists();
    assert!(by_filter != by_link, "by clsact: {by_filter}, by tcx: {by_link}\n{filters}");
    match env::var("FORWARDER_GUEST").as_deref() {
        Ok("6.1") => assert!(by_filter, "6.1 has no tcx"),
        Ok("6.12") => assert!(by_link, "6.12 has tcx:\n{filters}"),
        _ => {}
    }
}

/// Unloads, and asserts that nothing hangs there any more.
pub(crate) fn assert_gone_after_unload(forwarder: &Forwarder, interface: &str) {
    forwarder.succeed(&["unload"]);
    let left = forwarder.host.run(&["tc", "qdisc", "show", "dev", interface]).unwrap();
    assert!(!left.contains("clsact"), "{left}");
    assert!(!forwarder.pins.exists());
}
