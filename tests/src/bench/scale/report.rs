//! The figures of growth as tables and plots.

use std::fmt::Write as _;

use super::release::BACKLOG;
use super::{Release, Scale, Toggle, Verdict};
use crate::bench::record::{Raw, Report, against};
use crate::bench::spread::Spread;
use crate::plot::{Kind, Mark, Panel, Plot, Row};
use crate::text::grouped;

/// The figures of one kind.
type Figures = fn(&Toggle) -> &Vec<f64>;

/// The most that a verdict at 10,000 endpoints may cost of what it costs at one.
const GROWTH: f64 = 1.1;

impl Raw for Scale {
    const NAME: &'static str = "scale";

    fn report(&self) -> Report {
        let mut text = String::new();
        let mut plots = Vec::new();
        if !self.verdicts.is_empty() {
            text += &self.verdicts_table();
            plots.push(("scale-verdict".to_owned(), self.verdicts_plot()));
        }
        if !self.memory.is_empty() {
            text += &self.memory_table();
        }
        if !self.releases.is_empty() {
            text += &self.releases_table();
            plots.push(("scale-release".to_owned(), self.releases_plot()));
        }
        if !self.toggles.is_empty() {
            text += &self.toggles_table();
        }
        Report {
            brief: None,
            text,
            plots,
        }
    }
}

/// The hooks and packets, each once, in the order of the figures.
fn kinds(verdicts: &[Verdict]) -> Vec<(&str, &str)> {
    let mut kinds = Vec::new();
    for verdict in verdicts {
        let kind = (verdict.hook.as_str(), verdict.case.as_str());
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

impl Scale {
    fn of(&self, (hook, case): (&str, &str)) -> impl Iterator<Item = &Verdict> {
        self.verdicts
            .iter()
            .filter(move |verdict| verdict.hook == hook && verdict.case == case)
    }

    fn verdicts_table(&self) -> String {
        let mut text = String::from(
            "\n### Verdict\n\nBy `BPF_PROG_TEST_RUN`, ns: median (least to most) of the rounds, each \
             the mean over up to 16 endpoints. The ratio to the fewest endpoints is taken within a \
             round.\n\n| hook | packet | endpoints | ns | ratio |\n|---|---|--:|---|---|\n",
        );
        for kind in kinds(&self.verdicts) {
            let first = self.of(kind).min_by_key(|verdict| verdict.endpoints);
            for verdict in self.of(kind) {
                let ns = Spread::of(&verdict.ns);
                let ratio = first.map_or(f64::NAN, |first| ratio(verdict, first).median);
                let promise = match verdict.endpoints {
                    10_000 => against(ratio, GROWTH),
                    _ => format!("{ratio:.2}"),
                };
                // A string takes it.
                let _ = writeln!(
                    text,
                    "| {} | {} | {} | {:.1} ({:.1} to {:.1}) | {promise} |",
                    verdict.hook,
                    verdict.case,
                    grouped(verdict.endpoints),
                    ns.median,
                    ns.min,
                    ns.max,
                );
            }
        }
        text
    }

    fn verdicts_plot(&self) -> Plot {
        let panels = kinds(&self.verdicts).into_iter().map(|kind| {
            let rows = self.of(kind).map(|verdict| Row {
                label: format!("{} endpoints", grouped(verdict.endpoints)),
                marks: vec![mark(&verdict.ns)],
                note: Some(format!("{:.1} ns", Spread::of(&verdict.ns).median)),
            });
            Panel {
                title: format!("{}: {}", kind.0, kind.1),
                rows: rows.collect(),
            }
        });
        Plot {
            title: "What a verdict costs".to_owned(),
            axis: "ns per packet by BPF_PROG_TEST_RUN (median, least and most)".to_owned(),
            scale: Kind::Linear,
            series: vec![("gate".to_owned(), "#1a7f37".to_owned())],
            panels: panels.collect(),
        }
    }

    fn memory_table(&self) -> String {
        let mut text = String::from(
            "\n### Memory\n\nThe maps as the kernel counts them (memlock), and the most that a command \
             had resident.\n\n| endpoints | all maps, MiB | ENDPOINTS, KiB | commands, MiB |\n\
             |--:|--:|--:|---|\n",
        );
        for memory in &self.memory {
            let all: u64 = memory.maps.iter().map(|(_, bytes)| bytes).sum();
            let own = memory.maps.iter().find(|(name, _)| name == "ENDPOINTS");
            let commands: Vec<String> = memory
                .commands_kib
                .iter()
                .map(|(name, kib)| format!("{name}: {:.1}", *kib as f64 / 1024.0))
                .collect();
            // A string takes it.
            let _ = writeln!(
                text,
                "| {} | {:.1} | {:.0} | {} |",
                grouped(memory.endpoints),
                all as f64 / f64::from(1 << 20),
                own.map_or(f64::NAN, |(_, bytes)| *bytes as f64 / 1024.0),
                commands.join(", "),
            );
        }
        text
    }

    fn releases_table(&self) -> String {
        let mut text = format!(
            "\n### Release\n\nReal clients over veth, each from a /24 of its own, ms: median (least to \
             most). Clients, gate and listener share the machine's processors. On the server \
             `net.core.somaxconn` and `net.ipv4.tcp_max_syn_backlog` are {}, and \
             `net.ipv4.tcp_syncookies` is 0.\n\n| held | `gate open` \
             | start to first handshake | first to last handshake | µs for each |\n\
             |--:|---|---|---|--:|\n",
            grouped(BACKLOG as usize),
        );
        for release in &self.releases {
            let each = Spread::of(&release.handshakes_ms).median * 1e3 / release.held as f64;
            // A string takes it.
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {each:.1} |",
                grouped(release.held),
                spread(&release.open_ms),
                spread(&release.first_ms),
                spread(&release.handshakes_ms),
            );
        }
        text
    }

    fn releases_plot(&self) -> Plot {
        let row = |label: &str, figures: fn(&Release) -> &Vec<f64>| Panel {
            title: label.to_owned(),
            rows: self
                .releases
                .iter()
                .map(|release| Row {
                    label: format!("{} held", grouped(release.held)),
                    marks: vec![mark(figures(release))],
                    note: Some(format!("{:.1} ms", Spread::of(figures(release)).median)),
                })
                .collect(),
        };
        Plot {
            title: "How long a release takes".to_owned(),
            axis: "ms (median, least and most)".to_owned(),
            scale: Kind::Log,
            series: vec![("gate".to_owned(), "#1a7f37".to_owned())],
            panels: vec![
                row("gate open, start to end", |release| &release.open_ms),
                row("first to last handshake", |release| &release.handshakes_ms),
            ],
        }
    }

    fn toggles_table(&self) -> String {
        let mut text =
            String::from("\n### Toggle\n\nSYNs come in by a tap device, one after the other.");
        if let Some(toggle) = self.toggles.first() {
            let _ = write!(
                text,
                " One every {:.1} µs, so no time is finer.",
                toggle.step_us
            );
        }
        text += " µs: median (least to most).\n\n| what |";
        for toggle in &self.toggles {
            let _ = write!(text, " {} endpoints |", grouped(toggle.endpoints));
        }
        text += "\n|---|";
        text += &"---|".repeat(self.toggles.len());
        text.push('\n');
        let rows: [(&str, Figures); 6] = [
            ("`gate hold`, start to end", |toggle| &toggle.hold_us),
            ("start of `gate hold` to the first SYN held", |toggle| {
                &toggle.held_us
            }),
            ("`gate open`, one SYN held, start to end", |toggle| {
                &toggle.open_us
            }),
            ("start of `gate open` to the first SYN passed", |toggle| {
                &toggle.passed_us
            }),
            (
                "store of a closed word to the first SYN dropped",
                |toggle| &toggle.store_closed_us,
            ),
            ("store of an open word to the first SYN passed", |toggle| {
                &toggle.store_open_us
            }),
        ];
        for (name, figures) in rows {
            let _ = write!(text, "| {name} |");
            for toggle in &self.toggles {
                let _ = write!(text, " {} |", spread(figures(toggle)));
            }
            text.push('\n');
        }
        text
    }
}

/// How two verdicts compare within each round.
fn ratio(own: &Verdict, first: &Verdict) -> Spread {
    let ratios = own.ns.iter().zip(&first.ns).map(|(own, first)| own / first);
    Spread::of(&ratios.collect::<Vec<_>>())
}

fn mark(figures: &[f64]) -> Mark {
    let spread = Spread::of(figures);
    Mark {
        series: 0,
        low: spread.min,
        value: spread.median,
        high: spread.max,
    }
}

fn spread(figures: &[f64]) -> String {
    let Spread {
        min, median, max, ..
    } = Spread::of(figures);
    format!("{median:.1} ({min:.1} to {max:.1})")
}
