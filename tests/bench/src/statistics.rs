//! Medians, and how far values lie apart.

use serde::{Deserialize, Serialize};

/// The middle of some values, and the middle half of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    /// A quarter of the values is below.
    pub(crate) lower: f64,
    /// A quarter of the values is above.
    pub(crate) upper: f64,
}

impl Summary {
    /// Of at least one value.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self { median: quantile(&values, 0.5), lower: quantile(&values, 0.25), upper: quantile(&values, 0.75) }
    }
}

/// Between the two nearest values where none is right there; NaN of nothing.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * sorted.len().saturating_sub(1) as f64;
    let at = |index: f64| sorted.get(index as usize).copied().unwrap_or(f64::NAN);
    let (low, high) = (at(place.floor()), at(place.ceil()));
    low + (high - low) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries() {
        for (values, median, lower, upper) in [
            (&[5.0][..], 5.0, 5.0, 5.0),
            (&[2.0, 1.0], 1.5, 1.25, 1.75),
            (&[3.0, 1.0, 2.0], 2.0, 1.5, 2.5),
            (&[5.0, 1.0, 4.0, 2.0, 3.0], 3.0, 2.0, 4.0),
        ] {
            assert_eq!(Summary::of(values.iter().copied()), Summary { median, lower, upper });
        }
        assert!(Summary::of([]).median.is_nan());
    }
}
