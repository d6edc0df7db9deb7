//! What one gate of a file says, in the words of the library.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

use gate_common::handover::MAX_SHARES;

use super::check;
use super::error::{Place, Problems};
use super::file::{self, At};
use super::shape::short;
use super::{
    BackendConfig, DefaultMode, Down, GateConfig, Interfaces, LEASE_MAX, LEASE_MIN, OnDown, OnUp,
};
use crate::allow::Cidr;
use crate::endpoint::Endpoint;
use crate::gates::GateName;
use crate::hooks::HookChoice;
use crate::release::Rate;

/// How long connections are held where nothing else is said.
const MAX_HOLD: Duration = Duration::from_secs(15);

/// A gate as one file has it, with the places of what can collide with other gates.
#[derive(Debug)]
pub(super) struct Draft {
    pub name: GateName,
    pub place: Place,
    pub config: GateConfig,
    pub endpoints: Vec<(Endpoint, Place)>,
    /// Where the hook was chosen, be it for all gates.
    pub hook: Option<Place>,
}

/// What a gate and the defaults may both say, each as far as it is said.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    interfaces: Option<BTreeSet<String>>,
    hook: Option<(HookChoice, Place)>,
    mode: Option<DefaultMode>,
    max_hold: Option<Duration>,
    allow: Option<Vec<Cidr>>,
    on_down: Option<(OnDown, Place)>,
    on_up: Option<OnUp>,
}

impl Said {
    /// What this says, or else the other.
    fn or(self, other: &Self) -> Self {
        let other = other.clone();
        Self {
            interfaces: self.interfaces.or(other.interfaces),
            hook: self.hook.or(other.hook),
            mode: self.mode.or(other.mode),
            max_hold: self.max_hold.or(other.max_hold),
            allow: self.allow.or(other.allow),
            on_down: self.on_down.or(other.on_down),
            on_up: self.on_up.or(other.on_up),
        }
    }
}

/// One file on its way.
pub(super) struct Reading<'a> {
    pub problems: &'a mut Problems,
    pub file: usize,
}

impl Reading<'_> {
    pub(super) fn place(&self, bytes: &Range<usize>) -> Place {
        Place::new(self.file, bytes)
    }

    pub(super) fn tell(&mut self, bytes: &Range<usize>, text: impl Into<String>) {
        self.problems.add(self.place(bytes), text);
    }

    /// A text as what it stands for.
    pub(super) fn parse<T: FromStr>(&mut self, text: &At<String>) -> Option<T>
    where
        T::Err: Display,
    {
        match text.value.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.tell(&text.bytes, error.to_string());
                None
            }
        }
    }

    /// All of a list, each once.
    fn list<T: FromStr + PartialEq>(&mut self, all: &At<Vec<At<String>>>) -> Vec<(T, Place)>
    where
        T::Err: Display,
    {
        let mut list: Vec<(T, Place)> = Vec::new();
        for text in &all.value {
            let Some(value) = self.parse::<T>(text) else {
                continue;
            };
            match list.iter().find(|(other, _)| *other == value) {
                Some(_) => {
                    let told = format!("{} is given twice: leave one out", short(&text.value));
                    self.tell(&text.bytes, told);
                }
                None => list.push((value, self.place(&text.bytes))),
            }
        }
        list
    }

    /// A time, from the one to the other.
    pub(super) fn time(
        &mut self,
        text: &At<String>,
        (least, most): (Duration, Duration),
    ) -> Option<Duration> {
        let shown = short(&text.value);
        match humantime::parse_duration(&text.value) {
            Ok(time) if (least..=most).contains(&time) => Some(time),
            Ok(_) => {
                let (least, most) = (
                    humantime::format_duration(least),
                    humantime::format_duration(most),
                );
                let told = format!("{shown} is out of range: write {least} to {most}");
                self.tell(&text.bytes, told);
                None
            }
            Err(_) => {
                let told = format!("\"{shown}\" is no time: write it like 500ms, 15s or 2m");
                self.tell(&text.bytes, told);
                None
            }
        }
    }

    /// What may stand in the defaults as well.
    pub(super) fn said(&mut self, it: &file::Settings) -> Said {
        let interfaces = it.interfaces.as_ref().map(|all| self.interfaces(all));
        let hook = it.hook.as_ref();
        Said {
            interfaces,
            hook: hook.map(|it| (it.value, self.place(&it.bytes))),
            mode: it.mode.as_ref().map(|it| match it.value {
                file::Mode::Open => DefaultMode::Open,
                file::Mode::Guard => DefaultMode::Guard,
            }),
            max_hold: it
                .max_hold
                .as_ref()
                .and_then(|it| self.time(it, (LEASE_MIN, LEASE_MAX))),
            allow: it.allow.as_ref().map(|all| {
                let list = self.list::<Cidr>(all);
                list.into_iter().map(|(source, _)| source).collect()
            }),
            on_down: it.on_down.as_ref().map(|it| {
                let down = OnDown {
                    new: match it.value.new.as_ref().map(|it| it.value) {
                        None | Some(file::Down::Hold) => Down::Hold,
                        Some(file::Down::Reject) => Down::Reject,
                        Some(file::Down::Nothing) => Down::Nothing,
                    },
                    flush: it.value.flush.as_ref().is_some_and(|it| it.value),
                };
                (down, self.place(&it.bytes))
            }),
            on_up: it.on_up.as_ref().map(|it| self.on_up(&it.value)),
        }
    }

    fn on_up(&mut self, it: &file::OnUp) -> OnUp {
        let release = it.release.as_ref().is_none_or(|it| it.value);
        if let (false, Some(rate)) = (release, &it.rate) {
            let told = "a rate goes with release = true only: leave one of them out";
            self.tell(&rate.bytes, told);
        }
        let rate = it.rate.as_ref().and_then(|text| {
            let rate = text.value.parse::<Rate>().ok();
            if rate.is_none() {
                let shown = short(&text.value);
                let told = format!(
                    "\"{shown}\" is no rate: write connections a second, at least 1, as in 500/s"
                );
                self.tell(&text.bytes, told);
            }
            rate
        });
        OnUp { release, rate }
    }

    fn interfaces(&mut self, all: &At<Vec<At<String>>>) -> BTreeSet<String> {
        if all.value.is_empty() {
            let told = "no interface is named: name one, or leave `interfaces` out";
            self.tell(&all.bytes, told);
        }
        let names = self.list::<InterfaceName>(all);
        names.into_iter().map(|(name, _)| name.0).collect()
    }

    /// One gate.
    pub(super) fn gate(
        &mut self,
        (name, gate): (&At<String>, file::Gate),
        defaults: &Said,
    ) -> Option<Draft> {
        let place = self.place(&name.bytes);
        let parsed = self.parse::<GateName>(name);
        let own = file::Settings {
            interfaces: gate.interfaces,
            hook: gate.hook,
            mode: gate.mode,
            max_hold: gate.max_hold,
            allow: gate.allow,
            on_down: gate.on_down,
            on_up: gate.on_up,
        };
        let said = self.said(&own);
        let endpoints = gate
            .endpoints
            .map_or(Vec::new(), |all| self.endpoints(&all));
        let backends = gate.backends.map_or(Vec::new(), |all| {
            let own = endpoints.iter().map(|(endpoint, _)| *endpoint).collect();
            self.backends(&all, &own)
        });
        let checks = gate.check.map_or(Vec::new(), |all| {
            let all = all.value.iter();
            all.filter_map(|it| check::read(self, it)).collect()
        });
        if checks.is_empty() {
            self.without_check(&said, &own);
        }
        let said = said.or(defaults);
        self.contradictions(&said, &own, &place);
        let down = match checks.is_empty() {
            true => (Down::Nothing, false),
            false => said
                .on_down
                .map_or((Down::Hold, false), |(it, _)| (it.new, it.flush)),
        };
        Some(Draft {
            name: parsed?,
            place,
            config: GateConfig {
                endpoints: endpoints.iter().map(|(endpoint, _)| *endpoint).collect(),
                interfaces: said.interfaces.map_or(Interfaces::Auto, Interfaces::Named),
                hook: said.hook.as_ref().map_or(HookChoice::Auto, |(it, _)| *it),
                mode: said.mode.unwrap_or(DefaultMode::Open),
                max_hold: said.max_hold.unwrap_or(MAX_HOLD),
                allow: said.allow.unwrap_or_default(),
                checks,
                on_down: OnDown {
                    new: down.0,
                    flush: down.1,
                },
                on_up: said.on_up.unwrap_or(OnUp {
                    release: true,
                    rate: None,
                }),
                backends,
            },
            endpoints,
            hook: said.hook.map(|(_, place)| place),
        })
    }

    /// What a gate's own words ask for that needs a check.
    fn without_check(&mut self, said: &Said, own: &file::Settings) {
        if let Some((down, place)) = &said.on_down
            && (down.new != Down::Nothing || down.flush)
        {
            let told = "without a check nobody knows that the gate is down: add [[gate.NAME.check]], \
                        or leave on_down out";
            self.problems.add(place.clone(), told);
        }
        if let Some(up) = &own.on_up {
            let told = "without a check nobody knows that the gate is up: add [[gate.NAME.check]], or \
                        leave on_up out";
            self.tell(&up.bytes, told);
        }
    }

    fn contradictions(&mut self, said: &Said, own: &file::Settings, gate: &Place) {
        let Some((hook, _)) = &said.hook else {
            return;
        };
        let place = own.hook.as_ref().map(|it| self.place(&it.bytes));
        let place = place.unwrap_or_else(|| gate.clone());
        if said.mode == Some(DefaultMode::Guard) && *hook == HookChoice::TcEgress {
            let told = "a guard sees what comes in, and the hook tc-egress what goes out: take the hook \
                        tc, or mode = \"open\"";
            self.problems.add(place.clone(), told);
        }
        let needs_name = !matches!(hook, HookChoice::Auto | HookChoice::Tc);
        if needs_name && said.interfaces.is_none() {
            let told = "only the hooks auto and tc suit every interface: name those that are meant, as in \
                        interfaces = [\"eth0\"]";
            self.problems.add(place, told);
        }
    }

    fn endpoints(&mut self, all: &At<Vec<At<String>>>) -> Vec<(Endpoint, Place)> {
        if all.value.is_empty() {
            let told = "a gate needs an endpoint: write endpoints = [\"10.0.0.5:80\"]";
            self.tell(&all.bytes, told);
        }
        let list = self.list::<Endpoint>(all);
        let wildcards: BTreeMap<u16, Place> = list
            .iter()
            .filter(|(endpoint, _)| endpoint.address.is_none())
            .map(|(endpoint, place)| (endpoint.port, place.clone()))
            .collect();
        for (endpoint, place) in &list {
            if endpoint.address.is_some()
                && let Some(other) = wildcards.get(&endpoint.port)
            {
                let other = self.problems.name(other);
                let told = format!(
                    "{endpoint} is one of the addresses that *:{} stands for ({other}): leave one of \
                     them out",
                    endpoint.port
                );
                self.problems.add(place.clone(), told);
            }
        }
        list
    }

    fn backends(
        &mut self,
        all: &At<Vec<At<file::Backend>>>,
        own: &BTreeSet<Endpoint>,
    ) -> Vec<BackendConfig> {
        if all.value.is_empty() {
            let told = "no backend is named: name one, or leave `backends` out";
            self.tell(&all.bytes, told);
        }
        if all.value.len() > MAX_SHARES {
            let told = format!(
                "{} backends are too many: {MAX_SHARES} at the most share a gate",
                all.value.len()
            );
            self.tell(&all.bytes, told);
        }
        let mut backends: Vec<BackendConfig> = Vec::new();
        for it in &all.value {
            let Some(text) = &it.value.address else {
                continue;
            };
            let Some(address) = self.parse::<Endpoint>(text) else {
                continue;
            };
            if backends.iter().any(|other| other.address == address) {
                let told = format!("{address} is given twice: add its weights up");
                self.tell(&text.bytes, told);
            }
            let weight = it.value.weight.as_ref().map_or(1, |it| it.value);
            backends.push(BackendConfig { address, weight });
        }
        let is_own = |it: &BackendConfig| own.iter().any(|own| own.meets(it.address));
        if !backends.is_empty() && backends.iter().all(is_own) {
            let told = "that is the gate's own listener, so there is nothing to hand over: leave \
                        `backends` out, or name another";
            self.tell(&all.bytes, told);
        }
        backends
    }
}

/// A name that an interface can have.
#[derive(PartialEq)]
struct InterfaceName(String);

impl FromStr for InterfaceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // As the kernel's dev_valid_name has it.
        let is_name = (1..libc::IFNAMSIZ).contains(&text.len())
            && !matches!(text, "." | "..")
            && !text
                .chars()
                .any(|it| it.is_whitespace() || it.is_control() || matches!(it, '/' | ':'));
        match is_name {
            true => Ok(Self(text.to_owned())),
            false => Err(format!(
                "\"{}\" can't be an interface's name: `ip link` lists them",
                short(text)
            )),
        }
    }
}
