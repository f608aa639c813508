//! The guest's virtio NICs, connected in pairs.
//!
//! Each NIC is a tap device on the host's side, in a network namespace that QEMU has to itself, and each pair is a bridge
//! there: `tests/vm/cables.sh` makes them. (QEMU's own hubs would do without, but neither hand on packets with unfinished
//! checksums nor know more than one queue.)

use std::fmt::Write as _;

/// Two NICs of the same kind and what joins them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Cable {
    /// Of at most 13 letters: begins the names of its devices.
    name: &'static str,
    /// Pairs of queues that the NICs offer; the driver uses as many as there are CPUs, and wants one more for each CPU for
    /// what XDP sends.
    queues: u8,
    /// Properties of the device, each with a comma before it.
    properties: &'static str,
}

/// Those of every guest.
pub(crate) const CABLES: [Cable; 5] = [
    Cable { name: "one", queues: 1, properties: "" },
    Cable { name: "few", queues: 2, properties: "" },
    Cable { name: "many", queues: 4, properties: "" },
    // The host hands over packets as they come, and the guest cannot tell it not to: no XDP.
    Cable { name: "refusing", queues: 1, properties: ",ctrl_guest_offloads=off" },
    // The host never hands over anything but finished packets.
    Cable {
        name: "plain",
        queues: 1,
        properties: ",ctrl_guest_offloads=off,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off",
    },
];

/// One end of a cable.
#[derive(Debug)]
pub(crate) struct Nic {
    tap: String,
    mac: String,
    queues: u8,
    properties: &'static str,
}

impl Cable {
    /// Both ends.
    pub(crate) fn nics(&self) -> [Nic; 2] {
        let number = CABLES.iter().position(|cable| cable == self).unwrap_or_default();
        ["a", "b"].map(|end| Nic {
            tap: format!("{}-{end}", self.name),
            // Locally administered.
            mac: format!("52:54:00:ca:{number:02x}:0{end}"),
            queues: self.queues,
            properties: self.properties,
        })
    }
}

impl Nic {
    /// For `-netdev`.
    pub(crate) fn netdev(&self) -> String {
        format!("tap,id={0},ifname={0},queues={1},script=no,downscript=no,vhost=off", self.tap, self.queues)
    }

    /// For `-device`.
    pub(crate) fn device(&self) -> String {
        // Two vectors for each pair of queues, one for control, one for changes of the configuration.
        let queues = if self.queues > 1 { format!(",mq=on,vectors={}", 2 * self.queues + 2) } else { String::new() };
        format!("virtio-net-pci,netdev={},mac={},romfile={queues}{}", self.tap, self.mac, self.properties)
    }
}

/// What `cables.sh` is given: name and queues of each.
pub(crate) fn script_arguments() -> Vec<String> {
    CABLES.iter().flat_map(|cable| [cable.name.to_owned(), cable.queues.to_string()]).collect()
}

/// For the tests, in `FORWARDER_GUEST_CABLES`: `NAME=MAC,MAC`, separated by spaces.
pub(crate) fn described() -> String {
    let mut text = String::new();
    for cable in &CABLES {
        let [a, b] = cable.nics();
        // Cannot fail: it is a string.
        let _ = write!(text, "{}={},{} ", cable.name, a.mac, b.mac);
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{CABLES, Cable, described, script_arguments};

    #[test]
    fn nics_are_told_apart() {
        let nics: Vec<_> = CABLES.iter().flat_map(Cable::nics).collect();
        assert_eq!(nics.iter().map(|nic| &nic.mac).collect::<BTreeSet<_>>().len(), 2 * CABLES.len());
        // IFNAMSIZ, with the byte that ends it.
        assert!(nics.iter().all(|nic| nic.tap.len() < 16));
        assert!(described().starts_with("one=52:54:00:ca:00:0a,52:54:00:ca:00:0b few="), "{}", described());
        assert_eq!(script_arguments().first().map(String::as_str), Some("one"));
    }
}
