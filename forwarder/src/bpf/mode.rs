//! Which hook serves an interface, decided from what the machine says about it.

use std::collections::BTreeMap;

use crate::config::Mode;

/// What the choice depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts<'a> {
    /// What made the interface, when it is no hardware: `veth`, `bridge`, `tun`.
    pub kind: Option<&'a str>,
    /// The name of its driver.
    pub driver: Option<&'a str>,
    /// Whether its packets have an Ethernet header.
    pub has_link_header: bool,
    /// Whether the driver redirects packets; none when the kernel does not say.
    pub redirects: Option<bool>,
}

/// The mode in use and the reason for it, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Never `auto`.
    pub mode: Mode,
    /// A clause, lower case, without a full stop.
    pub why: String,
}

/// Drivers that run and redirect XDP in their receive path without giving up what makes them fast otherwise.
const NATIVE: [&str; 17] = [
    "atlantic",
    "bnxt_en",
    "ena",
    "fsl_dpaa2_eth",
    "fsl_enetc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "qede",
    "rvu_nicpf",
    "sfc",
];

/// Drivers and kinds of interfaces that have XDP, or seem to, and are better served at TC.
const BETTER_AT_TC: [(&str, &str); 11] = [
    ("veth", "a veth hands on packets with checksums still to be computed, which native XDP would break"),
    ("virtio_net", "native XDP costs a virtio NIC its GSO and LRO, and with them most of the speed of bulk TCP"),
    ("hv_netvsc", "packets of a Hyper-V NIC mostly come by its virtual function, where native XDP is not"),
    ("vmxnet3", "native XDP costs a vmxnet3 NIC its LRO"),
    ("xen-netfront", "native XDP costs a Xen NIC most of its speed"),
    ("gve", "native XDP costs a gVNIC half of its queues"),
    ("nfp", "the nfp driver does not redirect packets"),
    ("bridge", "a bridge has no XDP of its own"),
    ("bond", "a bond's members may be of any kind"),
    ("tun", "a tap device hands on packets that are not complete"),
    ("vlan", "a VLAN interface has no XDP of its own"),
];

/// Chooses the mode for an interface.
pub fn choose(requested: Mode, facts: Facts<'_>) -> Choice {
    let choice = |mode: Mode, why: String| Choice { mode, why };
    match requested {
        Mode::Tc => choice(Mode::Tc, "as asked".to_owned()),
        Mode::Native | Mode::Generic if !facts.has_link_header => {
            choice(Mode::Tc, format!("it has no Ethernet header, so {requested} XDP does not work there"))
        }
        Mode::Native | Mode::Generic => choice(requested, "as asked".to_owned()),
        Mode::Auto => automatic(facts),
    }
}

fn automatic(facts: Facts<'_>) -> Choice {
    let Facts { kind, driver, has_link_header, redirects } = facts;
    let (mode, why) = if !has_link_header {
        let what = kind.or(driver).unwrap_or("the interface");
        (Mode::Tc, format!("{what} delivers packets without an Ethernet header"))
    } else if let Some(why) = [kind, driver].into_iter().flatten().find_map(better_at_tc) {
        (Mode::Tc, why.to_owned())
    } else if redirects == Some(false) {
        (Mode::Tc, format!("{} does not redirect packets in XDP", driver.or(kind).unwrap_or("its driver")))
    } else if let Some(driver) = driver.filter(|driver| NATIVE.contains(driver)) {
        (Mode::Native, format!("the {driver} driver runs XDP well"))
    } else if let Some(what) = kind.or(driver) {
        (Mode::Tc, format!("{what} is not known to run XDP well; --mode native tries it"))
    } else {
        (Mode::Tc, "its driver is unknown; --mode native tries XDP".to_owned())
    };
    Choice { mode, why }
}

fn better_at_tc(what: &str) -> Option<&'static str> {
    BTreeMap::from(BETTER_AT_TC).get(what).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts<'a>(kind: &'a str, driver: &'a str, has_link_header: bool) -> Facts<'a> {
        let some = |text: &'a str| (!text.is_empty()).then_some(text);
        Facts { kind: some(kind), driver: some(driver), has_link_header, redirects: None }
    }

    #[test]
    fn which_mode_serves_which_interface() {
        use Mode::{Auto, Generic, Native, Tc};
        // requested, kind, driver, Ethernet header, chosen, a word of the reason
        let table = [
            (Auto, "", "mlx5_core", true, Native, "mlx5_core"),
            (Auto, "", "i40e", true, Native, "i40e"),
            (Auto, "", "ena", true, Native, "ena"),
            (Auto, "", "virtio_net", true, Tc, "GSO"),
            (Auto, "veth", "veth", true, Tc, "checksums"),
            (Auto, "", "nfp", true, Tc, "redirect"),
            (Auto, "bridge", "bridge", true, Tc, "bridge"),
            (Auto, "bond", "bonding", true, Tc, "members"),
            (Auto, "tun", "tun", true, Tc, "tap"),
            (Auto, "tun", "tun", false, Tc, "Ethernet header"),
            (Auto, "wireguard", "wireguard", false, Tc, "wireguard"),
            (Auto, "", "", false, Tc, "the interface"),
            (Auto, "", "e1000", true, Tc, "e1000"),
            (Auto, "macvlan", "macvlan", true, Tc, "macvlan"),
            (Auto, "", "", true, Tc, "unknown"),
            (Native, "veth", "veth", true, Native, "asked"),
            (Native, "", "e1000", true, Native, "asked"),
            (Native, "tun", "tun", false, Tc, "native"),
            (Generic, "wireguard", "", false, Tc, "generic"),
            (Generic, "", "e1000", true, Generic, "asked"),
            (Tc, "", "mlx5_core", true, Tc, "asked"),
        ];
        for (requested, kind, driver, header, mode, word) in table {
            let choice = choose(requested, facts(kind, driver, header));
            assert_eq!(choice.mode, mode, "{requested} {kind} {driver} {header}: {}", choice.why);
            assert!(choice.why.contains(word), "{requested} {kind} {driver}: {}", choice.why);
        }
    }

    #[test]
    fn a_driver_that_does_not_redirect_is_served_at_tc_unless_told_otherwise() {
        let facts = Facts { redirects: Some(false), ..facts("", "mlx5_core", true) };
        let choice = choose(Mode::Auto, facts);
        assert_eq!(choice.mode, Mode::Tc);
        assert!(choice.why.contains("mlx5_core does not redirect"), "{}", choice.why);
        assert_eq!(choose(Mode::Native, facts).mode, Mode::Native);
    }

    #[test]
    fn no_driver_is_in_both_lists() {
        assert!(NATIVE.iter().all(|driver| better_at_tc(driver).is_none()));
    }
}
