//! Native XDP on virtio NICs, and what `auto` makes of them. The guest's NICs are connected in pairs by bridges on the host,
//! as those of two virtual machines are: what one leaves undone (checksums, segments) arrives undone at the other, as long
//! as that has said that it takes such packets.

use std::env;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use forwarder_lab::{Host, Lab, Topology, patience};

use crate::forwarder::{Ended, Forwarder, end};
use crate::lines;
use crate::setting::Setting;

/// A pair of connected NICs, by their MAC addresses.
#[derive(Clone, Debug)]
pub(crate) struct Cable {
    name: String,
    ends: [String; 2],
}

/// The cables of this guest, as `cargo xtask vm` says: `NAME=MAC,MAC`, separated by spaces.
pub(crate) fn cables() -> Vec<Cable> {
    let text = env::var("FORWARDER_GUEST_CABLES").unwrap_or_default();
    text.split_whitespace()
        .map(|entry| {
            let (name, ends) = entry.split_once('=').expect("a name and two addresses");
            let (a, b) = ends.split_once(',').expect("two addresses");
            Cable { name: name.to_owned(), ends: [a.to_owned(), b.to_owned()] }
        })
        .collect()
}

/// A network whose two cables are of these kinds.
struct Cabled {
    net: Topology,
    /// There is one of each: one test after the other.
    _all: MutexGuard<'static, ()>,
}

impl Cabled {
    fn new(name: &str, to_client: &str, to_home: &str) -> Self {
        static ALL: Mutex<()> = Mutex::new(());
        let all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        let lab = Lab::new(name).unwrap();
        let [client, forwarder, home] = ["client", "forwarder", "home"].map(|name| lab.host(name).unwrap());
        for (cable, host, interface) in [(to_client, &client, "eth0"), (to_home, &home, "eth1")] {
            let [a, b] = cables().into_iter().find(|each| each.name == cable).expect("such a cable").ends;
            give(&a, host, "eth0");
            give(&b, &forwarder, interface);
        }
        Self { net: Topology::joined(lab, [client, forwarder, home], ["eth0", "eth1"]).unwrap(), _all: all }
    }

    fn forwarder(&self) -> Forwarder {
        Forwarder::on(&self.net)
    }
}

/// Puts the NIC with this address into a host. It falls back into the guest's own namespace when the host is gone, at a
/// moment of which nobody is told.
fn give(mac: &str, host: &Host, name: &str) {
    let deadline = Instant::now() + patience();
    let found = loop {
        let shown = end({
            let mut ip = Command::new("ip");
            ip.args(["-o", "link", "show"]);
            ip
        });
        let line = shown.stdout.lines().find(|line| line.contains(mac)).map(str::to_owned);
        if let Some(line) = line {
            break line.split(": ").nth(1).unwrap().to_owned();
        }
        assert!(Instant::now() < deadline, "no NIC has the address {mac}: {shown}");
        thread::sleep(Duration::from_millis(20));
    };
    let mut moved = Command::new("ip");
    moved.args(["link", "set", "dev", &found, "netns", host.netns(), "name", name]);
    let moved = end(moved);
    assert_eq!(moved.code, Some(0), "{moved}");
    host.ip(&format!("link set {name} mtu 1500 up")).unwrap();
}

fn native(name: &str, to_client: &str, to_home: &str) {
    let cabled = Cabled::new(name, to_client, to_home);
    let forwarder = cabled.forwarder();
    let said = forwarder.load(Setting::NATIVE_TWO_ARMED, &lines::rules(&cabled.net));
    for interface in ["eth0", "eth1"] {
        assert!(said.contains(&format!("{interface}: native XDP and TC, as asked")), "{said}");
    }
    lines::everything_crosses(&cabled.net, &forwarder, &format!("{to_client} to {to_home}"));
    let (xdp, tc) = forwarder.stats().forwarded();
    assert!(xdp > 10 * tc, "forwarded by XDP {xdp}, by TC {tc}");
    let status = forwarder.succeed(&["status", "--format", "json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["redirects_refused"], 0, "{status:#}");
    // A driver does not take frames while its ring is full, which a slow machine's may be for a moment.
    let not_taken = status["redirects_not_taken"].as_u64().unwrap();
    assert!(xdp > 100 * not_taken, "{not_taken} of {xdp} frames were not taken: {status:#}");
}

/// One queue, for which all CPUs take turns in sending what XDP redirects; and as many as the driver wants for that.
pub(crate) fn native_between_one_queue_and_many() {
    native("virtiomany", "one", "many");
}

/// As many queues as CPUs, but none of them left for XDP alone. The other NIC offers none of the offloads that are in XDP's
/// way, as the machines of some providers do.
pub(crate) fn native_with_fewer_queues_than_cpus() {
    native("virtiofew", "few", "plain");
}

/// `auto` leaves virtio NICs to TC, which takes packets as they come: long ones, with unfinished checksums.
pub(crate) fn auto_takes_tc() {
    let cabled = Cabled::new("virtioauto", "many", "one");
    let forwarder = cabled.forwarder();
    let arguments: Vec<&str> = forwarder
        .load_arguments(Setting::NATIVE_TWO_ARMED)
        .into_iter()
        .map(|word| if word == "native" { "auto" } else { word })
        .collect();
    forwarder.configure(&lines::rules(&cabled.net));
    let said = forwarder.succeed(&arguments);
    for interface in ["eth0", "eth1"] {
        assert!(said.contains(&format!("{interface}: TC, native XDP costs a virtio NIC its GSO and LRO")), "{said}");
    }
    lines::everything_crosses(&cabled.net, &forwarder, "auto");
    // Of the megabytes that crossed, most did so in packets that no cable takes at once.
    let stats = forwarder.stats();
    let longest = stats.rule("preserve-v4").forward;
    assert!(longest.bytes / longest.packets > 2000, "{longest:?}");
}

/// `--mode native` where it does not work: what the kernel has against it, in its own words, and nothing stays behind.
pub(crate) fn a_nic_that_cannot_says_why() {
    let cabled = Cabled::new("virtiono", "refusing", "one");
    let forwarder = cabled.forwarder();
    forwarder.configure(&lines::rules(&cabled.net));
    cabled.net.forwarder.ip("link set eth1 mtu 9000").unwrap();
    for (interface, words) in [("eth0", "disable GRO_HW/CSUM first"), ("eth1", "MTU")] {
        let config = forwarder.config.to_str().unwrap().to_owned();
        let refused = forwarder.run(&["load", "--mode", "native", "--config", &config, "--iface", interface]);
        assert_refused(&refused, interface, words);
        assert!(!forwarder.pins.exists(), "pins are left after\n{refused}");
        let filters = cabled.net.forwarder.run(&["tc", "qdisc", "show", "dev", interface]).unwrap();
        assert!(!filters.contains("clsact"), "{filters}");
    }
}

#[track_caller]
fn assert_refused(ended: &Ended, interface: &str, words: &str) {
    assert_ne!(ended.code, Some(0), "{ended}");
    let said = &ended.stderr;
    assert!(said.contains(&format!("{interface} refuses native XDP")) && said.contains(words), "{ended}");
    assert!(said.contains("--mode tc"), "it says no way out: {ended}");
}
