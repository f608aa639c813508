//! `forwarder run`: rules follow addresses and interfaces that change, routes are followed at once, and what is not
//! concerned does not notice.
//!
//! Beside the usual network there is a line `ppp0`, between the client's host and the forwarder, whose address changes.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use forwarder_lab::{
    EchoStream, Family, Offloads, Spawned, Steady, TcpServer, Topology, Transfer, Tun, TunKind, TunPump, UdpEcho,
    UdpSocketIn, patience,
};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::config::{masquerade, rule};
use crate::forwarder::{Ended, Forwarder};
use crate::setting::{Mode, Setting};

const PORT: u16 = 80;
/// Where home serves those who come by `ppp0`, and those who come by `eth0`.
const HOME: [u16; 2] = [8080, 8081];
/// Enough exchanges to have noticed anything.
const MANY: u64 = 200;

/// Runs beside the test, until it is dropped.
pub(crate) struct Daemon {
    spawned: Spawned,
}

impl Daemon {
    /// Starts it on these interfaces, and waits until it follows the machine.
    pub(crate) fn start(forwarder: &Forwarder, setting: Setting, interfaces: &[&str]) -> Self {
        Self::start_with(forwarder, setting, interfaces, |_| {})
    }

    fn start_with(
        forwarder: &Forwarder,
        setting: Setting,
        interfaces: &[&str],
        prepare: impl FnOnce(&mut std::process::Command),
    ) -> Self {
        let mut arguments = vec!["run", "--mode", setting.mode_word(), "--config", forwarder.config.to_str().unwrap()];
        arguments.extend(interfaces.iter().flat_map(|name| ["--iface", name]));
        let mut command = forwarder.command(&arguments);
        command.env_remove("SSH_CONNECTION");
        prepare(&mut command);
        let daemon = Self { spawned: Spawned::start(command).unwrap() };
        daemon.says("following: ");
        daemon
    }

    /// Waits until it has said something.
    pub(crate) fn says(&self, words: &str) -> String {
        self.spawned.wait_for_line(|line| line.contains(words)).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.spawned.id().cast_signed()), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Option<i32> {
        self.spawned.wait().unwrap().code()
    }
}

/// The far end of the line, and the n-th address that the line gives to the forwarder.
fn line(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => [192, 0, 2, n].into(),
        Family::V6 => format!("2001:db8:2::{n:x}").parse().unwrap(),
    }
}

const FAR_END: u8 = 254;

/// The line is a veth pair like the others.
fn with_line(name: &str, setting: Setting) -> Topology {
    let net = setting.network(name);
    let offloads = if setting.mode == Mode::Native { Offloads::Native } else { Offloads::Default };
    net.lab.link(&net.client, "line", &net.forwarder, "ppp0", offloads.into()).unwrap();
    give_far_end(&net);
    net
}

fn give_far_end(net: &Topology) {
    for family in Family::ALL {
        net.client.address("line", &with_length(line(family, FAR_END))).unwrap();
    }
}

fn with_length(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 24 } else { 64 })
}

/// The line gives the forwarder this address.
fn dial(net: &Topology, n: u8) {
    for family in Family::ALL {
        net.forwarder.address("ppp0", &with_length(line(family, n))).unwrap();
    }
}

/// And takes it back.
fn hang_up(net: &Topology, n: u8) {
    for family in Family::ALL {
        net.forwarder.ip(&format!("addr del {} dev ppp0", with_length(line(family, n)))).unwrap();
    }
}

/// A rule for whoever comes by `ppp0`, one for whoever comes by `eth0`; both families.
fn rules(net: &Topology) -> String {
    let mut config = String::new();
    for family in Family::ALL {
        config += &rule(&format!("line-{family:?}"), format!("ppp0:{PORT}"), net.backend(family, HOME[0]), "");
        config += &rule(&format!("eth-{family:?}"), net.public(family, PORT), net.backend(family, HOME[1]), "");
    }
    config
}

/// Waits until the rules listen at the n-th address.
fn listens(daemon: &Daemon, n: u8) {
    for family in Family::ALL {
        daemon.says(&format!("{} in place of", SocketAddr::new(line(family, n), PORT)));
    }
}

/// Whether any flow has the address, at either end of either side.
fn flows_of(forwarder: &Forwarder, address: IpAddr) -> usize {
    let has = |flow: &&serde_json::Value| {
        let ends =
            ["client", "listen", "source", "backend"].map(|end| flow[end].as_str().unwrap().parse::<SocketAddr>());
        ends.into_iter().flatten().any(|end| end.ip() == address)
    };
    forwarder.flows().iter().filter(has).count()
}

/// Waits until the flows of an address have been swept; the kernel tells nobody.
fn no_flows_of(forwarder: &Forwarder, address: IpAddr) {
    let deadline = Instant::now() + 3 * patience();
    while flows_of(forwarder, address) > 0 {
        assert!(Instant::now() < deadline, "{:#?}", forwarder.flows());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn refused(ended: &Ended) -> bool {
    ended.code != Some(0)
}

fn redial(setting: Setting, name: &str) {
    let net = with_line(name, setting);
    net.home.further_address("eth0", "10.8.0.20/24").unwrap();
    net.home.further_address("eth0", "fd08::20/64").unwrap();
    let forwarder = Forwarder::on(&net);
    dial(&net, 1);
    forwarder.configure(&(rules(&net) + &masquerade("out", "[\"10.8.0.20\", \"fd08::20\"]", "ppp0", "")));
    let daemon = Daemon::start(&forwarder, setting, &["eth0", "eth1", "ppp0"]);

    let mut servers = vec![];
    let mut unconcerned = vec![];
    for family in Family::ALL {
        servers.extend(HOME.map(|port| TcpServer::start(&net.home, net.backend(family, port)).unwrap()));
        unconcerned.push(Steady::tcp(&net.client, net.public(family, PORT)).unwrap());
    }
    let outside: Vec<UdpEcho> =
        Family::ALL.map(|family| UdpEcho::start(&net.client, (line(family, FAR_END), 53).into()).unwrap()).into();
    let inside = |family| -> SocketAddr {
        match family {
            Family::V4 => ([10, 8, 0, 20], 4000).into(),
            Family::V6 => ("fd08::20".parse::<IpAddr>().unwrap(), 4000).into(),
        }
    };
    // A second packet, so that the flow is established and its mapping protected.
    let goes_out = |n: u8| {
        for (family, server) in Family::ALL.into_iter().zip(&outside) {
            let socket = UdpSocketIn::connect(&net.home, server.address(), Some(inside(family))).unwrap();
            for _ in 0..3 {
                socket.exchange(b"who am I?").unwrap();
            }
            assert_eq!(server.peers().last().unwrap().ip(), line(family, n));
        }
    };
    goes_out(1);
    for n in 1..=3 {
        let established: Vec<EchoStream> = Family::ALL
            .map(|family| {
                let to = SocketAddr::new(line(family, n), PORT);
                let mut stream = EchoStream::connect(&net.client, to, None).unwrap();
                stream.exchange(b"by this line").unwrap();
                stream
            })
            .into();
        for family in Family::ALL {
            // By TCP, by UDP of the host behind, and the transfer that showed that the address is followed.
            let expected = if n == 1 { 2 } else { 3 };
            assert_eq!(flows_of(&forwarder, line(family, n)), expected, "{:#?}", forwarder.flows());
        }
        let before: Vec<u64> = unconcerned.iter().map(|steady| steady.wait_for_more(1).map_or(0, |()| 1)).collect();
        assert_eq!(before, [1, 1]);

        hang_up(&net, n);
        dial(&net, n + 1);
        listens(&daemon, n + 1);
        for family in Family::ALL {
            let to = SocketAddr::new(line(family, n + 1), PORT);
            Transfer::to(to).upload(50_000).download(50_000).run(&net.client).unwrap();
            no_flows_of(&forwarder, line(family, n));
        }
        goes_out(n + 1);
        for steady in &unconcerned {
            steady.wait_for_more(MANY).unwrap();
        }
        drop(established);
    }
    for steady in unconcerned {
        steady.stop().unwrap();
    }
    // Nobody was dropped on the way, and each of the undisturbed connections is one flow from beginning to end.
    for family in Family::ALL {
        assert_eq!(forwarder.stats().rule(&format!("eth-{family:?}")).flows, 1);
    }
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn a_line_that_redials_native() {
    redial(Setting::NATIVE_TWO_ARMED, "redialn");
}

#[test]
fn a_line_that_redials_tc() {
    redial(Setting::TC_TWO_ARMED, "redialt");
}

/// A point-to-point line, without Ethernet: the cable lasts as long as the value.
fn plug_in(net: &Topology) -> TunPump {
    let far = Tun::create(&net.client, "line", TunKind::Tun).unwrap();
    let near = Tun::create(&net.forwarder, "ppp0", TunKind::Tun).unwrap();
    let cable = TunPump::between(far, near).unwrap();
    give_far_end(net);
    cable
}

#[test]
fn an_interface_that_comes_late_goes_and_comes_back_as_another() {
    let setting = Setting::TC_TWO_ARMED;
    let net = setting.network("comes");
    let forwarder = Forwarder::on(&net);
    forwarder.configure(&rules(&net));
    // Without somebody who waits for it, this is an error, and nothing is loaded.
    let mut arguments = forwarder.load_arguments(setting);
    arguments.extend(["--iface", "ppp0"]);
    let ended = forwarder.run(&arguments);
    assert!(ended.code == Some(2) && ended.stderr.contains("there is no interface \"ppp0\""), "{ended}");

    let daemon = Daemon::start(&forwarder, setting, &["eth0", "eth1", "ppp0"]);
    let status = forwarder.succeed(&["status"]);
    assert!(status.contains("ppp0") && status.contains("waiting"), "{status}");
    let mut servers = vec![];
    let mut unconcerned = vec![];
    for family in Family::ALL {
        servers.extend(HOME.map(|port| TcpServer::start(&net.home, net.backend(family, port)).unwrap()));
        unconcerned.push(Steady::tcp(&net.client, net.public(family, PORT)).unwrap());
    }
    let mut indexes = vec![];
    for n in 1..=3 {
        let cable = plug_in(&net);
        // So that no interface has the index of one before.
        net.forwarder.ip(&format!("link add gap{n} type veth peer name gape{n}")).unwrap();
        let index = net.forwarder.ifindex("ppp0").unwrap();
        assert!(!indexes.contains(&index), "{index} in {indexes:?}");
        indexes.push(index);
        dial(&net, n);
        daemon.says(&format!("(index {index})"));
        listens(&daemon, n);
        for family in Family::ALL {
            let to = SocketAddr::new(line(family, n), PORT);
            let moved = Transfer::to(to).upload(50_000).download(50_000).run(&net.client);
            moved.unwrap_or_else(|error| panic!("{n}: {error:#}\n{:#?}", forwarder.stats()));
        }
        let status = forwarder.succeed(&["status"]);
        assert!(!status.contains("waiting") && !status.contains("gone"), "{status}");
        let mut stream = EchoStream::connect(&net.client, SocketAddr::new(line(Family::V4, n), PORT), None).unwrap();
        stream.exchange(b"still there").unwrap();
        drop(cable);
        for family in Family::ALL {
            daemon.says(&format!("(waiting) in place of {}", SocketAddr::new(line(family, n), PORT)));
            no_flows_of(&forwarder, line(family, n));
        }
        let status = forwarder.succeed(&["status"]);
        assert!(status.contains("the interface is gone; waiting for it"), "{status}");
        for steady in &unconcerned {
            steady.wait_for_more(MANY).unwrap();
        }
    }
    for steady in unconcerned {
        steady.stop().unwrap();
    }
    drop(daemon);
}

#[test]
fn signals() {
    let setting = Setting::TC_TWO_ARMED;
    let net = with_line("signals", setting);
    let forwarder = Forwarder::on(&net);
    dial(&net, 1);
    forwarder.configure(&rules(&net));
    let path = std::env::temp_dir().join(format!("{}-notify", net.lab.id()));
    net.lab.delete_at_end(&path).unwrap();
    let systemd = UnixDatagram::bind(&path).unwrap();
    systemd.set_read_timeout(Some(patience())).unwrap();
    let told = |word: &str| {
        let mut buffer = [0; 4096];
        let deadline = Instant::now() + patience();
        loop {
            assert!(Instant::now() < deadline, "{word} is not told");
            let length = systemd.recv(&mut buffer).unwrap_or_else(|error| panic!("{word}: {error}"));
            let text = std::str::from_utf8(&buffer[..length]).unwrap();
            if text.lines().any(|line| line.starts_with(word)) {
                return text.to_owned();
            }
        }
    };
    let daemon = Daemon::start_with(&forwarder, setting, &["eth0", "eth1", "ppp0"], |command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000").env_remove("WATCHDOG_PID");
    });
    assert!(told("READY=1").contains("STATUS="));
    told("WATCHDOG=1");
    told("WATCHDOG=1");

    // A rule more, by the file.
    let extra = rule("extra", net.public(Family::V4, 1001), net.backend(Family::V4, HOME[0]), "");
    forwarder.configure(&(rules(&net) + &extra));
    daemon.signal(Signal::SIGHUP);
    assert!(told("RELOADING=1").contains("MONOTONIC_USEC="));
    told("READY=1");
    let _server = TcpServer::start(&net.home, net.backend(Family::V4, HOME[0])).unwrap();
    Transfer::to(net.public(Family::V4, 1001)).upload(1000).run(&net.client).unwrap();

    // A file that is wrong: said with its place, and nothing changes.
    forwarder.configure(&(rules(&net) + &extra.replace("listen", "listne")));
    daemon.signal(Signal::SIGHUP);
    told("RELOADING=1");
    told("READY=1");
    let said = daemon.says("unknown key `listne`");
    let lines_before = rules(&net).lines().count();
    assert!(said.starts_with(&format!("{}:{}:1: ", forwarder.config.display(), lines_before + 3)), "{said}");
    assert!(forwarder.list().names().contains(&"extra"));
    Transfer::to(net.public(Family::V4, 1001)).upload(1000).run(&net.client).unwrap();

    // It goes, and forwarding goes on.
    let steady = Steady::tcp(&net.client, net.public(Family::V4, 1001)).unwrap();
    steady.wait_for_more(MANY).unwrap();
    daemon.signal(Signal::SIGTERM);
    told("STOPPING=1");
    daemon.says("forwarding goes on");
    assert_eq!(daemon.end(), Some(0));
    steady.wait_for_more(MANY).unwrap();
    Transfer::to(net.public(Family::V4, 1001)).upload(1000).run(&net.client).unwrap();

    // Another takes over what there is, alone; `unload` ends both.
    let daemon = Daemon::start(&forwarder, setting, &["eth0"]);
    daemon.says("takes over");
    let second = forwarder.run(&["run"]);
    assert!(refused(&second) && second.stderr.contains("process"), "{second}");
    steady.wait_for_more(MANY).unwrap();
    steady.stop().unwrap();
    forwarder.succeed(&["unload"]);
    assert_eq!(daemon.end(), Some(0));
}

/// What commands have changed meanwhile is followed too, not undone.
#[test]
fn rules_added_and_removed_meanwhile() {
    let setting = Setting::TC_TWO_ARMED;
    let net = with_line("addwhile", setting);
    let forwarder = Forwarder::on(&net);
    dial(&net, 1);
    forwarder.configure(&rules(&net));
    let daemon = Daemon::start(&forwarder, setting, &["eth0", "eth1", "ppp0"]);
    let to = net.backend(Family::V4, HOME[0]);
    forwarder.succeed(&["add", "added", "ppp0:81", &to.to_string()]);
    forwarder.succeed(&["add", "waits", "ppp1:82", &to.to_string()]);
    forwarder.succeed(&["remove", "eth-V4"]);
    hang_up(&net, 1);
    dial(&net, 2);
    listens(&daemon, 2);
    daemon.says(&format!("{} in place of", SocketAddr::new(line(Family::V4, 2), 81)));
    let list = forwarder.list();
    assert!(list.names().contains(&"added") && !list.names().contains(&"eth-V4"), "{list:?}");
    let _server = TcpServer::start(&net.home, to).unwrap();
    Transfer::to(SocketAddr::new(line(Family::V4, 2), 81)).upload(1000).run(&net.client).unwrap();
    // The file says something else: that is for a reload.
    forwarder.succeed(&["reload"]);
    assert!(!forwarder.list().names().contains(&"added"));
    hang_up(&net, 2);
    dial(&net, 3);
    listens(&daemon, 3);
    assert!(!forwarder.list().names().contains(&"added") && forwarder.list().names().contains(&"eth-V4"));
}

/// Many more changes than the kernel keeps for one who does not listen.
#[test]
fn news_that_are_missed() {
    let setting = Setting::TC_TWO_ARMED;
    let net = with_line("missed", setting);
    let forwarder = Forwarder::on(&net);
    dial(&net, 1);
    forwarder.configure(&rules(&net));
    let daemon = Daemon::start(&forwarder, setting, &["eth0", "eth1", "ppp0"]);
    daemon.signal(Signal::SIGSTOP);
    let lines: Vec<String> =
        (0..4000).map(|n| format!("addr add 10.99.{}.{}/32 dev lo", n / 250, n % 250 + 1)).collect();
    let batch = lines.join("\n");
    let path = std::env::temp_dir().join(format!("{}-batch", net.lab.id()));
    net.lab.delete_at_end(&path).unwrap();
    std::fs::write(&path, batch).unwrap();
    net.forwarder.run(&["ip", "-batch", path.to_str().unwrap()]).unwrap();
    hang_up(&net, 1);
    dial(&net, 2);
    daemon.signal(Signal::SIGCONT);
    daemon.says("more changed at once");
    listens(&daemon, 2);
}

/// How long it takes until `rounds` route changes are followed, one after the other.
fn follow_routes(net: &Topology, rounds: u32) -> Duration {
    // What was asked is kept by each CPU.
    let mut one = CpuSet::new();
    one.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
    let anywhere: SocketAddr = ([10, 9, 0, 9], 53).into();
    // The same address at home and at the client's host, behind two lines.
    let ends = [&net.home, &net.client].map(|host| UdpEcho::start(host, anywhere).unwrap());
    let ways = ["via 10.8.0.2", "via 192.0.2.254"];
    let socket = UdpSocketIn::connect(&net.client, net.public(Family::V4, 53), None).unwrap();
    let mut took = Duration::ZERO;
    for round in 0..rounds as usize {
        let (now, end) = (ways[round % 2], &ends[round % 2]);
        net.forwarder.ip(&format!("route replace 10.9.0.9/32 {now}")).unwrap();
        let begun = Instant::now();
        let before = end.peers().len();
        while end.peers().len() == before {
            assert!(begun.elapsed() < patience(), "the route is not followed");
            socket.send(b"which way?").unwrap();
            while matches!(socket.receive(Duration::from_millis(2)), Ok(Some(_))) {}
        }
        took += begun.elapsed();
    }
    took
}

#[test]
fn a_route_change_takes_effect_at_once() {
    const ROUNDS: u32 = 6;
    let setting = Setting::TC_TWO_ARMED;
    let net = with_line("routes", setting);
    dial(&net, 1);
    for (host, device) in [(&net.home, "lo"), (&net.client, "lo")] {
        host.further_address(device, "10.9.0.9/32").unwrap();
    }
    net.forwarder.route("10.9.0.9/32", "via 10.8.0.2").unwrap();
    let forwarder = Forwarder::on(&net);
    let config = rule("way", net.public(Family::V4, 53), "10.9.0.9:53", "source = \"198.51.100.13\"");
    forwarder.configure(&config);
    net.home.route("198.51.100.0/24", "via 10.8.0.1").unwrap();
    let mut arguments = forwarder.load_arguments(setting);
    arguments.extend(["--iface", "ppp0"]);
    forwarder.succeed(&arguments);
    let without = follow_routes(&net, ROUNDS);
    let daemon = Daemon::start(&forwarder, setting, &[]);
    let with = follow_routes(&net, ROUNDS);
    println!("{ROUNDS} route changes were followed in {without:?} without the daemon, in {with:?} with it");
    // Without it, what was asked is kept for a second.
    assert!(with < without / 2 && with < Duration::from_millis(500) * ROUNDS, "{with:?}, {without:?}");
    drop(daemon);
}
