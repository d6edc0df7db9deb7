//! What a restart says of gates that it did not open.

use gate_common::flow::GateId;

use super::*;
use crate::gates::Gate;
use crate::release::Released;
use crate::restart::CommandEnd;

fn gate(id: u32, endpoint: &str) -> Gate {
    Gate {
        id: GateId(id),
        name: None,
        endpoints: vec![endpoint.parse().expect(endpoint)],
        aliases: Vec::new(),
    }
}

/// A healthy restart of two gates.
fn healthy() -> Summary {
    Summary {
        gates: vec![gate(1, "10.0.0.5:8080"), gate(2, "10.0.0.5:8081")],
        attached: Vec::new(),
        outcome: Outcome::Healthy,
        gate: AtEnd::Opens,
        closed_for: Duration::from_secs(2),
        drained: None,
        phases: Vec::new(),
        released: Released::default(),
        overflowed: 0,
        uncaptured: 0,
        last_failure: None,
        taken_over: Vec::new(),
        open_failure: None,
    }
}

/// The line of the summary.
fn line(of: &Summary) -> String {
    summary(of).lines().next().unwrap_or_default().to_owned()
}

fn complained(of: &Summary) -> String {
    complaint(of, Duration::from_secs(60)).expect("a complaint")
}

#[test]
fn a_gate_that_another_command_set_is_not_claimed() {
    let mut two = healthy();
    assert_eq!(
        line(&two),
        "10.0.0.5:8080, 10.0.0.5:8081: healthy, open again after 2.00 s; no connection was held"
    );
    two.taken_over = vec![two.gates[1].clone()];
    assert_eq!(
        line(&two),
        "10.0.0.5:8080: healthy, open again after 2.00 s; no connection was held; left as another \
         command set it: 10.0.0.5:8081"
    );
    two.taken_over = two.gates.clone();
    assert_eq!(
        line(&two),
        "10.0.0.5:8080, 10.0.0.5:8081: healthy after 2.00 s; left as another command set it: \
         10.0.0.5:8080, 10.0.0.5:8081"
    );
    two.outcome = Outcome::CommandFailed(CommandEnd::Code(3));
    let said = complained(&two);
    assert!(said.contains("left as another command set it"), "{said}");
    assert!(!said.contains("opened"), "{said}");
    two.gate = AtEnd::Stays;
    assert!(!line(&two).contains("still holding"), "{}", line(&two));
    assert_eq!(summary_json(&two)["gate"], Value::Null);
}

#[test]
fn a_gate_that_opened_though_not_all_went_is_not_said_to_be_closed() {
    let opened = Summary {
        released: Released {
            injected: 3,
            ..Released::default()
        },
        open_failure: Some(Failure {
            text: "the map is gone".to_owned(),
            is_open: true,
        }),
        ..healthy()
    };
    assert!(
        line(&opened).contains("3 connections held"),
        "{}",
        line(&opened)
    );
    let said = complained(&opened);
    assert!(said.starts_with("the gate is open, but not all"), "{said}");
    assert_eq!(summary_json(&opened)["gate"], "open");
    assert_eq!(summary_json(&opened)["exit_code"], 1);
}

#[test]
fn what_could_not_be_done_is_not_claimed() {
    let failed = Summary {
        open_failure: Some(Failure {
            text: "the map is gone".to_owned(),
            is_open: false,
        }),
        ..healthy()
    };
    assert_eq!(summary_json(&failed)["gate"], "hold");
    assert_eq!(summary_json(&failed)["exit_code"], 1);
    assert!(!line(&failed).contains("open again"), "{}", line(&failed));
    assert!(complained(&failed).starts_with("the gate could not be opened (the map is gone)"));
    let rejecting = Summary {
        outcome: Outcome::CommandFailed(CommandEnd::Code(3)),
        gate: AtEnd::Rejects,
        ..failed
    };
    assert!(
        !line(&rejecting).contains("rejecting"),
        "{}",
        line(&rejecting)
    );
    let said = complained(&rejecting);
    assert!(
        said.starts_with("the gate could not be told to reject"),
        "{said}"
    );
}
