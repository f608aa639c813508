//! `list`: the rules that run.

use std::{io::Write, path::Path};

use anyhow::Result;
use serde_json::json;

use super::{Instance, masquerade_table, neighbor_table, require_reading, steer_table, table};
use crate::{
    cli::{Format, Show},
    state::RuleState,
};

/// Runs the command.
pub fn run(pins: &Path, options: Show, out: &mut dyn Write) -> Result<()> {
    require_reading()?;
    let instance = Instance::open(pins)?;
    let state = &instance.state;
    let (rules, masquerades) = (&state.rules, &state.masquerades);
    let (steers, neighbors) = (&state.steers, &state.neighbors);
    match options.format {
        Format::Json => {
            let all = json!({ "rules": rules, "masquerades": masquerades, "steers": steers, "neighbors": neighbors });
            writeln!(out, "{all:#}")?;
        }
        Format::Table if state.names().next().is_none() => {
            writeln!(out, "no rules; try: forwarder add --help")?;
        }
        Format::Table => {
            if !rules.is_empty() {
                write!(out, "{}", describe(rules))?;
            }
            if !masquerades.is_empty() {
                write!(out, "{}", masquerade_table(masquerades))?;
            }
            if !steers.is_empty() {
                write!(out, "{}", steer_table(steers))?;
            }
            if !neighbors.is_empty() {
                write!(out, "{}", neighbor_table(neighbors))?;
            }
        }
    }
    Ok(())
}

fn describe(rules: &[RuleState]) -> String {
    let mut table = table::table(["RULE", "LISTEN", "PROTOCOL", "TO", "SOURCE", "CLIENTS", "STATELESS"]);
    for rule in rules {
        let all = |list: &[String], none: &str| if list.is_empty() { none.to_owned() } else { list.join("\n") };
        let stateless = rule.why_not_stateless.as_ref().map_or_else(|| "yes".to_owned(), |why| format!("no: {why}"));
        table.add_row([
            rule.name.clone(),
            rule.listen.join("\n"),
            all(&rule.protocol, "default"),
            rule.to.clone(),
            rule.describe_source(),
            all(&rule.allow, "everyone"),
            stateless,
        ]);
    }
    table::text(&table)
}
