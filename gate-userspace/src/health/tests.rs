//! Checks of small servers in this process.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// A server that answers each connection with these bytes and closes it; `None` never
/// answers.
async fn serve(answer: Option<&'static [u8]>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bind");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _read = stream.read(&mut request).await;
            match answer {
                Some(answer) => stream.write_all(answer).await.expect("answer"),
                None => kept.push(stream),
            }
        }
    });
    address.to_string()
}

fn spec(check: &str, timeout: Duration) -> Spec {
    Spec {
        timeout,
        ..Spec::new(check.parse().expect(check))
    }
}

fn checker(spec: &Spec) -> Checker {
    Checker::new(spec, &mut Connectors::default()).expect("a checker")
}

async fn http(answer: Option<&'static [u8]>) -> Result<(), CheckFailure> {
    let address = serve(answer).await;
    let check = format!("http://{address}/healthz");
    let timeout = match answer {
        Some(_) => Duration::from_secs(5),
        None => Duration::from_millis(200),
    };
    let checker = checker(&spec(&check, timeout));
    // Often enough to meet any order in which answer and close can arrive.
    for _ in 0..50 {
        checker.run().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_counts_though_the_server_closes_at_once() {
    let answers: [&[u8]; 2] = [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 204 No Content\r\n\r\n",
    ];
    for answer in answers {
        http(Some(answer)).await.expect("healthy");
    }
}

#[tokio::test]
async fn what_is_not_healthy() {
    let teapot = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";
    assert!(matches!(
        http(Some(teapot)).await,
        Err(CheckFailure::Status(503))
    ));
    for (answer, why) in [
        (&b""[..], "closed the connection without an answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "speaks no HTTP"),
        (b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0", "HTTP/2 only"),
        (b"\x15\x03\x01\0\x02\x02\x46", "speaks TLS"),
    ] {
        let failure = http(Some(answer)).await.expect_err("a failure").to_string();
        assert!(failure.contains(why), "{failure}");
    }
    assert!(matches!(
        http(None).await,
        Err(CheckFailure::Timeout { .. })
    ));
}

#[tokio::test]
async fn tcp_and_commands() {
    let run = async |check: &str| checker(&spec(check, Duration::from_secs(5))).run().await;
    let address = serve(None).await;
    run(&format!("tcp://{address}")).await.expect("connects");
    let refused = run("tcp://127.0.0.1:1").await.expect_err("refused");
    assert_eq!(refused.to_string(), "connection refused");
    run("exec:exit 0").await.expect("exits with 0");
    assert!(matches!(
        run("exec:exit 3").await,
        Err(CheckFailure::Exec(_))
    ));
}
