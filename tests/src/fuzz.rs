//! What reads input from outside, as functions of any bytes: they may refuse them, but not panic, nor
//! go on for ever. `fuzz/` runs them for as long as one likes, and the tests on inputs made from its
//! seeds.

mod mutate;

use std::cell::OnceCell;
use std::fs::{File, Permissions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gate_userspace::config;
use gate_userspace::conntrack;
use gate_userspace::daemon::{Commands, Done, Misuse, serve_alone};
use gate_userspace::interfaces::Interface;
use gate_userspace::netlink;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_sock_diag::SockDiagMessage;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::task::LocalSet;
use tokio::time::timeout;

pub use mutate::Inputs;

/// One of them: its name, which is that of its seeds' folder, and the function.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 3] = [("config", config), ("api", api), ("netlink", netlink)];

/// How long an answer of the API may take.
const ANSWER: Duration = Duration::from_secs(2);
/// How long the API may take to see that its client is gone.
const LONG: Duration = Duration::from_secs(20);

thread_local! {
    static FILE: OnceCell<File> = const { OnceCell::new() };
}

/// Reads a configuration, and tells what is wrong with it.
pub fn config(bytes: &[u8]) {
    let read = |file: &File| -> std::io::Result<PathBuf> {
        file.set_len(0)?;
        file.write_all_at(bytes, 0)?;
        Ok(PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())))
    };
    FILE.with(|file| {
        let file = file.get_or_init(|| {
            let memory = memfd_create(c"gate.toml", MFdFlags::MFD_CLOEXEC).expect("memory");
            let file = File::from(memory);
            let own = Permissions::from_mode(0o600);
            file.set_permissions(own).expect("permissions");
            file
        });
        let path = read(file).expect("write a configuration");
        match config::load(&path) {
            Ok(config) => drop(format!("{config:?}")),
            Err(wrong) => drop(wrong.to_string()),
        }
    });
}

/// Commands that do nothing.
struct Nothing;

impl Commands for Nothing {
    fn names(&self) -> Vec<String> {
        vec!["hold".to_owned()]
    }

    fn run(&self, command: &str, arguments: &Map<String, Value>) -> Result<Done, Misuse> {
        match command {
            "hold" => Ok(Done {
                code: 0,
                fields: Value::Object(arguments.clone()),
            }),
            _ => Err(Misuse::Command(format!("there is no command {command}"))),
        }
    }
}

/// Sends this to the API, and closes. What comes back begins like HTTP, where anything does.
pub fn api(bytes: &[u8]) {
    let runtime = crate::load::runtime().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let (mut client, server) = duplex(64 << 10);
        let served = tokio::task::spawn_local(serve_alone(server, Arc::new(Nothing)));
        let mut answer = Vec::new();
        let talk = async {
            let sent = client.write_all(bytes).await;
            let ended = client.shutdown().await;
            // It may have closed before.
            let _unread = client.read_to_end(&mut answer).await;
            drop((sent, ended));
        };
        // Events go on for ever.
        let _endless = timeout(ANSWER, talk).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."));
        drop(client);
        let ended = timeout(LONG, served).await;
        ended
            .expect("it ends when its client is gone")
            .expect("no panic");
    });
}

/// Reads a datagram that the kernel may have sent: the first byte says what was asked for.
pub fn netlink(bytes: &[u8]) {
    let Some((kind, datagram)) = bytes.split_first() else {
        return;
    };
    match kind % 3 {
        0 => {
            let mut answers: Vec<RouteNetlinkMessage> = Vec::new();
            // What is no answer is refused.
            let _refused = netlink::read(datagram, &mut answers);
            for answer in &answers {
                if let RouteNetlinkMessage::NewLink(link) = answer {
                    drop(Interface::from(link));
                }
            }
        }
        1 => {
            let mut answers: Vec<SockDiagMessage> = Vec::new();
            let _refused = netlink::read(datagram, &mut answers);
        }
        _ => drop(conntrack::original(datagram)),
    }
}
