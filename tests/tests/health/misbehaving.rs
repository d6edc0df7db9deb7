//! HTTP servers that drip, never end, or end in the middle.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use gate_tests::topology::{Side, Topology, server_v4};
use gate_userspace::health::Spec;

use crate::common::{LIMIT, MS, listen, start_restart, up_with_service};
use crate::{check_from, fails, spec};

/// In which a check must be done.
const TIMEOUT: Duration = Duration::from_millis(700);

/// A server that lets `each` answer the connections, one after another, until the topology ends.
fn serve(
    topology: &Topology,
    port: u16,
    each: impl Fn(&mut TcpStream) -> std::io::Result<()> + Send + 'static,
) -> JoinHandle<()> {
    let listener = listen(topology, server_v4(port));
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut request = [0; 4096];
            let _read = stream.read(&mut request);
            let _closed_on = each(&mut stream);
        }
    })
}

/// The check, and how long it took.
fn timed(topology: &Topology, spec: &Spec) -> (Result<(), String>, Duration) {
    let start = Instant::now();
    (check_from(topology, Side::Client, spec), start.elapsed())
}

fn expecting_a_text(port: u16) -> Spec {
    Spec {
        timeout: TIMEOUT,
        body: Some("never there".to_owned()),
        ..spec(&format!("http://10.0.0.5:{port}/"))
    }
}

#[track_caller]
fn ends_at_the_timeout(topology: &Topology, spec: &Spec, why: &str) {
    let (result, took) = timed(topology, spec);
    let failure = result.unwrap_err();
    assert!(failure.contains("no answer within 700ms"), "{failure}");
    assert!(failure.ends_with(why), "{failure}");
    assert!((TIMEOUT..TIMEOUT + MS * 500).contains(&took), "{took:?}");
}

/// Writes one byte after the other, with time between them.
fn drip(stream: &mut TcpStream, text: &[u8]) -> std::io::Result<()> {
    for byte in text.iter().cycle() {
        stream.write_all(&[*byte])?;
        sleep(MS * 20);
    }
    Ok(())
}

#[test]
fn a_head_that_drips_ends_at_the_timeout() {
    let topology = Topology::new().unwrap();
    serve(&topology, 81, |stream| {
        drip(
            stream,
            b"HTTP/1.1 200 OK\r\nServer: slow but sure, and very, very long\r\n",
        )
    });
    ends_at_the_timeout(&topology, &expecting_a_text(81), "within 700ms");
}

#[test]
fn a_body_that_drips_ends_at_the_timeout() {
    let topology = Topology::new().unwrap();
    serve(&topology, 81, |stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        drip(stream, b"1\r\nx\r\n")
    });
    let why = "the expected text has not come";
    ends_at_the_timeout(&topology, &expecting_a_text(81), why);
    // Who expects no text has the answer with its head.
    let plain = Spec {
        body: None,
        ..expecting_a_text(81)
    };
    assert_eq!(timed(&topology, &plain).0, Ok(()));
}

#[test]
fn interim_answers_without_end_end_at_the_timeout() {
    let topology = Topology::new().unwrap();
    serve(&topology, 81, |stream| {
        loop {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            sleep(MS);
        }
    });
    ends_at_the_timeout(&topology, &expecting_a_text(81), "within 700ms");
}

#[test]
fn interim_answers_do_not_count_but_the_last_one_does() {
    let topology = Topology::new().unwrap();
    serve(&topology, 81, |stream| {
        stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")?;
        stream
            .write_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    });
    serve(&topology, 82, |stream| {
        stream.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        )
    });
    assert_eq!(timed(&topology, &spec("http://10.0.0.5:81/")).0, Ok(()));
    fails(&topology, &spec("http://10.0.0.5:82/"), "status 101");
}

#[test]
fn a_head_without_end_is_too_long_well_before_the_timeout() {
    let topology = Topology::new().unwrap();
    serve(&topology, 81, |stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nX: ")?;
        loop {
            stream.write_all(&[b'x'; 4096])?;
        }
    });
    serve(&topology, 82, |stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
        loop {
            stream.write_all(b"X: y\r\n")?;
        }
    });
    serve(&topology, 83, |stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;")?;
        loop {
            stream.write_all(&[b'x'; 4096])?;
        }
    });
    fails(
        &topology,
        &spec("http://10.0.0.5:81/"),
        "the head is larger than 64 KiB",
    );
    fails(
        &topology,
        &spec("http://10.0.0.5:82/"),
        "the head has more than 100 fields",
    );
    let text = expecting_a_text(83);
    fails(&topology, &text, "the body's chunks are no chunks");
}

#[test]
fn a_peer_that_ends_in_the_middle_is_named() {
    let topology = Topology::new().unwrap();
    serve(&topology, 81, |_| Ok(()));
    // It says that it will send no more, and keeps the connection.
    serve(&topology, 82, |stream| {
        stream.shutdown(Shutdown::Write)?;
        sleep(MS * 500);
        Ok(())
    });
    serve(&topology, 83, |stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-")
    });
    // The whole answer, and no more is to come.
    serve(&topology, 84, |stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nall is we")?;
        stream.shutdown(Shutdown::Write)?;
        sleep(MS * 500);
        Ok(())
    });
    for port in [81, 82, 83] {
        let check = spec(&format!("http://10.0.0.5:{port}/"));
        fails(
            &topology,
            &check,
            "the peer closed the connection without an answer",
        );
    }
    let half = Spec {
        body: Some("is we".to_owned()),
        ..spec("http://10.0.0.5:84/")
    };
    assert_eq!(timed(&topology, &half).0, Ok(()));
}

#[test]
fn a_server_that_never_ends_costs_no_memory() {
    let (topology, _service) = up_with_service();
    serve(&topology, 81, |stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        loop {
            stream.write_all(&[b'x'; 65536])?;
        }
    });
    serve(&topology, 82, |stream| {
        loop {
            stream.write_all(&b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n".repeat(1000))?;
        }
    });
    // A check that nobody answers costs nothing beyond the process itself.
    let _mute = listen(&topology, server_v4(83));
    let most = |port: u16| {
        let check = format!("http://10.0.0.5:{port}/");
        let options = [
            "--check",
            &check,
            "--max-hold",
            "2s",
            "--check-timeout",
            "900ms",
            "--rise",
            "1000",
        ];
        let process = start_restart(&topology, &options, &["true"]);
        let mut most = 0;
        while !process.has_ended().unwrap() {
            most = most.max(resident(process.id()));
            sleep(MS * 5);
        }
        let output = process.wait(LIMIT).unwrap();
        assert_eq!(output.code(), 124, "{output}");
        most
    };
    let least = most(83);
    for port in [81, 82] {
        let most = most(port);
        assert!(
            least > 0 && most < least + 2048,
            "{port}: {most} KiB, {least} KiB"
        );
    }
}

/// What a process has in memory at the most, in KiB; 0 where it is gone.
fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).unwrap_or_default()
}
