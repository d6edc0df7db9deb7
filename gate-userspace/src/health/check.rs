//! What a check is, and how it is written.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;

use hyper::Uri;

/// The longest path that a Unix socket can have (`sun_path` without its last zero, unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// What is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// A TCP connection is accepted at `HOST:PORT`.
    Tcp(String),
    /// A GET of this URL (http or https) is answered with an expected status.
    Http(Uri),
    /// The same over a Unix socket.
    HttpUnix {
        /// The socket, an absolute path.
        socket: PathBuf,
        /// The path and the query that are asked for.
        path: Uri,
    },
    /// The gRPC health service at `HOST:PORT` says that a service is serving.
    Grpc {
        /// Whether it is asked over TLS.
        tls: bool,
        /// `HOST:PORT`.
        authority: String,
        /// The service; empty for the server as a whole.
        service: String,
    },
    /// A connection is accepted at this Unix socket, an absolute path.
    Unix(PathBuf),
    /// This shell command exits with 0.
    Exec(String),
}

/// Why a text is no check.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}: write http://HOST/PATH, https://HOST/PATH, http+unix:/SOCKET:/PATH, \
     grpc://HOST:PORT/SERVICE, grpcs://HOST:PORT/SERVICE, tcp://HOST:PORT, unix:/SOCKET or \
     exec:COMMAND"
)]
pub struct CheckSyntax(String);

fn refuse<T>(why: impl Into<String>) -> Result<T, CheckSyntax> {
    Err(CheckSyntax(why.into()))
}

impl Check {
    /// Whether it needs certificates.
    pub(super) fn is_over_tls(&self) -> bool {
        match self {
            Self::Http(uri) => uri.scheme_str() == Some("https"),
            Self::Grpc { tls, .. } => *tls,
            Self::Tcp(_) | Self::HttpUnix { .. } | Self::Unix(_) | Self::Exec(_) => false,
        }
    }

    /// Whether it starts a process, which costs more than a connection.
    #[must_use]
    pub fn starts_a_process(&self) -> bool {
        matches!(self, Self::Exec(_))
    }
}

impl FromStr for Check {
    type Err = CheckSyntax;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(command) = text.strip_prefix("exec:") {
            return match command.trim() {
                "" => refuse("the command is missing"),
                command if command.contains('\0') => refuse("the command has a zero byte"),
                command => Ok(Self::Exec(command.to_owned())),
            };
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(socket(path)?));
        }
        if let Some(rest) = text.strip_prefix("http+unix:") {
            return http_unix(rest);
        }
        url(text)
    }
}

/// The path of a socket.
fn socket(path: &str) -> Result<PathBuf, CheckSyntax> {
    match path {
        _ if !path.starts_with('/') => refuse("the socket is no absolute path"),
        _ if path.ends_with('/') => refuse("the socket is a folder"),
        _ if path.contains('\0') => refuse("the socket's path has a zero byte"),
        _ if path.len() > SOCKET_PATH_MAX => refuse(format!(
            "the socket's path has more than {SOCKET_PATH_MAX} bytes"
        )),
        _ => Ok(PathBuf::from(path)),
    }
}

fn http_unix(rest: &str) -> Result<Check, CheckSyntax> {
    // What is asked for begins at the first ":/"; a socket's path can't have one, then.
    let (path, asked) = match rest.split_once(":/") {
        Some((path, asked)) => (path, format!("/{asked}")),
        None => (rest, "/".to_owned()),
    };
    no_fragment(&asked)?;
    match asked.parse::<Uri>() {
        Ok(asked) if asked.authority().is_none() => Ok(Check::HttpUnix {
            socket: socket(path)?,
            path: asked,
        }),
        _ => refuse("what is asked for is no path"),
    }
}

fn no_fragment(text: &str) -> Result<(), CheckSyntax> {
    match text.contains('#') {
        true => refuse("a # and what follows is never sent to a server"),
        false => Ok(()),
    }
}

fn url(text: &str) -> Result<Check, CheckSyntax> {
    no_fragment(text)?;
    let Ok(uri) = text.parse::<Uri>() else {
        return refuse("that is no URL");
    };
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return refuse("the scheme or the host is missing");
    };
    let (authority, host) = (authority.as_str(), authority.host());
    if host.is_empty() || authority.contains('@') {
        return refuse("the host is missing, or has a user name");
    }
    let bracketed = host.strip_prefix('[').map(|host| host.strip_suffix(']'));
    if bracketed.is_some_and(|host| host.is_none_or(|host| host.parse::<Ipv6Addr>().is_err())) {
        return refuse("what is in brackets is no IPv6 address");
    }
    let port = match authority.get(host.len()..).unwrap_or_default() {
        "" => None,
        rest => match rest.strip_prefix(':').map(str::parse::<u16>) {
            Some(Ok(port @ 1..)) => Some(port),
            _ => return refuse("the port is no number from 1 to 65535"),
        },
    };
    let named = port.map(|_| authority.to_owned());
    let Some(asked) = uri.path_and_query() else {
        return refuse("that is no URL");
    };
    match (scheme, named) {
        ("http" | "https", _) => Ok(Check::Http(uri)),
        ("tcp" | "grpc" | "grpcs", None) => refuse("the port is missing"),
        ("tcp", Some(target)) => match asked.as_str() {
            "" | "/" => Ok(Check::Tcp(target)),
            _ => refuse("a TCP check has no path"),
        },
        ("grpc" | "grpcs", Some(_)) if asked.query().is_some() => {
            refuse("a service's name has no question mark")
        }
        ("grpc" | "grpcs", Some(target)) => Ok(Check::Grpc {
            tls: scheme == "grpcs",
            authority: target,
            service: asked.path().trim_start_matches('/').to_owned(),
        }),
        (other, _) => refuse(format!("{other} is not a scheme that is checked")),
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(target) => write!(f, "tcp://{target}"),
            Self::Http(uri) => uri.fmt(f),
            Self::HttpUnix { socket, path } => {
                write!(f, "http+unix:{}:{path}", socket.display())
            }
            Self::Grpc {
                tls,
                authority,
                service,
            } => {
                let scheme = if *tls { "grpcs" } else { "grpc" };
                let slash = if service.is_empty() { "" } else { "/" };
                write!(f, "{scheme}://{authority}{slash}{service}")
            }
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Exec(command) => write!(f, "exec:{command}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_checks() {
        for (text, shown) in [
            ("http://127.0.0.1:8080/healthz", None),
            ("https://[fd00::5]/", None),
            ("http://localhost", Some("http://localhost/")),
            ("http://localhost?full=1", Some("http://localhost/?full=1")),
            ("tcp://127.0.0.1:5432", None),
            ("tcp://[::1]:5432/", Some("tcp://[::1]:5432")),
            ("grpc://127.0.0.1:50051", None),
            ("grpc://127.0.0.1:50051/", Some("grpc://127.0.0.1:50051")),
            ("grpcs://api.example:443/shop.v1.Cart", None),
            ("unix:/run/app.sock", None),
            ("http+unix:/run/app.sock", Some("http+unix:/run/app.sock:/")),
            ("http+unix:/run/app.sock:/healthz?full=1", None),
            ("exec:pg_isready -q", None),
            ("exec:test a#b", None),
        ] {
            let check: Check = text.parse().expect(text);
            assert_eq!(check.to_string(), shown.unwrap_or(text));
        }
    }

    #[test]
    fn refuses_what_is_no_check() {
        let long = format!("unix:/{}", "x".repeat(SOCKET_PATH_MAX));
        for text in [
            "",
            "localhost:80",
            "/healthz",
            "ftp://host/",
            "http://",
            "http:///path",
            "http://user@host/",
            "http://host:99999/",
            "http://host:0/",
            "http://host:/",
            "http://[::1/",
            "http://[host]/",
            "http://host/#part",
            "tcp://host",
            "tcp://host:0",
            "tcp://host:80/path",
            "tcp://host:80?query",
            "grpc://host",
            "grpc://host:50051/a?b",
            "grpc://:50051",
            "unix:",
            "unix:app.sock",
            "unix:/run/",
            "unix:/run/a\0b",
            &long,
            "http+unix:app.sock:/",
            "http+unix:/run/app.sock:/a b",
            "http+unix:/run/app.sock:/#a",
            "exec:",
            "exec:  ",
            "exec:a\0b",
            "http://a b/",
        ] {
            assert!(text.parse::<Check>().is_err(), "{text}");
        }
    }

    /// Texts that are nearly checks.
    fn texts() -> impl Strategy<Value = String> {
        let scheme = prop::sample::select(vec![
            "http://",
            "https://",
            "tcp://",
            "grpc://",
            "grpcs://",
            "unix:",
            "http+unix:",
            "exec:",
            "",
        ]);
        let rest = prop_oneof![
            "\\PC{0,40}",
            "[a-z0-9.:/?#@%\\[\\]_-]{0,40}",
            "[a-z]{1,8}(:[0-9]{0,6})?(/[a-zA-Z0-9.%-]{0,9}){0,3}(\\?[a-z=&]{0,5})?",
            "/[a-z/.]{1,20}(:/[a-z?=]{0,9})?",
        ];
        (scheme, rest).prop_map(|(scheme, rest)| format!("{scheme}{rest}"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn what_is_read_is_shown_as_what_reads_the_same(text in texts()) {
            if let Ok(check) = text.parse::<Check>() {
                let shown = check.to_string();
                prop_assert_eq!(shown.parse::<Check>(), Ok(check), "{}", shown);
            }
        }
    }
}
