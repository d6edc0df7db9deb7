//! The figures of a flood as tables and plots.

use std::fmt::Write as _;

use super::served::Clients;
use super::{Case, Device, Flood, Kind};
use crate::bench::record::{Raw, Report, against};
use crate::bench::spread::Spread;
use crate::plot::{self, Mark, Panel, Plot, Row};

/// The most that a SYN dropped by a gate may cost of what nft's input hook costs, on tap.
const OF_NFT: f64 = 0.70;
/// The most that it may cost of what a program at the same hook costs that drops everything.
const OF_PROGRAM: f64 = 1.10;

impl Raw for Flood {
    const NAME: &'static str = "flood";

    fn report(&self) -> Report {
        let mut text = String::new();
        text += "CPU time for a SYN to a closed port, the sender's own included; medians of all \
                 rounds, and the least and the most. Ratios are taken within a round, of the \
                 whole time but for the last, which is of what is above the sender's own.\n";
        let mut panels = Vec::new();
        for device in [Device::Tap, Device::Veth] {
            if self.of(device).next().is_none() {
                continue;
            }
            text += &self.table(device);
            panels.push(self.panel(device));
        }
        if !self.served.is_empty() {
            text += &self.who_is_served();
        }
        let plot = Plot {
            title: "What dropping a SYN costs".to_owned(),
            axis: "CPU time per SYN, ns (median, least and most of the rounds)".to_owned(),
            scale: plot::Kind::Linear,
            series: vec![
                ("gate".to_owned(), "#1a7f37".to_owned()),
                ("firewall".to_owned(), "#bc4c00".to_owned()),
                (
                    "a program of two instructions".to_owned(),
                    "#0969da".to_owned(),
                ),
                ("sender".to_owned(), "#59636e".to_owned()),
            ],
            panels,
        };
        let plots = vec![("flood".to_owned(), plot)];
        Report {
            brief: self.brief(),
            text,
            plots,
        }
    }
}

impl Flood {
    fn of(&self, device: Device) -> impl Iterator<Item = &Case> {
        self.cases.iter().filter(move |case| case.device == device)
    }

    fn kind(&self, device: Device, kind: Kind) -> Option<&Case> {
        self.of(device).find(|case| case.kind == kind)
    }

    /// What a SYN costs on tap.
    fn brief(&self) -> Option<String> {
        let nft = self.kind(Device::Tap, Kind::NftInput)?;
        let mut text = String::from(
            "| a SYN dropped, on tap | CPU time, ns | of nft's input hook |\n|---|--:|--:|\n",
        );
        for case in self.of(Device::Tap) {
            let of_nft = pairs(case, nft, |own, other| own / other).median;
            let cost = Spread::of(&case.each()).median;
            // A string takes it.
            let _ = writeln!(text, "| {} | {cost:.0} | {of_nft:.2} |", case.name);
        }
        Some(text)
    }

    fn table(&self, device: Device) -> String {
        let name = match device {
            Device::Tap => "tap (frames as from a NIC's driver)",
            Device::Veth => "veth",
        };
        let mut text = format!(
            "\n### {name}\n\n| case | ns a SYN | spread | above the sender's | SYNs/s of one CPU | \
             of nft's input | of a program that drops all | \
             of that, above the sender's |\n|---|--:|---|--:|--:|--:|--:|--:|\n"
        );
        let sender = self.kind(device, Kind::Sender);
        let nft = self.kind(device, Kind::NftInput);
        for case in self.of(device) {
            let cost = Spread::of(&case.each());
            let above = sender.map(|sender| pairs(case, sender, |own, other| own - other));
            let of_nft = nft.map(|nft| pairs(case, nft, |own, other| own / other));
            let program = match case.kind {
                Kind::GateXdp => self.kind(device, Kind::DropXdp),
                Kind::GateTc => self.kind(device, Kind::DropTc),
                _ => None,
            };
            let of_program = program.map(|other| pairs(case, other, |own, other| own / other));
            let of_program_above = sender
                .zip(program)
                .map(|(sender, program)| above_sender(case, program, sender).median)
                .map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
            let promised = |ratio: Option<Spread>, most: f64, is_due: bool| match ratio {
                None => "-".to_owned(),
                Some(ratio) if is_due => against(ratio.median, most),
                Some(ratio) => format!("{:.2}", ratio.median),
            };
            let on_tap = case.is_promised && device == Device::Tap;
            // A string takes it.
            let _ = writeln!(
                text,
                "| {} | {:.0} | {:.0} to {:.0} | {} | {:.2} M | {} | {} | {of_program_above} |",
                case.name,
                cost.median,
                cost.min,
                cost.max,
                above.map_or("-".to_owned(), |above| format!("{:.0}", above.median)),
                1e3 / cost.median,
                promised(of_nft, OF_NFT, on_tap),
                promised(of_program, OF_PROGRAM, on_tap),
            );
        }
        text
    }

    fn panel(&self, device: Device) -> Panel {
        let rows = self.of(device).map(|case| {
            let cost = Spread::of(&case.each());
            let series = match case.kind {
                Kind::GateXdp | Kind::GateTc => 0,
                Kind::NftInput | Kind::Firewall => 1,
                Kind::DropXdp | Kind::DropTc => 2,
                Kind::Sender => 3,
            };
            Row {
                label: case.name.clone(),
                marks: vec![Mark {
                    series,
                    low: cost.min,
                    value: cost.median,
                    high: cost.max,
                }],
                note: Some(format!("{:.0} ns", cost.median)),
            }
        });
        Panel {
            title: match device {
                Device::Tap => "tap".to_owned(),
                Device::Veth => "veth".to_owned(),
            },
            rows: rows.collect(),
        }
    }

    fn who_is_served(&self) -> String {
        let mut text = String::from(
            "\n### Who is served\n\nNew connections with a request each over veth, due 200 times a \
             second whatever becomes of those before (open loop): failed, p99 and max in ms, from \
             when each was due.\n\n| rig | SYNs/s | other port, before | other port, during \
             | source that may pass, during | same port, after |\n|---|--:|---|---|---|---|\n",
        );
        for served in &self.served {
            // A string takes it.
            let _ = writeln!(
                text,
                "| {} | {:.2} M | {} | {} | {} | {} |",
                served.name,
                served.flood / 1e6,
                clients(&served.calm),
                clients(&served.other_port),
                served.allowed.as_ref().map_or("-".to_owned(), clients),
                clients(&served.after),
            );
        }
        text
    }
}

impl Case {
    /// What a SYN cost in each round, in ns.
    fn each(&self) -> Vec<f64> {
        self.slices.iter().map(super::Slice::each).collect()
    }
}

/// How two cases compare within each round.
fn pairs(own: &Case, other: &Case, compare: impl Fn(f64, f64) -> f64) -> Spread {
    let all: Vec<f64> = own
        .each()
        .into_iter()
        .zip(other.each())
        .map(|(own, other)| compare(own, other))
        .collect();
    Spread::of(&all)
}

/// How the costs of two cases compare within each round, when the sender's own is taken off both.
fn above_sender(own: &Case, other: &Case, sender: &Case) -> Spread {
    let (own, other, sender) = (own.each(), other.each(), sender.each());
    let rounds = own.iter().zip(&other).zip(&sender);
    let all: Vec<f64> = rounds
        .map(|((own, other), sender)| (own - sender, other - sender))
        // Where the other costs next to nothing there is no ratio.
        .filter(|(_, other)| *other > 1.0)
        .map(|(own, other)| own / other)
        .collect();
    Spread::of(&all)
}

fn clients(clients: &Clients) -> String {
    let count = clients.latencies_us.len();
    // They ascend.
    let at = |rank: usize| {
        let latency = clients.latencies_us.get(rank.max(1) - 1);
        latency.map_or(f64::NAN, |us| *us as f64 / 1e3)
    };
    format!(
        "{} of {}, {:.1}, {:.1}",
        clients.failed,
        count as u64 + clients.failed,
        at((count * 99).div_ceil(100)),
        at(count)
    )
}
