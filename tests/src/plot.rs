//! Figures of a benchmark as an SVG: a row for each case, and on it a dot for each figure with a
//! line over its spread. Panels stand below each other on one axis.

use std::fmt::Write;

use crate::chart::{MUTED, RIGHT, WIDTH, escape, frame, number, text, ticks_up_to};

/// One picture.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Its headline.
    pub title: String,
    /// What the axis shows, with its unit.
    pub axis: String,
    /// How values lie on the axis.
    pub scale: Kind,
    /// The kinds of figures: name and colour (`#rrggbb`).
    pub series: Vec<(String, String)>,
    /// The panels, from top to bottom.
    pub panels: Vec<Panel>,
}

/// How values lie on an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From zero, evenly.
    Linear,
    /// By their powers of ten; what is not above zero stands at the left end.
    Log,
}

/// A group of rows.
#[derive(Clone, Debug)]
pub struct Panel {
    /// Its name.
    pub title: String,
    /// Its rows, from top to bottom.
    pub rows: Vec<Row>,
}

/// One case.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name.
    pub label: String,
    /// Its figures.
    pub marks: Vec<Mark>,
    /// A few words at the row's right end, such as `400 failed`.
    pub note: Option<String>,
}

/// One figure.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// Which of the plot's series.
    pub series: usize,
    /// The least that was measured.
    pub low: f64,
    /// What counts, most often the median.
    pub value: f64,
    /// The most that was measured.
    pub high: f64,
}

/// Where the axis begins: to the left are the rows' names.
const LEFT: f64 = 250.0;
/// Between the axis' far end and the right edge stand the notes.
const NOTES: f64 = 110.0;
/// From the picture's top to the first panel's heading.
const TOP: f64 = 82.0;
const HEADING: f64 = 34.0;
const ROW: f64 = 24.0;
/// Between a panel and the next one's heading.
const GAP: f64 = 10.0;
/// Below the last panel: the axis.
const BOTTOM: f64 = 58.0;

impl Plot {
    /// Draws it.
    pub fn to_svg(&self) -> String {
        let rows: usize = self.panels.iter().map(|panel| panel.rows.len()).sum();
        let panels = self.panels.len() as f64;
        let height = TOP + panels * (HEADING + GAP) - GAP + rows as f64 * ROW + BOTTOM;
        let axis = self.axis();
        let mut svg = frame(&self.title, height);
        svg += &self.legend(62.0);
        let mut top = TOP;
        for panel in &self.panels {
            svg += &self.draw(panel, top, &axis);
            top += HEADING + panel.rows.len() as f64 * ROW + GAP;
        }
        let bottom = top - GAP;
        for &tick in &axis.ticks {
            svg += &text(
                axis.at(tick),
                bottom + 18.0,
                "axis",
                "middle",
                &number(tick),
            );
        }
        let middle = f64::midpoint(LEFT, WIDTH - RIGHT - NOTES);
        svg += &text(middle, bottom + 40.0, "axis", "middle", &self.axis);
        svg + "</svg>\n"
    }

    fn axis(&self) -> Axis {
        let rows = self.panels.iter().flat_map(|panel| &panel.rows);
        let values: Vec<f64> = rows
            .flat_map(|row| &row.marks)
            .flat_map(|mark| [mark.low, mark.value, mark.high])
            .filter(|value| value.is_finite())
            .collect();
        Axis::new(self.scale, &values)
    }

    fn legend(&self, y: f64) -> String {
        let mut svg = String::new();
        let mut x = LEFT;
        for (name, colour) in &self.series {
            svg += &dot(x, y - 4.5, colour);
            svg += &text(x + 10.0, y, "", "start", name);
            x += 34.0 + 7.2 * name.chars().count() as f64;
        }
        svg
    }

    fn draw(&self, panel: &Panel, top: f64, axis: &Axis) -> String {
        let mut svg = format!(
            "<text x=\"24\" y=\"{:.0}\" class=\"heading axis\">{}</text>\n",
            top + HEADING - 12.0,
            escape(&panel.title),
        );
        let (upper, lower) = (
            top + HEADING - 6.0,
            top + HEADING + panel.rows.len() as f64 * ROW,
        );
        for &tick in &axis.ticks {
            let _ = writeln!(
                svg,
                "<path class=\"grid\" d=\"M{:.1} {upper:.1}V{lower:.1}\"/>",
                axis.at(tick),
            );
        }
        for (i, row) in panel.rows.iter().enumerate() {
            let y = top + HEADING + (i as f64 + 0.5) * ROW;
            svg += &text(LEFT - 12.0, y + 4.5, "axis", "end", &row.label);
            for mark in row.marks.iter().filter(|mark| mark.value.is_finite()) {
                let colour = self
                    .series
                    .get(mark.series)
                    .map_or(MUTED, |(_, colour)| colour.as_str());
                let _ = writeln!(
                    svg,
                    "<path stroke=\"{colour}\" stroke-width=\"2\" d=\"M{:.1} {y:.1}H{:.1}\"/>",
                    axis.at(mark.low),
                    axis.at(mark.high),
                );
                svg += &dot(axis.at(mark.value), y, colour);
            }
            if let Some(note) = &row.note {
                svg += &text(WIDTH - RIGHT, y + 4.5, "", "end", note);
            }
        }
        svg
    }
}

fn dot(x: f64, y: f64, colour: &str) -> String {
    format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>\n")
}

/// The axis that all panels share.
struct Axis {
    kind: Kind,
    /// The values at its ends.
    ends: (f64, f64),
    ticks: Vec<f64>,
}

impl Axis {
    fn new(kind: Kind, values: &[f64]) -> Self {
        let most = values.iter().copied().fold(0.0, f64::max);
        match kind {
            Kind::Linear => {
                let ticks = ticks_up_to(if most > 0.0 { most } else { 1.0 });
                let end = ticks.last().copied().unwrap_or(1.0).max(most);
                Self {
                    kind,
                    ends: (0.0, end),
                    ticks,
                }
            }
            Kind::Log => {
                let above_zero = values.iter().copied().filter(|value| *value > 0.0);
                let least = above_zero.fold(f64::INFINITY, f64::min);
                let (least, most) = match least.is_finite() {
                    true => (least, most),
                    false => (1.0, 10.0),
                };
                let from = least.log10().floor() as i32;
                let to = (most.log10().ceil() as i32).max(from + 1);
                let ticks = (from..=to).map(|power| 10_f64.powi(power)).collect();
                Self {
                    kind,
                    ends: (10_f64.powi(from), 10_f64.powi(to)),
                    ticks,
                }
            }
        }
    }

    fn at(&self, value: f64) -> f64 {
        let (from, to) = self.ends;
        let share = match self.kind {
            Kind::Linear => value / to,
            Kind::Log => (value.max(from) / from).log10() / (to / from).log10(),
        };
        LEFT + (WIDTH - RIGHT - NOTES - LEFT) * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(scale: Kind, values: &[f64]) -> Plot {
        let mark = |value: &f64| Mark {
            series: 0,
            low: *value,
            value: *value,
            high: *value,
        };
        Plot {
            title: "R & D".into(),
            axis: "ms".into(),
            scale,
            series: vec![("p99".into(), "#000000".into())],
            panels: vec![Panel {
                title: "one".into(),
                rows: vec![Row {
                    label: "a < b".into(),
                    marks: values.iter().map(mark).collect(),
                    note: Some("5 failed".into()),
                }],
            }],
        }
    }

    #[test]
    fn each_figure_has_its_dot() {
        let svg = plot(Kind::Linear, &[1.0, 2.0, f64::NAN]).to_svg();
        assert_eq!(svg.matches("<circle").count(), 2 + 1, "and the legend's");
        assert!(svg.contains("a &lt; b") && svg.contains("R &amp; D") && svg.contains("5 failed"));
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn a_power_of_ten_is_as_wide_as_the_next() {
        let axis = Axis::new(Kind::Log, &[9.0, 1_010.0]);
        assert_eq!(axis.ticks, [1.0, 10.0, 100.0, 1_000.0, 10_000.0]);
        let apart = |from: f64, to: f64| axis.at(to) - axis.at(from);
        assert!((apart(1.0, 10.0) - apart(1_000.0, 10_000.0)).abs() < 1e-9);
        assert_eq!(axis.at(0.0), axis.at(1.0), "zero is at the left end");
    }

    #[test]
    fn nothing_at_all_can_be_drawn() {
        for kind in [Kind::Linear, Kind::Log] {
            assert!(!plot(kind, &[]).to_svg().contains("NaN"));
        }
    }
}
