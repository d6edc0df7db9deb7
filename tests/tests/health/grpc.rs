//! gRPC checks of a real server: tonic with its health service.

use std::net::SocketAddr;
use std::time::Duration;

use gate_tests::nginx::Nginx;
use gate_tests::topology::{Side, Topology, server_v4};
use gate_userspace::health::{Spec, Verify};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Server, ServerTlsConfig};
use tonic_health::ServingStatus;

use crate::certificates::{Authority, Identity, NOW};
use crate::common::listen;
use crate::{fails, passes, spec};

/// Starts a server where the whole and `shop.Cart` are serving, `shop.Stock` is not, and
/// `shop.Unknown` doesn't know.
fn serve(topology: &Topology, port: u16, identity: Option<&Identity>) {
    let mut server = Server::builder();
    if let Some(Identity { certificate, key }) = identity {
        let identity = tonic::transport::Identity::from_pem(certificate, key);
        let tls = ServerTlsConfig::new().identity(identity);
        server = server.tls_config(tls).unwrap();
    }
    run(topology, port, async move |incoming| {
        let (reporter, service) = tonic_health::server::health_reporter();
        for (name, status) in [
            ("shop.Cart", ServingStatus::Serving),
            ("shop.Stock", ServingStatus::NotServing),
            ("shop.Unknown", ServingStatus::Unknown),
        ] {
            reporter.set_service_status(name, status).await;
        }
        let serving = server.add_service(service).serve_with_incoming(incoming);
        let _ended = serving.await;
    });
}

/// Runs a server on a thread of its own, until the test's process ends.
fn run(topology: &Topology, port: u16, serve: impl AsyncFnOnce(TcpIncoming) + Send + 'static) {
    let listener = listen(topology, server_v4(port));
    let serve = move || {
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            serve(TcpIncoming::from(listener)).await;
            Ok(())
        })
    };
    topology.start(Side::Server, serve).unwrap();
}

const ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(gate_tests::topology::SERVER_V4), 50051);

#[test]
fn a_service_is_healthy_while_it_is_serving() {
    let topology = Topology::new().unwrap();
    serve(&topology, ADDRESS.port(), None);
    passes(&topology, &spec("grpc://10.0.0.5:50051"));
    passes(&topology, &spec("grpc://10.0.0.5:50051/shop.Cart"));
    for (service, why) in [
        ("shop.Stock", "gRPC: NOT_SERVING"),
        ("shop.Unknown", "gRPC: the status is UNKNOWN"),
        ("shop.None", "gRPC: the service is not known there"),
    ] {
        fails(
            &topology,
            &spec(&format!("grpc://10.0.0.5:50051/{service}")),
            why,
        );
    }
    fails(
        &topology,
        &spec("grpc://10.0.0.5:50052"),
        "connection refused",
    );
}

#[test]
fn a_server_without_a_health_service_is_named() {
    let topology = Topology::new().unwrap();
    run(&topology, ADDRESS.port(), async |incoming| {
        let routes = tonic::service::Routes::default();
        let serving = Server::builder()
            .add_routes(routes)
            .serve_with_incoming(incoming);
        let _ended = serving.await;
    });
    fails(
        &topology,
        &spec("grpc://10.0.0.5:50051"),
        "gRPC: there is no health service",
    );
}

#[test]
fn grpc_goes_over_tls_and_the_certificate_is_verified() {
    let topology = Topology::new().unwrap();
    let authority = Authority::new(&topology);
    let identity = authority.issue(&["api.example"], NOW);
    serve(&topology, ADDRESS.port(), Some(&identity));
    let against = |host: &str| Spec {
        host: Some(host.to_owned()),
        verify: Verify::Against("/run/ca.pem".into()),
        ..spec("grpcs://10.0.0.5:50051/shop.Cart")
    };
    passes(&topology, &against("api.example"));
    fails(
        &topology,
        &against("other.example"),
        "the certificate is for api.example, not for other.example",
    );
    fails(
        &topology,
        &spec("grpcs://10.0.0.5:50051"),
        "issuer is not among the trusted ones",
    );
    let any = |check| Spec {
        verify: Verify::Nothing,
        ..spec(check)
    };
    passes(&topology, &any("grpcs://10.0.0.5:50051"));
    // This one speaks HTTP/2 only.
    fails(
        &topology,
        &any("https://10.0.0.5:50051/"),
        "TLS: the peer speaks another version of HTTP only",
    );
    fails(&topology, &spec("grpc://10.0.0.5:50051"), "the peer ");
}

#[test]
fn a_peer_that_speaks_no_grpc_is_named() {
    let topology = Topology::new().unwrap();
    let http = "    server { listen 8080; location / { return 404; } }
    server { listen 8082 http2; location / { return 404; } }\n";
    let _nginx = Nginx::start_with(&topology, Side::Server, "web", server_v4(8080), http).unwrap();
    fails(
        &topology,
        &spec("grpc://10.0.0.5:8080"),
        "HTTP: the peer speaks HTTP/1 only",
    );
    fails(&topology, &spec("grpc://10.0.0.5:8082"), "status 404");
    fails(
        &topology,
        &spec("grpcs://10.0.0.5:8080"),
        "TLS: the peer speaks no TLS",
    );
    let _mute = listen(&topology, server_v4(83));
    let short = Spec {
        timeout: Duration::from_millis(200),
        ..spec("grpc://10.0.0.5:83")
    };
    fails(&topology, &short, "no answer within 200ms");
}
