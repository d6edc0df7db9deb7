//! Why a check failed, in one line for people.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::process::ExitStatus;
use std::time::Duration;

use nix::errno::Errno;

use super::first::Speaks;
use super::tls;

/// The most that is shown of a text that the peer sent.
const SHOWN_MAX: usize = 120;

/// Why a check failed.
#[derive(Debug, thiserror::Error)]
pub enum CheckFailure {
    /// The name has no address.
    #[error("{host} can't be resolved: {why}")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        why: String,
    },
    /// No connection.
    #[error("{}", io_text(.0))]
    Connect(#[from] io::Error),
    /// No connection to any of several addresses.
    #[error("{} ({last}, the last of {count} addresses)", io_text(.source))]
    Addresses {
        /// The last one tried.
        last: SocketAddr,
        /// How many there are.
        count: usize,
        /// What came of it.
        source: io::Error,
    },
    /// Not done in time.
    #[error("no answer within {limit:?}{stage}")]
    Timeout {
        /// The time there was.
        limit: Duration,
        /// What was being waited for.
        stage: Stage,
    },
    /// Another status.
    #[error("status {0}")]
    Status(u16),
    /// A redirect, where it is not what was expected.
    #[error("status {status}, to {to}: a redirect is not followed")]
    Redirect {
        /// The status.
        status: u16,
        /// Where to.
        to: String,
    },
    /// A body without the text.
    #[error("the {0} of the body lacks the expected text")]
    Body(&'static str),
    /// The TLS handshake failed.
    #[error("TLS: {}", io_text(.0))]
    Tls(io::Error),
    /// The certificates can't be read, or the name is none.
    #[error("TLS set-up: {0}")]
    TlsSetup(String),
    /// What is asked for can't be written in a request.
    #[error("{0} is no host name that can be asked for")]
    Host(String),
    /// HTTP went wrong.
    #[error("HTTP: {0}")]
    Http(String),
    /// The health service says no, or there is none.
    #[error("gRPC: {0}")]
    Grpc(String),
    /// The command failed.
    #[error("{0}")]
    Exec(ExitStatus),
    /// This host could not make the check.
    #[error("the check could not be made: {0}")]
    Ours(io::Error),
}

impl CheckFailure {
    /// Whether it says nothing of the peer: this host, or this process, lacks what a check needs.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        let error = match self {
            Self::Ours(_) | Self::TlsSetup(_) | Self::Host(_) => return true,
            Self::Connect(error) | Self::Addresses { source: error, .. } => error,
            _ => return false,
        };
        let errno = error.raw_os_error().map(Errno::from_raw);
        matches!(
            errno,
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS)
        )
    }
}

/// How far a check has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The name is being looked up.
    LookUp,
    /// The connection is being made.
    Connect,
    /// The TLS handshake is under way.
    Tls,
    /// The answer, or the end of the command, is waited for.
    Answer,
    /// The answer's body is being read.
    Body,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LookUp => ": the look-up of the name takes longer",
            Self::Connect => ": no connection",
            Self::Tls => ": the TLS handshake is not done",
            Self::Answer => "",
            Self::Body => ": the expected text has not come",
        })
    }
}

/// What became of a system call, in the words that people know.
pub(super) fn io_text(error: &io::Error) -> String {
    if let Some(text) = tls::cause(error) {
        return text;
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => {
            "the peer closed the connection".to_owned()
        }
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            "no route to the host".to_owned()
        }
        _ => error.to_string(),
    }
}

/// What to say of a peer that speaks something else.
pub(super) fn foreign(speaks: Speaks, wanted: Speaks) -> Option<&'static str> {
    match (wanted, speaks) {
        (_, Speaks::Tls) => Some("the peer speaks TLS"),
        (Speaks::Http1, Speaks::Http2) => Some("the peer speaks HTTP/2 only"),
        (Speaks::Http2, Speaks::Http1) => Some("the peer speaks HTTP/1 only"),
        (Speaks::Http1, Speaks::Other) => Some("the peer speaks no HTTP"),
        (Speaks::Http2, Speaks::Other) => Some("the peer speaks no HTTP/2"),
        _ => None,
    }
}

/// What went wrong in HTTP/2; `speaks` is what the peer's first bytes say.
pub(super) fn http2(error: &hyper::Error, speaks: Speaks) -> CheckFailure {
    if let Some(text) = foreign(speaks, Speaks::Http2) {
        return CheckFailure::Http(text.to_owned());
    }
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return CheckFailure::Http(io_text(io));
        }
        source = cause.source();
    }
    let nothing_came = speaks == Speaks::Nothing;
    CheckFailure::Http(
        if nothing_came || error.is_incomplete_message() || error.is_canceled() {
            "the peer closed the connection without an answer".to_owned()
        } else {
            match error.source() {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            }
        },
    )
}

/// A text that the peer sent, short and on one line.
pub(super) fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown: String = text
        .chars()
        .take(SHOWN_MAX)
        .map(|letter| if letter.is_control() { '?' } else { letter })
        .collect();
    if text.chars().nth(SHOWN_MAX).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_host_lacks_says_nothing_of_the_peer() {
        let connect = |errno| CheckFailure::Connect(io::Error::from(errno));
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOBUFS] {
            assert!(connect(errno).is_ours(), "{errno}");
        }
        for errno in [Errno::ECONNREFUSED, Errno::EHOSTUNREACH, Errno::ENOENT] {
            assert!(!connect(errno).is_ours(), "{errno}");
        }
        assert!(!CheckFailure::Status(503).is_ours());
    }

    #[test]
    fn what_a_peer_sent_is_shown_on_one_short_line() {
        assert_eq!(shown(b"a\r\n\x1b[31mb\xff"), "a???[31mb\u{fffd}");
        assert_eq!(
            shown("x".repeat(500).as_bytes()).chars().count(),
            SHOWN_MAX + 1
        );
    }
}
