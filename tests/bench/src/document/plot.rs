//! Horizontal bars as SVG, which draws its text with whatever fonts the reader has.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::apps::short;
use crate::statistics::Summary;

/// One bar.
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) value: Summary,
    pub(super) kind: Kind,
}

/// What a bar stands for, by colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Forwarder,
    /// What people use today.
    Peer,
    /// What nobody uses to forward: limits.
    Bound,
}

impl Kind {
    /// Of the row with this description.
    pub(super) fn of(description: &str) -> Self {
        if description.starts_with("forwarder") {
            Self::Forwarder
        } else if description.contains("redirect") || description.contains("no NAT") {
            Self::Bound
        } else {
            Self::Peer
        }
    }

    const fn colour(self) -> RGBColor {
        match self {
            Self::Forwarder => RGBColor(31, 119, 180),
            Self::Peer => RGBColor(214, 126, 44),
            Self::Bound => RGBColor(150, 150, 150),
        }
    }
}

const WIDTH: i32 = 860;
const LABELS: i32 = 390;
/// Right of the bars, for their numbers.
const NUMBERS: i32 = 130;
const TOP: i32 = 44;
const ROW: i32 = 22;
const BAR: i32 = 14;
const FONT: &str = "sans-serif";

/// Draws bars from zero, with the middle half of all repetitions as a line over each end.
pub(super) fn bars(path: &Path, title: &str, unit: &str, bars: &[Bar]) -> Result<()> {
    draw(path, title, unit, bars).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

fn draw(path: &Path, title: &str, unit: &str, bars: &[Bar]) -> Result<(), Box<dyn std::error::Error>> {
    let height = TOP + ROW * i32::try_from(bars.len())? + 12;
    let area = SVGBackend::new(path, (WIDTH as u32, height as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let text = |size: i32, colour: RGBColor| (FONT, size).into_font().color(&colour);
    area.draw(&Text::new(format!("{title} ({unit})"), (10, 12), text(16, RGBColor(20, 20, 20))))?;
    let most = bars.iter().map(|bar| bar.value.upper.max(bar.value.median)).fold(f64::MIN_POSITIVE, f64::max);
    let scale = f64::from(WIDTH - LABELS - NUMBERS) / most;
    let at = |value: f64| LABELS + (value * scale) as i32;
    let label = text(13, RGBColor(20, 20, 20)).pos(Pos::new(HPos::Right, VPos::Center));
    let number = text(13, RGBColor(60, 60, 60)).pos(Pos::new(HPos::Left, VPos::Center));
    for (index, bar) in (0..).zip(bars) {
        let middle = TOP + ROW * index + ROW / 2;
        let Summary { median, lower, upper } = bar.value;
        area.draw(&Text::new(bar.label.clone(), (LABELS - 8, middle), label.clone()))?;
        let corners = [(LABELS, middle - BAR / 2), (at(median), middle + BAR / 2)];
        area.draw(&Rectangle::new(corners, bar.kind.colour().filled()))?;
        area.draw(&PathElement::new(vec![(at(lower), middle), (at(upper), middle)], BLACK.stroke_width(2)))?;
        area.draw(&Text::new(short(median), (at(median.max(upper)) + 6, middle), number.clone()))?;
    }
    area.present()?;
    Ok(())
}
