//! Names: those with several addresses, with none, and those whose look-up hangs.

use std::fs;
use std::net::{ToSocketAddrs as _, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use gate_tests::topology::{SCRATCH, Side, Topology, server_v4};
use gate_userspace::health::{Checker, Connectors, Spec};
use nix::mount::{MsFlags, mount};

use crate::common::{MS, listen};
use crate::{fails, passes, spec};

/// Gives the topology a file in an /etc of its own, for threads.
fn etc(topology: &Topology, name: &str, text: &str) {
    let own = Path::new(SCRATCH).join("etc");
    let replace = || {
        if !own.exists() {
            fs::create_dir(&own)?;
            fs::write(own.join("nsswitch.conf"), "hosts: files dns\n")?;
            // A name may have several lines.
            fs::write(own.join("host.conf"), "multi on\n")?;
            let none = None::<&str>;
            mount(Some(&own), "/etc", none, MsFlags::MS_BIND, none)?;
        }
        Ok(fs::write(own.join(name), text)?)
    };
    topology.run(Side::Server, replace).unwrap();
}

#[test]
fn of_several_addresses_the_first_may_be_dead() {
    let topology = Topology::new().unwrap();
    // The resolver puts the first one first: it is nearer to the client's own, 10.0.0.1.
    etc(
        &topology,
        "hosts",
        "10.0.0.3 app.example\n10.0.0.5 app.example\n10.0.0.3 dead.example\n10.0.0.2 dead.example\n",
    );
    let _listener = listen(&topology, server_v4(8080));
    let first = |name: &'static str| {
        let look_up = || Ok((name, 8080).to_socket_addrs()?.next());
        topology
            .run(Side::Client, look_up)
            .unwrap()
            .unwrap()
            .ip()
            .to_string()
    };
    assert_eq!(first("app.example"), "10.0.0.3");
    let timeout = Duration::from_secs(2);
    let of = |name: &str| Spec {
        timeout,
        ..spec(&format!("tcp://{name}:8080"))
    };
    let start = Instant::now();
    passes(&topology, &of("app.example"));
    let took = start.elapsed();
    assert!(took > MS * 800 && took < MS * 1_800, "{took:?}");
    // All are dead: the last one has all of the rest.
    fails(
        &topology,
        &of("dead.example"),
        "no answer within 2s: no connection",
    );
    // One that refuses keeps nobody waiting.
    let refusing = "127.0.0.1 quick.example\n10.0.0.5 quick.example\n";
    etc(&topology, "hosts", refusing);
    let start = Instant::now();
    passes(&topology, &of("quick.example"));
    assert!(start.elapsed() < MS * 800, "{:?}", start.elapsed());
    let other = spec("tcp://quick.example:8081");
    fails(&topology, &other, "the last of 2 addresses");
}

#[test]
fn an_address_over_ipv6_is_looked_up_too() {
    let topology = Topology::new().unwrap();
    etc(&topology, "hosts", "fd00::5 six.example\n");
    let _listener = listen(&topology, gate_tests::topology::server_v6(8080));
    passes(&topology, &spec("tcp://six.example:8080"));
    passes(&topology, &spec("tcp://[fd00::5]:8080"));
}

#[test]
fn a_name_that_cannot_be_resolved_is_named() {
    let topology = Topology::new().unwrap();
    // Nobody is there to ask.
    etc(&topology, "resolv.conf", "nameserver 10.0.0.5\n");
    fails(
        &topology,
        &spec("http://nothing.invalid/"),
        "nothing.invalid can't be resolved: ",
    );
}

#[test]
fn of_one_check_there_is_one_look_up_at_a_time() {
    let topology = Topology::new().unwrap();
    etc(
        &topology,
        "resolv.conf",
        "nameserver 10.0.0.5\noptions timeout:30 attempts:1\n",
    );
    // A server of names that never answers, but counts.
    let server = || Ok(UdpSocket::bind("10.0.0.5:53")?);
    let server = topology.run(Side::Server, server).unwrap();
    server.set_nonblocking(true).unwrap();
    let spec = Spec {
        timeout: MS * 50,
        ..spec("http://slow.example/")
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let checks = async {
        let checker = Checker::new(&spec, &mut Connectors::default()).unwrap();
        for _ in 0..20 {
            let failure = checker.run().await.unwrap_err().to_string();
            let why = "no answer within 50ms: the look-up of the name takes longer";
            assert_eq!(failure, why);
        }
    };
    topology
        .run(Side::Client, move || {
            runtime.block_on(checks);
            // As gate does: nobody waits for what hangs.
            runtime.shutdown_background();
            Ok(())
        })
        .unwrap();
    let mut asked = 0;
    let mut query = [0; 512];
    while server.recv(&mut query).is_ok() {
        asked += 1;
    }
    // For an IPv4 and for an IPv6 address.
    assert_eq!(asked, 2);
}
