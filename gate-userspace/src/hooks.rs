//! Which hooks an interface gets.

use std::fmt;

use clap::ValueEnum;
use gate_common::abi::Direction;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::interfaces::{Interface, Kind, Layer, XdpMode};

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// XDP, which sees what comes in.
    Xdp(XdpMode),
    /// TC, for what comes in or for what goes out.
    Tc(Direction),
}

/// A place for one program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// XDP in any mode.
    Xdp,
    /// TC ingress.
    TcIngress,
    /// TC egress.
    TcEgress,
}

impl Slot {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Xdp, Self::TcIngress, Self::TcEgress];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::TcIngress => "tc-ingress",
            Self::TcEgress => "tc-egress",
        }
    }

    /// The object's program for it.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::Xdp => "gate_xdp",
            Self::TcIngress => "gate_tc_ingress",
            Self::TcEgress => "gate_tc_egress",
        }
    }

    /// Which way it looks.
    #[must_use]
    pub const fn direction(self) -> Direction {
        match self {
            Self::Xdp | Self::TcIngress => Direction::Ingress,
            Self::TcEgress => Direction::Egress,
        }
    }
}

impl Hook {
    /// The place that it takes.
    #[must_use]
    pub const fn slot(self) -> Slot {
        match self {
            Self::Xdp(_) => Slot::Xdp,
            Self::Tc(Direction::Ingress) => Slot::TcIngress,
            Self::Tc(Direction::Egress) => Slot::TcEgress,
        }
    }
}

impl Hook {
    /// How it is asked for by name.
    #[must_use]
    pub const fn choice(self) -> HookChoice {
        match self {
            Self::Xdp(XdpMode::Native | XdpMode::Offloaded) => HookChoice::Xdp,
            Self::Xdp(XdpMode::Generic) => HookChoice::XdpGeneric,
            Self::Tc(Direction::Ingress) => HookChoice::TcIngress,
            Self::Tc(Direction::Egress) => HookChoice::TcEgress,
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Xdp(XdpMode::Native) => "xdp",
            Self::Xdp(XdpMode::Generic) => "xdp-generic",
            Self::Xdp(XdpMode::Offloaded) => "xdp-offloaded",
            Self::Tc(_) => self.slot().name(),
        })
    }
}

/// Where an interface is attached to, as the command line and the configuration ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum HookChoice {
    /// What costs nothing there: xdp on a NIC, tc elsewhere.
    Auto,
    /// In the NIC's driver, for what comes in.
    Xdp,
    /// XDP in the stack: slow, and asked for by name only.
    XdpGeneric,
    /// TC both ways.
    Tc,
    /// TC for what comes in.
    TcIngress,
    /// TC for what goes out, as to a backend on another host.
    TcEgress,
}

impl HookChoice {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Xdp => "xdp",
            Self::XdpGeneric => "xdp-generic",
            Self::Tc => "tc",
            Self::TcIngress => "tc-ingress",
            Self::TcEgress => "tc-egress",
        }
    }
}

/// The hooks for one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The hooks.
    pub hooks: Vec<Hook>,
    /// The hooks to take where the kernel refuses those.
    pub fallback: Option<Vec<Hook>>,
    /// Why it is not what one would expect.
    pub reason: Option<String>,
}

const IN: Hook = Hook::Tc(Direction::Ingress);
const OUT: Hook = Hook::Tc(Direction::Egress);

/// Plans the hooks of an interface. `all` are the namespace's interfaces; `foreign` names the XDP
/// program on it, where that is another's.
///
/// # Errors
/// [`Error::Impossible`] where the interface can't take what was asked for.
pub fn plan(
    choice: HookChoice,
    interface: &Interface,
    all: &[Interface],
    foreign: Option<&str>,
) -> Result<Plan> {
    let impossible = |why: &'static str, instead: &'static str| Error::Impossible {
        interface: interface.name.clone(),
        why,
        instead,
    };
    if interface.layer == Layer::Unknown {
        let why = "its frames begin with neither an Ethernet nor an IP header";
        return Err(impossible(why, "gate another interface on the way"));
    }
    let exactly = |hooks: &[Hook]| Plan {
        hooks: hooks.to_vec(),
        fallback: None,
        reason: None,
    };
    let xdp = |mode| match (interface.kind, interface.layer) {
        (Kind::Loopback, _) => Err(impossible(
            "XDP would copy every packet on loopback",
            "use --hook tc-ingress",
        )),
        (_, Layer::Network) => Err(impossible(
            "its frames have no Ethernet header, and XDP needs one",
            "use --hook tc",
        )),
        _ => Ok(exactly(&[Hook::Xdp(mode)])),
    };
    match choice {
        HookChoice::Xdp => xdp(XdpMode::Native),
        HookChoice::XdpGeneric => xdp(XdpMode::Generic),
        HookChoice::TcIngress => Ok(exactly(&[IN])),
        HookChoice::TcEgress | HookChoice::Tc if interface.kind == Kind::Loopback => {
            match choice {
                // What goes out there comes in there.
                HookChoice::Tc => Ok(exactly(&[IN])),
                _ => Err(impossible(
                    "what leaves by loopback comes in there too",
                    "use --hook tc-ingress",
                )),
            }
        }
        HookChoice::TcEgress => Ok(exactly(&[OUT])),
        HookChoice::Tc => Ok(exactly(&[IN, OUT])),
        HookChoice::Auto => Ok(auto(interface, all, foreign)),
    }
}

fn auto(interface: &Interface, all: &[Interface], foreign: Option<&str>) -> Plan {
    let tc = |hooks: &[Hook], reason: Option<String>| Plan {
        hooks: hooks.to_vec(),
        fallback: None,
        reason,
    };
    match (interface.kind, interface.layer) {
        (Kind::Loopback, _) => return tc(&[IN], None),
        (Kind::Nic, Layer::Ethernet) => {}
        _ => return tc(&[IN, OUT], None),
    }
    if let Some(program) = foreign {
        return tc(
            &[IN],
            Some(format!("another XDP program is there, {program}")),
        );
    }
    if let Some(above) = shares_frames(interface, all) {
        let reason = format!("XDP can't tell this host's frames from those of {above}");
        return tc(&[IN], Some(reason));
    }
    if let Some(above) = needs_tags(interface, all)
        && interface.strips_tags()
    {
        let reason = format!("it takes off the VLAN tags that {above} needs before XDP");
        return tc(&[IN], Some(reason));
    }
    Plan {
        hooks: vec![Hook::Xdp(XdpMode::Native)],
        fallback: Some(vec![IN]),
        reason: None,
    }
}

/// Who else gets frames that come in here: the bridge that the interface is a port of, or a
/// virtual interface with an address of its own upon it (macvlan and its like).
fn shares_frames<'a>(interface: &Interface, all: &'a [Interface]) -> Option<&'a str> {
    let above = all.iter().find(|other| {
        let is_bridge = other.kind == Kind::Bridge && interface.controller == Some(other.index);
        let is_upon = other.kind == Kind::Virtual && other.lower == Some(interface.index);
        is_bridge || is_upon
    });
    above.map(|above| above.name.as_str())
}

/// Who needs the VLAN tags of what comes in: a VLAN of the interface, or the bridge or bond that it
/// is a member of.
fn needs_tags<'a>(interface: &Interface, all: &'a [Interface]) -> Option<&'a str> {
    let above = all.iter().find(|other| {
        let is_vlan = other.kind == Kind::Vlan && other.lower == Some(interface.index);
        is_vlan || interface.controller == Some(other.index)
    });
    above.map(|above| above.name.as_str())
}

/// Why a driver refused native XDP with this error, in words.
#[must_use]
pub fn refusal(errno: Option<i32>, mtu: u32) -> String {
    /// Ethernet's usual largest packet, which every driver that has XDP takes.
    const USUAL_MTU: u32 = 1500;
    match errno {
        Some(libc::EOPNOTSUPP) => "its driver has no native XDP".to_owned(),
        Some(libc::EINVAL | libc::ERANGE | libc::E2BIG) if mtu > USUAL_MTU => {
            format!("its driver refuses native XDP with an MTU of {mtu}")
        }
        Some(libc::ENOMEM | libc::ENOSPC) => {
            "its driver has too few queues for native XDP".to_owned()
        }
        Some(libc::EBUSY | libc::EEXIST) => "another XDP program is there".to_owned(),
        Some(errno) => format!(
            "its driver refuses native XDP: {}",
            std::io::Error::from_raw_os_error(errno)
        ),
        None => "its driver refuses native XDP".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(kind: Kind, layer: Layer) -> Interface {
        Interface {
            index: 7,
            name: "some".to_owned(),
            layer,
            ..Interface::example(kind)
        }
    }

    #[test]
    fn auto_takes_what_costs_nothing() {
        let hooks = |kind, layer, foreign| {
            let plan = auto(&interface(kind, layer), &[], foreign);
            let names: Vec<String> = plan.hooks.iter().map(ToString::to_string).collect();
            (names.join(" "), plan.fallback.is_some(), plan.reason)
        };
        let tc = "tc-ingress tc-egress".to_owned();
        for kind in [Kind::Veth, Kind::Bridge, Kind::Vlan, Kind::Virtual] {
            assert_eq!(
                hooks(kind, Layer::Ethernet, None),
                (tc.clone(), false, None)
            );
        }
        let loopback = hooks(Kind::Loopback, Layer::Ethernet, None);
        assert_eq!(loopback, ("tc-ingress".to_owned(), false, None));
        let nic = hooks(Kind::Nic, Layer::Ethernet, None);
        assert_eq!(nic, ("xdp".to_owned(), true, None));
        assert_eq!(hooks(Kind::Nic, Layer::Network, None), (tc, false, None));
        let (names, _, reason) = hooks(Kind::Nic, Layer::Ethernet, Some("other (id 3)"));
        assert_eq!(names, "tc-ingress");
        assert_eq!(
            reason.as_deref(),
            Some("another XDP program is there, other (id 3)")
        );
    }

    #[test]
    fn a_nic_whose_frames_are_not_all_this_host_s_gets_tc() {
        let mut nic = interface(Kind::Nic, Layer::Ethernet);
        let mut above = interface(Kind::Bridge, Layer::Ethernet);
        above.index = 8;
        nic.controller = Some(8);
        let plan = auto(&nic, &[above], None);
        assert_eq!(plan.hooks, [IN]);
        assert!(plan.reason.is_some());
        nic.controller = None;
        let mut upon = interface(Kind::Virtual, Layer::Ethernet);
        upon.lower = Some(nic.index);
        assert_eq!(auto(&nic, &[upon], None).hooks, [IN]);
    }

    #[test]
    fn what_an_interface_can_not_take_is_refused() {
        for (choice, kind, layer) in [
            (HookChoice::Xdp, Kind::Loopback, Layer::Ethernet),
            (HookChoice::XdpGeneric, Kind::Loopback, Layer::Ethernet),
            (HookChoice::TcEgress, Kind::Loopback, Layer::Ethernet),
            (HookChoice::Xdp, Kind::Virtual, Layer::Network),
            (HookChoice::Auto, Kind::Nic, Layer::Unknown),
        ] {
            let refused = plan(choice, &interface(kind, layer), &[], None);
            assert!(
                matches!(refused, Err(Error::Impossible { .. })),
                "{choice:?} on {kind:?}"
            );
        }
        let loopback = interface(Kind::Loopback, Layer::Ethernet);
        let both = plan(HookChoice::Tc, &loopback, &[], None).expect("a plan");
        assert_eq!(both.hooks, [IN]);
    }

    #[test]
    fn refusals_are_told_in_words() {
        assert!(refusal(Some(libc::EOPNOTSUPP), 1500).contains("no native XDP"));
        assert!(refusal(Some(libc::EINVAL), 9000).contains("MTU of 9000"));
        assert!(refusal(Some(libc::ENOMEM), 1500).contains("queues"));
    }
}
