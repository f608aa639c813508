//! People's own programs through rules for them: ssh, curl, iperf3, a DNS server with large answers, traceroute.

use std::net::SocketAddr;
use std::path::PathBuf;

use forwarder_lab::{Family, Spawned, Topology, WebServer};

use crate::config::{rule, source};
use crate::forwarder::Forwarder;
use crate::setting::{Mode, Setting};

const SSH: u16 = 2222;
const WEB: u16 = 8080;
const IPERF: u16 = 5201;
const DNS: u16 = 53;
/// What large transfers move, in bytes.
const SIZE: usize = 20_000_000;
/// Strings of this many bytes, and so many of them, make a DNS answer of about 4 kB.
const TEXTS: (usize, usize) = (240, 16);

macro_rules! everywhere {
    ($($name:ident),* $(,)?) => { $(
        mod $name {
            use crate::setting::Setting;
            #[test]
            fn masquerade_native() {
                super::$name(&super::start(stringify!($name), Setting::NATIVE_TWO_ARMED, "masquerade"));
            }
            #[test]
            fn preserve_tc() {
                super::$name(&super::start(stringify!($name), Setting::TC_TWO_ARMED, "preserve"));
            }
        }
    )* };
}

everywhere!(ssh, curl, iperf3, dns, traceroute);

struct Test {
    net: Topology,
    forwarder: Forwarder,
    mode: Mode,
    kind: &'static str,
}

fn start(name: &str, setting: Setting, kind: &'static str) -> Test {
    let net = setting.network(name);
    let forwarder = Forwarder::on(&net);
    let mut config = String::new();
    for family in Family::ALL {
        for port in [SSH, WEB, IPERF, DNS] {
            config += &rule(
                &format!("{family:?}-{port}"),
                net.public(family, port),
                net.backend(family, port),
                &source(kind),
            );
        }
    }
    forwarder.load(setting, &config);
    Test { net, forwarder, mode: setting.mode, kind }
}

impl Test {
    fn client(&self, argv: &[&str]) -> String {
        self.net.client.run(argv).unwrap_or_else(|error| panic!("{error:#}\n{:#?}", self.forwarder.stats()))
    }

    fn listen(&self, family: Family) -> String {
        self.net.public_address(family).to_string()
    }

    /// Whom home sees.
    fn seen(&self, family: Family) -> String {
        let preserved = self.kind == "preserve";
        if preserved { self.net.client_address(family) } else { self.net.inner_address(family) }.to_string()
    }

    /// A file that goes with the lab.
    fn file(&self, name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("{}-{name}", self.net.lab.id()));
        self.net.lab.delete_at_end(&path).unwrap();
        path
    }

    fn forwarded(&self, family: Family, port: u16) {
        let rule = self.forwarder.stats().rule(&format!("{family:?}-{port}"));
        assert!(rule.forward.packets > 0 && rule.reply.packets > 0, "{family:?} {port}: {rule:?}");
    }
}

/// A command and a large file over OpenSSH, with keys of the test's own.
fn ssh(test: &Test) {
    let [host_key, user_key] = ["host", "user"].map(|name| {
        let key = test.file(name);
        test.file(&format!("{name}.pub"));
        test.client(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key.to_str().unwrap()]);
        key.to_str().unwrap().to_owned()
    });
    for family in Family::ALL {
        let at = test.net.backend(family, SSH);
        let listen = if at.is_ipv6() { format!("[{}]:{SSH}", at.ip()) } else { at.to_string() };
        let options = [
            format!("ListenAddress={listen}"),
            format!("HostKey={host_key}"),
            format!("AuthorizedKeysFile={user_key}.pub"),
            "PermitRootLogin=yes".to_owned(),
            "StrictModes=no".to_owned(),
            "UsePAM=no".to_owned(),
            "PidFile=none".to_owned(),
        ];
        // Its empty directory has to be below /run: in a mount namespace of its own, so that the machine does not get one.
        let words: Vec<String> = options.iter().map(|option| format!("-o {option}")).collect();
        let script = format!(
            "mount -t tmpfs none /run && mkdir /run/sshd && exec $(command -v sshd) -D -e -f /dev/null {}",
            words.join(" ")
        );
        let path = "PATH=/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";
        let server = test.net.home.spawn(&["env", path, "unshare", "--mount", "sh", "-c", &script]).unwrap();
        server.wait_for_line(|line| line.contains("Server listening")).unwrap();
        let target = format!("root@{}", test.listen(family));
        let run = |command: &str| {
            let port = SSH.to_string();
            let options =
                ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes"];
            let mut argv = vec!["ssh", "-F", "/dev/null", "-i", &user_key, "-p", &port];
            argv.extend(options.iter().flat_map(|option| ["-o", option]));
            argv.extend([target.as_str(), command]);
            test.client(&argv)
        };
        let seen = run("echo $SSH_CONNECTION");
        let ends: Vec<&str> = seen.split_whitespace().collect();
        assert_eq!((ends[0], ends[2]), (test.seen(family).as_str(), at.ip().to_string().as_str()), "{seen}");
        let bytes = run(&format!("head -c {SIZE} /dev/zero | tr '\\0' x"));
        assert_eq!(bytes.trim().len(), SIZE);
        test.forwarded(family, SSH);
    }
}

/// Pages, each over a connection of its own.
fn curl(test: &Test) {
    for family in Family::ALL {
        let _server = WebServer::start(&test.net.home, test.net.backend(family, WEB)).unwrap();
        let urls: Vec<String> = (0..20).map(|page| format!("http://{}/{page}", test.net.public(family, WEB))).collect();
        let mut argv = vec!["curl", "-gsS", "--max-time", "60"];
        argv.extend(urls.iter().map(String::as_str));
        let pages = test.client(&argv);
        let clients: Vec<SocketAddr> = pages.lines().filter_map(|line| line.parse().ok()).collect();
        assert_eq!(clients.len(), 20, "{pages}");
        assert!(clients.iter().all(|client| client.ip().to_string() == test.seen(family)), "{pages}");
        test.forwarded(family, WEB);
    }
}

/// Streams up and down, and datagrams that are cut on the way.
fn iperf3(test: &Test) {
    let port = IPERF.to_string();
    for family in Family::ALL {
        let at = test.net.backend(family, IPERF).ip().to_string();
        for more in [&["-n", "50M"][..], &["-n", "50M", "-R"], &["-u", "-b", "20M", "-l", "4000", "-n", "1M"]] {
            let server: Spawned =
                test.net.home.spawn(&["iperf3", "-s", "-1", "--forceflush", "-p", &port, "-B", &at]).unwrap();
            server.wait_for_line(|line| line.contains("Server listening")).unwrap();
            let listen = test.listen(family);
            let overrun = datagrams_without_room(test, family);
            let said = test.client(&[&["iperf3", "-J", "-p", &port, "-c", &listen], more].concat());
            let report: serde_json::Value = serde_json::from_str(&said).unwrap();
            let end = &report["end"];
            if more.contains(&"-u") {
                let sum = &end["sum"];
                // A server that the machine lets wait finds its socket full.
                let overrun = datagrams_without_room(test, family) - overrun;
                assert_eq!(sum["lost_packets"].as_u64(), Some(overrun), "{family:?} {more:?}: {sum}");
                assert!(sum["packets"].as_u64() >= Some(260), "{family:?} {more:?}: {sum}");
            } else {
                let bytes = end["sum_sent"]["bytes"].as_u64().unwrap();
                assert!(bytes >= 50_000_000, "{family:?} {more:?}: {bytes} bytes");
            }
        }
        test.forwarded(family, IPERF);
    }
}

/// How many datagrams have come to sockets at home that had no room for them.
fn datagrams_without_room(test: &Test, family: Family) -> u64 {
    let name = if family == Family::V4 { "UdpRcvbufErrors" } else { "Udp6RcvbufErrors" };
    let said = test.net.home.run(&["nstat", "-asz", "--json", name]).unwrap();
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    report["kernel"][name].as_u64().unwrap_or_else(|| panic!("{said}"))
}

/// Answers of 4 kB over UDP, which come in fragments (RFC 6891), and over TCP.
fn dns(test: &Test) {
    let (length, count) = TEXTS;
    let records: Vec<String> =
        (0..count).map(|n| format!("--txt-record=large.example,{n:02}{}", "x".repeat(length - 2))).collect();
    for family in Family::ALL {
        let at = test.net.backend(family, DNS).ip().to_string();
        let listen = format!("--listen-address={at}");
        let fixed = [
            "dnsmasq",
            "--keep-in-foreground",
            "--log-facility=-",
            "--conf-file=/dev/null",
            "--pid-file=",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
            "--bind-interfaces",
            "--edns-packet-max=4096",
            "--log-queries",
            "--host-record=small.example,192.0.2.1",
            &listen,
        ];
        let argv: Vec<&str> = fixed.into_iter().chain(records.iter().map(String::as_str)).collect();
        let server = test.net.home.spawn(&argv).unwrap();
        server.wait_for_line(|line| line.contains("started, version")).unwrap();
        let resolver = format!("@{}", test.listen(family));
        let ask = |more: &[&str]| {
            let argv = ["dig", "+tries=1", "+time=5", "+bufsize=4096", "+nocookie", "-p", "53", &resolver];
            test.client(&[&argv[..], more].concat())
        };
        assert!(ask(&["+short", "small.example"]).contains("192.0.2.1"));
        for transport in ["+notcp", "+tcp"] {
            let said = ask(&[transport, "+ignore", "large.example", "TXT"]);
            assert!(!said.contains(" tc "), "{family:?}: truncated\n{said}");
            assert_eq!(said.matches("IN\tTXT\t\"").count(), count, "{family:?} {transport}:\n{said}");
            let size = said.split("MSG SIZE  rcvd: ").nth(1).unwrap().trim().parse::<usize>().unwrap();
            assert!(size > length * count, "{family:?} {transport}: {size} bytes");
        }
        let seen = test.seen(family);
        server.wait_for_line(|line| line.contains("large.example") && line.ends_with(&format!("from {seen}"))).unwrap();
        test.forwarded(family, DNS);
    }
}

/// The way to a port: this machine by the address that was asked for, then the server by the same.
fn traceroute(test: &Test) {
    for family in Family::ALL {
        let to = SocketAddr::new(test.net.public_address(family), WEB);
        let port = WEB.to_string();
        let address = to.ip().to_string();
        // UDP: nobody listens at home, which answers "port unreachable". TCP: home refuses.
        for kind in ["--udp", "--tcp"] {
            let said = test.client(&[
                "traceroute",
                "-n",
                "-q",
                "1",
                "-w",
                "5",
                "-m",
                "4",
                "-N",
                "1",
                kind,
                "-p",
                &port,
                &address,
            ]);
            let hops: Vec<&str> = said.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
            assert_eq!(hops, [address.as_str(), address.as_str()], "{family:?} {kind} {:?}:\n{said}", test.mode);
        }
    }
}
