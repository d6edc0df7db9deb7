//! Events as machines read and write them.

use std::time::Duration;

use gate_common::state::Mode;
use serde_json::{Map, Value, json};

use super::{Event, What};
use crate::endpoint::Endpoint;
use crate::report::millis;

/// The fields of one event: `at` (RFC 3339, UTC), `gate` (null for the host as a whole), `event`, and
/// what belongs to it. Times end in `_ms`.
#[must_use]
pub fn json(event: &Event) -> Value {
    let (name, more) = fields(&event.what);
    let mut value = match more {
        Value::Object(more) => more,
        _ => Map::new(),
    };
    let at = humantime::format_rfc3339_millis(event.at).to_string();
    value.insert("at".to_owned(), json!(at));
    value.insert("gate".to_owned(), json!(event.gate));
    value.insert("event".to_owned(), json!(name));
    Value::Object(value)
}

/// What machines call it.
#[must_use]
pub fn name(what: &What) -> &'static str {
    fields(what).0
}

fn fields(what: &What) -> (&'static str, Value) {
    match what {
        What::Defined => ("defined", Value::Null),
        What::Forgotten => ("forgotten", Value::Null),
        What::Closed { mode, lease } => (
            "closed",
            json!({ "mode": mode.name(), "lease_ms": millis(*lease) }),
        ),
        What::Opened => ("opened", Value::Null),
        What::Expired => ("lease_over", Value::Null),
        What::Guarded { lease } => ("guarded", json!({ "lease_ms": millis(*lease) })),
        What::Unguarded => ("unguarded", Value::Null),
        What::ListenerMissing { endpoint } => {
            ("missing", json!({ "endpoint": endpoint.to_string() }))
        }
        What::ListenerBack {
            endpoint,
            after,
            released,
        } => (
            "back",
            json!({
                "endpoint": endpoint.to_string(),
                "missing_ms": millis(*after),
                "released": released,
            }),
        ),
        What::Up => ("up", Value::Null),
        What::Down { why } => ("down", json!({ "why": why })),
        What::HandedOver { to } => (
            "handed_over",
            json!({ "to": to.iter().map(ToString::to_string).collect::<Vec<_>>() }),
        ),
        What::Attached { interface } => ("attached", json!({ "interface": interface })),
        What::Detached { interface } => ("detached", json!({ "interface": interface })),
        What::Awaited { what } => ("awaited", json!({ "what": what })),
        What::Applied { changes } => ("applied", json!({ "changes": changes })),
        What::Failed { why } => ("failed", json!({ "why": why })),
    }
}

/// The event that [`json()`] made these fields of; none for one that this version doesn't know.
#[must_use]
pub fn from_json(value: &Value) -> Option<Event> {
    let at = humantime::parse_rfc3339(value["at"].as_str()?).ok()?;
    let gate = value["gate"].as_str().map(str::to_owned);
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    let number = |key: &str| usize::try_from(value[key].as_u64()?).ok();
    let time = |key: &str| {
        let ms = value[key].as_f64()?;
        Duration::try_from_secs_f64(ms / 1e3).ok()
    };
    let endpoint = || value["endpoint"].as_str()?.parse::<Endpoint>().ok();
    let what = match value["event"].as_str()? {
        "defined" => What::Defined,
        "forgotten" => What::Forgotten,
        "closed" => What::Closed {
            mode: mode(value["mode"].as_str()?)?,
            lease: time("lease_ms")?,
        },
        "opened" => What::Opened,
        "lease_over" => What::Expired,
        "guarded" => What::Guarded {
            lease: time("lease_ms")?,
        },
        "unguarded" => What::Unguarded,
        "missing" => What::ListenerMissing {
            endpoint: endpoint()?,
        },
        "back" => What::ListenerBack {
            endpoint: endpoint()?,
            after: time("missing_ms")?,
            released: number("released")?,
        },
        "up" => What::Up,
        "down" => What::Down { why: text("why")? },
        "handed_over" => {
            let to = value["to"].as_array()?.iter();
            let to: Option<Vec<Endpoint>> = to.map(|it| it.as_str()?.parse().ok()).collect();
            What::HandedOver { to: to? }
        }
        "attached" => What::Attached {
            interface: text("interface")?,
        },
        "detached" => What::Detached {
            interface: text("interface")?,
        },
        "awaited" => What::Awaited {
            what: text("what")?,
        },
        "applied" => What::Applied {
            changes: number("changes")?,
        },
        "failed" => What::Failed { why: text("why")? },
        _ => return None,
    };
    Some(Event { at, gate, what })
}

fn mode(name: &str) -> Option<Mode> {
    let all = [Mode::Open, Mode::Hold, Mode::Drop, Mode::Reject];
    all.into_iter().find(|mode| mode.name() == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::SystemTime;

    fn endpoint() -> impl Strategy<Value = Endpoint> {
        (any::<Option<std::net::IpAddr>>(), 1..=u16::MAX).prop_map(|(address, port)| {
            let text = match address {
                None => format!("*:{port}"),
                Some(address) => std::net::SocketAddr::new(address, port).to_string(),
            };
            text.parse().expect("an endpoint")
        })
    }

    fn time() -> impl Strategy<Value = Duration> {
        (0_u64..86_400_000_000).prop_map(Duration::from_micros)
    }

    fn mode() -> impl Strategy<Value = Mode> {
        prop::sample::select(vec![Mode::Hold, Mode::Drop, Mode::Reject])
    }

    fn what() -> impl Strategy<Value = What> {
        let text = || ".{0,20}".prop_map(String::from);
        prop_oneof![
            Just(What::Defined),
            Just(What::Forgotten),
            (mode(), time()).prop_map(|(mode, lease)| What::Closed { mode, lease }),
            Just(What::Opened),
            Just(What::Expired),
            time().prop_map(|lease| What::Guarded { lease }),
            Just(What::Unguarded),
            endpoint().prop_map(|endpoint| What::ListenerMissing { endpoint }),
            (endpoint(), time(), 0_usize..1 << 20).prop_map(|(endpoint, after, released)| {
                What::ListenerBack {
                    endpoint,
                    after,
                    released,
                }
            }),
            Just(What::Up),
            text().prop_map(|why| What::Down { why }),
            prop::collection::vec(endpoint(), 0..4).prop_map(|to| What::HandedOver { to }),
            text().prop_map(|interface| What::Attached { interface }),
            text().prop_map(|interface| What::Detached { interface }),
            text().prop_map(|what| What::Awaited { what }),
            (0_usize..1 << 20).prop_map(|changes| What::Applied { changes }),
            text().prop_map(|why| What::Failed { why }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            ms in 0_u64..4_000_000_000_000,
            gate in prop::option::of("[a-z]{1,9}"),
            what in what(),
        ) {
            let at = SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
            let event = Event { at, gate, what };
            let line = crate::report::answer(json(&event));
            prop_assert!(!line.contains('\n'), "{line}");
            let value: Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(from_json(&value), Some(event));
        }
    }

    #[test]
    fn the_time_is_rfc_3339_in_utc() {
        let event = Event {
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_763_750_000_123),
            gate: Some("web".to_owned()),
            what: What::Opened,
        };
        assert_eq!(
            crate::report::answer(json(&event)),
            r#"{"at":"2025-11-21T18:33:20.123Z","event":"opened","gate":"web","version":2}"#
        );
    }

    #[test]
    fn what_it_does_not_know_is_none() {
        for text in ["{}", r#"{"at":"2025-11-21T18:33:20Z","event":"sung"}"#, "7"] {
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(from_json(&value), None, "{text}");
        }
    }
}
