//! Whom to ask about which line, from the configuration and the machine. Pure.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use crate::{
    config::{Config, Probe, Uplink},
    machine::{Interface, Machine},
};

/// How a line is probed. Another plan is another task, which begins with the health that the line had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::daemon) struct Plan {
    /// The interface's index.
    pub(super) interface: u32,
    /// Who is asked; the line works if one of them answers.
    pub(super) asks: Vec<Ask>,
    /// Between two questions; as long is waited for the answer.
    pub(super) interval: Duration,
    /// So many in a row without an answer, and the line is down.
    pub(super) fall: u32,
    /// So many in a row with an answer, and it is up again.
    pub(super) rise: u32,
}

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::daemon) enum Ask {
    /// Whether the router of the line answers ARP or neighbour solicitations.
    Gateway(IpAddr),
    /// Whether somebody beyond it answers a ping.
    Echo {
        /// Who.
        target: IpAddr,
        /// The line's own address; none if it has none of that family.
        from: Option<IpAddr>,
        /// The router; none where the line has no link header.
        gateway: Option<IpAddr>,
    },
}

/// Those of the lines that can be asked. A line without its interface or carrier is down in any case.
pub(in crate::daemon) fn of(config: &Config, machine: &Machine) -> BTreeMap<String, Plan> {
    let plans = config.uplinks.iter().filter_map(|uplink| {
        let interface =
            machine.interface(&uplink.interface.value).filter(|interface| interface.up && interface.carrier)?;
        Some((uplink.name.value.clone(), plan(uplink, interface)?))
    });
    plans.collect()
}

/// None where nobody is to be asked.
fn plan(uplink: &Uplink, interface: &Interface) -> Option<Plan> {
    let asks: Vec<Ask> = uplink.probe.iter().flat_map(|probe| asks(probe.value, uplink, interface)).collect();
    let Uplink { interval, fall, rise, .. } = *uplink;
    (!asks.is_empty()).then_some(Plan { interface: interface.index, asks, interval, fall, rise })
}

fn asks(probe: Probe, uplink: &Uplink, interface: &Interface) -> Vec<Ask> {
    let gateways = || uplink.gateway.iter().map(|gateway| gateway.value);
    match probe {
        Probe::Carrier => Vec::new(),
        Probe::Gateway => gateways().map(Ask::Gateway).collect(),
        Probe::Ping(target) => {
            let same_family = |address: &IpAddr| address.is_ipv4() == target.is_ipv4();
            // Answers find the way back only to an address that others can reach.
            let reachable = |address: &IpAddr| crate::config::forwardable(*address);
            let mut own = interface.addresses.iter().map(ipnet::IpNet::addr).filter(same_family);
            vec![Ask::Echo { target, from: own.find(reachable), gateway: gateways().find(same_family) }]
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on has failed")]

    use super::*;

    const CONFIG: &str = r#"
        [[uplink]]
        name = "quiet"
        interface = "eth0"

        [[uplink]]
        name = "router"
        interface = "eth0"
        gateway = ["192.0.2.1", "fe80::1"]
        probe = "gateway"
        interval = "200ms"
        fall = 5
        rise = 4

        [[uplink]]
        name = "beyond"
        interface = "ppp0"
        probe = ["ping 198.51.100.9", "ping 2001:db8::9"]
    "#;

    fn machine() -> Machine {
        let interface = |index, name: &str, addresses: &[&str]| Interface {
            index,
            name: name.to_owned(),
            mac: None,
            mtu: 1500,
            has_link_header: name == "eth0",
            up: true,
            carrier: true,
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        };
        let interfaces =
            vec![interface(2, "eth0", &["192.0.2.7/24"]), interface(3, "ppp0", &["fe80::7/64", "203.0.113.7/32"])];
        Machine { interfaces, ..Machine::default() }
    }

    fn plans(machine: &Machine) -> BTreeMap<String, Plan> {
        of(&crate::config::load("uplinks.toml", CONFIG).unwrap(), machine)
    }

    #[test]
    fn whom_to_ask() {
        let plans = plans(&machine());
        assert_eq!(plans.keys().collect::<Vec<_>>(), ["beyond", "router"], "nobody is asked about the quiet one");
        let asks = ["192.0.2.1", "fe80::1"].map(|gateway| Ask::Gateway(gateway.parse().unwrap())).to_vec();
        let interval = Duration::from_millis(200);
        assert_eq!(plans["router"], Plan { interface: 2, asks, interval, fall: 5, rise: 4 });
        let ping = |target: &str, from: Option<&str>| Ask::Echo {
            target: target.parse().unwrap(),
            from: from.map(|from| from.parse().unwrap()),
            gateway: None,
        };
        assert_eq!(plans["beyond"].asks, [ping("198.51.100.9", Some("203.0.113.7")), ping("2001:db8::9", None)]);
        assert_eq!((plans["beyond"].interval, plans["beyond"].fall), (Duration::from_secs(1), 3));
    }

    #[test]
    fn lines_without_carrier_are_not_asked_about() {
        for change in [|one: &mut Interface| one.up = false, |one: &mut Interface| one.carrier = false] {
            let mut machine = machine();
            change(&mut machine.interfaces[1]);
            assert_eq!(plans(&machine).keys().collect::<Vec<_>>(), ["router"]);
            let uplinks = crate::config::load("uplinks.toml", CONFIG).unwrap().uplinks;
            assert_eq!(
                uplinks.iter().map(|uplink| uplink.trouble(&machine).is_some()).collect::<Vec<_>>(),
                [false, false, true]
            );
        }
    }
}
