//! Latency over time as an SVG: one panel a run, all with the same scales.

use std::fmt::Write;
use std::time::Duration;

use crate::load::{Outcome, Request};
use crate::text::grouped;

pub(crate) const WIDTH: f64 = 960.0;
const LEFT: f64 = 84.0;
pub(crate) const RIGHT: f64 = 28.0;
/// From the picture's top to the first panel's heading.
const TOP: f64 = 82.0;
/// The heading above each panel.
const HEADING: f64 = 34.0;
const PANEL: f64 = 150.0;
/// Between a panel and the next one's heading.
const GAP: f64 = 16.0;
/// Below the last panel: the time axis.
const BOTTOM: f64 = 62.0;

pub(crate) const MUTED: &str = "#59636e";

/// The colours and fonts. The background is the picture's own, so it looks the same on a dark page.
const STYLE: &str = "\
text{font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',Helvetica,Arial,sans-serif;font-size:13px;fill:#59636e}\
.title{font-size:21px;font-weight:600;fill:#1f2328}\
.heading{font-size:15px;font-weight:600}\
.axis{fill:#1f2328}\
.grid{stroke:#e4e8ec;stroke-width:1}\
.base{stroke:#8c959f;stroke-width:1}\
.away{fill:#eaeef2}\
.dots{fill:none;stroke-width:3.4;stroke-linecap:round}\
.lost{fill:none;stroke:#cf222e;stroke-width:1.4;stroke-linecap:round}";

/// One run.
pub struct Panel<'a> {
    /// Its name.
    pub title: &'a str,
    /// What came of it, in a few words.
    pub note: String,
    /// The colour of its answered requests.
    pub colour: &'a str,
    /// Its requests.
    pub requests: &'a [Request],
    /// When nothing listened, from the start of the load.
    pub outage: Option<(Duration, Duration)>,
}

/// The picture.
pub struct Chart<'a> {
    /// Its headline.
    pub title: String,
    /// How long new connections were made.
    pub length: Duration,
    /// The runs, from top to bottom.
    pub panels: Vec<Panel<'a>>,
}

impl Chart<'_> {
    /// Draws it.
    pub fn to_svg(&self) -> String {
        let all = || self.panels.iter().flat_map(|panel| panel.requests);
        let x = Scale::new(
            self.length.as_secs_f64().max(0.1),
            10,
            0.0,
            (LEFT, WIDTH - RIGHT),
        );
        let longest = all()
            .map(|r| r.latency)
            .max()
            .unwrap_or_default()
            .as_secs_f64()
            * 1e3;
        let height = TOP + self.panels.len() as f64 * (HEADING + PANEL + GAP) - GAP + BOTTOM;
        let mut svg = frame(&self.title, height);
        svg += &legend(62.0);
        let mut top = TOP;
        for panel in &self.panels {
            let y = Scale::new(
                longest.max(1.0),
                4,
                0.18,
                (top + HEADING + PANEL, top + HEADING),
            );
            svg += &panel.draw(top, &x, &y);
            top += HEADING + PANEL + GAP;
        }
        let bottom = top - GAP;
        for tick in x.ticks() {
            svg += &text(x.at(tick), bottom + 20.0, "axis", "middle", &number(tick));
        }
        let middle = f64::midpoint(LEFT, WIDTH - RIGHT);
        svg += &text(
            middle,
            bottom + 44.0,
            "axis",
            "middle",
            "time at which the request was due, in seconds",
        );
        let _ = writeln!(
            svg,
            "<text class=\"axis\" text-anchor=\"middle\" transform=\"translate(24 {:.0}) rotate(-90)\">\
             latency of the request, in milliseconds</text>",
            f64::midpoint(TOP + HEADING, bottom),
        );
        svg + "</svg>\n"
    }
}

impl Panel<'_> {
    fn draw(&self, top: f64, x: &Scale, y: &Scale) -> String {
        let mut svg = format!(
            "<text x=\"{LEFT}\" y=\"{:.0}\"><tspan class=\"heading\" fill=\"{}\">{}</tspan>\
             <tspan dx=\"10\">{}</tspan></text>\n",
            top + HEADING - 12.0,
            self.colour,
            escape(self.title),
            escape(&self.note),
        );
        if let Some((from, to)) = self.outage {
            let (from, to) = (x.at(from.as_secs_f64()), x.at(to.as_secs_f64()));
            let _ = writeln!(
                svg,
                "<rect class=\"away\" x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{PANEL}\"/>",
                y.pixels.1,
                to - from,
            );
        }
        for tick in y.ticks() {
            let class = if tick == 0.0 { "base" } else { "grid" };
            let _ = writeln!(
                svg,
                "<path class=\"{class}\" d=\"M{LEFT} {0:.1}H{1}\"/>",
                y.at(tick),
                WIDTH - RIGHT,
            );
            svg += &text(LEFT - 10.0, y.at(tick) + 4.5, "axis", "end", &number(tick));
        }
        let points = |lost: bool, mark: &str, apart: f64| {
            let of_kind = self
                .requests
                .iter()
                .filter(|r| (r.outcome != Outcome::Ok) == lost);
            let spot = |r: &Request| {
                (
                    x.at(r.at.as_secs_f64()),
                    y.at(r.latency.as_secs_f64() * 1e3),
                )
            };
            marks(of_kind.map(spot), mark, apart)
        };
        let _ = writeln!(
            svg,
            "<path class=\"dots\" stroke=\"{}\" d=\"{}\"/>\n<path class=\"lost\" d=\"{}\"/>",
            self.colour,
            // A line of no length with round ends is a dot.
            points(false, "h0", 0.5),
            points(true, "m-3.5-3.5l7 7m0-7l-7 7", 6.0),
        );
        svg
    }
}

/// A path with one mark a spot. Of spots that are less `apart` than this, in pixels, it shows one:
/// a row of crosses says more than a bar of them.
fn marks(spots: impl Iterator<Item = (f64, f64)>, mark: &str, apart: f64) -> String {
    let mut path = String::new();
    let mut last = (f64::NEG_INFINITY, 0.0);
    for (x, y) in spots {
        if (x - last.0).abs() >= apart || (y - last.1).abs() >= apart {
            // Writing to a string can't fail.
            let _ = write!(path, "M{x:.1} {y:.1}{mark}");
            last = (x, y);
        }
    }
    path
}

/// The picture's beginning: its frame, and its headline.
pub(crate) fn frame(title: &str, height: f64) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n\
         <rect x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"8\" fill=\"#ffffff\" \
         stroke=\"#d1d9e0\"/>\n",
        WIDTH - 1.0,
        height - 1.0,
        title = escape(title),
    );
    svg += &text(24.0, 38.0, "title", "start", title);
    svg
}

/// The ticks of a linear axis from 0, the last of them at `max` or beyond it.
pub(crate) fn ticks_up_to(max: f64) -> Vec<f64> {
    let scale = Scale::new(max, 6, 0.0, (0.0, 1.0));
    let last = (max / scale.step * 0.999).ceil() as u32;
    (0..=last).map(|i| f64::from(i) * scale.step).collect()
}

/// What the marks mean, in one line.
fn legend(y: f64) -> String {
    let middle = y - 4.5;
    let mut svg = format!(
        "<path class=\"dots\" stroke=\"{MUTED}\" d=\"M{0} {middle}h0m5 0h0m5 0h0\"/>\n\
         <path class=\"lost\" d=\"M{1} {2}l7 7m0-7l-7 7\"/>\n\
         <rect class=\"away\" x=\"{3}\" y=\"{4}\" width=\"22\" height=\"14\"/>\n",
        LEFT + 3.0,
        LEFT + 184.0,
        middle - 3.5,
        LEFT + 322.0,
        middle - 7.0,
    );
    svg += &text(LEFT + 22.0, y, "", "start", "an answered request");
    svg += &text(LEFT + 199.0, y, "", "start", "a lost request");
    svg += &text(
        LEFT + 352.0,
        y,
        "",
        "start",
        "the backend is away: nothing listens",
    );
    svg
}

/// A linear axis from 0.
struct Scale {
    /// The value at the far end.
    end: f64,
    step: f64,
    pixels: (f64, f64),
}

impl Scale {
    /// An axis that reaches `max` and leaves this share of itself free beyond it, with about
    /// `ticks` ticks.
    fn new(max: f64, ticks: u32, free: f64, pixels: (f64, f64)) -> Self {
        let rough = max / f64::from(ticks);
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|factor| factor * power)
            .into_iter();
        let step = step
            .clone()
            .find(|step| *step >= rough * 0.999)
            .unwrap_or(10.0 * power);
        Self {
            end: max / (1.0 - free),
            step,
            pixels,
        }
    }

    fn at(&self, value: f64) -> f64 {
        let (from, to) = self.pixels;
        from + (to - from) * value / self.end
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let last = (self.end / self.step * 1.001).floor() as u32;
        (0..=last).map(|i| f64::from(i) * self.step)
    }
}

/// A tick's number, with the decimals it has and its thousands apart.
pub(crate) fn number(value: f64) -> String {
    let rounded = (value * 1e3).round() / 1e3;
    if rounded.fract() == 0.0 {
        grouped(rounded as usize)
    } else {
        rounded.to_string()
    }
}

pub(crate) fn text(x: f64, y: f64, class: &str, anchor: &str, words: &str) -> String {
    let words = escape(words);
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{words}</text>\n"
    )
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(at_ms: u64, latency_ms: u64, outcome: Outcome) -> Request {
        let ms = Duration::from_millis;
        Request {
            at: ms(at_ms),
            latency: ms(latency_ms),
            outcome,
        }
    }

    #[test]
    fn a_scale_maps_its_ends_to_its_pixels() {
        let scale = Scale::new(2_000.0, 4, 0.0, (150.0, 0.0));
        assert_eq!(scale.at(0.0), 150.0);
        assert_eq!(scale.at(2_000.0), 0.0);
        assert_eq!(
            scale.ticks().collect::<Vec<_>>(),
            [0.0, 500.0, 1_000.0, 1_500.0, 2_000.0]
        );
    }

    #[test]
    fn ticks_are_round_numbers() {
        for (max, step) in [
            (1_004.0, 500.0),
            (2_040.0, 1_000.0),
            (7.3, 2.0),
            (0.4, 0.1),
            (40.0, 10.0),
        ] {
            let scale = Scale::new(max, 4, 0.0, (0.0, 1.0));
            assert!((scale.step - step).abs() < 1e-9, "{max}: {}", scale.step);
        }
        assert_eq!(
            [0.5, 0.1 + 0.2, 2_000.0].map(number),
            ["0.5", "0.3", "2,000"]
        );
    }

    #[test]
    fn room_is_left_beyond_the_longest() {
        let scale = Scale::new(100.0, 4, 0.2, (100.0, 0.0));
        assert_eq!(scale.at(100.0), 20.0);
    }

    #[test]
    fn each_request_has_its_mark_and_each_run_its_panel() {
        let requests = [
            request(0, 5, Outcome::Ok),
            request(1_000, 5, Outcome::Ok),
            request(2_000, 0, Outcome::Refused),
        ];
        let panel = |title| Panel {
            title,
            note: "a < b".into(),
            colour: "#000000",
            requests: &requests,
            outage: Some((Duration::from_secs(1), Duration::from_secs(2))),
        };
        let length = Duration::from_secs(2);
        let chart = Chart {
            title: "R & D".into(),
            length,
            panels: vec![panel("one"), panel("two")],
        };
        let svg = chart.to_svg();
        assert_eq!(
            svg.matches("h0M").count(),
            2,
            "two dots in each panel's path"
        );
        assert_eq!(
            svg.matches("M932.0 ").count(),
            2,
            "one cross in each, at the right end"
        );
        assert_eq!(
            svg.matches("class=\"away\"").count(),
            3,
            "two panels and the legend"
        );
        assert!(svg.contains("R &amp; D") && svg.contains("a &lt; b"));
    }

    #[test]
    fn nothing_at_all_can_be_drawn() {
        let chart = Chart {
            title: String::new(),
            length: Duration::ZERO,
            panels: vec![],
        };
        assert!(!chart.to_svg().contains("NaN"));
    }
}
