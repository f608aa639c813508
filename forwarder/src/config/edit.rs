//! Changes to the text of a configuration file that keep its comments and its layout.

use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, Value};

use super::{
    diagnostics::Diagnostics,
    file::{self, FileForward},
    report::Report,
    rule::TypedForward,
    validate,
};

const FORWARD: &str = "forward";
/// What rules there are: their names are of one kind.
const KINDS: [&str; 3] = [FORWARD, "masquerade", "neighbor"];

/// The text with one more `[[forward]]` at its end.
pub fn add_forward(text: &str, rule: &TypedForward) -> Result<String, Diagnostics> {
    let mut document = parse(text)?;
    let mut report = Report::default();
    validate::forward(&FileForward::from(rule), &mut report);
    if position(&document, &rule.name).is_some() {
        report.error(None, format!("the file has a rule \"{}\" already", rule.name), "another name");
    }
    report.finish()?;
    let rules = document.entry(FORWARD).or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
    match rules {
        Item::ArrayOfTables(tables) => {
            let mut table = Table::new();
            for (key, value) in values(rule) {
                table.insert(key, Item::Value(value));
            }
            if !text.is_empty() {
                table.decor_mut().set_prefix("\n");
            }
            tables.push(table);
        }
        // `forward = [{ … }, …]`: unusual, but the same thing.
        Item::Value(Value::Array(list)) => list.push(values(rule).into_iter().collect::<InlineTable>()),
        _ => return Err(not_rules()),
    }
    Ok(document.to_string())
}

/// The text without the rule of this name, whatever its kind, and the comments directly above it; none if it has none.
pub fn remove_rule(text: &str, name: &str) -> Result<Option<String>, Diagnostics> {
    let mut document = parse(text)?;
    let Some((kind, index)) = position(&document, name) else {
        return Ok(None);
    };
    match document.get_mut(kind) {
        Some(Item::ArrayOfTables(tables)) => {
            let prefix = tables.get(index).and_then(|table| table.decor().prefix()).and_then(|prefix| prefix.as_str());
            let kept = kept_comments(prefix.unwrap_or_default()).to_owned();
            tables.remove(index);
            keep(&mut document, kind, index, &kept);
        }
        Some(Item::Value(Value::Array(list))) => {
            list.remove(index);
        }
        _ => return Ok(None),
    }
    if document.get(kind).and_then(Item::as_array_of_tables).is_some_and(ArrayOfTables::is_empty) {
        document.remove(kind);
    }
    Ok(Some(document.to_string()))
}

/// What stands above a table and is not about it: everything up to the last empty line.
fn kept_comments(prefix: &str) -> &str {
    prefix.rfind("\n\n").and_then(|at| prefix.get(..=at)).filter(|kept| kept.contains('#')).unwrap_or_default()
}

/// Puts comments that stood above a removed table above the next one of its kind, or at the end.
fn keep(document: &mut DocumentMut, kind: &str, index: usize, comments: &str) {
    if comments.is_empty() {
        return;
    }
    let next = document.get_mut(kind).and_then(Item::as_array_of_tables_mut).and_then(|tables| tables.get_mut(index));
    if let Some(table) = next {
        let prefix = table.decor().prefix().and_then(|prefix| prefix.as_str()).unwrap_or_default();
        let prefix = format!("{comments}{prefix}");
        table.decor_mut().set_prefix(prefix);
    } else {
        let trailing = document.trailing().as_str().unwrap_or_default();
        let trailing = format!("{comments}{trailing}");
        document.set_trailing(trailing);
    }
}

fn parse(text: &str) -> Result<DocumentMut, Diagnostics> {
    let mut report = Report::default();
    // For its messages, which know lines and columns; the values do not matter here.
    file::read_syntax(text, &mut report);
    report.finish()?;
    text.parse().map_err(|_| not_rules())
}

fn not_rules() -> Diagnostics {
    let mut report = Report::default();
    report.error(
        None,
        "`forward` in the file is not a list of rules",
        "[[forward]], with two brackets, before each rule",
    );
    report.finish().unwrap_or_else(|problems| problems)
}

/// Which rule of the file has this name: its kind, and its place among them.
fn position(document: &DocumentMut, name: &str) -> Option<(&'static str, usize)> {
    let is_it = |item: Option<&str>| item == Some(name);
    let among = |kind: &str| match document.get(kind)? {
        Item::ArrayOfTables(tables) => tables.iter().position(|table| is_it(table.get("name").and_then(Item::as_str))),
        Item::Value(Value::Array(list)) => list.iter().position(|value| {
            is_it(value.as_inline_table().and_then(|table| table.get("name")).and_then(Value::as_str))
        }),
        _ => None,
    };
    KINDS.into_iter().find_map(|kind| Some((kind, among(kind)?)))
}

fn values(rule: &TypedForward) -> Vec<(&'static str, Value)> {
    let list = |texts: &[String]| match texts {
        [one] => Value::from(one.as_str()),
        several => Value::Array(several.iter().map(String::as_str).collect::<Array>()),
    };
    let mut values = vec![("name", Value::from(rule.name.as_str())), ("listen", list(&rule.listen))];
    if !rule.protocol.is_empty() {
        values.push(("protocol", list(&rule.protocol)));
    }
    values.push(("to", Value::from(rule.to.as_str())));
    if let Some(source) = &rule.source {
        values.push(("source", Value::from(source.as_str())));
    }
    if !rule.allow.is_empty() {
        values.push(("allow", list(&rule.allow)));
    }
    if let Some(stateless) = rule.stateless {
        values.push(("stateless", Value::from(stateless)));
    }
    values
}

#[cfg(test)]
mod tests;
