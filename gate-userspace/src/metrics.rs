//! What is live, as metrics: OpenMetrics 1.0 text, read when it is asked for.
//!
//! No label has a client's address in it. All that a label can be is bounded by what the operator
//! defined: gates, backends, interfaces, checks, and the words that gate has for verdicts.

mod connections;
mod families;
mod process;
mod tally;

use std::collections::BTreeMap;
use std::sync::Arc;

use gate_common::abi::{HOLD_BOUNDS, Holds};
use gate_common::flow::GateId;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::error::Result;
use crate::health::GateHealth;
use crate::pins::Pins;
use crate::status::{self, Status};
use crate::tables::Tables;

pub use connections::Connections;
pub use process::Process;
pub use tally::Tally;

/// The content type of what [`render`] makes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What goes before the name of every metric of gate's own.
const PREFIX: &str = "gate";

/// What metrics are made of.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// What is live; none while nothing is up.
    pub status: Option<Status>,
    /// How long SYNs were held.
    pub holds: BTreeMap<GateId, Holds>,
    /// Established connections, of the gates for which they were counted.
    pub connections: BTreeMap<GateId, usize>,
    /// What only the daemon knows; none where another process asks.
    pub daemon: Option<OfDaemon>,
}

/// What only the daemon knows.
#[derive(Clone, Debug, Default)]
pub struct OfDaemon {
    /// What it counted since it began.
    pub tally: Tally,
    /// What the checks say.
    pub health: Vec<GateHealth>,
    /// What the daemon itself takes.
    pub process: Process,
}

impl Scrape {
    /// Reads what is live. `connections` is kept from one scrape to the next.
    ///
    /// # Errors
    /// Those of the pins, the maps and sock_diag.
    pub fn read(pins: &Pins, connections: &mut Connections) -> Result<Self> {
        let Some(status) = status::read(pins)? else {
            return Ok(Self::default());
        };
        let tables = Tables::open(pins)?;
        let mut holds = BTreeMap::new();
        for gate in &status.gates {
            holds.insert(gate.gate.id, tables.holds(gate.gate.id)?);
        }
        Ok(Self {
            connections: connections.look(&status.gates)?,
            holds,
            status: Some(status),
            daemon: None,
        })
    }
}

/// What the daemon answers: all of it, read now.
///
/// # Errors
/// As [`Scrape::read`], and [`Process::own`].
pub fn of_daemon(
    pins: &Pins,
    connections: &mut Connections,
    tally: Tally,
    health: Vec<GateHealth>,
) -> Result<String> {
    let mut scrape = Scrape::read(pins, connections)?;
    scrape.daemon = Some(OfDaemon {
        tally,
        health,
        process: Process::own()?,
    });
    Ok(render(scrape))
}

/// What kind of metric it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It goes up and down.
    Gauge,
    /// It only goes up, but for a slot that is another gate's, and `gate down`.
    Counter,
    /// How often a value was how large.
    Histogram,
    /// Always 1; its labels tell.
    Info,
}

impl Kind {
    const fn metric_type(self) -> MetricType {
        match self {
            Self::Gauge => MetricType::Gauge,
            Self::Counter => MetricType::Counter,
            Self::Histogram => MetricType::Histogram,
            Self::Info => MetricType::Info,
        }
    }
}

/// The units that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    None,
    Seconds,
    Bytes,
}

impl Base {
    const fn unit(self) -> Option<Unit> {
        match self {
            Self::None => None,
            Self::Seconds => Some(Unit::Seconds),
            Self::Bytes => Some(Unit::Bytes),
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Seconds => "_seconds",
            Self::Bytes => "_bytes",
        }
    }
}

/// Samples that differ in their labels only.
struct Family {
    /// Its name without prefix, unit and `_total`.
    name: &'static str,
    kind: Kind,
    base: Base,
    labels: &'static [&'static str],
    help: &'static str,
    /// Its samples.
    of: fn(&Scrape) -> Vec<Sample>,
}

/// One sample: the labels' values, in the family's order, and its own.
struct Sample {
    labels: Vec<String>,
    value: Value,
}

enum Value {
    Int(i64),
    Float(f64),
    Count(u64),
    Seconds(f64),
    Holds(Box<Holds>),
    One,
}

/// The metrics, as text. It ends with the line `# EOF`.
#[must_use]
pub fn render(scrape: Scrape) -> String {
    let scrape = Arc::new(scrape);
    let mut text = String::new();
    let of = |families: &'static [Family]| {
        let scrape = Arc::clone(&scrape);
        Box::new(Families { families, scrape })
    };
    let mut own = Registry::with_prefix(PREFIX);
    own.register_collector(of(&families::GATE));
    let mut process = Registry::default();
    process.register_collector(of(&families::PROCESS));
    // Writing to a string doesn't fail.
    let _written = encode_registry(&mut text, &own)
        .and_then(|()| encode_registry(&mut text, &process))
        .and_then(|()| encode_eof(&mut text));
    text
}

struct Families {
    families: &'static [Family],
    scrape: Arc<Scrape>,
}

impl std::fmt::Debug for Families {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Families").finish_non_exhaustive()
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        for family in self.families {
            let samples = (family.of)(&self.scrape);
            if samples.is_empty() {
                continue;
            }
            let unit = family.base.unit();
            let kind = family.kind.metric_type();
            let mut encoder =
                encoder.encode_descriptor(family.name, family.help, unit.as_ref(), kind)?;
            for sample in &samples {
                let values = sample.labels.iter().map(String::as_str);
                let labels: Vec<(&str, &str)> = family.labels.iter().copied().zip(values).collect();
                match &sample.value {
                    Value::One => encoder.encode_info(&labels)?,
                    // An empty set would leave empty braces.
                    value if labels.is_empty() => encode(&mut encoder, value)?,
                    value => encode(&mut encoder.encode_family(&labels)?, value)?,
                }
            }
        }
        Ok(())
    }
}

fn encode(encoder: &mut MetricEncoder<'_>, value: &Value) -> std::fmt::Result {
    match value {
        Value::Int(value) => encoder.encode_gauge(value),
        Value::Float(value) => encoder.encode_gauge(value),
        Value::Count(count) => encoder.encode_counter::<NoLabelSet, _, u64>(count, None),
        Value::Seconds(sum) => encoder.encode_counter::<NoLabelSet, _, u64>(sum, None),
        Value::Holds(holds) => {
            let bounds = HOLD_BOUNDS.iter().map(|bound| *bound as f64 / 1e9);
            let bounds = bounds.chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(holds.buckets).collect();
            let sum = holds.sum as f64 / 1e9;
            encoder.encode_histogram::<NoLabelSet>(sum, holds.count(), &buckets, None)
        }
        Value::One => Ok(()),
    }
}

/// The table of docs/metrics.md.
#[must_use]
pub fn table() -> String {
    let mut text = "| name | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    let of = |prefix: &'static str, families: &'static [Family]| {
        families.iter().map(move |family| (prefix, family))
    };
    let own = of("gate_", &families::GATE);
    for (prefix, family) in own.chain(of("", &families::PROCESS)) {
        let (kind, suffix) = match family.kind {
            Kind::Gauge => ("gauge", ""),
            Kind::Counter => ("counter", "_total"),
            Kind::Histogram => ("histogram", ""),
            Kind::Info => ("info", "_info"),
        };
        let name = format!("{prefix}{}{}{suffix}", family.name, family.base.suffix());
        let labels: Vec<String> = family.labels.iter().map(|it| format!("`{it}`")).collect();
        let (labels, help) = (labels.join(", "), family.help);
        text += &format!("| `{name}` | {kind} | {labels} | {help} |\n");
    }
    text
}

#[cfg(test)]
mod tests;
