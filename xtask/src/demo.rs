//! `cargo xtask demo`: the main job, from nothing to a page fetched through the forwarder.

mod show;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use forwarder_lab::{Family, Host, Lab, Offloads, Spawned, Topology};
use serde_json::Value;

use crate::{progress::Step, setup, workspace};

const LAB: &str = "demo";
const WEB_SERVER: &str = include_str!("demo/web.py");
const CONFIG: &str = include_str!("demo/forwarder.toml");
const BIG: u64 = 10_000_000;
const MAP: &str = "
client                 forwarder                   home
198.51.100.2   ── eth0 198.51.100.1   eth1 ──      10.8.0.2
2001:db8:1::2          2001:db8:1::1               fd08::2
                       10.8.0.1, fd08::1";

/// Options of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Leave the lab up and print the commands to play with it
    #[arg(long)]
    keep: bool,
    /// Remove what earlier runs with --keep left
    #[arg(long, conflicts_with = "keep")]
    remove: bool,
    /// Build without optimisation, which is quicker; the BPF programs are the same
    #[arg(long)]
    debug: bool,
}

/// One page to fetch, and whom home must see.
struct Page {
    url: &'static str,
    seen: Seen,
    family: Family,
}

enum Seen {
    Client,
    Forwarder,
}

const PAGES: [Page; 4] = [
    Page { url: "http://198.51.100.1/", seen: Seen::Client, family: Family::V4 },
    Page { url: "http://[2001:db8:1::1]/", seen: Seen::Client, family: Family::V6 },
    Page { url: "http://198.51.100.1:8000/", seen: Seen::Forwarder, family: Family::V4 },
    Page { url: "http://[2001:db8:1::1]:8000/", seen: Seen::Forwarder, family: Family::V6 },
];

/// Runs the demo.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.remove {
        return remove();
    }
    show::step(1, "Set up and build");
    setup::ensure()?;
    let binary = build(options.debug)?;

    show::step(2, "Make a lab: three hosts (network namespaces); this machine's own network is not touched");
    let net = Topology::two_armed(LAB, Offloads::Native)?;
    show::text(MAP.trim_start_matches('\n'));

    show::step(3, "Start a web server at home, on ports 8080 and 8081");
    let server = start_web_server(&net.home)?;
    show::text("it answers with the address it sees its client at");

    show::step(4, "Load forwarder: it attaches its programs and exits, no process stays");
    let forwarder = Forwarder::new(&net, binary)?;
    show::text("$ cat forwarder.toml");
    show::text(CONFIG);
    let load = ["load", "--iface", "eth0", "--iface", "eth1", "--mode", "native", "--config"];
    forwarder.show(&load, Some(("forwarder.toml", &forwarder.config)))?;

    show::step(5, "Fetch pages as the client");
    for page in &PAGES {
        page.fetch(&net)?;
    }
    fetch_big(&net)?;

    show::step(6, "What carried them");
    forwarder.show_hooks()?;

    show::step(7, "What forwarder says");
    for command in ["status", "list", "stats"] {
        forwarder.show(&[command], None)?;
    }
    if options.keep {
        keep(net, server, &forwarder)
    } else {
        show::step(8, "Clean up");
        forwarder.show(&["unload"], None)?;
        drop((server, net));
        show::text("the lab is gone (--keep leaves it up to play with)");
        Ok(())
    }
}

fn build(debug: bool) -> Result<PathBuf> {
    let (profile, folder) = if debug { ("dev", "debug") } else { ("release", "release") };
    let step = Step::begin("Build forwarder");
    step.run(workspace::cargo().args(["build", "--profile", profile, "--package", "forwarder"]))?;
    step.done();
    Ok(workspace::target_dir().join(folder).join("forwarder"))
}

fn start_web_server(home: &Host) -> Result<Spawned> {
    let server = home.spawn(&["python3", "-c", WEB_SERVER, "8080", "8081"])?;
    server.wait_for_line(|line| line == "ready").context("the web server does not start")?;
    Ok(server)
}

impl Page {
    fn fetch(&self, net: &Topology) -> Result<()> {
        let typed = format!("curl {}", self.url);
        let mut command = net.client.command("curl");
        let page = show::run(&typed, command.args(["-gsS", "--max-time", "10", self.url]))?;
        let (expected, meaning) = match self.seen {
            Seen::Client => (net.client_address(self.family), "the client's own address: preserved"),
            Seen::Forwarder => (net.inner_address(self.family), "the forwarder's address: masqueraded"),
        };
        if !page.contains(&format!("You are {expected}.")) {
            bail!("home should have seen {expected} ({meaning}), but the page says: {}", page.trim());
        }
        show::text(&format!("  → {meaning}"));
        Ok(())
    }
}

fn fetch_big(net: &Topology) -> Result<()> {
    let typed = "curl -o /dev/null http://198.51.100.1/big";
    let format = "%{size_download} bytes in %{time_total} s\n";
    let mut command = net.client.command("curl");
    command.args(["-sS", "--max-time", "30", "-o", "/dev/null", "-w", format, "http://198.51.100.1/big"]);
    let printed = show::run(typed, &mut command)?;
    ensure!(printed.starts_with(&format!("{BIG} bytes")), "the big page did not arrive whole: {printed}");
    Ok(())
}

/// The binary under demonstration, run on the host `forwarder` with pins of its own.
struct Forwarder {
    host: Host,
    binary: PathBuf,
    pins: PathBuf,
    config: PathBuf,
}

impl Forwarder {
    fn new(net: &Topology, binary: PathBuf) -> Result<Self> {
        let pins = net.lab.pins("forwarder")?;
        for kind in ["json", "lock"] {
            let name = pins.with_extension(kind).file_name().context("pins have a name")?.to_owned();
            net.lab.delete_at_end(&Path::new("/run/forwarder").join(name))?;
        }
        let config = PathBuf::from("/run").join(format!("{}.toml", net.lab.id()));
        net.lab.delete_at_end(&config)?;
        fs::write(&config, CONFIG).with_context(|| format!("cannot write {}", config.display()))?;
        Ok(Self { host: net.forwarder.clone(), binary, pins, config })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.host.command(&self.binary);
        command.arg("--pins").arg(&self.pins).args(arguments);
        command
    }

    /// Runs it with `arguments` and a last one that is shown shorter than it is.
    fn show(&self, arguments: &[&str], last: Option<(&str, &PathBuf)>) -> Result<()> {
        let shown = arguments.iter().copied().chain(last.map(|(shown, _)| shown)).collect::<Vec<_>>().join(" ");
        let mut command = self.command(arguments);
        command.args(last.map(|(_, path)| path));
        show::run(&format!("forwarder {shown}"), &mut command).map(drop)
    }

    /// Says which hook forwarded how many packets, by the running counters.
    fn show_hooks(&self) -> Result<()> {
        let stats = show::quietly("forwarder stats", &mut self.command(&["stats", "--format", "json"]))?;
        let stats: Value = serde_json::from_str(&stats).context("`forwarder stats --format json` printed no JSON")?;
        let forwarded = |hook: &str| -> u64 {
            let interfaces = stats.get("interfaces").and_then(Value::as_array).into_iter().flatten();
            let outcomes = interfaces.filter_map(|interface| interface.get(hook)?.as_object()).flatten();
            outcomes
                .filter(|(outcome, _)| outcome.starts_with("forwarded"))
                .filter_map(|(_, count)| count.as_u64())
                .sum()
        };
        let (xdp, tc) = (forwarded("xdp"), forwarded("tc"));
        ensure!(xdp > tc, "native XDP should have carried nearly all packets, but it was {xdp}, and {tc} at TC");
        show::text(&format!("native XDP  {xdp:>6} packets"));
        show::text(&format!("TC          {tc:>6} packets (they open and close connections)"));
        Ok(())
    }
}

fn keep(net: Topology, server: Spawned, forwarder: &Forwarder) -> Result<()> {
    let (client, host) = (net.client.netns_path(), net.forwarder.netns_path());
    server.leave_running();
    let id = net.lab.keep()?;
    show::step(8, "Play with it");
    let forwarder =
        format!("nsenter --net={} {} --pins {}", host.display(), forwarder.binary.display(), forwarder.pins.display());
    show::text(&format!("nsenter --net={} curl http://198.51.100.1/", client.display()));
    show::text(&format!("{forwarder} stats"));
    show::text(&format!("{forwarder} --help"));
    show::text(&format!("cargo xtask demo --remove      # removes this lab, {id}"));
    Ok(())
}

fn remove() -> Result<()> {
    let is_demo = |id: &String| id.starts_with(&format!("{LAB}-"));
    let kept: Vec<String> = Lab::kept()?.into_iter().filter(is_demo).collect();
    if kept.is_empty() {
        println!("there is no lab to remove");
    }
    for id in kept {
        Lab::remove(&id)?;
        println!("removed the lab {id}");
    }
    Ok(())
}
