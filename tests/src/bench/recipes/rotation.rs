//! The tables of backends that are changed rather than restarted in place.

use std::time::Duration;

use super::{Options, failed, head, print, row};
use crate::haproxy::Release;
use crate::recipes::{Run, handover, names, soft_stop};
use crate::summary::Summary;
use crate::text::{duration, grouped, ms};

/// Apache's names.
pub(super) fn handover(options: &Options) {
    use handover::Finish::{Drain, Flush, Stop, Then};
    use handover::Switch::{Gate, Graceful};
    use names::Reuse::{Dropped, Kept, Never};
    let names = [
        "connections: way",
        "requests",
        "failed",
        "of other names",
        "p99 of those",
        "late",
        "empty",
        "longest",
    ];
    let mut rows = vec![names.map(str::to_owned).to_vec()];
    for (name, reuse, switch, finish) in [
        ("not kept: graceful, stop", Never, Graceful, Stop),
        ("not kept: handover, stop", Never, Gate, Stop),
        ("not kept: handover --then stop", Never, Gate, Then),
        ("kept: graceful, stop", Kept, Graceful, Stop),
        ("kept: handover, stop", Kept, Gate, Stop),
        ("kept: handover, drain, stop", Kept, Gate, Drain),
        (
            "kept: handover, flush --idle, drain, stop",
            Kept,
            Gate,
            Flush,
        ),
        (
            "kept but for the handover: drain, stop",
            Dropped,
            Gate,
            Drain,
        ),
        (
            "kept but for the handover: flush --idle, drain, stop",
            Dropped,
            Gate,
            Flush,
        ),
    ] {
        let case = handover::Case {
            reuse,
            switch,
            finish,
        };
        rows.push(match case.run(options.times as usize, options.rate) {
            Ok(handovers) => handover_row(name, &handovers),
            Err(error) => vec![format!("{name}: {error:#}")],
        });
    }
    let title = format!(
        "One of three names behind Apache is handed over {} times",
        options.times
    );
    print(&title, &rows);
}

fn handover_row(name: &str, handovers: &handover::Handovers) -> Vec<String> {
    let others = &handovers.names[1..];
    let lost = others.iter().map(Summary::lost).sum();
    let p99 = others.iter().filter_map(|other| other.p99).max();
    vec![
        name.to_owned(),
        grouped(handovers.summary.requests),
        failed(&handovers.summary),
        grouped(lost),
        p99.map_or("n/a".to_owned(), ms),
        grouped(handovers.late),
        format!("{} of {}", handovers.empty, handovers.times),
        ms(handovers.longest),
    ]
}

/// HAProxy's servers.
pub(super) fn soft_stop(options: &Options) {
    use soft_stop::How::{Iptables, Nothing, SoftStop, SoftStopAndRestart};
    use soft_stop::Layout::{Served, Status};
    let mut rows = vec![head("way, main line")];
    rows[0].extend(["sessions lost", "new while out", "noticed"].map(str::to_owned));
    for (name, how) in [
        ("restart", Nothing),
        ("iptables, restart", Iptables),
        ("soft-stop, restart", SoftStop),
        ("soft-stop, gate restart", SoftStopAndRestart),
    ] {
        for (line, layout) in [("port 80", Served), ("port 81", Status)] {
            let case = soft_stop::Case {
                how,
                layout,
                release: Release::System,
            };
            let plan = soft_stop::Plan {
                times: options.times as usize,
                out: Duration::from_secs(1),
                outage: options.upgrade,
                rate: options.rate,
            };
            let name = format!("{name}, {line}");
            rows.push(match case.run(plan) {
                Ok(stops) => soft_stop_row(&name, stops),
                Err(error) => vec![format!("{name}: {error:#}")],
            });
        }
    }
    let title = format!(
        "A server behind HAProxy with sticky cookies, restarted {} times, away for {} each",
        options.times,
        duration(options.upgrade)
    );
    print(&title, &rows);
}

fn soft_stop_row(name: &str, stops: soft_stop::SoftStops) -> Vec<String> {
    let (lost, new, noticed) = (stops.lost, stops.new_while_out, stops.noticed);
    let run = Run {
        summary: stops.summary,
        events: stops.times,
    };
    let mut row = row(name, Ok(run));
    row.extend([grouped(lost), grouped(new), ms(noticed)]);
    row
}
