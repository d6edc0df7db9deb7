//! Health checks of real servers, and of servers that misbehave. Needs root.

#[path = "health/certificates.rs"]
mod certificates;
mod common;
#[path = "health/gates.rs"]
mod gates;
#[path = "health/grpc.rs"]
mod grpc;
#[path = "health/http.rs"]
mod http;
#[path = "health/misbehaving.rs"]
mod misbehaving;
#[path = "health/names.rs"]
mod names;
#[path = "health/sockets.rs"]
mod sockets;
#[path = "health/tls.rs"]
mod tls;

use std::time::Duration;

use gate_tests::topology::{Side, Topology};
use gate_userspace::health::{Checker, Connectors, Spec};

/// For a check that is to be made in any case.
const LONG: Duration = Duration::from_secs(20);

/// A check with time enough.
fn spec(check: &str) -> Spec {
    Spec {
        timeout: LONG,
        ..Spec::new(check.parse().unwrap())
    }
}

/// Runs a future on a thread of `side`.
fn on<T: Send>(topology: &Topology, side: Side, run: impl AsyncFnOnce() -> T + Send) -> T {
    let runtime = || {
        Ok(tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(run()))
    };
    topology.run(side, runtime).unwrap()
}

/// Makes a check from a side; why it failed.
fn check_from(topology: &Topology, side: Side, spec: &Spec) -> Result<(), String> {
    on(topology, side, async || {
        let checker = Checker::new(spec, &mut Connectors::default());
        let checker = checker.map_err(|failure| failure.to_string())?;
        checker.run().await.map_err(|failure| failure.to_string())
    })
}

/// Makes a check from the client's side, which must pass.
#[track_caller]
fn passes(topology: &Topology, spec: &Spec) {
    let result = check_from(topology, Side::Client, spec);
    assert_eq!(result, Ok(()), "{}", spec.check);
}

/// Makes a check from the client's side, which must fail for this reason.
#[track_caller]
fn fails(topology: &Topology, spec: &Spec, why: &str) {
    let result = check_from(topology, Side::Client, spec);
    let failure = result.expect_err(&spec.check.to_string());
    assert!(
        failure.contains(why),
        "{}: {failure:?}, not {why:?}",
        spec.check
    );
    assert!(!failure.contains('\n'), "{failure:?}");
}
