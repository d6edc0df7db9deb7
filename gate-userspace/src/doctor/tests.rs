use super::*;
use crate::features::FEATURES;
use crate::hooks::{self, HookChoice};
use crate::interfaces::{Interface, Kind, XdpMode};

fn examined(kind: Kind, foreign: Option<&str>, native_xdp: Option<bool>) -> Examined {
    let interface = Interface::example(kind);
    let plan = hooks::plan(HookChoice::Auto, &interface, &[], foreign).expect("a plan");
    Examined {
        interface,
        attached: Some(Vec::new()),
        others: Vec::new(),
        plan: Ok(plan),
        native_xdp,
        strips_tags: false,
    }
}

/// A host where all is well, but for the features that are not `Present`.
fn findings(exceptions: &[(Probe, State)]) -> Findings {
    let state = |probe| {
        let exception = exceptions.iter().find(|(other, _)| *other == probe);
        exception.map_or(State::Present, |(_, state)| *state)
    };
    let features = FEATURES.iter().map(|feature| Found {
        feature,
        state: state(feature.probe),
    });
    Findings {
        missing_rights: Vec::new(),
        host: Host {
            release: "6.1.0-18-amd64".to_owned(),
            bpffs: vec![crate::pins::BPFFS.into()],
            ..Host::default()
        },
        pins: None,
        features: features.collect(),
        load: Load::Loads(4),
        interfaces: vec![examined(Kind::Nic, None, Some(true))],
    }
}

/// The last line, what `--json` says of it, and the exit code.
fn end(findings: &Findings) -> (String, Option<bool>, u8) {
    let text = words(findings);
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "{line}");
        assert_eq!(line, line.trim_end(), "{text}");
    }
    let last = text.split("\n\n").last().expect("a paragraph");
    let last = last.split_whitespace().collect::<Vec<_>>().join(" ");
    let json = json(findings);
    assert_eq!(json["verdict"], last.as_str());
    (
        last,
        json["works"].as_bool(),
        findings.verdict().exit_code(),
    )
}

#[test]
fn where_all_is_there_gate_works() {
    let all = findings(&[(Probe::Clsact, State::Unneeded)]);
    assert_eq!(end(&all), ("gate works here".to_owned(), Some(true), 0));
    assert!(words(&all).contains("What will degrade, and how?\n  nothing\n"));
}

#[test]
fn what_something_else_does_as_well_is_no_limit() {
    let old = findings(&[
        (Probe::Tcx, State::Absent),
        (Probe::CgroupMemory, State::Absent),
        (Probe::LinearSyn, State::Absent),
    ]);
    assert_eq!(end(&old).0, "gate works here");
    let text = words(&old);
    for word in ["clsact filters", "locked memory", "1, 3 and 7 s"] {
        assert!(text.contains(word), "no {word} in {text}");
    }
}

#[test]
fn each_limit_is_told_and_counted() {
    let mut limited = findings(&[
        (Probe::Barrier, State::Absent),
        (Probe::Jit, State::Absent),
        // Refused for a right that the others don't include.
        (Probe::RawSocket, State::Forbidden),
        // Not known to be missing.
        (Probe::SockDiag, State::Unknown(libc::ENOBUFS)),
    ]);
    let text = words(&limited);
    for word in [
        "20 ms longer",
        "interpreted",
        "`gate restart` of an address",
        "it fails: No buffer",
    ] {
        assert!(text.contains(word), "no {word} in {text}");
    }
    assert_eq!(
        end(&limited),
        ("gate works here, with 3 limits".to_owned(), Some(true), 0)
    );
    limited.features.truncate(0);
    limited.interfaces = vec![examined(Kind::Nic, Some("other (id 3)"), None)];
    assert_eq!(end(&limited).0, "gate works here, with 1 limit");
    assert!(words(&limited).contains("another XDP program is there, other (id 3)"));
}

#[test]
fn locked_memory_is_a_limit_only_where_it_counts_and_can_not_be_raised() {
    for (state, limit, is_limit) in [
        (State::Absent, Some(65_536), true),
        (State::Absent, None, false),
        (State::Present, Some(65_536), false),
    ] {
        let mut findings = findings(&[(Probe::CgroupMemory, state)]);
        findings.host.locked_memory = limit;
        let told = findings
            .limits()
            .iter()
            .any(|limit| limit.contains("64 KiB"));
        assert_eq!(told, is_limit, "{state:?} {limit:?}");
        assert_eq!(findings.verdict() == Verdict::Limited, is_limit);
    }
}

#[test]
fn an_old_kernel_is_refused_by_the_name_of_what_it_lacks() {
    let mut old = findings(&[
        (Probe::XdpLink, State::Absent),
        (Probe::RingBuffer, State::Absent),
    ]);
    old.load = Load::Untried;
    let (last, works, code) = end(&old);
    assert_eq!(
        last,
        "gate does not work here: this kernel (6.1.0-18-amd64) lacks XDP links, which came with \
         Linux 5.9: upgrade it (and 1 more, above)"
    );
    assert_eq!((works, code), (Some(false), 1));
}

#[test]
fn what_is_in_the_way_of_pins_or_programs_is_an_obstacle() {
    let mut without = findings(&[]);
    without.pins = Some("no bpffs at /sys/fs/bpf: mount it".to_owned());
    without.host.bpffs = vec!["/run/bpf".into()];
    let (last, _, code) = end(&without);
    assert_eq!(
        last,
        "gate does not work here: no bpffs at /sys/fs/bpf: mount it"
    );
    assert_eq!(code, 1);
    assert!(words(&without).contains("the one at /run/bpf is not used"));

    let mut refused = findings(&[]);
    refused.load = Load::Refused("load program gate_xdp: too large".to_owned());
    assert_eq!(
        end(&refused).0,
        "gate does not work here: load program gate_xdp: too large"
    );
}

#[test]
fn without_rights_nothing_is_concluded() {
    let mut nobody = findings(&[
        (Probe::RingBuffer, State::Forbidden),
        (Probe::RawSocket, State::Forbidden),
    ]);
    nobody.missing_rights = vec!["user root", "CAP_BPF"];
    nobody.load = Load::Untried;
    nobody.interfaces[0].attached = None;
    let (last, works, code) = end(&nobody);
    assert!(
        last.ends_with("missing rights (user root, CAP_BPF): run it as root"),
        "{last}"
    );
    assert_eq!((works, code), (None, 4));
    assert_eq!(nobody.limits(), [] as [&str; 0]);
}

#[test]
fn a_refusal_in_spite_of_all_capabilities_is_told_as_such() {
    let mut contained = findings(&[(Probe::RingBuffer, State::Forbidden)]);
    contained.load = Load::Forbidden;
    let (last, _, code) = end(&contained);
    assert!(last.contains("seccomp"), "{last}");
    assert_eq!(code, 4);
}

#[test]
fn a_nic_shows_what_its_driver_says() {
    for (native, hook, is_limit) in [
        (
            Some(true),
            "xdp, or tc-ingress (tcx) where the driver refuses that",
            false,
        ),
        (
            None,
            "xdp, or tc-ingress (tcx) where the driver refuses that",
            false,
        ),
        (Some(false), "MTU 1500  tc-ingress (tcx)", true),
    ] {
        let mut findings = findings(&[]);
        findings.interfaces = vec![examined(Kind::Nic, None, native)];
        assert!(words(&findings).contains(hook), "{}", words(&findings));
        assert_eq!(findings.verdict() == Verdict::Limited, is_limit);
    }
}

#[test]
fn what_gate_has_attached_is_shown_instead_of_a_plan() {
    let mut findings = findings(&[]);
    let one = &mut findings.interfaces[0];
    one.attached = Some(vec![(hooks::Hook::Xdp(XdpMode::Native), By::Xdp)]);
    one.native_xdp = Some(false);
    let text = words(&findings);
    assert!(text.contains("MTU 1500  attached, xdp\n"), "{text}");
    assert_eq!(findings.verdict(), Verdict::Works);
}

#[test]
fn programs_of_others_are_named() {
    let mut findings = findings(&[]);
    let other = Other {
        hook: hooks::Hook::Xdp(XdpMode::Generic),
        by: By::Xdp,
        name: "theirs".to_owned(),
        id: 7,
    };
    findings.interfaces[0].others = vec![other];
    let text = words(&findings);
    assert!(
        text.contains("another's program is at xdp-generic: theirs (id 7)"),
        "{text}"
    );
    // Without rights gate's own can't be told from others'.
    findings.interfaces[0].attached = None;
    assert!(words(&findings).contains("gate's or another's"));
}
