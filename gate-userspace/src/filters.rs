//! BPF filters in a `clsact` qdisc: how TC programs are attached before TCX (Linux 6.6).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};
use netlink_sys::protocols::NETLINK_ROUTE;

use gate_common::abi::Direction;

use crate::netlink;

/// `TC_H_CLSACT`, and its handle.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
/// `TC_H_MAJ(TC_H_CLSACT) | TC_H_MIN_INGRESS`, and `…_EGRESS`.
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

/// Before all filters of other preferences.
const FIRST: u32 = 1;

/// One BPF filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The name that it was given.
    pub name: String,
    /// Its program.
    pub program: u32,
    info: u32,
    handle: TcHandle,
}

fn parent(direction: Direction) -> TcHandle {
    match direction {
        Direction::Ingress => INGRESS.into(),
        Direction::Egress => EGRESS.into(),
    }
}

fn message(ifindex: u32, parent: impl Into<TcHandle>) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = parent.into();
    message
}

/// Makes the interface's `clsact` qdisc; false where there is one (`EEXIST`).
///
/// # Errors
/// The kernel's.
pub fn make_qdisc(ifindex: u32) -> io::Result<bool> {
    let mut message = message(ifindex, CLSACT);
    message.header.handle = CLSACT_HANDLE.into();
    message
        .attributes
        .push(TcAttribute::Kind("clsact".to_owned()));
    let request = RouteNetlinkMessage::NewQueueDiscipline(message);
    match netlink::ask(NETLINK_ROUTE, request, NLM_F_CREATE | NLM_F_EXCL) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the interface has an `ingress` qdisc in the place of `clsact`. It has no egress, and what
/// is added there sees what comes in.
///
/// # Errors
/// The kernel's.
pub fn has_ingress_qdisc(ifindex: u32) -> io::Result<bool> {
    let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let answers = netlink::dump(NETLINK_ROUTE, request)?;
    Ok(answers.iter().any(|answer| match answer {
        RouteNetlinkMessage::NewQueueDiscipline(message) => {
            message.header.index == ifindex.cast_signed()
                && message
                    .attributes
                    .contains(&TcAttribute::Kind("ingress".to_owned()))
        }
        _ => false,
    }))
}

/// Removes the interface's `clsact` qdisc.
///
/// # Errors
/// The kernel's.
pub fn remove_qdisc(ifindex: u32) -> io::Result<()> {
    let mut message = message(ifindex, CLSACT);
    message.header.handle = CLSACT_HANDLE.into();
    let request = RouteNetlinkMessage::DelQueueDiscipline(message);
    netlink::ask(NETLINK_ROUTE, request, 0).map(drop)
}

/// The BPF filters of an interface that has a `clsact` qdisc; none where it has not.
///
/// # Errors
/// The kernel's.
pub fn list(ifindex: u32, direction: Direction) -> io::Result<Vec<Filter>> {
    let request = RouteNetlinkMessage::GetTrafficFilter(message(ifindex, parent(direction)));
    let answers = match netlink::dump(NETLINK_ROUTE, request) {
        // No such qdisc, or no such interface.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => {
            return Ok(Vec::new());
        }
        answers => answers?,
    };
    let filters = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewTrafficFilter(message) => filter(&message),
        _ => None,
    });
    Ok(filters.collect())
}

/// How many filters of any kind an interface has in its `clsact` qdisc.
///
/// # Errors
/// The kernel's.
pub fn count(ifindex: u32) -> io::Result<usize> {
    let mut count = 0;
    for direction in [Direction::Ingress, Direction::Egress] {
        let request = RouteNetlinkMessage::GetTrafficFilter(message(ifindex, parent(direction)));
        count += netlink::dump(NETLINK_ROUTE, request)?.len();
    }
    Ok(count)
}

fn filter(message: &TcMessage) -> Option<Filter> {
    let (mut name, mut program) = (None, None);
    for attribute in &message.attributes {
        let TcAttribute::Options(options) = attribute else {
            continue;
        };
        for option in options {
            match option {
                TcOption::Bpf(TcFilterBpfOption::ProgName(text)) => name = Some(text.clone()),
                TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => program = Some(*id),
                _ => {}
            }
        }
    }
    Some(Filter {
        name: name?,
        program: program?,
        info: message.header.info,
        handle: message.header.handle,
    })
}

/// Adds a filter, first of all.
///
/// # Errors
/// The kernel's: `EINVAL` where a filter of another kind has the first preference. The kernel puts no
/// other before that, and behind it gate sees only what it lets go on.
pub fn add(
    ifindex: u32,
    direction: Direction,
    program: BorrowedFd<'_>,
    name: &str,
) -> io::Result<()> {
    put(ifindex, direction, program, name, FIRST << 16, None)
}

/// Puts another program into a filter, atomically.
///
/// # Errors
/// The kernel's.
pub fn replace(
    ifindex: u32,
    direction: Direction,
    filter: &Filter,
    program: BorrowedFd<'_>,
) -> io::Result<()> {
    put(
        ifindex,
        direction,
        program,
        &filter.name,
        filter.info,
        Some(filter.handle),
    )
}

fn put(
    ifindex: u32,
    direction: Direction,
    program: BorrowedFd<'_>,
    name: &str,
    info: u32,
    existing: Option<TcHandle>,
) -> io::Result<()> {
    let mut message = message(ifindex, parent(direction));
    let protocol = u32::from((libc::ETH_P_ALL as u16).to_be());
    message.header.info = info & 0xffff_0000 | protocol;
    let flags = match existing {
        Some(handle) => {
            message.header.handle = handle;
            0
        }
        None => NLM_F_CREATE | NLM_F_EXCL,
    };
    message.attributes = vec![
        TcAttribute::Kind("bpf".to_owned()),
        TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd() as u32)),
            TcOption::Bpf(TcFilterBpfOption::ProgName(name.to_owned())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]),
    ];
    let request = RouteNetlinkMessage::NewTrafficFilter(message);
    netlink::ask(NETLINK_ROUTE, request, flags).map(drop)
}

/// Removes a filter.
///
/// # Errors
/// The kernel's.
pub fn remove(ifindex: u32, direction: Direction, filter: &Filter) -> io::Result<()> {
    let mut message = message(ifindex, parent(direction));
    message.header.info = filter.info;
    message.header.handle = filter.handle;
    message.attributes = vec![TcAttribute::Kind("bpf".to_owned())];
    let request = RouteNetlinkMessage::DelTrafficFilter(message);
    netlink::ask(NETLINK_ROUTE, request, 0).map(drop)
}
