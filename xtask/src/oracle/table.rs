//! The results as tables of Markdown, which can be read as they are.

use std::collections::BTreeMap;

use clap::ValueEnum as _;

use super::{Family, Mode, Ran, word};
use crate::progress::seconds;

/// What came of each setting.
pub(super) fn settings(all: &[Ran]) -> String {
    let head = ["setting", "packets", "the same", "differ as explained", "unexplained", "time"].map(String::from);
    let rows = all.iter().map(|ran| {
        let counts = &ran.counts;
        let unexplained = if ran.broke { "broke off".to_owned() } else { thousands(counts.unexplained) };
        [
            ran.setting.name(),
            thousands(counts.sent),
            thousands(counts.same),
            thousands(counts.explained()),
            unexplained,
            seconds(ran.took),
        ]
    });
    markdown(&head, &rows.map(Vec::from).collect::<Vec<_>>())
}

/// How often each name explained a difference, by family and mode.
pub(super) fn names(all: &[Ran]) -> String {
    let columns: Vec<(Family, Mode)> = Family::value_variants()
        .iter()
        .flat_map(|family| Mode::value_variants().iter().map(|mode| (*family, *mode)))
        .filter(|column| all.iter().any(|ran| (ran.setting.family, ran.setting.mode) == *column))
        .collect();
    let mut counts: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for ran in all {
        for (name, count) in &ran.counts.explained {
            let row = counts.entry(name).or_insert_with(|| vec![0; columns.len()]);
            for (sum, column) in row.iter_mut().zip(&columns) {
                if (ran.setting.family, ran.setting.mode) == *column {
                    *sum += count;
                }
            }
        }
    }
    let mut head = vec!["differs by".to_owned()];
    head.extend(columns.iter().map(|(family, mode)| format!("{} {}", word(family), word(mode))));
    let rows: Vec<Vec<String>> = counts
        .into_iter()
        .map(|(name, counts)| [name.to_owned()].into_iter().chain(counts.into_iter().map(thousands)).collect())
        .collect();
    markdown(&head, &rows)
}

/// 1,234,567
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The first column to the left, the others to the right.
fn markdown(head: &[String], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = [head].into_iter().chain(rows.iter().map(Vec::as_slice));
        cells.filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column == 0 { format!(" {cell:<width$} |") } else { format!(" {cell:>width$} |") }
        });
        format!("|{}\n", padded.collect::<String>())
    };
    let rule = widths.iter().enumerate().map(|(column, width)| {
        let dashes = "-".repeat(width + 1);
        if column == 0 { format!("{dashes}-|") } else { format!("{dashes}:|") }
    });
    let rule = format!("|{}\n", rule.collect::<String>());
    [line(head), rule].into_iter().chain(rows.iter().map(|row| line(row))).collect()
}

#[cfg(test)]
mod tests;
