//! The figures of the cost as tables and plots.

use std::fmt::Write as _;

use super::packets::EMPTY;
use super::traffic::{CONNECTIONS, IPERF3, NOTHING, STREAM};
use super::{Cost, Packets, Traffic};
use crate::bench::record::{Raw, Report};
use crate::bench::spread::Spread;
use crate::plot::{Kind, Mark, Panel, Plot, Row};

impl Raw for Cost {
    const NAME: &'static str = "cost";

    fn report(&self) -> Report {
        let mut text = String::new();
        let mut plots = Vec::new();
        if !self.packets.is_empty() {
            text += &self.packets_table();
            plots.push(("cost-packets".to_owned(), self.packets_plot()));
        }
        for what in [STREAM, CONNECTIONS, IPERF3] {
            let groups = self.groups(what);
            for group in &groups {
                text += &traffic_table(what, group);
            }
            if !groups.is_empty() {
                let stem = what.replace(' ', "-");
                plots.push((format!("cost-{stem}"), traffic_plot(what, &groups)));
            }
        }
        Report {
            brief: None,
            text,
            plots,
        }
    }
}

impl Cost {
    /// What was measured of this, for each path.
    fn groups(&self, what: &str) -> Vec<Vec<&Traffic>> {
        let mut groups: Vec<Vec<&Traffic>> = Vec::new();
        for traffic in self.traffic.iter().filter(|traffic| traffic.what == what) {
            let of_path = groups
                .iter_mut()
                .find(|group| group[0].path == traffic.path);
            match of_path {
                Some(group) => group.push(traffic),
                None => groups.push(vec![traffic]),
            }
        }
        groups
    }

    fn empty(&self, of: &Packets) -> Option<&Packets> {
        self.packets.iter().find(|packets| {
            packets.program == EMPTY && packets.hook == of.hook && packets.packet == of.packet
        })
    }

    fn sorted(&self) -> Vec<&Packets> {
        let order = ["xdp", "tc-ingress", "tc-egress"];
        let mut all: Vec<&Packets> = self.packets.iter().collect();
        all.sort_by_key(|packets| {
            let hook = order.iter().position(|hook| *hook == packets.hook);
            (hook, packets.packet.clone(), packets.program.clone())
        });
        all
    }

    fn packets_table(&self) -> String {
        let mut text = String::from(
            "\n### A packet\n\nBy `BPF_PROG_TEST_RUN`, ns: median (least to most) of the rounds; what \
             is above an empty program is taken within a round.\n\n| hook | packet | program | ns | \
             above | ratio |\n|---|---|---|---|--:|--:|\n",
        );
        for packets in self.sorted() {
            let ns = Spread::of(&packets.ns);
            let compared = |compare: fn(f64, f64) -> f64| {
                let empty = self.empty(packets).map_or(&[][..], |empty| &empty.ns);
                compare_rounds(&packets.ns, empty, compare).median
            };
            // A string takes it.
            let _ = writeln!(
                text,
                "| {} | {} | {} | {:.1} ({:.1} to {:.1}) | {:+.1} | {:.2} |",
                packets.hook,
                packets.packet,
                packets.program,
                ns.median,
                ns.min,
                ns.max,
                compared(|own, empty| own - empty),
                compared(|own, empty| own / empty),
            );
        }
        text
    }

    fn packets_plot(&self) -> Plot {
        let mut panels: Vec<Panel> = Vec::new();
        for packets in self.sorted() {
            let title = format!("{}, {}", packets.hook, packets.packet);
            let spread = Spread::of(&packets.ns);
            let row = Row {
                label: packets.program.clone(),
                marks: vec![mark(
                    usize::from(!packets.program.starts_with("gate")),
                    spread,
                )],
                note: Some(format!("{:.0} ns", spread.median)),
            };
            match panels.iter_mut().find(|panel| panel.title == title) {
                Some(panel) => panel.rows.push(row),
                None => panels.push(Panel {
                    title,
                    rows: vec![row],
                }),
            }
        }
        Plot {
            title: "What a packet costs in the programs".to_owned(),
            axis: "ns per packet by BPF_PROG_TEST_RUN (median, least and most)".to_owned(),
            scale: Kind::Linear,
            series: series(),
            panels,
        }
    }
}

fn traffic_table(what: &str, group: &[&Traffic]) -> String {
    let cost = match what {
        CONNECTIONS => "CPU µs a connection",
        IPERF3 => "CPU s a GB, whole machine",
        _ => "CPU s a GB",
    };
    let mut text = format!(
        "\n### {what}, {}\n\nMedian (middle half) of the rounds; ratios to nothing attached are taken \
         within a round.\n\n| rig | rate | of nothing's | {cost} | of nothing's |\n\
         |---|--:|---|--:|---|\n",
        group[0].path
    );
    let nothing = group.iter().find(|traffic| traffic.rig == NOTHING);
    for traffic in group {
        let ratio = |own: &[f64], other: Option<&[f64]>| {
            let spread = compare_rounds(own, other.unwrap_or(&[]), |own, other| own / other);
            format!(
                "{:.3} ({:.3} to {:.3})",
                spread.median, spread.low, spread.high
            )
        };
        let rate = Spread::of(&traffic.rate).median;
        let rate = match what {
            CONNECTIONS => format!("{rate:.0} /s"),
            _ => format!("{:.1} Gbit/s", rate / 1e9),
        };
        // A string takes it.
        let _ = writeln!(
            text,
            "| {} | {rate} | {} | {:.3} | {} |",
            traffic.rig,
            ratio(&traffic.rate, nothing.map(|nothing| &nothing.rate[..])),
            Spread::of(&traffic.cpu).median,
            ratio(&traffic.cpu, nothing.map(|nothing| &nothing.cpu[..])),
        );
    }
    text
}

fn traffic_plot(what: &str, groups: &[Vec<&Traffic>]) -> Plot {
    let panels = groups.iter().map(|group| {
        let nothing = group.iter().find(|traffic| traffic.rig == NOTHING);
        let rows = group.iter().filter(|traffic| traffic.rig != NOTHING);
        let rows = rows.map(|traffic| {
            let nothing = nothing.map_or(&[][..], |nothing| &nothing.cpu);
            let ratio = compare_rounds(&traffic.cpu, nothing, |own, other| own / other);
            Row {
                label: traffic.rig.clone(),
                marks: vec![mark(usize::from(!traffic.is_gate), ratio)],
                note: Some(format!("{:.2}", ratio.median)),
            }
        });
        Panel {
            title: group[0].path.clone(),
            rows: rows.collect(),
        }
    });
    let unit = match what {
        CONNECTIONS => "connection",
        _ => "byte",
    };
    Plot {
        title: format!("What traffic costs: {what}"),
        axis: format!("CPU time per {unit} against nothing attached (median, middle half)"),
        scale: Kind::Linear,
        series: series(),
        panels: panels.collect(),
    }
}

fn series() -> Vec<(String, String)> {
    vec![
        ("gate".to_owned(), "#1a7f37".to_owned()),
        ("others".to_owned(), "#bc4c00".to_owned()),
    ]
}

fn mark(series: usize, spread: Spread) -> Mark {
    Mark {
        series,
        low: spread.low,
        value: spread.median,
        high: spread.high,
    }
}

/// How figures compare with others, round by round.
fn compare_rounds(own: &[f64], other: &[f64], compare: impl Fn(f64, f64) -> f64) -> Spread {
    let all: Vec<f64> = own
        .iter()
        .zip(other)
        .map(|(own, other)| compare(*own, *other))
        .collect();
    Spread::of(&all)
}
