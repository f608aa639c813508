//! `load`: from a configuration to a machine that forwards, or to the machine as it was and a reason.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SigSet, Signal};

use super::{
    describe_masquerades, describe_neighbors, describe_rules, describe_steers, guard, invalid, pins_option,
    print_warnings, read_config, require_privileges, table,
};
use crate::{
    bpf::{
        attach, bpffs, features, interfaces, layout,
        load::{self, Globals},
        tables::{self, Tables},
    },
    cli::{DEFAULT_CONFIG, Load},
    config::{Compiled, Config, Draft, Mode, Placed},
    machine::{
        Machine,
        netlink::{self, Link, Netlink},
        sockets, sysctl,
    },
    reconcile::{self, Running, RunningTables},
    serve::{self, elsewhere, groups},
    state::{State, StateFile, uplinks},
    undo::Undo,
};

/// Runs the command.
pub async fn run(pins: &Path, options: &Load, out: &mut dyn Write) -> Result<()> {
    load(pins, options, false, out).await
}

/// Loads. `followed`: the daemon does, so what the machine does not have yet is waited for.
pub async fn load(pins: &Path, options: &Load, followed: bool, out: &mut dyn Write) -> Result<()> {
    require_privileges()?;
    let pins = std::path::absolute(pins).with_context(|| format!("{} is no path", pins.display()))?;
    let (draft, config_path) = configuration(options)?;
    let netlink = Netlink::connect()?;
    let (machine, links) = netlink.machine(&draft.backends()).await?;
    let machine = Machine { followed, ..machine };
    let (mut config, compiled) = draft.compile(&machine)?;
    if config_path.is_some() {
        print_warnings(&compiled.warnings);
    }
    override_config(&mut config, options);
    let headerless: Vec<u32> =
        links.iter().filter(|link| !link.interface.has_link_header).map(|link| link.interface.index).collect();
    let links = chosen(&config, &links, followed)?;
    refuse_unserved_ways_out(&compiled, &links)?;
    if !options.force {
        guard::refuse_to_cut_ssh(&compiled)?;
    }

    let file = StateFile::of(&pins);
    let _lock = file.lock()?;
    refuse_if_loaded(&pins, &file)?;
    features::require()?;
    refuse_other_xdp(&config, &links)?;

    // From here on the machine changes: all of it or nothing, whatever the terminal sends meanwhile.
    let mut interrupts = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        interrupts.add(signal);
    }
    interrupts.thread_block().context("cannot put off interrupts")?;
    let mut undo = Undo::default();
    let mut state = State::new(&pins, config)?;
    state.config_path = config_path;
    state.rules = describe_rules(&state.config, &compiled);
    state.masquerades = describe_masquerades(&state.config, &compiled);
    state.steers = describe_steers(&state.config, &compiled);
    state.uplinks = uplinks::describe(&state.config, &machine, &[]);
    state.neighbors = describe_neighbors(&state.config, &compiled);
    state.addresses = machine.addresses();
    state.waiting = compiled.warnings.waiting().map(str::to_owned).collect();
    let loaded = Loading {
        pins: &pins,
        links: &links,
        headerless: &headerless,
        compiled: &compiled,
        machine: &machine,
        no_tcx: options.no_tcx,
    };
    let done = loaded.run(&mut state, &mut undo).and_then(|()| {
        file.write(&state)?;
        load::memory(&pins)
    });
    let memory = match done {
        Ok(memory) => memory,
        Err(error) => {
            let stuck = undo.undo();
            let rest: Vec<String> = stuck.iter().map(|error| format!("{error:#}")).collect();
            return Err(error.context(if rest.is_empty() {
                "nothing was loaded; the machine is as it was".to_owned()
            } else {
                format!("nothing was loaded, but this could not be undone: {}", rest.join("; "))
            }));
        }
    };
    undo.keep();
    report(out, &state, &compiled, &machine, memory)?;
    out.flush()?;
    interrupts.thread_unblock().context("cannot allow interrupts again")
}

/// The configuration and its path; without a file there are no rules.
fn configuration(options: &Load) -> Result<(Draft, Option<PathBuf>)> {
    let default = Path::new(DEFAULT_CONFIG);
    let path = match &options.config {
        Some(path) => path,
        None if default.exists() => default,
        None => return Ok((Draft::read(DEFAULT_CONFIG, ""), None)),
    };
    let absolute = fs::canonicalize(path).ok();
    Ok((read_config(path)?, absolute.or_else(|| Some(path.to_owned()))))
}

/// What was typed has precedence over the file.
fn override_config(config: &mut Config, options: &Load) {
    if !options.iface.is_empty() {
        config.interfaces.clear();
        for name in &options.iface {
            let name = Placed::nowhere(name.clone());
            if !config.interfaces.contains(&name) {
                config.interfaces.push(name);
            }
        }
    }
    config.mode = options.mode.unwrap_or(config.mode);
    config.log = options.log.unwrap_or(config.log);
}

/// The interfaces to serve that are there, each with its slot: its place in the configuration.
fn chosen(config: &Config, links: &[Link], followed: bool) -> Result<Vec<(u32, Link)>> {
    if config.interfaces.is_empty() {
        return Err(invalid(format!(
            "no interface to serve: give --iface NAME, or `interfaces` in the configuration ({})",
            there_are(links)
        )));
    }
    let mut chosen = Vec::new();
    for (slot, name) in (0..).zip(&config.interfaces) {
        let Some(link) = links.iter().find(|link| link.interface.name == name.value) else {
            if followed {
                continue;
            }
            return Err(invalid(format!("no such interface: {} ({})", name.value, there_are(links))));
        };
        chosen.push((slot, link.clone()));
    }
    Ok(chosen)
}

/// What goes out by an interface comes back by it, and has to be seen there.
fn refuse_unserved_ways_out(compiled: &Compiled, links: &[(u32, Link)]) -> Result<()> {
    let served = |interface: u32| links.iter().any(|(_, link)| link.interface.index == interface);
    for neighbor in &compiled.neighbors {
        if let Some(asked) = neighbor.asked.iter().find(|asked| !served(asked.interface)) {
            return Err(invalid(format!(
                "neighbor \"{}\" answers on {}, which is not served, so no question would be seen; add it: --iface {}, or \
                 `interfaces` in the configuration",
                neighbor.name, asked.interface_name, asked.interface_name
            )));
        }
    }
    for masquerade in &compiled.masquerades {
        if let Some(way) = masquerade.ways.iter().find(|way| !served(way.interface)) {
            return Err(invalid(format!(
                "masquerade \"{}\" goes out by {}, which is not served, so no answer would be seen; add it: --iface {}, or \
                 `interfaces` in the configuration",
                masquerade.name, way.interface_name, way.interface_name
            )));
        }
    }
    for steer in &compiled.steers {
        // One that is down, or not there yet, is interface 0.
        if let Some(line) = steer.lines.iter().find(|line| line.interface != 0 && !served(line.interface)) {
            return Err(invalid(format!(
                "steer \"{}\" leads to {}, which is not served, so what came in by it could not go back by it; add it: \
                 --iface {}, or `interfaces` in the configuration",
                steer.name, line.interface_name, line.interface_name
            )));
        }
    }
    Ok(())
}

fn there_are(links: &[Link]) -> String {
    let names: Vec<&str> = links.iter().map(|link| link.interface.name.as_str()).collect();
    format!("there are: {}", names.join(", "))
}

fn refuse_if_loaded(pins: &Path, file: &StateFile) -> Result<()> {
    let option = pins_option(pins);
    let has_pins = fs::read_dir(pins).is_ok_and(|mut entries| entries.next().is_some());
    match file.read()? {
        Some(state) if has_pins => {
            let names: Vec<&str> = state.interfaces.iter().map(|one| one.name.as_str()).collect();
            if let Some(mismatch) = layout::compare(pins)? {
                bail!(
                    "forwarder {} is loaded, whose maps differ from this version's ({mismatch}); first: forwarder{option} unload",
                    state.program
                );
            }
            bail!(
                "already loaded on {}; for changed rules: forwarder{option} reload; for other interfaces or modes: \
                 forwarder{option} unload, then load",
                names.join(", ")
            );
        }
        None if has_pins => match layout::compare(pins) {
            Ok(Some(mismatch)) => bail!(
                "{} has pins that this version cannot use: {mismatch}; to remove them: forwarder{option} unload --force",
                pins.display()
            ),
            _ => bail!(
                "{} has pins of a load that did not finish; to remove them: forwarder{option} unload --force",
                pins.display()
            ),
        },
        Some(_) => bail!(
            "{} says that an instance is loaded, but its pins are gone; to forget it: forwarder{option} unload --force",
            file.path().display()
        ),
        None => Ok(()),
    }
}

/// XDP takes one program for each interface and ours does not push others out.
fn refuse_other_xdp(config: &Config, links: &[(u32, Link)]) -> Result<()> {
    for (_, link) in links {
        let Some(program) = link.xdp_program else { continue };
        if serve::choose(config.mode, link).mode == Mode::Tc {
            continue;
        }
        let name = &link.interface.name;
        let whose = attach::program_name(program).map_or_else(String::new, |name| format!(" \"{name}\""));
        bail!(
            "{name} has an XDP program already:{whose} (id {program}); remove it (ip link set {name} xdp off, or \
             whatever put it there), or load with --mode tc"
        );
    }
    Ok(())
}

/// The part of loading that changes the machine.
struct Loading<'a> {
    pins: &'a Path,
    links: &'a [(u32, Link)],
    headerless: &'a [u32],
    compiled: &'a Compiled,
    machine: &'a Machine,
    no_tcx: bool,
}

impl Loading<'_> {
    fn run(&self, state: &mut State, undo: &mut Undo<'_>) -> Result<()> {
        self.make_pins(state, undo)?;
        let mut base = self.make_maps(state)?;
        let mut programs = Vec::new();
        // The verifier has its say about all programs of all interfaces before any is attached.
        for (slot, link) in self.links {
            programs.push(serve::prepare(self.pins, &tables::map_sizes(&self.compiled.sizes), state, *slot, link)?);
        }
        self.write_rules(state)?;
        sysctl::enable_forwarding(|changed| {
            let old = changed.clone();
            undo.push("restoring a setting", move || sysctl::restore(&old));
            state.sysctls.push(changed);
        })?;
        groups::receive(state, self.compiled)?;
        for name in state.all_multicast.clone() {
            undo.push(format!("switching all-multicast mode of {name} off"), move || {
                netlink::set_all_multicast(&name, false).map(drop)
            });
        }
        load::start_sweep(&mut base)?;
        load::watch_redirects(&mut base, self.pins)?;
        let tcx = !self.no_tcx && features::has_tcx();
        for ((slot, link), bpf) in self.links.iter().zip(&mut programs) {
            state.interfaces.push(serve::attach_tc(self.pins, bpf, *slot, link, tcx, undo)?);
        }
        // TC is complete by itself, so XDP comes second: no packet finds a fast path without it.
        let requested = state.config.mode;
        for (((_, link), bpf), attached) in self.links.iter().zip(&mut programs).zip(&mut state.interfaces) {
            serve::attach_xdp(self.pins, bpf, link, requested, attached, undo)?;
        }
        let attached = elsewhere::keep(self.pins, state, self.machine);
        for one in state.elsewhere.clone() {
            let pins = self.pins.to_owned();
            undo.push(format!("removing the TC filter of {}", one.name), move || elsewhere::detach(&pins, &one));
        }
        attached?;
        state.interfaces.iter_mut().for_each(serve::ask_whether_out);
        let served = state.interfaces.iter().map(|one| (one.index, one.seen_by_programs()));
        interfaces::write(self.pins, self.headerless, served)?;
        Ok(())
    }

    /// Makes the maps, which the programs of all interfaces share.
    fn make_maps(&self, state: &State) -> Result<load::Ebpf> {
        let globals = Globals { slot: 0, mac: [0; 6], log_level: state.config.log as u8, record: false };
        let mut base = load::open(self.pins, &tables::map_sizes(&self.compiled.sizes), globals)?;
        load::fill_free_slots(&mut base, self.compiled.sizes.flows)?;
        load::seed_flow_tables(&mut base, &self.compiled.sizes)?;
        Ok(base)
    }

    fn make_pins(&self, state: &mut State, undo: &mut Undo<'_>) -> Result<()> {
        state.mounted_bpffs = bpffs::ensure(self.pins)?;
        if state.mounted_bpffs {
            undo.push("unmounting the BPF file system", bpffs::unmount);
        }
        let pins = self.pins.to_owned();
        undo.push("removing the pins", move || attach::remove_pins(&pins));
        attach::make_directories(self.pins)
    }

    /// Fills the empty tables; nothing is attached yet that could read them.
    fn write_rules(&self, state: &mut State) -> Result<()> {
        let mut tables = Tables::open(self.pins)?;
        tables.initialise(&self.compiled.settings)?;
        let running = Running {
            generation: 0,
            settings: self.compiled.settings,
            counters: BTreeMap::new(),
            sizes: tables.sizes(),
            v4: RunningTables::default(),
            v6: RunningTables::default(),
        };
        let plan = reconcile::plan(&running, self.compiled)?;
        tables.execute(&plan.operations)?;
        state.counters = plan.counters;
        Ok(())
    }
}

/// How many rules `load` tells by name.
const RULES_TOLD: usize = 20;

fn report(out: &mut dyn Write, state: &State, compiled: &Compiled, machine: &Machine, memory: u64) -> Result<()> {
    let count = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    writeln!(
        out,
        "forwarder {} is loaded: {} on {}, {} of kernel memory",
        state.program,
        count(state.names().count(), "rule"),
        count(state.interfaces.len(), "interface"),
        table::bytes(memory)
    )?;
    for interface in &state.interfaces {
        writeln!(out, "  {}: {}, {}", interface.name, mode_in_words(interface.mode), interface.why)?;
    }
    for one in &state.elsewhere {
        writeln!(out, "  {}: not served; what this machine itself sends by it is steered", one.name)?;
    }
    for name in state.absent_interfaces() {
        writeln!(out, "  {name}: not there yet, waited for")?;
    }
    for rule in state.rules.iter().take(RULES_TOLD) {
        let keeps = match &rule.why_not_stateless {
            None => "stateless".to_owned(),
            Some(why) => format!("keeps flows: {why}"),
        };
        let listen = rule.listen.join(", ");
        writeln!(out, "  {}: {listen} -> {} ({}; {keeps})", rule.name, rule.to, rule.source)?;
    }
    let untold = state.rules.len().saturating_sub(RULES_TOLD);
    if untold > 0 {
        writeln!(out, "  and {}; for all: forwarder{} list", count(untold, "more rule"), pins_option(&state.pins))?;
    }
    for masquerade in &state.masquerades {
        for way in &masquerade.ways {
            let (from, address) = (&way.from, &way.address);
            writeln!(
                out,
                "  {}: {from} out of {} as {address} (filtering {})",
                masquerade.name, way.out, masquerade.filtering
            )?;
        }
    }
    for steer in &state.steers {
        let (from, kinds) = (steer.from.join(", "), steer.kinds());
        let via = if steer.gateway.is_empty() { String::new() } else { format!(" via {}", steer.gateway.join(", ")) };
        writeln!(out, "  {}: from {from} ({kinds}) leaves by {}{via}", steer.name, steer.interface)?;
    }
    for neighbor in &state.neighbors {
        for addresses in &neighbor.addresses {
            let crate::state::NeighborState { name, interface, via, answer, .. } = neighbor;
            writeln!(out, "  {name}: answers on {interface} for {addresses} behind {via} ({answer})")?;
        }
    }
    if state.names().next().is_none() {
        writeln!(out, "There are no rules yet, so nothing is forwarded; try: forwarder add --help")?;
    }
    let obstacles = guard::lines::obstacles(compiled, machine);
    for sentence in guard::shadowed_services(compiled, &sockets::listeners()).into_iter().chain(obstacles) {
        writeln!(out, "Warning: {sentence}")?;
    }
    writeln!(
        out,
        "Forwarded packets skip this machine's firewall: rules of nftables, iptables, ufw and Docker do not see them. \
         Restrict clients with `allow` in the rules."
    )?;
    Ok(())
}

/// The mode of an interface, for people.
pub fn mode_in_words(mode: Mode) -> &'static str {
    match mode {
        Mode::Native => "native XDP and TC",
        Mode::Generic => "generic XDP and TC",
        Mode::Tc | Mode::Auto => "TC",
    }
}
