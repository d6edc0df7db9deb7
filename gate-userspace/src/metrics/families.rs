//! The metrics that there are, and where each has its samples from.

use gate_common::abi::Counter;
use gate_common::state::Mode;

use super::{Base, Family, Kind, OfDaemon, Sample, Scrape, Value};
use crate::health::{Check, CheckHealth, GateHealth, Health};
use crate::status::GateStatus;

/// The verdicts that are counted, as labels have them.
const VERDICTS: [Counter; 11] = [
    Counter::Passed,
    Counter::Expired,
    Counter::Held,
    Counter::Refreshed,
    Counter::Dropped,
    Counter::Rejected,
    Counter::Overflowed,
    Counter::Uncaptured,
    Counter::Replayed,
    Counter::Checked,
    Counter::Allowed,
];

const fn gauge(
    name: &'static str,
    base: Base,
    labels: &'static [&'static str],
    help: &'static str,
    of: fn(&Scrape) -> Vec<Sample>,
) -> Family {
    Family {
        name,
        kind: Kind::Gauge,
        base,
        labels,
        help,
        of,
    }
}

const fn counter(
    name: &'static str,
    base: Base,
    labels: &'static [&'static str],
    help: &'static str,
    of: fn(&Scrape) -> Vec<Sample>,
) -> Family {
    Family {
        kind: Kind::Counter,
        ..gauge(name, base, labels, help, of)
    }
}

/// Gate's own; their names have its prefix.
pub static GATE: [Family; 25] = [
    Family {
        kind: Kind::Info,
        ..gauge(
            "build",
            Base::None,
            &["version", "kernel"],
            "The version of gate that answers, and of the kernel",
            |_| {
                let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease");
                let kernel = kernel.unwrap_or_default().trim().to_owned();
                let labels = vec![env!("CARGO_PKG_VERSION").to_owned(), kernel];
                let value = Value::One;
                vec![Sample { labels, value }]
            },
        )
    },
    gauge(
        "up",
        Base::None,
        &[],
        "1 while the data path is attached to some interface of this network namespace",
        |scrape| {
            let attached = scrape.status.iter().flat_map(|it| &it.attachments);
            let is_live = attached.filter(|it| it.is_live()).count() > 0;
            vec![int([], i64::from(is_live))]
        },
    ),
    gauge(
        "attached",
        Base::None,
        &["interface", "hook", "by"],
        "1 for a hook that the data path is attached to, 0 where it was attached and is not any more",
        |scrape| {
            let attached = scrape.status.iter().flat_map(|it| &it.attachments);
            let sample = |it: &crate::attach::Attachment| {
                let gone = || it.ifindex.to_string();
                let interface = it.interface.clone().unwrap_or_else(gone);
                let labels = [
                    interface,
                    it.slot.name().to_owned(),
                    it.by.name().to_owned(),
                ];
                int(labels, i64::from(it.is_live()))
            };
            attached.map(sample).collect()
        },
    ),
    counter(
        "unparsed",
        Base::None,
        &[],
        "Frames that passed because they could not be parsed",
        |scrape| {
            scrape
                .status
                .iter()
                .map(|it| count([], it.unparsed))
                .collect()
        },
    ),
    gauge(
        "held_max",
        Base::None,
        &[],
        "Held SYNs that there is room for, those of all gates",
        |scrape| {
            let room = scrape.status.iter().map(|it| it.held_max);
            room.map(|room| int([], room.into())).collect()
        },
    ),
    gauge(
        "mode",
        Base::None,
        &["gate", "mode"],
        "1 for the mode that the gate is in, its lease taken into account, else 0",
        |scrape| {
            let modes = [Mode::Open, Mode::Hold, Mode::Drop, Mode::Reject];
            let of = |gate: &GateStatus| {
                let (name, is) = (gate.gate.to_string(), gate.mode);
                modes.map(|mode| {
                    let labels = [name.clone(), mode.name().to_owned()];
                    int(labels, i64::from(mode == is))
                })
            };
            gates(scrape).flat_map(of).collect()
        },
    ),
    gauge(
        "lease",
        Base::Seconds,
        &["gate"],
        "What is left of a closed gate's lease; 0 while it is open",
        |scrape| each(scrape, |gate| gate.lease.unwrap_or_default().as_secs_f64()),
    ),
    counter(
        "lease_expiries",
        Base::None,
        &["gate"],
        "Leases that ran out, since the daemon began (daemon only)",
        |scrape| {
            let tally = scrape.daemon.iter().map(|daemon| &daemon.tally);
            tally
                .flat_map(|tally| tally.expiries(gates(scrape)))
                .map(|(gate, expiries)| count([gate], expiries))
                .collect()
        },
    ),
    gauge(
        "held",
        Base::None,
        &["gate"],
        "SYNs that are held now",
        |scrape| {
            let of = |gate: &GateStatus| int([gate.gate.to_string()], whole(gate.waiting.held));
            gates(scrape).map(of).collect()
        },
    ),
    gauge(
        "held_longest",
        Base::Seconds,
        &["gate"],
        "How long the oldest of the SYNs that are held now has been; 0 with none",
        |scrape| each(scrape, |gate| gate.waiting.longest.as_secs_f64()),
    ),
    Family {
        kind: Kind::Histogram,
        ..gauge(
            "hold",
            Base::Seconds,
            &["gate"],
            "How long SYNs were held until they were injected; what passed by its client's own retransmission is not in it",
            |scrape| {
                let of = |gate: &GateStatus| {
                    let holds = scrape.holds.get(&gate.gate.id).copied();
                    Sample {
                        labels: vec![gate.gate.to_string()],
                        value: Value::Holds(Box::new(holds.unwrap_or_default())),
                    }
                };
                gates(scrape).map(of).collect()
            },
        )
    },
    counter(
        "syns",
        Base::None,
        &["gate", "verdict"],
        "SYNs that were judged; open gates count only while some gate is closed or guarded",
        |scrape| {
            let name = |of: Counter| {
                let named = Counter::ALL.iter().find(|(counter, _)| *counter == of);
                named.map_or("", |(_, name)| *name).to_owned()
            };
            let of = |gate: &GateStatus| {
                VERDICTS.map(|verdict| {
                    let labels = [gate.gate.to_string(), name(verdict)];
                    count(labels, counted(gate, verdict))
                })
            };
            gates(scrape).flat_map(of).collect()
        },
    ),
    counter(
        "replays",
        Base::None,
        &["gate"],
        "Held SYNs that were injected",
        |scrape| each_count(scrape, Counter::Released),
    ),
    counter(
        "overflows",
        Base::None,
        &["gate"],
        "SYNs that were dropped because the table of held SYNs was full; their clients retransmit",
        |scrape| each_count(scrape, Counter::Overflowed),
    ),
    gauge(
        "guarded",
        Base::None,
        &["gate"],
        "1 for a gate that is guarded",
        |scrape| {
            let of =
                |gate: &GateStatus| int([gate.gate.to_string()], i64::from(gate.guard.is_some()));
            gates(scrape).map(of).collect()
        },
    ),
    gauge(
        "listener_missing",
        Base::None,
        &["gate"],
        "Endpoints of a guarded gate where nothing listens, as far as SYNs have shown",
        |scrape| {
            let of = |gate: &GateStatus| {
                let missing = gate.guard.as_ref()?.missing.len();
                Some(int([gate.gate.to_string()], whole(missing)))
            };
            gates(scrape).filter_map(of).collect()
        },
    ),
    gauge(
        "drain_connections",
        Base::None,
        &["gate"],
        "Established connections of a closed gate; not counted for gates past the 16th port of closed ones",
        |scrape| {
            let of = |gate: &GateStatus| {
                let connections = scrape.connections.get(&gate.gate.id)?;
                Some(int([gate.gate.to_string()], whole(*connections)))
            };
            gates(scrape).filter_map(of).collect()
        },
    ),
    gauge(
        "backend_weight",
        Base::None,
        &["gate", "backend", "own"],
        "The part of a gate's new connections that a backend gets, where it is handed over",
        |scrape| backends(scrape, |to, labels| Some(int(labels, to.weight.into()))),
    ),
    gauge(
        "backend_listeners",
        Base::None,
        &["gate", "backend", "own"],
        "Listening sockets of a backend that a gate is handed to by sk_lookup",
        |scrape| {
            backends(scrape, |to, labels| {
                to.listening.map(|it| int(labels, whole(it)))
            })
        },
    ),
    gauge(
        "health",
        Base::None,
        &["gate"],
        "1 where a gate's checks say that it is up, 0 where down; none while that is not known (daemon only)",
        |scrape| {
            let of = |gate: &GateHealth| {
                let name = gate.name.to_string();
                up(gate.health).map(|value| int([name], value))
            };
            health(scrape).filter_map(of).collect()
        },
    ),
    gauge(
        "health_check_up",
        Base::None,
        &["gate", "check", "kind"],
        "The same for one check, by its number in the configuration, from 0 on (daemon only)",
        |scrape| checks(scrape, |check, labels| Some(int(labels, up(check.health)?))),
    ),
    gauge(
        "health_check_duration",
        Base::Seconds,
        &["gate", "check", "kind"],
        "How long the last check took (daemon only)",
        |scrape| {
            checks(scrape, |check, labels| {
                Some(float(labels, check.last?.took().as_secs_f64()))
            })
        },
    ),
    counter(
        "health_checks",
        Base::None,
        &["gate", "check", "result"],
        "Checks that were made, by result, ok or failed, since the daemon began (daemon only)",
        |scrape| {
            let tally = scrape.daemon.iter().map(|daemon| &daemon.tally);
            let of = |(gate, index, result, checks): (String, usize, &str, u64)| {
                count([gate, index.to_string(), result.to_owned()], checks)
            };
            tally.flat_map(super::Tally::checks).map(of).collect()
        },
    ),
    counter(
        "health_checks_unmade",
        Base::None,
        &["gate", "check"],
        "Checks that could not be made, for a reason of this host, since the daemon began (daemon only)",
        |scrape| {
            let tally = scrape.daemon.iter().map(|daemon| &daemon.tally);
            let of = |(gate, index, checks): (String, usize, u64)| {
                count([gate, index.to_string()], checks)
            };
            tally.flat_map(super::Tally::unmade).map(of).collect()
        },
    ),
    counter(
        "events",
        Base::None,
        &["event"],
        "Events since the daemon began, as `gate events` names them (daemon only)",
        |scrape| {
            let tally = scrape.daemon.iter().map(|daemon| &daemon.tally);
            let of = |(event, number): (&str, u64)| count([event.to_owned()], number);
            tally.flat_map(super::Tally::events).map(of).collect()
        },
    ),
];

/// The daemon's own, by the names that all exporters have for them.
pub static PROCESS: [Family; 4] = [
    counter(
        "process_cpu",
        Base::Seconds,
        &[],
        "CPU time of the daemon, user and system",
        |scrape| {
            let value = |it: &OfDaemon| Value::Seconds(it.process.cpu.as_secs_f64());
            let labels = Vec::new;
            let of = |it| Sample {
                labels: labels(),
                value: value(it),
            };
            scrape.daemon.iter().map(of).collect()
        },
    ),
    gauge(
        "process_resident_memory",
        Base::Bytes,
        &[],
        "Memory of the daemon that is resident",
        |scrape| {
            let bytes = scrape.daemon.iter().map(|it| it.process.resident);
            bytes
                .map(|bytes| int([], i64::try_from(bytes).unwrap_or(i64::MAX)))
                .collect()
        },
    ),
    gauge(
        "process_open_fds",
        Base::None,
        &[],
        "Descriptors that the daemon has open",
        |scrape| {
            let open = scrape.daemon.iter().map(|it| it.process.open_fds);
            open.map(|open| int([], whole(open))).collect()
        },
    ),
    gauge(
        "process_start_time",
        Base::Seconds,
        &[],
        "When the daemon began, since 1970 in UTC",
        |scrape| {
            let start = scrape.daemon.iter().map(|it| it.process.start);
            start.map(|start| float([], start.as_secs_f64())).collect()
        },
    ),
];

fn int<const N: usize>(labels: [String; N], value: i64) -> Sample {
    Sample {
        labels: labels.into(),
        value: Value::Int(value),
    }
}

fn float<const N: usize>(labels: [String; N], value: f64) -> Sample {
    Sample {
        labels: labels.into(),
        value: Value::Float(value),
    }
}

fn count<const N: usize>(labels: [String; N], value: u64) -> Sample {
    Sample {
        labels: labels.into(),
        value: Value::Count(value),
    }
}

fn whole(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn gates(scrape: &Scrape) -> impl Iterator<Item = &GateStatus> {
    scrape.status.iter().flat_map(|status| &status.gates)
}

/// A sample in seconds for each gate.
fn each(scrape: &Scrape, of: impl Fn(&GateStatus) -> f64) -> Vec<Sample> {
    let sample = |gate: &GateStatus| float([gate.gate.to_string()], of(gate));
    gates(scrape).map(sample).collect()
}

fn each_count(scrape: &Scrape, counter: Counter) -> Vec<Sample> {
    let sample = |gate: &GateStatus| count([gate.gate.to_string()], counted(gate, counter));
    gates(scrape).map(sample).collect()
}

fn counted(gate: &GateStatus, counter: Counter) -> u64 {
    gate.stats.counts[counter as usize]
}

fn backends(
    scrape: &Scrape,
    of: impl Fn(&crate::handover::ToStatus, [String; 3]) -> Option<Sample>,
) -> Vec<Sample> {
    let mut samples = Vec::new();
    for gate in gates(scrape) {
        for to in gate.handover.iter().flat_map(|handover| &handover.to) {
            let own = to.is_own.to_string();
            let labels = [gate.gate.to_string(), to.backend.to_string(), own];
            samples.extend(of(to, labels));
        }
    }
    samples
}

fn health(scrape: &Scrape) -> impl Iterator<Item = &GateHealth> {
    scrape.daemon.iter().flat_map(|daemon| &daemon.health)
}

fn up(health: Health) -> Option<i64> {
    match health {
        Health::Up => Some(1),
        Health::Down => Some(0),
        Health::Unknown => None,
    }
}

fn checks(
    scrape: &Scrape,
    of: impl Fn(&CheckHealth, [String; 3]) -> Option<Sample>,
) -> Vec<Sample> {
    let mut samples = Vec::new();
    for gate in health(scrape) {
        for (index, check) in gate.checks.iter().enumerate() {
            let kind = kind(&check.check).to_owned();
            let labels = [gate.name.to_string(), index.to_string(), kind];
            samples.extend(of(check, labels));
        }
    }
    samples
}

/// What is checked, without where: a command may have in it what not all are to read.
fn kind(check: &Check) -> &'static str {
    match check {
        Check::Tcp(_) => "tcp",
        Check::Http(uri) if uri.scheme_str() == Some("https") => "https",
        Check::Http(_) => "http",
        Check::HttpUnix { .. } => "http+unix",
        Check::Grpc { tls: false, .. } => "grpc",
        Check::Grpc { tls: true, .. } => "grpcs",
        Check::Unix(_) => "unix",
        Check::Exec(_) => "exec",
    }
}
