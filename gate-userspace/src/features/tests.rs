use super::*;

/// What a 4.19 answers to root.
fn linux_4_19(probe: Probe) -> Answer {
    match probe {
        Probe::Bpf | Probe::TestRun => Err(libc::EBADF),
        Probe::XdpLink
        | Probe::LinkDetach
        | Probe::LinkUpdate
        | Probe::MapBatch
        | Probe::GlobalData => Err(libc::EINVAL),
        Probe::RingBuffer | Probe::BootClock | Probe::Jiffies | Probe::Tcx => Ok(false),
        Probe::SkLookup => Err(libc::EINVAL),
        Probe::PidfdGetfd => Err(libc::ENOSYS),
        Probe::CgroupMemory | Probe::LinearSyn => Ok(false),
        Probe::FibLookup
        | Probe::Clsact
        | Probe::SockDiag
        | Probe::SockDestroy
        | Probe::RawSocket
        | Probe::Barrier
        | Probe::Jit => Ok(true),
    }
}

/// What a 5.10 answers: it has all that is required.
fn linux_5_10(probe: Probe) -> Answer {
    match probe {
        Probe::XdpLink
        | Probe::LinkDetach
        | Probe::LinkUpdate
        | Probe::MapBatch
        | Probe::GlobalData => Err(libc::EBADF),
        Probe::RingBuffer | Probe::BootClock | Probe::Jiffies | Probe::SkLookup => Ok(true),
        Probe::PidfdGetfd => Err(libc::EBADF),
        probe => linux_4_19(probe),
    }
}

fn state(found: &[Found], probe: Probe) -> State {
    let mut same = found.iter().filter(|found| found.feature.probe == probe);
    same.next().expect("it is in the table").state
}

fn texts(found: Vec<Found>, release: &str) -> Vec<String> {
    let refusals = refusals(found, release);
    refusals.map(|error| error.to_string()).collect()
}

#[test]
fn an_old_kernel_is_refused_by_the_newest_feature_that_it_lacks() {
    let refused = texts(survey_by(linux_4_19), "4.19.0-26-amd64");
    assert_eq!(
        refused[0],
        "this kernel (4.19.0-26-amd64) lacks XDP links, which came with Linux 5.9: upgrade it"
    );
    // All but bpf(2), bpf_fib_lookup and test runs.
    assert_eq!(refused.len(), 8, "{refused:?}");
}

#[test]
fn each_missing_feature_is_named_with_its_version() {
    for feature in FEATURES
        .iter()
        .filter(|feature| feature.need == Need::Required)
    {
        let answer = |probe| match probe {
            probe if probe == feature.probe && linux_5_10(probe).is_ok() => Ok(false),
            probe if probe == feature.probe => Err(libc::EINVAL),
            probe => linux_5_10(probe),
        };
        let refused = texts(survey_by(answer), "5.4.0");
        assert_eq!(refused.len(), 1, "{refused:?}");
        for word in ["5.4.0", feature.name, feature.since, "upgrade"] {
            assert!(refused[0].contains(word), "no {word} in {}", refused[0]);
        }
    }
}

#[test]
fn a_kernel_with_all_that_is_required_is_not_refused() {
    let found = survey_by(linux_5_10);
    assert_eq!(state(&found, Probe::Tcx), State::Absent);
    assert_eq!(state(&found, Probe::Clsact), State::Present);
    assert_eq!(texts(found, "5.10.0"), [] as [&str; 0]);
}

#[test]
fn without_bpf_that_is_what_is_missing() {
    let refused = texts(survey_by(|_| Err(libc::ENOSYS)), "6.1.0");
    assert!(refused[0].contains("the bpf(2) call"), "{refused:?}");
}

#[test]
fn what_may_not_be_tried_is_not_taken_for_missing() {
    for errno in [libc::EPERM, libc::EACCES, libc::ENOMEM, libc::EMFILE] {
        let found = survey_by(|_| Err(errno));
        assert!(found.iter().all(|found| found.state != State::Absent));
        assert_eq!(texts(found, "6.1.0"), [] as [&str; 0]);
    }
    assert_eq!(
        State::of(Probe::Jiffies, Err(libc::EPERM)),
        State::Forbidden
    );
    assert_eq!(
        State::of(Probe::RingBuffer, Err(libc::ENOMEM)),
        State::Unknown(libc::ENOMEM)
    );
}

#[test]
fn clsact_is_tried_only_where_tcx_is_missing() {
    let asked = std::cell::RefCell::new(Vec::new());
    let found = survey_by(|probe| {
        asked.borrow_mut().push(probe);
        match probe {
            Probe::Tcx => Ok(true),
            probe => linux_5_10(probe),
        }
    });
    assert_eq!(state(&found, Probe::Clsact), State::Unneeded);
    assert!(!asked.borrow().contains(&Probe::Clsact));
}

#[test]
fn an_error_means_what_it_means_for_that_probe() {
    for (probe, errno, state) in [
        (Probe::MapBatch, libc::EBADF, State::Present),
        (Probe::MapBatch, libc::E2BIG, State::Absent),
        (Probe::Jit, libc::EBADF, State::Unknown(libc::EBADF)),
        (Probe::Clsact, libc::ENOENT, State::Absent),
        (Probe::Clsact, libc::EINVAL, State::Unknown(libc::EINVAL)),
        (Probe::SockDiag, libc::EPROTONOSUPPORT, State::Absent),
        (Probe::RawSocket, libc::EPERM, State::Forbidden),
        (Probe::Barrier, libc::ENOSYS, State::Absent),
        (Probe::SkLookup, libc::EINVAL, State::Absent),
        (Probe::PidfdGetfd, libc::EBADF, State::Present),
        (Probe::PidfdGetfd, libc::ENOSYS, State::Absent),
        (Probe::PidfdGetfd, libc::EPERM, State::Forbidden),
    ] {
        assert_eq!(State::of(probe, Err(errno)), state, "{probe:?} {errno}");
    }
}

#[test]
fn the_newest_required_feature_comes_first() {
    let version = |feature: &Feature| -> (u32, u32) {
        let (major, minor) = feature.since.split_once('.').expect("a version");
        (major.parse().expect("major"), minor.parse().expect("minor"))
    };
    let required = FEATURES
        .iter()
        .filter(|feature| feature.need == Need::Required);
    let versions: Vec<(u32, u32)> = required.map(version).collect();
    assert!(versions[1..].is_sorted_by(|a, b| a >= b), "{versions:?}");
    assert!(versions.iter().all(|version| *version <= (5, 10)));
    assert_eq!(FEATURES[0].probe, Probe::Bpf);
}

#[test]
fn a_release_is_compared_by_its_numbers() {
    for (release, is_older) in [
        ("5.10.0-32-cloud-amd64", true),
        ("4.18.0-553.el8", true),
        ("5.11-rc1", false),
        ("5.11.0", false),
        ("6.1.0", false),
        ("unknown", false),
    ] {
        assert_eq!(is_before(release, (5, 11)), is_older, "{release}");
    }
}
