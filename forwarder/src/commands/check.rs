//! `check`: whether a configuration is right, and what it means on this machine. Changes nothing, needs no root.

use std::{io::Write, path::Path};

use anyhow::Result;

use super::{
    as_followed, describe_masquerades, describe_neighbors, describe_rules, describe_steers, guard, masquerade_table,
    neighbor_table, print_warnings, read_config, steer_table, table,
};
use crate::{
    cli::Check,
    machine::{netlink::Netlink, sockets},
    state::StateFile,
};

/// Runs the command.
pub async fn run(pins: &Path, options: &Check, out: &mut dyn Write) -> Result<()> {
    let draft = read_config(&options.file)?;
    let (machine, _) = Netlink::connect()?.machine(&draft.backends()).await?;
    let machine = as_followed(machine, &StateFile::of(pins))?;
    let (config, compiled) = draft.compile(&machine)?;
    print_warnings(&compiled.warnings);
    for interface in &config.interfaces {
        if machine.interface(&interface.value).is_none() {
            let file = options.file.display();
            let at = interface.place.map_or_else(String::new, |at| format!("{file}:{}:{}: ", at.line, at.column));
            eprintln!("{at}warning: this machine has no interface {}", interface.value);
        }
    }
    let obstacles = guard::lines::obstacles(&compiled, &machine);
    for sentence in guard::shadowed_services(&compiled, &sockets::listeners()).into_iter().chain(obstacles) {
        eprintln!("warning: {sentence}");
    }
    let mut rules = table::table(["RULE", "LISTEN", "TO", "SOURCE", "TCP MSS", "STATELESS"]);
    for rule in describe_rules(&config, &compiled) {
        let source = rule.describe_source();
        let stateless = rule.why_not_stateless.map_or_else(|| "yes".to_owned(), |why| format!("no: {why}"));
        rules.add_row([rule.name, rule.listen.join("\n"), rule.to, source, rule.mss_clamp, stateless]);
    }
    if !rules.is_empty() {
        write!(out, "{}", table::text(&rules))?;
    }
    let masquerades = describe_masquerades(&config, &compiled);
    if !masquerades.is_empty() {
        write!(out, "{}", masquerade_table(&masquerades))?;
    }
    let steers = describe_steers(&config, &compiled);
    if !steers.is_empty() {
        write!(out, "{}", steer_table(&steers))?;
    }
    let neighbors = describe_neighbors(&config, &compiled);
    if !neighbors.is_empty() {
        write!(out, "{}", neighbor_table(&neighbors))?;
    }
    let count = compiled.names().count();
    let plural = if count == 1 { "" } else { "s" };
    writeln!(out, "{} is right: {count} rule{plural}", options.file.display())?;
    Ok(())
}
