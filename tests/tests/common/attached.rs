//! Which programs are attached.

use gate_common::abi::Direction;
use gate_tests::topology::{Side, Topology};
use gate_userspace::filters;
use gate_userspace::interfaces::{self, XdpMode};
use gate_userspace::sys;

/// The programs on an interface.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// By mode and id.
    pub xdp: Option<(XdpMode, u32)>,
    /// On TC ingress and egress, by id.
    pub tc: [Vec<u32>; 2],
}

impl Attached {
    pub fn is_any(&self) -> bool {
        *self != Self::default()
    }
}

/// The programs on an interface of the server, as the kernel tells.
pub fn attached(topology: &Topology, interface: &str) -> Attached {
    let found = topology.run(Side::Server, || {
        let all = interfaces::list()?;
        let found = interfaces::named(&all, interface)?;
        let tc = |direction| {
            let mut ids = sys::tcx_programs(found.index, direction)?.unwrap_or_default();
            let filters = filters::list(found.index, direction)?;
            ids.extend(filters.into_iter().map(|filter| filter.program));
            anyhow::Ok(ids)
        };
        Ok(Attached {
            xdp: found.xdp,
            tc: [tc(Direction::Ingress)?, tc(Direction::Egress)?],
        })
    });
    found.unwrap()
}
