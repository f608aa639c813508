//! The report that is kept in the repository: docs/benchmarks.md and its plots, all from what was measured.

mod plot;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use self::plot::{Bar, Kind};
use crate::apps::{Apps, short};
use crate::control::Control;
use crate::rates::{Line, Rates};
use crate::report::Report;

/// Peers that are this much better are named.
const CLEARLY: f64 = 1.03;

/// Writes `benchmarks.md` into a directory, and `benchmarks/*.svg` beside it.
pub(crate) fn write(report: &Report, directory: &Path) -> Result<()> {
    let plots = directory.join("benchmarks");
    fs::create_dir_all(&plots).with_context(|| format!("cannot make {}", plots.display()))?;
    let mut text = format!(
        "# Benchmarks\n\n\
         Made by `cargo xtask bench --report`; do not edit. How each thing is measured and what the numbers mean is in\n\
         [performance.md](performance.md).\n\n\
         **Machine:** {}\n\n",
        report.machine
    );
    if let Some(apps) = &report.apps {
        let _ = writeln!(text, "**Relays:** {}\n", apps.notes.join(" · "));
    }
    text += "Blue bars are forwarder, orange ones what people use today, grey ones bounds: they translate nothing. The black\n\
             line over a bar's end is the middle half of all repetitions.\n\n";
    text += &losses(report);
    if let Some(rates) = &report.rates {
        text += &rates_text(rates, &plots)?;
    }
    if let Some(apps) = &report.apps {
        text += &apps_text(apps, &plots)?;
    }
    if let Some(control) = &report.control {
        text += &control_text(control);
    }
    let path = directory.join("benchmarks.md");
    fs::write(&path, text.trim_end().to_owned() + "\n").with_context(|| format!("cannot write {}", path.display()))
}

/// A table of Markdown: first its head. All columns but the first `left` are numbers.
fn table(rows: &[Vec<String>], left: usize) -> String {
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let _ = writeln!(text, "| {} |", row.join(" | "));
        if number == 0 {
            let rule: Vec<&str> = (0..row.len()).map(|column| if column < left { "---" } else { "--:" }).collect();
            let _ = writeln!(text, "|{}|", rule.join("|"));
        }
    }
    text + "\n"
}

fn words(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

fn label(line: &Line) -> String {
    let conditions = if line.conditions.is_empty() { String::new() } else { format!(", {}", line.conditions) };
    format!("IP{} {}{conditions}", line.family, line.description)
}

fn rates_text(rates: &Rates, plots: &Path) -> Result<String> {
    let mut text = format!("## Packet rates\n\n{}\n\n", rates.method());
    for group in &rates.groups {
        let bars: Vec<Bar> = group
            .rows
            .iter()
            .map(|line| Bar { label: label(line), value: line.of_limit, kind: Kind::of(&line.description) })
            .collect();
        let file = format!("rates-{}.svg", group.name);
        plot::bars(&plots.join(&file), &group.title, "packet rate, of the limit", &bars)?;
        let _ = writeln!(text, "### {}\n\n![{}](benchmarks/{file})\n", group.title, group.title);
        let mut rows = vec![words(&["", "", "Mpps", "ns", "of the limit", "× kernel", "× nftables"])];
        rows.extend(group.rows.iter().map(|line| {
            let times = |peer| rates.times(line, peer).map_or_else(String::new, |times| format!("{times:.2}"));
            let of = line.of_limit;
            vec![
                format!("IP{} {}", line.family, line.description),
                line.conditions.clone(),
                format!("{:.2}", line.mpps.median),
                format!("{:.0}", line.nanoseconds_per_packet.median),
                format!("**{:.2}** ({:.2}–{:.2})", of.median, of.lower, of.upper),
                times(&line.kernel),
                times(&line.nftables),
            ]
        }));
        text += &table(&rows, 2);
    }
    let lost = rates.groups.iter().flat_map(|group| &group.rows).filter(|line| line.lost > 0.0);
    let lost: Vec<String> = lost.map(|line| format!("{} {:.2} %", line.name, line.lost * 100.0)).collect();
    let _ = match lost.as_slice() {
        [] => writeln!(text, "No row lost a packet.\n"),
        lost => writeln!(text, "Lost packets, in the worst repetition: {}. No other row lost any.\n", lost.join(", ")),
    };
    Ok(text)
}

fn apps_text(apps: &Apps, plots: &Path) -> Result<String> {
    let mut text = format!("## Applications\n\n{}\n\n", apps.method());
    for (title, rows) in apps.loads() {
        let Some(first) = rows.first() else { continue };
        // Of latencies alone, the one that people notice.
        let shown = first.values.iter().position(|value| value.metric == "p99-us").filter(|index| *index == 1);
        let shown = shown.unwrap_or_default();
        let bars: Vec<Bar> = rows
            .iter()
            .filter_map(|row| {
                let value = row.values.get(shown)?.measured;
                Some(Bar { label: row.description.clone(), value, kind: Kind::of(&row.description) })
            })
            .collect();
        let file = format!("tcp-{}.svg", first.load);
        let unit = first.values.get(shown).map_or("", |value| &value.heading);
        plot::bars(&plots.join(&file), title, unit, &bars)?;
        let _ = writeln!(text, "### {}\n\n![{title}](benchmarks/{file})\n", capital(title));
        let headings = first.values.iter().map(|value| value.heading.clone());
        let mut table_rows = vec![std::iter::once(String::new()).chain(headings).collect::<Vec<String>>()];
        table_rows.extend(rows.iter().map(|row| {
            std::iter::once(row.description.clone()).chain(row.values.iter().map(crate::apps::Value::text)).collect()
        }));
        text += &table(&table_rows, 1);
    }
    Ok(text)
}

fn control_text(control: &Control) -> String {
    let mut text = format!("## Control\n\nMedian of {} rounds (middle half).\n\n", control.rounds);
    for (title, rows) in control.titles() {
        let columns = rows.iter().map(|row| row.values.len()).max().unwrap_or_default();
        let mut table_rows = vec![
            std::iter::once(title.to_owned())
                .chain(std::iter::repeat_n(String::new(), columns))
                .collect::<Vec<String>>(),
        ];
        table_rows.extend(rows.iter().map(|row| {
            let values = row.values.iter().map(crate::control::Value::text);
            let padding = std::iter::repeat_n(String::new(), columns - row.values.len());
            std::iter::once(row.description.clone()).chain(values).chain(padding).collect()
        }));
        text += &table(&table_rows, 1);
    }
    text
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// Where something that people use today did better than forwarder with the same rules and on the same links.
fn losses(report: &Report) -> String {
    let mut lines = Vec::new();
    if let Some(apps) = &report.apps {
        for (title, rows) in apps.loads() {
            for peer in rows.iter().filter(|row| Kind::of(&row.description) == Kind::Peer) {
                let ours = if peer.contender.ends_with("-no-offloads") { "forwarder-native" } else { "forwarder" };
                let Some(ours) = rows.iter().find(|row| row.contender == ours) else { continue };
                for (our, their) in ours.values.iter().zip(&peer.values) {
                    let times = their.measured.median / our.measured.median;
                    let better = if our.more_is_better() { times } else { 1.0 / times };
                    if better > CLEARLY {
                        lines.push(format!(
                            "{}: {} has {} {}, {} {}",
                            capital(title),
                            peer.description,
                            short(their.measured.median),
                            our.heading,
                            ours.description,
                            short(our.measured.median)
                        ));
                    }
                }
            }
        }
    }
    if let Some(rates) = &report.rates {
        for line in rates.groups.iter().flat_map(|group| &group.rows) {
            let slower = rates.times(line, &line.nftables).filter(|times| *times * CLEARLY < 1.0);
            if let Some(times) = slower.filter(|_| Kind::of(&line.description) == Kind::Forwarder) {
                lines.push(format!("{} ({}) is at {times:.2} of nftables", line.description, line.conditions));
            }
        }
    }
    if let Some(control) = &report.control {
        lines.extend(control.losses());
    }
    let mut text = "## Where others win\n\n".to_owned();
    if lines.is_empty() {
        text += "In what was measured here, nowhere by more than 3 %.\n\n";
        return text;
    }
    text += "By more than 3 %, with the same rules on the same links:\n\n";
    for line in lines {
        let _ = writeln!(text, "- {line}");
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables() {
        let rows = [words(&["", "Mpps"]), words(&["limit", "3.1"])];
        assert_eq!(table(&rows, 1), "|  | Mpps |\n|---|--:|\n| limit | 3.1 |\n\n");
    }
}
