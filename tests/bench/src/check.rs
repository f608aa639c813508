//! Ratios that must hold, kept in the repository: a regression fails, noise does not.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::report::Report;

const THRESHOLDS: &str = include_str!("../thresholds.toml");
/// What rows of packet rates are always measured against.
const LIMIT: &str = "limit";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Thresholds {
    ratio: Vec<Threshold>,
}

/// A ratio and its bound.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Threshold {
    of: String,
    beside: String,
    metric: Option<String>,
    at_least: Option<f64>,
    at_most: Option<f64>,
}

/// A ratio that was looked at.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    threshold: Threshold,
    ratio: f64,
}

/// Those of the repository.
pub(crate) fn thresholds() -> Result<Vec<Threshold>> {
    let all: Thresholds = toml::from_str(THRESHOLDS).context("thresholds.toml cannot be read")?;
    for one in &all.ratio {
        ensure!(one.at_least.is_some() || one.at_most.is_some(), "thresholds.toml: {} has no bound", one.of);
    }
    Ok(all.ratio)
}

/// All ratios of which both rows were measured.
pub(crate) fn check(report: &Report, thresholds: &[Threshold]) -> Vec<Checked> {
    let checked = |threshold: &Threshold| {
        let ratio = threshold.ratio(report)?;
        Some(Checked { threshold: threshold.clone(), ratio })
    };
    thresholds.iter().filter_map(checked).collect()
}

impl Threshold {
    fn ratio(&self, report: &Report) -> Option<f64> {
        if let Some(metric) = &self.metric {
            let value = |name| report.apps.as_ref()?.value(name, metric);
            let of = value(&self.of)?;
            // In pairs, where the other one is nftables: what disturbs a round disturbs both.
            return match of.of_nftables.filter(|_| self.beside.ends_with("/nftables")) {
                Some(ratio) => Some(ratio.median),
                None => Some(of.measured.median / value(&self.beside)?.measured.median),
            };
        }
        let rates = report.rates.as_ref()?;
        let of = rates.line(&self.of)?;
        if self.beside == LIMIT { Some(of.of_limit.median) } else { rates.times(of, &self.beside) }
    }

    /// The rows that it needs.
    fn rows(&self) -> impl Iterator<Item = &String> {
        [&self.of, &self.beside].into_iter().filter(|row| *row != LIMIT)
    }
}

impl Checked {
    pub(crate) fn holds(&self) -> bool {
        // Whatever is no number does not hold.
        self.threshold.at_least.is_none_or(|least| self.ratio >= least)
            && self.threshold.at_most.is_none_or(|most| self.ratio <= most)
    }

    /// The same ratio of another measurement.
    pub(crate) fn again(self, report: &Report) -> Self {
        let ratio = self.threshold.ratio(report).unwrap_or(f64::NAN);
        Self { ratio, ..self }
    }

    /// For people.
    fn text(&self) -> String {
        let Threshold { of, beside, metric, at_least, at_most } = &self.threshold;
        let metric = metric.as_ref().map_or_else(String::new, |metric| format!(" ({metric})"));
        let bounds: Vec<String> = [("at least", at_least), ("at most", at_most)]
            .into_iter()
            .filter_map(|(word, bound)| bound.map(|bound| format!("{word} {bound}")))
            .collect();
        let mark = if self.holds() { "✓" } else { "✗" };
        format!("{mark} {of}{metric} beside {beside}: {:.2}, must be {}", self.ratio, bounds.join(" and "))
    }
}

/// A line for each.
pub(crate) fn list(checked: &[Checked]) -> String {
    checked.iter().map(Checked::text).collect::<Vec<String>>().join("\n")
}

/// The rows that have to be measured to look again at those ratios that do not hold.
pub(crate) fn doubtful(checked: &[Checked]) -> Vec<String> {
    let rows: BTreeSet<&String> =
        checked.iter().filter(|one| !one.holds()).flat_map(|one| one.threshold.rows()).collect();
    rows.into_iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::selection::Selection;
    use crate::{apps, groups};

    #[test]
    fn quick_measures_every_row_of_the_thresholds() {
        let quick = Selection::Quick;
        let apps = apps::Plan::new(&quick, 1, std::time::Duration::ZERO);
        let names: BTreeSet<String> = groups::matching(&quick)
            .iter()
            .flat_map(|group| group.rows.iter().map(ToString::to_string))
            .chain(apps.names())
            .collect();
        for threshold in thresholds().unwrap() {
            for row in threshold.rows() {
                assert!(names.contains(row), "{row} is not measured by --quick");
            }
        }
    }

    #[test]
    fn bounds() {
        let with = |ratio, at_least, at_most| Checked {
            threshold: Threshold { of: "a".into(), beside: "b".into(), metric: None, at_least, at_most },
            ratio,
        };
        for (checked, holds) in [
            (with(0.5, Some(0.5), None), true),
            (with(0.49, Some(0.5), None), false),
            (with(1.0, None, Some(1.0)), true),
            (with(1.1, None, Some(1.0)), false),
            (with(f64::NAN, Some(0.5), None), false),
        ] {
            assert_eq!(checked.holds(), holds, "{}", checked.text());
            assert_eq!(doubtful(&[checked]), if holds { vec![] } else { vec!["a".to_owned(), "b".to_owned()] });
        }
    }
}
