#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::{bpf::attach::TcAttachment, config::Mode, machine::Interface};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn link(name: &str, index: u32, mac: [u8; 6]) -> Link {
    let interface = Interface {
        index,
        name: name.to_owned(),
        mac: Some(mac),
        mtu: 1500,
        has_link_header: true,
        up: true,
        carrier: true,
        addresses: Vec::new(),
    };
    Link { interface, kind: None, xdp_program: None, receive_queues: 1 }
}

fn attached(slot: u32, name: &str, index: u32) -> AttachedInterface {
    AttachedInterface {
        name: name.to_owned(),
        index,
        mac: Some(MAC),
        slot,
        mode: Mode::Tc,
        why: String::new(),
        tc: TcAttachment::Tcx,
        egress: None,
        vlan_stripping_off: false,
        xdp_out: false,
    }
}

/// What it is about, what is attached, what there is, what wants programs, what is absent.
type Row<'a> = (&'a str, Vec<AttachedInterface>, Vec<Link>, Vec<(u32, Why)>, Vec<&'a str>);

#[test]
fn which_interfaces_want_programs_and_which_are_absent() {
    let configured = ["eth0", "ppp0"].map(|name| Placed::nowhere(name.to_owned()));
    let (eth0, ppp0) = (attached(0, "eth0", 2), attached(1, "ppp0", 7));
    let table: Vec<Row<'_>> = vec![
        (
            "nothing happened",
            vec![eth0.clone(), ppp0.clone()],
            vec![link("eth0", 2, MAC), link("ppp0", 7, MAC)],
            vec![],
            vec![],
        ),
        ("not there at the start", vec![eth0.clone()], vec![link("eth0", 2, MAC)], vec![], vec!["ppp0"]),
        (
            "it comes",
            vec![eth0.clone()],
            vec![link("eth0", 2, MAC), link("ppp0", 9, MAC)],
            vec![(1, Why::Appeared)],
            vec![],
        ),
        ("it goes", vec![eth0.clone(), ppp0.clone()], vec![link("eth0", 2, MAC)], vec![], vec!["ppp0"]),
        (
            "it comes back as another",
            vec![eth0.clone(), ppp0.clone()],
            vec![link("eth0", 2, MAC), link("ppp0", 9, MAC)],
            vec![(1, Why::Recreated)],
            vec![],
        ),
        (
            "another MAC",
            vec![eth0.clone(), ppp0.clone()],
            vec![link("eth0", 2, OTHER), link("ppp0", 7, MAC)],
            vec![(0, Why::OtherMac)],
            vec![],
        ),
        (
            "another name",
            vec![eth0.clone(), ppp0.clone()],
            vec![link("lan", 2, MAC), link("ppp0", 7, MAC)],
            vec![],
            vec![],
        ),
        (
            "another takes its name",
            vec![eth0.clone(), ppp0.clone()],
            vec![link("lan", 2, MAC), link("eth0", 3, MAC), link("ppp0", 7, MAC)],
            vec![(0, Why::Recreated)],
            vec![],
        ),
        (
            "all at once",
            vec![ppp0.clone()],
            vec![link("ppp0", 8, OTHER), link("eth0", 9, MAC), link("eth7", 10, MAC)],
            vec![(0, Why::Appeared), (1, Why::Recreated)],
            vec![],
        ),
        ("none at all", vec![], vec![], vec![], vec!["eth0", "ppp0"]),
    ];
    for (about, attached, links, expected, gone) in table {
        let found = wanting(&configured, &attached, &links);
        assert_eq!(found.iter().map(|one| (one.slot, one.why)).collect::<Vec<_>>(), expected, "{about}");
        for one in found {
            assert_eq!(one.link.interface.name, configured.get(one.slot as usize).unwrap().value, "{about}");
            assert_eq!(one.before.map(|before| before.slot), one.before.map(|_| one.slot), "{about}");
            assert_eq!(one.before.is_none(), one.why == Why::Appeared, "{about}");
        }
        assert_eq!(absent(&configured, &attached, &links).into_iter().collect::<Vec<_>>(), gone, "{about}");
    }
}
