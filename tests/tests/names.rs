//! One of the names behind a real Apache gets another backend, again and again, under load, and
//! nobody sees it. Needs root.

use gate_tests::recipes::handover::{Case, Finish, Handovers, Switch};
use gate_tests::recipes::names::Reuse;

/// Requests a second, of all names.
const RATE: u32 = 150;

#[track_caller]
fn handed_over(times: usize, reuse: Reuse, finish: Finish) -> Handovers {
    let switch = Switch::Gate;
    let case = Case {
        reuse,
        switch,
        finish,
    };
    let handovers = case.run(times, RATE).unwrap();
    assert_eq!(handovers.times, times);
    handovers
}

/// Every answer of every name came whole, the backend before was empty each time, and each of the
/// two had its turn.
#[track_caller]
fn assert_unseen(handovers: &Handovers) {
    let summary = &handovers.summary;
    assert_eq!(summary.lost(), 0, "{}", summary.errors_in_words());
    assert_eq!(handovers.empty, handovers.times, "{handovers:?}");
    let [a, b] = handovers.answered;
    assert!(a > 10 && b > 10, "{handovers:?}");
    assert!(handovers.downloads.0 > 0, "{handovers:?}");
}

#[test]
fn a_name_is_handed_over_a_hundred_times() {
    let handovers = handed_over(100, Reuse::Never, Finish::Drain);
    assert_unseen(&handovers);
    assert_eq!(handovers.late, 0, "{handovers:?}");
}

#[test]
fn a_handover_stops_the_backend_before_when_that_is_empty() {
    let handovers = handed_over(10, Reuse::Never, Finish::Then);
    assert_unseen(&handovers);
}

#[test]
fn connections_that_apache_keeps_end_by_agreement() {
    let handovers = handed_over(10, Reuse::Dropped, Finish::Flush);
    assert_unseen(&handovers);
}

#[test]
fn connections_that_apache_keeps_stay_with_the_backend_before() {
    let handovers = handed_over(2, Reuse::Kept, Finish::Drain);
    assert!(handovers.late > 10, "{handovers:?}");
    assert_eq!(handovers.empty, 0, "{handovers:?}");
}
