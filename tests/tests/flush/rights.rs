//! Rights, kernels, and many connections.

use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread::sleep;

use gate_tests::exe;
use gate_tests::require::{Feature, has};
use gate_tests::topology::{Side, Topology, server_v4};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::common::{
    ENDPOINT, LIMIT, PORT, assert_refusal, connect, connect_many, error_at, is_alive, listen,
    without_sock_destroy,
};
use crate::{IDLE, counts, flush};

#[test]
fn without_the_right_it_is_refused_and_nothing_is_reset() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let connected = connect(&topology, Side::Client, server_v4(PORT), &listener);
    let mut command = Command::new("setpriv");
    let command = command
        .args(["--bounding-set=-net_admin", "--inh-caps=-all"])
        .arg(exe::gate().unwrap())
        .args(["flush", ENDPOINT]);
    let output = topology.output(Side::Server, command, LIMIT).unwrap();
    assert_refusal(&output, 4, &["missing rights", "CAP_NET_ADMIN"]);
    // There the capability is, and doesn't count for this network namespace.
    let mut command = Command::new("unshare");
    let command = command
        .args(["--user", "--map-root-user"])
        .arg(exe::gate().unwrap())
        .args(["flush", ENDPOINT]);
    let output = topology.output(Side::Server, command, LIMIT).unwrap();
    assert_refusal(&output, 4, &["missing rights", "CAP_NET_ADMIN"]);
    assert!(is_alive(&connected));
}

#[test]
fn the_one_capability_is_enough_and_no_bpf_is_needed() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let connected = connect(&topology, Side::Client, server_v4(PORT), &listener);
    let mut command = Command::new("unshare");
    let command = command
        .args(["-m", "sh", "-c", "umount /sys/fs/bpf && exec setpriv --bounding-set=-all,+net_admin --inh-caps=-all \"$0\" flush 10.0.0.5:8080"])
        .arg(exe::gate().unwrap());
    let output = topology.output(Side::Server, command, LIMIT).unwrap();
    assert_eq!((output.code(), &*output.stderr), (0, ""), "{output}");
    assert_eq!(error_at(&connected.client), Some(libc::ECONNRESET));
}

#[test]
fn a_kernel_that_can_not_destroy_sockets_is_told_of() {
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let connected = connect(&topology, Side::Client, server_v4(PORT), &listener);
    let words = [
        "can't reset connections",
        "CONFIG_INET_DIAG_DESTROY",
        "gate drain",
    ];
    let output = without_sock_destroy(&topology, &["flush", ENDPOINT]);
    assert_refusal(&output, 1, &words);
    let drain = ["drain", ENDPOINT, "--timeout", "1ms", "--then", "flush"];
    let output = without_sock_destroy(&topology, &drain);
    assert_refusal(&output, 1, &words);
    assert!(is_alive(&connected));
    let output = without_sock_destroy(&topology, &["doctor", "--json"]);
    let fields: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(
        (output.code(), &fields["works"]),
        (0, &true.into()),
        "{output}"
    );
    let features = fields["features"].as_array().unwrap();
    let feature = features
        .iter()
        .find(|it| it["id"] == "sock-destroy")
        .unwrap();
    assert_eq!(
        (&feature["state"], &feature["required"]),
        (&"absent".into(), &false.into())
    );
}

// ---- Many ----

#[test]
fn ten_thousand_idle_connections_are_reset() {
    if !has(Feature::SockDestroy) {
        return;
    }
    const COUNT: usize = 10_000;
    /// That many are never accepted: a process may have 20,000 files open, where nobody allows more.
    const QUEUED: usize = 4_000;
    let topology = Topology::new().unwrap();
    let listener = topology.run(Side::Server, || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&server_v4(PORT).into())?;
        socket.listen(QUEUED as i32 + 1)?;
        Ok(TcpListener::from(socket))
    });
    let listener = listener.unwrap();
    let target = server_v4(PORT);
    let accepted = connect_many(&topology, Side::Client, target, &listener, COUNT - QUEUED);
    let queued: Vec<TcpStream> = topology
        .run(Side::Client, || {
            let connect = |_| Ok(TcpStream::connect_timeout(&target, LIMIT)?);
            (0..QUEUED).map(connect).collect()
        })
        .unwrap();
    sleep(IDLE);
    let args = [ENDPOINT, "--idle", "100ms", "--json"];
    let fields = flush(&topology, Side::Server, &args);
    assert_eq!(counts(&fields), [COUNT as u64, 0, 0, 0, 0]);
    println!("10,000 idle connections reset in {} ms", fields["took_ms"]);
    let accepted = accepted.iter().map(|one| &one.client);
    for client in accepted.chain(&queued) {
        client.set_read_timeout(Some(LIMIT)).unwrap();
        assert_eq!(error_at(client), Some(libc::ECONNRESET));
    }
}
