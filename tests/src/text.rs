//! Words for numbers, and tables of them.

use std::time::Duration;

/// Reads a length of time such as `300ms`, `1.5s` or `2m`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time like 300ms, 1.5s or 2m");
    let unit = text
        .find(|c: char| c.is_ascii_alphabetic())
        .ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit);
    let scale = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * scale).map_err(|_| wrong())
}

/// A length of time as [`parse_duration`] reads it: `300ms`, `1.5s`.
pub fn duration(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{}ms", time.as_millis())
    } else {
        format!("{}s", time.as_secs_f64())
    }
}

/// Milliseconds, with a decimal below ten: `6.1 ms`, `1,004 ms`.
pub fn ms(time: Duration) -> String {
    let value = time.as_secs_f64() * 1e3;
    if value < 9.95 {
        format!("{value:.1} ms")
    } else {
        format!("{} ms", grouped(value.round() as usize))
    }
}

/// A number with its thousands apart: `12,345`.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Lays rows out in columns: the first to the left, the others to the right, two spaces between.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (i, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            if i == 0 {
                line += &format!("{cell:<width$}");
            } else {
                line += &format!("  {cell:>width$}");
            }
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written() {
        for (text, ms) in [("300ms", 300), ("1s", 1000), ("1.5s", 1500), ("0ms", 0)] {
            let time = Duration::from_millis(ms);
            assert_eq!(parse_duration(text), Ok(time));
            assert_eq!(duration(time), text);
        }
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "5", "ms", "-1s", "1h", "1 s", "1e999s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }

    #[test]
    fn milliseconds_have_the_digits_they_need() {
        assert_eq!(ms(Duration::from_micros(6_140)), "6.1 ms");
        assert_eq!(ms(Duration::from_micros(9_960)), "10 ms");
        assert_eq!(ms(Duration::from_micros(1_004_400)), "1,004 ms");
    }

    #[test]
    fn columns_line_up() {
        let row = |cells: [&str; 3]| cells.map(String::from).to_vec();
        let text = table(&[
            row(["run", "errors", "max"]),
            row(["none", "1,000", "9.1 ms"]),
        ]);
        assert_eq!(text, "run   errors     max\nnone   1,000  9.1 ms\n");
        assert_eq!(table(&[]), "");
    }
}
