//! Two labs that differ in one thing: what stands in the middle, forwarder or nftables. The same hosts, addresses and MAC
//! addresses; nobody at the ends answers by himself.

use std::collections::HashSet;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use forwarder_lab::{Family, Host, Lab, LinkOptions, Offloads, Shape, Topology, Wire, patience};

use crate::forwarder::Forwarder;
use crate::plan::{self, Side, Source};
use crate::setting::{Mode, Setting};

/// The MAC addresses of a lab, the same in each: a host's index in it and its interface's.
pub(crate) const fn station(side: Side) -> [u8; 6] {
    match side {
        Side::Client => [2, 0, 0, 0, 0, 0],
        Side::Home => [2, 0, 0, 0, 2, 0],
    }
}

/// The forwarder's.
pub(crate) const fn middle(side: Side) -> [u8; 6] {
    match side {
        Side::Client => [2, 0, 0, 0, 1, 0],
        Side::Home => [2, 0, 0, 0, 1, 1],
    }
}

/// What stands in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Middle {
    Forwarder,
    Nftables,
}

impl Middle {
    pub(crate) const BOTH: [Self; 2] = [Self::Forwarder, Self::Nftables];
}

/// One of the labs.
pub(crate) struct Twin {
    client: Wire,
    home: Wire,
    pub(crate) forwarder: Option<Forwarder>,
    /// The set of what connection tracking calls invalid: family, table, name.
    judged: Option<[&'static str; 3]>,
    net: Topology,
}

impl Twin {
    /// With the rules of the plan.
    pub(crate) fn new(middle: Middle, family: Family, source: Source, mode: Mode) -> Self {
        match middle {
            Middle::Forwarder => {
                let twin = Self::with_forwarder(family, mode, &plan::configuration(family, source));
                twin.end_routes(family);
                twin
            }
            Middle::Nftables => Self::with_nftables(family, source),
        }
    }

    /// With forwarder and this configuration.
    pub(crate) fn with_forwarder(family: Family, mode: Mode, config: &str) -> Self {
        let offloads = if mode == Mode::Native { Offloads::Native } else { Offloads::Default };
        let mut twin = Self::without_rules(offloads, family);
        let forwarder = Forwarder::on(&twin.net);
        forwarder.load(Setting { mode, shape: Shape::TwoArmed }, config);
        twin.forwarder = Some(forwarder);
        twin
    }

    fn with_nftables(family: Family, source: Source) -> Self {
        let mut twin = Self::without_rules(Offloads::Default, family);
        twin.end_routes(family);
        let net = &twin.net;
        let npt = plan::npt(family, source);
        for rule in &npt {
            let command: Vec<&str> = ["ip6tables"].into_iter().chain(rule.split(' ')).collect();
            net.forwarder.run(&command).unwrap();
        }
        let mut rules = plan::segments(family, source);
        if npt.is_empty() {
            rules += &plan::ruleset(family, source);
            rules += &plan::judgement(family);
        }
        let path = std::env::temp_dir().join(format!("{}.nft", net.lab.id()));
        net.lab.delete_at_end(&path).unwrap();
        fs::write(&path, rules).unwrap();
        net.forwarder.run(&["nft", "-f", path.to_str().unwrap()]).unwrap();
        if npt.is_empty() {
            twin.judged = Some([if family == Family::V4 { "ip" } else { "ip6" }, plan::JUDGED, "invalid"]);
        }
        for (key, value) in plan::CONNTRACK {
            net.forwarder.sysctl(&format!("net.netfilter.{key}"), value).unwrap();
        }
        twin
    }

    fn without_rules(offloads: Offloads, family: Family) -> Self {
        let net = network(offloads, family);
        // What the machine itself says has complete checksums too.
        for interface in ["eth0", "eth1"] {
            net.forwarder.features(interface, "tx off").unwrap();
        }
        Self {
            client: net.client.wire("eth0").unwrap(),
            home: net.home.wire("eth0").unwrap(),
            forwarder: None,
            judged: None,
            net,
        }
    }

    /// Nobody is told that there is no route: the kernel says so as often as it likes.
    fn end_routes(&self, family: Family) {
        let version = if family == Family::V4 { "-4" } else { "-6" };
        self.net.forwarder.ip(&format!("{version} route add blackhole default")).unwrap();
    }

    /// Lets the forwarder reach everybody, through the first client.
    pub(crate) fn route_everything(&self, family: Family) {
        let router = plan::client(family, 0);
        self.net.forwarder.route("default", &format!("via {router}")).unwrap();
    }

    /// The marks of the packets that connection tracking has called invalid since it was asked last; none where it is not at
    /// work.
    pub(crate) fn invalid(&self) -> HashSet<u16> {
        let Some(set) = &self.judged else { return HashSet::new() };
        let forwarder = &self.net.forwarder;
        let listing = forwarder.run(&["nft", "--json", "list", "set", set[0], set[1], set[2]]).unwrap();
        forwarder.run(&["nft", "flush", "set", set[0], set[1], set[2]]).unwrap();
        let listing: serde_json::Value = serde_json::from_str(&listing).unwrap();
        let elements =
            listing["nftables"].as_array().unwrap().iter().find_map(|object| object["set"]["elem"].as_array());
        let marks = elements.into_iter().flatten().map(|mark| mark.as_u64().unwrap() as u16);
        marks.collect()
    }

    const fn wire(&self, side: Side) -> &Wire {
        match side {
            Side::Client => &self.client,
            Side::Home => &self.home,
        }
    }

    pub(crate) fn send(&self, from: Side, frame: &[u8]) {
        self.wire(from).send(frame).unwrap();
    }

    /// What has arrived at an end since it was asked for.
    pub(crate) fn arrived(&self, at: Side) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.wire(at).received().unwrap()).collect()
    }

    /// What arrives at an end up to a frame that `last` accepts, with it.
    pub(crate) fn arrived_until(&self, at: Side, last: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let deadline = Instant::now() + patience();
        let mut frames = Vec::new();
        while Instant::now() < deadline {
            let Some(frame) = self.wire(at).receive_within(Duration::from_millis(100)).unwrap() else { continue };
            let is_last = last(&frame);
            frames.push(frame);
            if is_last {
                return frames;
            }
        }
        panic!("the end mark did not arrive at {at:?}");
    }
}

fn network(offloads: Offloads, family: Family) -> Topology {
    let lab = Lab::new("oracle").unwrap();
    let [client, forwarder, home] = ["client", "forwarder", "home"].map(|name| lab.host(name).unwrap());
    for end in [&client, &home] {
        end.sysctl("net.ipv6.conf.all.disable_ipv6", "1").unwrap();
        end.sysctl("net.ipv6.conf.default.disable_ipv6", "1").unwrap();
    }
    let narrow = LinkOptions { mtu: Some(plan::HOME_MTU), offloads };
    lab.link(&client, "eth0", &forwarder, "eth0", offloads.into()).unwrap();
    lab.link(&home, "eth0", &forwarder, "eth1", narrow).unwrap();
    forwarder.enable_kernel_forwarding().unwrap();
    for (key, value) in plan::KERNEL {
        forwarder.sysctl(key, value).unwrap();
    }
    for (interface, address) in plan::own_addresses(family) {
        forwarder.address(interface, &address).unwrap();
    }
    for (interface, side, address) in plan::stations(family) {
        let mac = station(side).map(|byte| format!("{byte:02x}")).join(":");
        forwarder.neighbor(interface, address, &mac).unwrap();
    }
    for (to, how) in plan::routes(family) {
        forwarder.route(&to, &how).unwrap();
    }
    wait_until_local(&forwarder, family);
    Topology { client, forwarder, home, router: None, shape: Shape::TwoArmed, lab }
}

/// An IPv6 address is the machine's own only a moment after it was added, and nobody says when.
fn wait_until_local(forwarder: &Host, family: Family) {
    let deadline = Instant::now() + patience();
    for (_, address) in plan::own_addresses(family) {
        let address = address.split('/').next().unwrap();
        while !forwarder.ip(&format!("route get {address}")).is_ok_and(|route| route.starts_with("local")) {
            assert!(Instant::now() < deadline, "{address} does not become an address of the forwarder");
            thread::sleep(Duration::from_millis(5));
        }
    }
}
