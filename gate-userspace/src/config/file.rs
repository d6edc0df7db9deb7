//! The form of the configuration's files. What is written here of each key becomes the JSON schema
//! and the reference.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Range;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use crate::hooks::HookChoice;

/// A value with its place in the file.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub value: T,
    pub bytes: Range<usize>,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<T>::deserialize(deserializer)?;
        let bytes = spanned.span();
        let value = spanned.into_inner();
        Ok(Self { value, bytes })
    }
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

impl<T: PartialEq> PartialEq for At<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for At<T> {}

impl<T: PartialOrd> PartialOrd for At<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.value.partial_cmp(&other.value)
    }
}

impl<T: Ord> Ord for At<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.value.cmp(&other.value)
    }
}

/// The configuration of gate: `/etc/gate/gate.toml`, and the files `conf.d/*.toml` beside it, in the
/// order of their names. Those may have gates only.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "gate.toml")]
pub(super) struct File {
    /// What concerns the daemon itself. In the main file only.
    pub daemon: Option<At<Daemon>>,
    /// What holds for every gate that does not say otherwise. In the main file only.
    pub defaults: Option<At<Settings>>,
    /// The gates, by name: a letter, then letters, digits, `-` and `_`, 32 in all at the most.
    #[serde(default)]
    pub gate: BTreeMap<At<String>, At<Gate>>,
}

/// What concerns the daemon itself.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Daemon {
    /// The Unix socket of the API: an absolute path. `/run/gate/gate.sock` where it is left out.
    pub socket: Option<At<String>>,
    /// The group that may use the API, besides root. `gate` where it is left out.
    pub group: Option<At<String>>,
    /// Where metrics are served over TCP as well, as in `127.0.0.1:9464`. Nowhere where it is left out.
    pub metrics: Option<At<String>>,
    /// Room for held SYNs, about 0.5 KiB each. It counts when the data path is first attached. 16384
    /// where it is left out.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub held: Option<At<u32>>,
}

/// One gate: what it stands for, and what is done to it.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Gate {
    /// All that closes and opens with it: `10.0.0.5:80`, `[fd00::5]:80`, or `*:80` for any address of
    /// this host.
    #[schemars(required)]
    pub endpoints: Option<At<Vec<At<String>>>>,
    /// The interfaces over which its connections come in, or go out to the backend. One that is not
    /// there yet is waited for. Where it is left out: all over which the endpoints can be reached.
    pub interfaces: Option<At<Vec<At<String>>>>,
    /// Where these are attached to, as `gate up --hook` has it. `auto` where it is left out.
    pub hook: Option<At<HookChoice>>,
    /// What the gate is while nobody closes it. `open` where it is left out.
    pub mode: Option<At<Mode>>,
    /// The longest that connections are held, from 1 ms to 24 h: `500ms`, `15s`, `2m`. `15s` where it is
    /// left out.
    pub max_hold: Option<At<String>>,
    /// Sources that pass while the daemon has the gate closed: `10.0.0.0/8`, `fd00::/8`, or one address.
    pub allow: Option<At<Vec<At<String>>>>,
    /// Who gets new connections in the place of the gate's own listener, each its part. Where it is left
    /// out the gate's own listener does, or whoever `gate handover` named.
    pub backends: Option<At<Vec<At<Backend>>>>,
    /// The health checks. The gate is up when all of them say so, and down when one says so.
    pub check: Option<At<Vec<At<Check>>>>,
    /// What the daemon does when a check says that the gate is down.
    pub on_down: Option<At<OnDown>>,
    /// What the daemon does when all checks say that the gate is up again.
    pub on_up: Option<At<OnUp>>,
}

/// What holds for every gate that does not say otherwise.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// As `interfaces` of a gate.
    pub interfaces: Option<At<Vec<At<String>>>>,
    /// As `hook` of a gate.
    pub hook: Option<At<HookChoice>>,
    /// As `mode` of a gate.
    pub mode: Option<At<Mode>>,
    /// As `max_hold` of a gate.
    pub max_hold: Option<At<String>>,
    /// As `allow` of a gate.
    pub allow: Option<At<Vec<At<String>>>>,
    /// As `on_down` of a gate, for gates that have a check.
    pub on_down: Option<At<OnDown>>,
    /// As `on_up` of a gate, for gates that have a check.
    pub on_up: Option<At<OnUp>>,
}

/// What a gate is while nobody closes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Mode {
    /// New connections pass.
    Open,
    /// New connections pass, and are held whenever no socket listens, for `max_hold` from the first one
    /// on.
    Guard,
}

/// One backend.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Backend {
    /// Where it listens: `10.0.0.5:8081`.
    #[schemars(required)]
    pub address: Option<At<String>>,
    /// Its part of the new connections, compared with the others'. 1 where it is left out.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub weight: Option<At<u32>>,
}

/// One health check. Exactly one of `http`, `tcp`, `grpc`, `unix` and `exec` says what is checked.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Check {
    /// A GET of this URL, `http://HOST/PATH` or `https://HOST/PATH`, is answered with an expected status.
    pub http: Option<At<String>>,
    /// A TCP connection to this `HOST:PORT` is accepted.
    pub tcp: Option<At<String>>,
    /// The gRPC health service at this `HOST:PORT`, or `HOST:PORT/SERVICE` for one of its services, says
    /// that it serves.
    pub grpc: Option<At<String>>,
    /// A connection to the Unix socket at this path is accepted.
    pub unix: Option<At<String>>,
    /// This shell command exits with 0.
    pub exec: Option<At<String>>,
    /// From one check's begin to the next one's, from 10 ms to 1 h. `1s` where it is left out.
    pub interval: Option<At<String>>,
    /// For one whole check; no longer than the interval. `500ms` where it is left out, or the interval
    /// where that is shorter.
    pub timeout: Option<At<String>>,
    /// Successes in a row until it says up. 2 where it is left out.
    #[schemars(range(min = 1, max = 1000))]
    pub rise: Option<At<u32>>,
    /// Failures in a row until it says down. 3 where it is left out.
    #[schemars(range(min = 1, max = 1000))]
    pub fall: Option<At<u32>>,
    /// For `http`: the status that counts as healthy, or a range like `200-399`. `200-299` where it is
    /// left out.
    pub status: Option<At<String>>,
    /// For `http`: the host that is asked for, if not that of the URL.
    pub host: Option<At<String>>,
    /// For `http`: a text that the body must contain.
    pub body: Option<At<String>>,
    /// For an `https` URL: whether the certificate is verified. `true` where it is left out.
    pub verify: Option<At<bool>>,
    /// For an `https` URL: a file of the certificates (PEM) to verify against, by its absolute path. The
    /// system's where it is left out.
    pub ca: Option<At<String>>,
}

/// What is done when the gate is down.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OnDown {
    /// To new connections. `hold` where it is left out.
    #[serde(rename = "do")]
    pub new: Option<At<Down>>,
    /// Whether established connections are reset. `false` where it is left out.
    pub flush: Option<At<bool>>,
}

/// What is done to new connections while the gate is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Down {
    /// They are held, for `max_hold` at the longest.
    Hold,
    /// They are refused, for as long as it is down.
    Reject,
    /// Nothing.
    Nothing,
}

/// What is done when the gate is up again.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OnUp {
    /// Whether the gate is opened, and what is held released. `true` where it is left out.
    pub release: Option<At<bool>>,
    /// No faster than this: `500/s`. As fast as the listener takes it where it is left out.
    pub rate: Option<At<String>>,
}
