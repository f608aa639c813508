//! Takes values out of the TOML syntax tree, with their places, and complains of those of wrong types.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Switch, tables::FORWARD};
use crate::config::{diagnostics::Position, nearest, report::Report, rule::Placed};

pub(super) type Table<'i> = DeTable<'i>;
pub(super) type Value<'i> = Spanned<DeValue<'i>>;

/// Finds lines and columns, and complains.
pub(super) struct Reader<'a> {
    pub(super) text: &'a str,
    /// Offset of the first byte of each line.
    lines: Vec<usize>,
    pub(super) report: &'a mut Report,
}

pub(super) fn parse<'a>(text: &'a str, report: &'a mut Report) -> (Spanned<Table<'a>>, Reader<'a>) {
    let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let reader = Reader { text, lines, report };
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let place = error.span().map(|span| reader.place(&span));
        let what = error.message().replace('\n', ", ");
        let hint = if what.starts_with("duplicate key") {
            "one of the two"
        } else {
            "texts stand in quotes and lists in brackets: key = \"text\", key = [\"a\", \"b\"]"
        };
        reader.report.error(place, what, hint);
    }
    (document, reader)
}

impl Reader<'_> {
    pub(super) fn place(&self, span: &Range<usize>) -> Position {
        let line = self.lines.partition_point(|start| *start <= span.start);
        let start = line.checked_sub(1).and_then(|index| self.lines.get(index)).copied().unwrap_or(0);
        let before = self.text.get(start..span.start).unwrap_or("");
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Position { line: number(line), column: number(before.chars().count() + 1) }
    }

    pub(super) fn placed<T>(&self, value: T, span: &Range<usize>) -> Placed<T> {
        Placed { value, place: Some(self.place(span)) }
    }

    /// Names the keys that mean nothing here.
    pub(super) fn unknown_keys(&mut self, table: &Table<'_>, known: &[&str], r#where: &str) {
        for (key, _) in table {
            let name: &str = key.get_ref();
            let top = known.contains(&"forward");
            if known.contains(&name) {
                continue;
            }
            let hint = match nearest::near(name, known.iter().copied()) {
                Some(near) => format!("`{near}`"),
                None if top && FORWARD.contains(&name) => {
                    format!("`{name}` below a [[forward]]")
                }
                None => format!("one of {}", known.join(", ")),
            };
            self.report.error(Some(self.place(&key.span())), format!("unknown key `{name}` in {where}"), hint);
        }
    }

    pub(super) fn wrong_type(&mut self, key: &str, value: &Value<'_>, wanted: &str, example: &str) {
        let found = match value.get_ref() {
            DeValue::Integer(_) => "a number".to_owned(),
            DeValue::Array(_) => "a list".to_owned(),
            other => format!("a {}", other.type_str()),
        };
        let place = Some(self.place(&value.span()));
        self.report.error(place, format!("`{key}` is {found} and should be {wanted}"), format!("{key} = {example}"));
    }

    pub(super) fn string(&mut self, table: &Table<'_>, key: &str, example: &str) -> Option<Placed<String>> {
        let value = table.get(key)?;
        if let Some(text) = value.get_ref().as_str() {
            return Some(self.placed(text.to_owned(), &value.span()));
        }
        self.wrong_type(key, value, "a text", example);
        None
    }

    pub(super) fn bool(&mut self, table: &Table<'_>, key: &str) -> Option<Placed<bool>> {
        let value = table.get(key)?;
        if let Some(bool) = value.get_ref().as_bool() {
            return Some(self.placed(bool, &value.span()));
        }
        self.wrong_type(key, value, "true or false", "false");
        None
    }

    pub(super) fn switch(&mut self, table: &Table<'_>, key: &str, example: &str) -> Option<Placed<Switch>> {
        let value = table.get(key)?;
        let number = value.get_ref().as_integer();
        let switch = value
            .get_ref()
            .as_bool()
            .map(Switch::Is)
            .or_else(|| i64::from_str_radix(number?.as_str(), number?.radix()).ok().map(Switch::Number));
        if switch.is_none() {
            self.wrong_type(key, value, "true, false or a number", example);
        }
        Some(self.placed(switch?, &value.span()))
    }

    pub(super) fn integer(&mut self, table: &Table<'_>, key: &str) -> Option<Placed<i64>> {
        let value = table.get(key)?;
        let number = value.get_ref().as_integer();
        if let Some(number) = number.and_then(|n| i64::from_str_radix(n.as_str(), n.radix()).ok()) {
            return Some(self.placed(number, &value.span()));
        }
        self.wrong_type(key, value, "a number", "65536");
        None
    }

    /// One text or a list of texts; numbers too where `numbers`.
    pub(super) fn texts(
        &mut self,
        table: &Table<'_>,
        key: &str,
        example: &str,
        numbers: bool,
    ) -> Option<Placed<Vec<Placed<String>>>> {
        let value = table.get(key)?;
        let items: Vec<&Value<'_>> = match value.get_ref() {
            DeValue::Array(items) => items.iter().collect(),
            _ => vec![value],
        };
        let mut texts = Vec::with_capacity(items.len());
        let mut wrong = false;
        for item in items {
            match item.get_ref() {
                DeValue::String(text) => texts.push(self.placed(text.clone().into_owned(), &item.span())),
                DeValue::Integer(number) if numbers => {
                    texts.push(self.placed(number.as_str().to_owned(), &item.span()));
                }
                DeValue::Table(_) if key == "to" => {
                    let place = Some(self.place(&item.span()));
                    let what = "a backend with `weight` or `standby`: not supported by this version yet";
                    self.report.error(place, what, "to = \"ADDR:PORT\"");
                    wrong = true;
                }
                _ => {
                    self.wrong_type(key, item, "a text or a list of texts", example);
                    wrong = true;
                }
            }
        }
        // What is left of a list with wrong entries is still worth checking, but is not "empty".
        if wrong && texts.is_empty() {
            return None;
        }
        Some(self.placed(texts, &value.span()))
    }

    /// A `[key]` table.
    pub(super) fn table<'t, 'i>(
        &mut self,
        document: &'t Table<'i>,
        key: &str,
        known: &[&str],
    ) -> Option<&'t Table<'i>> {
        let value = document.get(key)?;
        let Some(table) = value.get_ref().as_table() else {
            let place = Some(self.place(&value.span()));
            self.report.error(place, format!("`{key}` is not a table"), format!("[{key}] on a line of its own"));
            return None;
        };
        self.unknown_keys(table, known, &format!("[{key}]"));
        Some(table)
    }

    /// The tables of a `[[key]]`, with their places.
    pub(super) fn list<'t, 'i>(&mut self, document: &'t Table<'i>, key: &str) -> Vec<(&'t Table<'i>, Range<usize>)> {
        let Some(value) = document.get(key) else {
            return Vec::new();
        };
        let Some(list) = value.get_ref().as_array() else {
            let place = Some(self.place(&value.span()));
            self.report.error(
                place,
                format!("`{key}` is a list of rules"),
                format!("[[{key}]], with two brackets, before each rule"),
            );
            return Vec::new();
        };
        let mut tables = Vec::with_capacity(list.len());
        for item in list {
            if let Some(table) = item.get_ref().as_table() {
                tables.push((table, item.span()));
            } else {
                self.wrong_type(key, item, "a list of tables", "[{ name = \"web\" }]");
            }
        }
        tables
    }
}
