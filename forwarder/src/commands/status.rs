//! `status`: whether everything is still in place, and how full it is.

use std::{
    io::Write,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::Result;
use forwarder_common::verdict::{Kind, Outcome};
use serde::Serialize;

use super::{Instance, load::mode_in_words, require_reading, table};
use crate::{
    bpf::{
        attach::{self, TcAttachment},
        counters::Counters,
        flows, load,
        tables::Tables,
    },
    cli::{Format, Show},
    config::Mode,
    machine::netlink::{Link, Netlink},
    serve,
    state::{AttachedInterface, UplinkState},
};

#[derive(Serialize)]
struct Status {
    version: String,
    loaded_by: String,
    uptime_seconds: u64,
    pins: String,
    config: Option<String>,
    log: String,
    generation: u32,
    /// Whether this process sees the instance's interfaces.
    same_network_namespace: bool,
    memory_bytes: u64,
    /// Redirects that the kernel refused since `load`, of all XDP programs of the machine.
    redirects_refused: u64,
    /// Redirected frames that a driver did not take, likewise.
    redirects_not_taken: u64,
    /// The process id of `forwarder run`, where it follows the machine.
    daemon: Option<i32>,
    /// What the machine does not have yet and rules wait for.
    waiting: Vec<String>,
    /// Interfaces to serve that have not been there yet.
    absent_interfaces: Vec<String>,
    interfaces: Vec<InterfaceStatus>,
    /// Interfaces that are not served, by which what this machine itself sends is steered all the same.
    also_steered: Vec<String>,
    uplinks: Vec<UplinkState>,
    rules: u64,
    tables: Vec<TableStatus>,
}

#[derive(Serialize)]
struct InterfaceStatus {
    name: String,
    index: u32,
    mode: Mode,
    why: String,
    /// None where the interfaces cannot be seen from here.
    present: Option<bool>,
    up: Option<bool>,
    attached: Option<bool>,
    tc: TcAttachment,
    vlan_stripping_off: bool,
    xdp_out: bool,
    forwarded: u64,
    dropped: u64,
    problems: Vec<String>,
}

#[derive(Serialize)]
struct TableStatus {
    table: &'static str,
    /// Of a table of flows: flows only.
    used: u64,
    limit: u64,
    /// What else takes room in a table of flows; zero elsewhere.
    #[serde(flatten)]
    beside: Beside,
}

/// What takes room in a table of flows beside them, where hosts go out by `[[masquerade]]`.
#[derive(Clone, Copy, Default, Serialize)]
struct Beside {
    /// Ports of hosts that are mapped; each takes as much room as a flow.
    mappings: u64,
    /// Connections to such hosts by their own addresses, which the kernel forwards; each takes as much.
    passing: u64,
    /// Remote ends that mappings let in; two take as much.
    permissions: u64,
}

/// Runs the command.
pub async fn run(pins: &Path, options: Show, out: &mut dyn Write) -> Result<()> {
    require_reading()?;
    let instance = Instance::open(pins)?;
    let status = collect(&instance).await?;
    match options.format {
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&status)?)?,
        Format::Table => print(&status, out)?,
    }
    Ok(())
}

async fn collect(instance: &Instance) -> Result<Status> {
    let state = &instance.state;
    let here = state.is_here()?;
    let netlink = Netlink::connect()?;
    let links = if here { Some(netlink.links().await?) } else { None };
    let counters = Counters::open(&instance.pins)?;
    let tables = Tables::open(&instance.pins)?;
    let mut interfaces = Vec::new();
    for attached in &state.interfaces {
        interfaces.push(interface(instance, attached, &netlink, links.as_deref(), &counters).await?);
    }
    let [redirects_refused, redirects_not_taken] = load::redirect_losses(&instance.pins)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        loaded_by: state.program.clone(),
        uptime_seconds: now.as_secs().saturating_sub(state.loaded_at),
        pins: instance.pins.display().to_string(),
        config: state.config_path.as_ref().map(|path| path.display().to_string()),
        log: state.config.log.to_string(),
        generation: tables.settings()?.generation,
        same_network_namespace: here,
        memory_bytes: load::memory(&instance.pins)?,
        redirects_refused,
        redirects_not_taken,
        daemon: instance.file.daemon(),
        waiting: state.waiting.clone(),
        absent_interfaces: state.absent_interfaces().map(str::to_owned).collect(),
        interfaces,
        also_steered: state.elsewhere.iter().map(|one| one.name.clone()).collect(),
        uplinks: state.uplinks.clone(),
        rules: state.rules.len() as u64,
        tables: fill(instance, &tables)?,
    })
}

async fn interface(
    instance: &Instance,
    attached: &AttachedInterface,
    netlink: &Netlink,
    links: Option<&[Link]>,
    counters: &Counters,
) -> Result<InterfaceStatus> {
    let all = counters.interface(attached.slot)?;
    let sum = |kind: Kind| -> u64 {
        let of = |counts: &[u64]| -> u64 {
            let pairs = Outcome::ALL.iter().zip(counts);
            pairs.filter(|(outcome, _)| outcome.kind() == kind).map(|(_, count)| *count).sum()
        };
        of(&all.xdp) + of(&all.tc) + of(&all.egress)
    };
    let mut status = InterfaceStatus {
        name: attached.name.clone(),
        index: attached.index,
        mode: attached.mode,
        why: attached.why.clone(),
        present: None,
        up: None,
        attached: None,
        tc: attached.tc,
        vlan_stripping_off: attached.vlan_stripping_off,
        xdp_out: attached.xdp_out,
        forwarded: sum(Kind::Forward),
        dropped: sum(Kind::Drop) + sum(Kind::Answer),
        problems: Vec::new(),
    };
    let Some(links) = links else { return Ok(status) };
    let link = links.iter().find(|link| link.interface.index == attached.index);
    status.present = Some(link.is_some());
    let Some(link) = link else {
        status.attached = Some(false);
        let problem = match instance.file.daemon() {
            Some(_) => "the interface is gone; waiting for it",
            None => "the interface is gone; unload and load when it is back, or start `forwarder run`",
        };
        status.problems.push(problem.to_owned());
        return Ok(status);
    };
    // The kernel's name for it now: an interface can be renamed.
    status.name.clone_from(&link.interface.name);
    status.up = Some(link.interface.up);
    if !link.interface.up {
        status.problems.push("the interface is down".to_owned());
    }
    if attached.mode != Mode::Tc {
        let ours = attach::pinned_program(&instance.pins, &attach::xdp_pin(attached.slot))?;
        match link.xdp_program {
            Some(program) if program == ours => {}
            Some(_) => status.problems.push("another XDP program has taken the place of ours".to_owned()),
            None => status.problems.push("the XDP program is not attached any more".to_owned()),
        }
    }
    let ours = attach::pinned_program(&instance.pins, serve::ingress_program(attached.mac.is_some()))?;
    let on_tc = match attached.tc {
        TcAttachment::Tcx => attach::is_attached_by_tcx(&link.interface.name, ours),
        TcAttachment::Clsact { .. } => netlink.has_ingress_filter(attached.index, attach::PRIORITY).await?,
    };
    if !on_tc {
        status.problems.push("the TC program is not attached any more".to_owned());
    }
    if link.interface.mac != attached.mac {
        status
            .problems
            .push("its MAC address changed since load; unload and load, or start `forwarder run`".to_owned());
    }
    status.attached = Some(on_tc && !status.problems.iter().any(|problem| problem.contains("XDP")));
    Ok(status)
}

fn fill(instance: &Instance, tables: &Tables) -> Result<Vec<TableStatus>> {
    let names = ["IPv4 established flows", "IPv4 new flows", "IPv6 established flows", "IPv6 new flows"];
    let flows = flows::fill(&instance.pins, &tables.settings()?.timeouts)?;
    let sizes = tables.sizes();
    let mut rows: Vec<TableStatus> = names
        .into_iter()
        .zip(flows)
        .map(|(table, fill)| TableStatus {
            table,
            used: fill.flows.into(),
            limit: fill.limit.into(),
            beside: Beside {
                mappings: fill.mappings.into(),
                passing: fill.passing.into(),
                permissions: fill.permissions.into(),
            },
        })
        .collect();
    // Each family has a table of its own; the limit is that of each.
    let [v4, v6] = tables.count();
    for (table, used, limit) in [
        ("IPv4 exact endpoints", v4.endpoints, sizes.endpoints),
        ("IPv4 ranges and addresses", v4.ranges, sizes.ranges),
        ("IPv6 exact endpoints", v6.endpoints, sizes.endpoints),
        ("IPv6 ranges and addresses", v6.ranges, sizes.ranges),
    ] {
        rows.push(TableStatus { table, used, limit: limit.into(), beside: Beside::default() });
    }
    Ok(rows)
}

fn print(status: &Status, out: &mut dyn Write) -> Result<()> {
    let uptime = table::duration(Duration::from_secs(status.uptime_seconds));
    writeln!(
        out,
        "forwarder {} is loaded since {uptime}, {} of kernel memory, log {}",
        status.loaded_by,
        table::bytes(status.memory_bytes),
        status.log
    )?;
    writeln!(out, "configuration: {}", status.config.as_deref().unwrap_or("none"))?;
    if let Some(process) = status.daemon {
        writeln!(out, "followed by `forwarder run`, process {process}")?;
    }
    for what in &status.waiting {
        writeln!(out, "waiting: {what}")?;
    }
    if status.redirects_refused + status.redirects_not_taken > 0 {
        writeln!(
            out,
            "XDP redirects lost on this machine, by whatever program: {} refused by the kernel, {} frames not taken by a \
             driver. If the numbers grow, load with --mode tc.",
            status.redirects_refused, status.redirects_not_taken
        )?;
    }
    if !status.same_network_namespace {
        writeln!(
            out,
            "It works in another network namespace: whether its interfaces are in order is not visible from here."
        )?;
    }
    writeln!(out)?;
    let mut interfaces = table::table(["INTERFACE", "MODE", "STATE", "FORWARDED", "DROPPED", "WHY THIS MODE"]);
    for one in &status.interfaces {
        let state = match one.attached {
            None => "not visible from here".to_owned(),
            Some(true) if one.problems.is_empty() => "attached".to_owned(),
            Some(_) => one.problems.join("\n"),
        };
        interfaces.add_row([
            one.name.clone(),
            mode_in_words(one.mode).to_owned(),
            state,
            one.forwarded.to_string(),
            one.dropped.to_string(),
            one.why.clone(),
        ]);
    }
    for name in &status.absent_interfaces {
        let state = if status.daemon.is_some() { "not there; waiting for it" } else { "not there" };
        interfaces.add_row([name.as_str(), "", state, "", "", ""]);
    }
    writeln!(out, "{}", table::text(&interfaces))?;
    if !status.also_steered.is_empty() {
        let names = status.also_steered.join(", ");
        writeln!(out, "what this machine itself sends is steered on {names} too, which is not served\n")?;
    }
    if !status.uplinks.is_empty() {
        writeln!(out, "{}", uplink_table(&status.uplinks, status.daemon.is_some()))?;
    }
    let mut tables = table::table(["TABLE", "USED", "ROOM"]);
    tables.add_row(["rules".to_owned(), status.rules.to_string(), String::new()]);
    for row in &status.tables {
        tables.add_row([row.table.to_owned(), row.used.to_string(), row.limit.to_string()]);
        let Beside { mappings, passing, permissions } = row.beside;
        for (what, used) in [
            ("  beside them: mappings", mappings),
            ("  beside them: what the kernel forwards inwards", passing),
            ("  beside them: remote ends let in (half the room)", permissions),
        ] {
            if used > 0 {
                tables.add_row([what.to_owned(), used.to_string(), String::new()]);
            }
        }
    }
    write!(out, "{}", table::text(&tables))?;
    Ok(())
}

fn uplink_table(uplinks: &[UplinkState], followed: bool) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut rows = table::table(["UPLINK", "LINE", "STATE", "SINCE", "CHANGES", "PROBE"]);
    for uplink in uplinks {
        let gateway =
            if uplink.gateway.is_empty() { String::new() } else { format!(" via {}", uplink.gateway.join(", ")) };
        let state = uplink.why.as_ref().map_or_else(|| "up".to_owned(), |why| format!("down: {why}"));
        let since = Duration::from_secs(now.as_secs().saturating_sub(uplink.since));
        let mut probe = uplink.probe.join("\n");
        if !followed {
            probe += "\n(by `forwarder run` only)";
        }
        rows.add_row([
            uplink.name.clone(),
            format!("{}{gateway}", uplink.interface),
            state,
            table::duration(since),
            uplink.changes.to_string(),
            probe,
        ]);
    }
    table::text(&rows)
}
