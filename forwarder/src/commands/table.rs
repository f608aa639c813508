//! Tables and numbers for people.

use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};

/// A table without lines, as wide as the terminal.
pub fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_header(header);
    table
}

/// The table's text, without the spaces that comfy-table pads its last column with.
pub fn text(table: &Table) -> String {
    let mut text: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    text.push(String::new());
    text.join("\n")
}

/// Bytes with a decimal unit and three digits.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = bytes as f64 / 1000.0;
    for unit in UNITS {
        // What would be rounded up to 1000 belongs to the next unit.
        if value < 999.5 {
            let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
            return format!("{value:.digits$} {unit}");
        }
        value /= 1000.0;
    }
    format!("{bytes} B")
}

/// A duration with its two largest units.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    if days > 0 {
        format!("{days}d{hours}h")
    } else if hours > 0 {
        format!("{hours}h{minutes}m")
    } else if minutes > 0 {
        format!("{minutes}m{}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits_and_a_unit() {
        for (number, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (12_345, "12.3 kB"),
            (999_499, "999 kB"),
            (999_500, "1.00 MB"),
            (45_678_901, "45.7 MB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn durations_have_two_units() {
        for (seconds, text) in [(0, "0s"), (61, "1m1s"), (7440, "2h4m"), (90_000, "1d1h")] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }
}
