//! What one interface has, and what it would get.

use gate_common::abi::Direction;

use crate::attach::{self, Attachment, By};
use crate::filters;
use crate::hooks::{self, Hook, HookChoice, Plan};
use crate::interfaces::{Interface, Kind};
use crate::netdev;
use crate::pins::Pins;
use crate::sys;

/// A program that gate did not attach, or that can't be told from gate's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// Where it is.
    pub hook: Hook,
    /// How it was attached.
    pub by: By,
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: u32,
}

/// An interface.
#[derive(Clone, Debug)]
pub struct Examined {
    /// The interface.
    pub interface: Interface,
    /// Gate's hooks on it; none where that can't be told for lack of rights.
    pub attached: Option<Vec<(Hook, By)>>,
    /// The programs of others.
    pub others: Vec<Other>,
    /// What `gate up` would take there, or why nothing.
    pub plan: Result<Plan, String>,
    /// Whether its driver says that it has native XDP, where that matters and it says anything.
    pub native_xdp: Option<bool>,
    /// Whether XDP would not see the VLAN tags of what comes in.
    pub strips_tags: bool,
}

/// Gate's attachments in this network namespace; none where they can't be told.
pub fn attachments(pins: Option<&Pins>) -> Option<Vec<Attachment>> {
    attach::attachments(pins?).ok()
}

/// Examines an interface of those that there are.
pub fn examine(
    interface: &Interface,
    all: &[Interface],
    attachments: Option<&[Attachment]>,
) -> Examined {
    let own: Option<Vec<&Attachment>> = attachments.map(|attachments| {
        let here = attachments
            .iter()
            .filter(|it| it.ifindex == interface.index);
        here.filter(|it| it.is_live()).collect()
    });
    let is_own = |id: u32| own.iter().flatten().any(|it| it.program == id);
    let others: Vec<Other> = programs(interface)
        .into_iter()
        .filter(|other| !is_own(other.id))
        .collect();
    let foreign = others
        .iter()
        .find(|other| other.by == By::Xdp)
        .map(|other| format!("{} (id {})", other.name, other.id));
    let plan = hooks::plan(HookChoice::Auto, interface, all, foreign.as_deref())
        .map_err(|error| error.to_string());
    let takes_xdp = plan.as_ref().is_ok_and(takes_xdp);
    Examined {
        attached: own.map(|own| {
            let live = own.iter().filter_map(|it| Some((it.hook?, it.by)));
            live.collect()
        }),
        native_xdp: takes_xdp
            .then(|| netdev::native_xdp(interface.index))
            .flatten(),
        strips_tags: takes_xdp && interface.strips_tags(),
        interface: interface.clone(),
        others,
        plan,
    }
}

fn takes_xdp(plan: &Plan) -> bool {
    plan.hooks.iter().any(|hook| matches!(hook, Hook::Xdp(_)))
}

/// All programs on an interface that this process can see.
fn programs(interface: &Interface) -> Vec<Other> {
    let mut found = Vec::new();
    if let Some((mode, id)) = interface.xdp {
        found.push(Other {
            hook: Hook::Xdp(mode),
            by: By::Xdp,
            name: attach::program_name(id),
            id,
        });
    }
    for direction in [Direction::Ingress, Direction::Egress] {
        let hook = Hook::Tc(direction);
        let tcx = sys::tcx_programs(interface.index, direction);
        found.extend(tcx.ok().flatten().into_iter().flatten().map(|id| Other {
            hook,
            by: By::Tcx,
            name: attach::program_name(id),
            id,
        }));
        let filters = filters::list(interface.index, direction).unwrap_or_default();
        found.extend(filters.into_iter().map(|filter| Other {
            hook,
            by: By::Clsact,
            name: filter.name,
            id: filter.program,
        }));
    }
    found
}

impl Examined {
    /// The hooks that gate has there, or that it would take.
    #[must_use]
    pub fn hooks(&self) -> Vec<Hook> {
        match &self.attached {
            Some(attached) if !attached.is_empty() => {
                attached.iter().map(|(hook, _)| *hook).collect()
            }
            _ => self
                .plan
                .as_ref()
                .map_or_else(|_| Vec::new(), |plan| plan.hooks.clone()),
        }
    }

    /// Whether gate is attached there.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.attached.as_ref().is_some_and(|it| !it.is_empty())
    }

    /// What is worse there than on another NIC.
    #[must_use]
    pub fn limit(&self) -> Option<String> {
        if self.is_attached() || self.interface.kind != Kind::Nic {
            return None;
        }
        let plan = self.plan.as_ref().ok()?;
        let reason = match (&plan.reason, self.native_xdp) {
            (Some(reason), _) => reason,
            (None, Some(false)) => "its driver tells of no native XDP",
            (None, _) => return None,
        };
        let name = &self.interface.name;
        Some(format!(
            "{name}: TC, where a packet costs more than with XDP: {reason}"
        ))
    }
}
