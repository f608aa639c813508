//! A configuration file as typed: every value with its place, nothing yet said about what the values mean.
//!
//! Read from the TOML syntax tree rather than by serde, which stops at the first key it does not know.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    diagnostics::Position,
    nearest,
    report::Report,
    rule::{Placed, TypedForward},
};

/// A file. What was missing or of a wrong type is reported already, and `None` here.
#[derive(Clone, Debug, Default)]
pub(super) struct File {
    pub(super) interfaces: Vec<Placed<String>>,
    pub(super) mode: Option<Placed<String>>,
    pub(super) log: Option<Placed<String>>,
    pub(super) mss_clamp: Option<Placed<Switch>>,
    pub(super) limits: Vec<(&'static str, Placed<i64>)>,
    pub(super) timeouts: Vec<(&'static str, Placed<String>)>,
    pub(super) forwards: Vec<FileForward>,
    pub(super) masquerades: Vec<FileMasquerade>,
    pub(super) steers: Vec<FileSteer>,
    pub(super) uplinks: Vec<FileUplink>,
    pub(super) neighbors: Vec<FileNeighbor>,
}

/// A `[[forward]]`.
#[derive(Clone, Debug, Default)]
pub(super) struct FileForward {
    pub(super) place: Option<Position>,
    pub(super) name: Option<Placed<String>>,
    pub(super) listen: Option<Placed<Vec<Placed<String>>>>,
    pub(super) protocol: Option<Placed<Vec<Placed<String>>>>,
    pub(super) to: Option<Placed<Vec<Placed<String>>>>,
    pub(super) source: Option<Placed<String>>,
    pub(super) allow: Option<Placed<Vec<Placed<String>>>>,
    pub(super) stateless: Option<Placed<bool>>,
    pub(super) mss_clamp: Option<Placed<Switch>>,
}

/// `true`, `false` or a number.
#[derive(Clone, Copy, Debug)]
pub(super) enum Switch {
    Is(bool),
    Number(i64),
}

impl FileForward {
    /// "rule "web": ", to begin what is said about it.
    pub(super) fn label(&self) -> String {
        self.name.as_ref().map_or_else(String::new, |name| format!("rule \"{}\": ", name.value))
    }
}

/// A `[[masquerade]]`.
#[derive(Clone, Debug, Default)]
pub(super) struct FileMasquerade {
    pub(super) place: Option<Position>,
    pub(super) name: Option<Placed<String>>,
    pub(super) from: Option<Placed<Vec<Placed<String>>>>,
    pub(super) out: Option<Placed<String>>,
    pub(super) address: Option<Placed<Vec<Placed<String>>>>,
    pub(super) filtering: Option<Placed<String>>,
}

impl FileMasquerade {
    /// "masquerade "home": ", to begin what is said about it.
    pub(super) fn label(&self) -> String {
        self.name.as_ref().map_or_else(|| "masquerade: ".to_owned(), |name| format!("masquerade \"{}\": ", name.value))
    }
}

/// A `[[steer]]`.
#[derive(Clone, Debug, Default)]
pub(super) struct FileSteer {
    pub(super) place: Option<Position>,
    pub(super) name: Option<Placed<String>>,
    pub(super) from: Option<Placed<Vec<Placed<String>>>>,
    pub(super) protocol: Option<Placed<Vec<Placed<String>>>>,
    pub(super) port: Option<Placed<String>>,
    pub(super) interface: Option<Placed<String>>,
    pub(super) gateway: Option<Placed<Vec<Placed<String>>>>,
    pub(super) uplink: Option<Placed<String>>,
    pub(super) fallback: Option<Placed<Vec<Placed<String>>>>,
}

impl FileSteer {
    /// "steer "line-b": ", to begin what is said about it.
    pub(super) fn label(&self) -> String {
        self.name.as_ref().map_or_else(|| "steer: ".to_owned(), |name| format!("steer \"{}\": ", name.value))
    }
}

/// An `[[uplink]]`.
#[derive(Clone, Debug, Default)]
pub(super) struct FileUplink {
    pub(super) name: Option<Placed<String>>,
    pub(super) interface: Option<Placed<String>>,
    pub(super) gateway: Option<Placed<Vec<Placed<String>>>>,
    pub(super) probe: Option<Placed<Vec<Placed<String>>>>,
    pub(super) interval: Option<Placed<String>>,
    pub(super) fall: Option<Placed<i64>>,
    pub(super) rise: Option<Placed<i64>>,
}

impl FileUplink {
    /// "uplink "fibre": ", to begin what is said about it.
    pub(super) fn label(&self) -> String {
        self.name.as_ref().map_or_else(|| "uplink: ".to_owned(), |name| format!("uplink \"{}\": ", name.value))
    }
}

/// A `[[neighbor]]`.
#[derive(Clone, Debug, Default)]
pub(super) struct FileNeighbor {
    pub(super) place: Option<Position>,
    pub(super) name: Option<Placed<String>>,
    pub(super) interface: Option<Placed<String>>,
    /// `for`.
    pub(super) addresses: Option<Placed<Vec<Placed<String>>>>,
    pub(super) via: Option<Placed<String>>,
    pub(super) answer: Option<Placed<String>>,
}

impl FileNeighbor {
    /// "neighbor "home": ", to begin what is said about it.
    pub(super) fn label(&self) -> String {
        self.name.as_ref().map_or_else(|| "neighbor: ".to_owned(), |name| format!("neighbor \"{}\": ", name.value))
    }
}

impl From<&TypedForward> for FileForward {
    fn from(typed: &TypedForward) -> Self {
        let list = |texts: &[String]| Placed::nowhere(texts.iter().cloned().map(Placed::nowhere).collect::<Vec<_>>());
        let given = |texts: &[String]| (!texts.is_empty()).then(|| list(texts));
        Self {
            place: None,
            name: Some(Placed::nowhere(typed.name.clone())),
            listen: Some(list(&typed.listen)),
            protocol: given(&typed.protocol),
            to: Some(list(std::slice::from_ref(&typed.to))),
            source: typed.source.clone().map(Placed::nowhere),
            allow: given(&typed.allow),
            stateless: typed.stateless.map(Placed::nowhere),
            mss_clamp: None,
        }
    }
}

const TOP: [&str; 11] = [
    "interfaces",
    "mode",
    "log",
    "mss_clamp",
    "limits",
    "timeouts",
    "forward",
    "masquerade",
    "steer",
    "uplink",
    "neighbor",
];
const FORWARD: [&str; 8] = ["name", "listen", "protocol", "to", "source", "allow", "stateless", "mss_clamp"];
const MASQUERADE: [&str; 5] = ["name", "from", "out", "address", "filtering"];
const STEER: [&str; 8] = ["name", "from", "protocol", "port", "interface", "gateway", "uplink", "fallback"];
const UPLINK: [&str; 7] = ["name", "interface", "gateway", "probe", "interval", "fall", "rise"];
const NEIGHBOR: [&str; 5] = ["name", "interface", "for", "via", "answer"];
/// The keys of `[limits]`.
pub(super) const LIMITS: [&str; 3] = ["flows", "new_flows", "rules"];
/// The keys of `[timeouts]`.
pub(super) const TIMEOUTS: [&str; 8] =
    ["tcp_opening", "tcp_established", "tcp_closing", "tcp_reset", "udp_opening", "udp_established", "icmp", "other"];

type Table<'i> = DeTable<'i>;
type Value<'i> = Spanned<DeValue<'i>>;

/// Finds lines and columns, and complains.
struct Reader<'a> {
    text: &'a str,
    /// Offset of the first byte of each line.
    lines: Vec<usize>,
    report: &'a mut Report,
}

/// Reads a file; what is wrong with it goes to `report`. After errors in the TOML itself nothing else is looked at:
/// what a broken line was meant to be is anybody's guess.
pub(super) fn read(text: &str, report: &mut Report) -> File {
    match parse(text, report) {
        (document, mut reader) if !reader.report.has_errors() => reader.document(document.get_ref()),
        _ => File::default(),
    }
}

/// Only says what is wrong with the TOML itself.
pub(super) fn read_syntax(text: &str, report: &mut Report) {
    parse(text, report);
}

fn parse<'a>(text: &'a str, report: &'a mut Report) -> (Spanned<Table<'a>>, Reader<'a>) {
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
    fn place(&self, span: &Range<usize>) -> Position {
        let line = self.lines.partition_point(|start| *start <= span.start);
        let start = line.checked_sub(1).and_then(|index| self.lines.get(index)).copied().unwrap_or(0);
        let before = self.text.get(start..span.start).unwrap_or("");
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Position { line: number(line), column: number(before.chars().count() + 1) }
    }

    fn placed<T>(&self, value: T, span: &Range<usize>) -> Placed<T> {
        Placed { value, place: Some(self.place(span)) }
    }

    /// Names the keys that mean nothing here.
    fn unknown_keys(&mut self, table: &Table<'_>, known: &[&str], r#where: &str) {
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

    fn wrong_type(&mut self, key: &str, value: &Value<'_>, wanted: &str, example: &str) {
        let found = match value.get_ref() {
            DeValue::Integer(_) => "a number".to_owned(),
            DeValue::Array(_) => "a list".to_owned(),
            other => format!("a {}", other.type_str()),
        };
        let place = Some(self.place(&value.span()));
        self.report.error(place, format!("`{key}` is {found} and should be {wanted}"), format!("{key} = {example}"));
    }

    fn string(&mut self, table: &Table<'_>, key: &str, example: &str) -> Option<Placed<String>> {
        let value = table.get(key)?;
        if let Some(text) = value.get_ref().as_str() {
            return Some(self.placed(text.to_owned(), &value.span()));
        }
        self.wrong_type(key, value, "a text", example);
        None
    }

    fn bool(&mut self, table: &Table<'_>, key: &str) -> Option<Placed<bool>> {
        let value = table.get(key)?;
        if let Some(bool) = value.get_ref().as_bool() {
            return Some(self.placed(bool, &value.span()));
        }
        self.wrong_type(key, value, "true or false", "false");
        None
    }

    fn switch(&mut self, table: &Table<'_>, key: &str, example: &str) -> Option<Placed<Switch>> {
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

    fn integer(&mut self, table: &Table<'_>, key: &str) -> Option<Placed<i64>> {
        let value = table.get(key)?;
        let number = value.get_ref().as_integer();
        if let Some(number) = number.and_then(|n| i64::from_str_radix(n.as_str(), n.radix()).ok()) {
            return Some(self.placed(number, &value.span()));
        }
        self.wrong_type(key, value, "a number", "65536");
        None
    }

    /// One text or a list of texts; numbers too where `numbers`.
    fn texts(
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
    fn table<'t, 'i>(&mut self, document: &'t Table<'i>, key: &str, known: &[&str]) -> Option<&'t Table<'i>> {
        let value = document.get(key)?;
        let Some(table) = value.get_ref().as_table() else {
            let place = Some(self.place(&value.span()));
            self.report.error(place, format!("`{key}` is not a table"), format!("[{key}] on a line of its own"));
            return None;
        };
        self.unknown_keys(table, known, &format!("[{key}]"));
        Some(table)
    }

    fn document(&mut self, document: &Table<'_>) -> File {
        self.unknown_keys(document, &TOP, "the file");
        let interfaces = self.texts(document, "interfaces", "[\"eth0\"]", false);
        let mode = self.string(document, "mode", "\"auto\"");
        let log = self.string(document, "log", "\"info\"");
        let mss_clamp = self.switch(document, "mss_clamp", "1380");
        let mut limits = Vec::new();
        if let Some(table) = self.table(document, "limits", &LIMITS) {
            limits.extend(LIMITS.into_iter().filter_map(|key| Some((key, self.integer(table, key)?))));
        }
        let mut timeouts = Vec::new();
        if let Some(table) = self.table(document, "timeouts", &TIMEOUTS) {
            timeouts.extend(TIMEOUTS.into_iter().filter_map(|key| Some((key, self.string(table, key, "\"300s\"")?))));
        }
        let forwards = self.list(document, "forward");
        let forwards = forwards.into_iter().map(|(table, span)| self.forward(table, &span)).collect();
        let masquerades = self.list(document, "masquerade");
        let masquerades = masquerades.into_iter().map(|(table, span)| self.masquerade(table, &span)).collect();
        let steers = self.list(document, "steer");
        let steers = steers.into_iter().map(|(table, span)| self.steer(table, &span)).collect();
        let uplinks = self.list(document, "uplink");
        let uplinks = uplinks.into_iter().map(|(table, span)| self.uplink(table, &span)).collect();
        let neighbors = self.list(document, "neighbor");
        let neighbors = neighbors.into_iter().map(|(table, span)| self.neighbor(table, &span)).collect();
        File {
            interfaces: interfaces.map(|list| list.value).unwrap_or_default(),
            mode,
            log,
            mss_clamp,
            limits,
            timeouts,
            forwards,
            masquerades,
            steers,
            uplinks,
            neighbors,
        }
    }

    /// The tables of a `[[key]]`, with their places.
    fn list<'t, 'i>(&mut self, document: &'t Table<'i>, key: &str) -> Vec<(&'t Table<'i>, Range<usize>)> {
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

    fn forward(&mut self, table: &Table<'_>, span: &Range<usize>) -> FileForward {
        self.unknown_keys(table, &FORWARD, "[[forward]]");
        let forward = FileForward {
            place: Some(self.place(span)),
            name: self.string(table, "name", "\"web\""),
            listen: self.texts(table, "listen", "\"203.0.113.7:80\"", false),
            protocol: self.texts(table, "protocol", "\"tcp\"", true),
            to: self.texts(table, "to", "\"10.8.0.2:8080\"", false),
            source: self.string(table, "source", "\"preserve\""),
            allow: self.texts(table, "allow", "[\"198.51.100.0/24\"]", false),
            stateless: self.bool(table, "stateless"),
            mss_clamp: self.switch(table, "mss_clamp", "1380"),
        };
        for (key, example) in [("name", "web"), ("listen", "203.0.113.7:80"), ("to", "10.8.0.2:8080")] {
            if !table.contains_key(key) {
                let what = format!("{}`{key}` is missing", forward.label());
                self.report.error(forward.place, what, format!("{key} = \"{example}\""));
            }
        }
        forward
    }

    fn masquerade(&mut self, table: &Table<'_>, span: &Range<usize>) -> FileMasquerade {
        self.unknown_keys(table, &MASQUERADE, "[[masquerade]]");
        let masquerade = FileMasquerade {
            place: Some(self.place(span)),
            name: self.string(table, "name", "\"home\""),
            from: self.texts(table, "from", "\"10.8.0.0/24\"", false),
            out: self.string(table, "out", "\"eth0\""),
            address: self.texts(table, "address", "\"203.0.113.7\"", false),
            filtering: self.string(table, "filtering", "\"address\""),
        };
        if !table.contains_key("from") {
            let what = format!("{}`from` is missing", masquerade.label());
            self.report.error(masquerade.place, what, "from = \"10.8.0.0/24\"");
        }
        if !table.contains_key("out") && !table.contains_key("address") {
            let what = format!("{}neither `out` nor `address` is there", masquerade.label());
            let hint = "out = \"eth0\", for the address that eth0 has, or address = \"203.0.113.7\"";
            self.report.error(masquerade.place, what, hint);
        }
        masquerade
    }

    fn steer(&mut self, table: &Table<'_>, span: &Range<usize>) -> FileSteer {
        self.unknown_keys(table, &STEER, "[[steer]]");
        let steer = FileSteer {
            place: Some(self.place(span)),
            name: self.string(table, "name", "\"line-b\""),
            from: self.texts(table, "from", "\"192.0.2.123\"", false),
            protocol: self.texts(table, "protocol", "\"tcp\"", true),
            port: self.port(table),
            interface: self.string(table, "interface", "\"ppp0\""),
            gateway: self.texts(table, "gateway", "\"192.0.2.1\"", false),
            uplink: self.string(table, "uplink", "\"fibre\""),
            fallback: self.texts(table, "fallback", "\"dsl\"", false),
        };
        let line = if table.contains_key("uplink") { "uplink" } else { "interface" };
        for (key, example) in [("from", "192.0.2.123"), (line, "ppp0")] {
            if !table.contains_key(key) {
                let what = format!("{}`{key}` is missing", steer.label());
                self.report.error(steer.place, what, format!("{key} = \"{example}\""));
            }
        }
        steer
    }

    fn uplink(&mut self, table: &Table<'_>, span: &Range<usize>) -> FileUplink {
        self.unknown_keys(table, &UPLINK, "[[uplink]]");
        let uplink = FileUplink {
            name: self.string(table, "name", "\"fibre\""),
            interface: self.string(table, "interface", "\"ppp0\""),
            gateway: self.texts(table, "gateway", "\"192.0.2.1\"", false),
            probe: self.texts(table, "probe", "\"gateway\"", false),
            interval: self.string(table, "interval", "\"1s\""),
            fall: self.integer(table, "fall"),
            rise: self.integer(table, "rise"),
        };
        for (key, example) in [("name", "fibre"), ("interface", "ppp0")] {
            if !table.contains_key(key) {
                let what = format!("{}`{key}` is missing", uplink.label());
                self.report.error(Some(self.place(span)), what, format!("{key} = \"{example}\""));
            }
        }
        uplink
    }

    /// One port as a number or a text, or a range.
    fn port(&mut self, table: &Table<'_>) -> Option<Placed<String>> {
        let value = table.get("port")?;
        let text = match value.get_ref() {
            DeValue::Integer(number) => number.as_str().to_owned(),
            DeValue::String(text) => text.clone().into_owned(),
            _ => {
                self.wrong_type("port", value, "a port or a range of ports", "443");
                return None;
            }
        };
        Some(self.placed(text, &value.span()))
    }

    fn neighbor(&mut self, table: &Table<'_>, span: &Range<usize>) -> FileNeighbor {
        self.unknown_keys(table, &NEIGHBOR, "[[neighbor]]");
        let neighbor = FileNeighbor {
            place: Some(self.place(span)),
            name: self.string(table, "name", "\"home\""),
            interface: self.string(table, "interface", "\"eth0\""),
            addresses: self.texts(table, "for", "\"2001:db8:0:0:8::/78\"", false),
            via: self.string(table, "via", "\"tap0\""),
            answer: self.string(table, "answer", "\"always\""),
        };
        for (key, example) in [("interface", "eth0"), ("for", "2001:db8:0:0:8::/78"), ("via", "tap0")] {
            if !table.contains_key(key) {
                let what = format!("{}`{key}` is missing", neighbor.label());
                self.report.error(neighbor.place, what, format!("{key} = \"{example}\""));
            }
        }
        neighbor
    }
}
