//! A site of three names behind one Apache, each with a backend of its own, and clients that notice
//! which backend answered.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result};

use super::LIMIT;
use crate::apache::Apache;
use crate::load::{Endless, Outcome, Request, after, start_each};
use crate::nginx::Nginx;
use crate::topology::{SCRATCH, Side, Topology, server_v4};
use crate::visit::{Answer, Visit};

/// The names. The backend of the first is handed over.
pub const NAMES: [&str; 3] = ["app1", "app2", "app3"];
/// Where Apache listens.
const PORT: u16 = 8000;
/// The size of a download: more than the sockets between A and Apache hold.
const DOWNLOAD: usize = 1024 * 1024;
/// Of so many requests to the first name one is for `/download`, which takes some 300 ms.
const DOWNLOAD_EVERY: u32 = 20;
/// Of so many one is for `/long`, which is the same and takes some 3 s.
const LONG_EVERY: u32 = 1_500;
/// What each of the two answers a download of the first name with.
static DOWNLOADS: LazyLock<[(Who, String); 2]> =
    LazyLock::new(|| [Who::A, Who::B].map(|who| (who, who.download(NAMES[0]))));
/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// What Apache does with its connections to the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// It makes one for each request: `disablereuse=On`.
    Never,
    /// It keeps them, which is its default.
    Kept,
    /// It keeps them, but not while the file `app1.handover` is there.
    Dropped,
}

/// Who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The first backend of the name.
    A,
    /// The second.
    B,
}

impl Who {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    fn letter(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// The line that the backend of a name answers with.
    fn line(self, name: &str) -> String {
        format!("{name} {}", self.letter())
    }

    /// What it answers a download with: each line says whose it is and which.
    fn download(self, name: &str) -> String {
        let lines = (0..).map(|number| format!("{} {number:09}\n", self.line(name)));
        let mut text = String::with_capacity(DOWNLOAD + 32);
        for line in lines {
            if text.len() >= DOWNLOAD {
                break;
            }
            text += &line;
        }
        text
    }
}

/// One backend.
pub struct Backend<'a> {
    /// The server.
    pub nginx: Nginx<'a>,
    /// Where it listens.
    pub address: SocketAddr,
}

impl<'a> Backend<'a> {
    /// Starts the backend of this name.
    pub fn start(topology: &'a Topology, name: &str, who: Who) -> Result<Self> {
        let address = backend_address(name, who);
        let folder = format!("{name}-{}", who.letter());
        let pages = Path::new(SCRATCH).join(&folder).join("pages");
        topology.run(Side::Server, || {
            std::fs::create_dir_all(&pages)
                .with_context(|| format!("create {}", pages.display()))?;
            for page in ["download", "long"] {
                let page = pages.join(page);
                std::fs::write(&page, who.download(name))
                    .with_context(|| format!("write {}", page.display()))?;
            }
            Ok(())
        })?;
        let http = format!(
            "    server {{\n        \
                 listen {address} backlog=4096;\n        \
                 root {};\n        \
                 sendfile_max_chunk 256k;\n        \
                 location = / {{ return 200 \"{}\\n\"; }}\n        \
                 location = /download {{ limit_rate 2500k; }}\n        \
                 location = /long {{ limit_rate 300k; }}\n    \
             }}\n",
            pages.display(),
            who.line(name),
        );
        let nginx = Nginx::start_with(topology, Side::Server, &folder, address, &http)?;
        Ok(Self { nginx, address })
    }
}

/// Where the backend of a name listens.
pub fn backend_address(name: &str, who: Who) -> SocketAddr {
    let number: u16 = (1..)
        .zip(NAMES)
        .find(|(_, one)| *one == name)
        .map_or(0, |(number, _)| number);
    let port = match who {
        Who::A => 8080 + number,
        Who::B => 8180 + number,
    };
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Where Apache is.
pub fn apache_address() -> SocketAddr {
    server_v4(PORT)
}

/// The file that makes [`Reuse::Dropped`] keep no connections of the first name.
pub fn handover_file() -> String {
    format!("{SCRATCH}/{}.handover", NAMES[0])
}

/// Apache's configuration, with this backend for the first name.
pub fn configuration(reuse: Reuse, first: SocketAddr) -> String {
    let sites = NAMES.map(|name| {
        let (before, options) = match reuse {
            Reuse::Never => (String::new(), " disablereuse=On"),
            Reuse::Kept => (String::new(), ""),
            Reuse::Dropped => {
                let test = format!("SetEnvIfExpr \"-f '{SCRATCH}/{name}.handover'\"");
                (format!("{test} proxy-nokeepalive\n"), "")
            }
        };
        let backend = match name {
            name if name == NAMES[0] => first,
            name => backend_address(name, Who::A),
        };
        format!(
            "<VirtualHost *:{PORT}>\n\
             ServerName {name}.test\n\
             {before}\
             ProxyPass / http://{backend}/{options}\n\
             ProxyPassReverse / http://{backend}/\n\
             </VirtualHost>\n"
        )
    });
    sites.concat()
}

/// Starts Apache before the backends A.
pub fn start_apache(topology: &Topology, reuse: Reuse) -> Result<Apache<'_>> {
    let more = configuration(reuse, backend_address(NAMES[0], Who::A));
    Apache::start(topology, Side::Server, "apache", apache_address(), &more)
}

/// Runs a shell line where Apache and the backends are.
pub fn shell(topology: &Topology, line: &str) -> Result<()> {
    let mut command = Command::new("sh");
    let command = command.args(["-c", line]);
    topology.output(Side::Server, command, LIMIT)?.ok()?;
    Ok(())
}

/// One request, as its client saw it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Its name's place in [`NAMES`].
    pub name: usize,
    /// Whether it was a download.
    pub download: bool,
    /// When it was due, how long it took, and how it ended.
    pub request: Request,
    /// Who answered it, if it was answered as that one answers, to the last byte.
    pub who: Option<Who>,
}

/// Asks for each name in turn, so many times a second in all.
pub fn visit(topology: &Topology, rate: u32) -> Result<Endless<Seen>> {
    LazyLock::force(&DOWNLOADS);
    start_each(topology, Side::Client, rate, move |i, due| {
        let (name, round) = (i as usize % NAMES.len(), i / NAMES.len() as u32);
        let path = match round {
            _ if name > 0 => "/",
            round if round % LONG_EVERY == LONG_EVERY / 30 => "/long",
            round if round % DOWNLOAD_EVERY == 0 => "/download",
            _ => "/",
        };
        let visit = Visit {
            target: apache_address(),
            host: format!("{}.test", NAMES[name]),
            path: path.to_owned(),
            cookies: String::new(),
        };
        async move {
            let answer = visit.make(due + PATIENCE).await;
            let download = path != "/";
            let who = answer
                .as_ref()
                .ok()
                .and_then(|a| author(a, NAMES[name], download));
            Seen {
                name,
                download,
                request: Request {
                    at: after(rate, i),
                    latency: due.elapsed(),
                    outcome: match (answer, who) {
                        (Ok(_), Some(_)) => Outcome::Ok,
                        (Ok(_), None) => Outcome::Other,
                        (Err(outcome), _) => outcome,
                    },
                },
                who,
            }
        }
    })
}

/// Who gave this answer, all of it.
pub(super) fn author(answer: &Answer, name: &str, download: bool) -> Option<Who> {
    if download {
        let whole = DOWNLOADS.iter().find(|one| one.1.as_bytes() == answer.body);
        return whole.map(|one| one.0);
    }
    [Who::A, Who::B]
        .into_iter()
        .find(|who| answer.line() == who.line(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_backend_has_a_place_of_its_own() {
        let mut all: Vec<SocketAddr> = NAMES
            .into_iter()
            .flat_map(|name| [Who::A, Who::B].map(|who| backend_address(name, who)))
            .collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 2 * NAMES.len());
    }

    #[test]
    fn the_downloads_differ_in_every_line() {
        let (a, b) = (Who::A.download("app1"), Who::B.download("app1"));
        assert!(a.len() >= DOWNLOAD && a.len() == b.len());
        assert!(a.lines().zip(b.lines()).all(|(a, b)| a != b));
    }
}
