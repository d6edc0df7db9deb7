//! Connections that last: each asks several times with a pause in between, and notes who answered.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout_at};

use crate::backend::raise_file_limit;
use crate::load::Outcome;
use crate::topology::{Place, Topology};

/// From starting to the first connection: enough to be ready for it.
const LEAD: Duration = Duration::from_millis(50);

/// New connections at a steady rate. When each is due is fixed beforehand.
#[derive(Clone, Copy, Debug)]
pub struct Talks {
    /// Where they go.
    pub target: SocketAddr,
    /// New connections a second.
    pub rate: u32,
    /// How often each asks.
    pub asks: u32,
    /// From an answer to the next request.
    pub pause: Duration,
    /// How long one may take in all, from when it was due.
    pub timeout: Duration,
}

/// One connection, as the client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Talk {
    /// When it was due, from the start.
    pub at: Duration,
    /// From when it was due until the first answer; none where there was no answer.
    pub first: Option<Duration>,
    /// From when it was due until it was over.
    pub took: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// All who answered, each once. One that is wholly at one backend has one.
    pub by: Vec<String>,
}

/// Connections under way.
pub struct Talking {
    begin: Instant,
    wanted: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Talk>>>,
}

impl Talking {
    /// When the first is due.
    pub fn begin(&self) -> Instant {
        self.begin
    }

    /// Makes no more, waits until each is over, and returns them in the order they were due.
    pub fn finish(self) -> Result<Vec<Talk>> {
        self.wanted.store(false, Ordering::Relaxed);
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Talks {
    /// Connections that ask four times, over an eighth of a second, and may take 10 s.
    pub fn new(target: SocketAddr, rate: u32) -> Self {
        Self {
            target,
            rate,
            asks: 4,
            pause: Duration::from_millis(40),
            timeout: Duration::from_secs(10),
        }
    }

    /// Starts them on a thread of its own; they go on until they are finished.
    pub fn start(self, topology: &Topology, place: impl Into<Place>) -> Result<Talking> {
        let begin = Instant::now() + LEAD;
        let wanted = Arc::new(AtomicBool::new(true));
        let is_wanted = Arc::clone(&wanted);
        let thread = topology.start(place, move || {
            raise_file_limit()?;
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("start a runtime")?
                .block_on(self.generate(begin, &is_wanted))
        })?;
        Ok(Talking {
            begin,
            wanted,
            thread,
        })
    }

    async fn generate(self, begin: Instant, is_wanted: &AtomicBool) -> Result<Vec<Talk>> {
        let mut flying = JoinSet::new();
        let mut talks = Vec::new();
        for i in 0.. {
            let at = Duration::from_secs(1) * i / self.rate.max(1);
            match begin + at > Instant::now() {
                true => sleep_until((begin + at).into()).await,
                // Behind the schedule: let the connections work, then go on at once.
                false => tokio::task::yield_now().await,
            }
            if !is_wanted.load(Ordering::Relaxed) {
                break;
            }
            flying.spawn(self.talk(at, begin + at));
            while let Some(over) = flying.try_join_next() {
                talks.push(over.context("a connection")?);
            }
        }
        talks.extend(flying.join_all().await);
        talks.sort_by_key(|talk: &Talk| talk.at);
        Ok(talks)
    }

    async fn talk(self, at: Duration, due: Instant) -> Talk {
        let (mut first, mut by) = (None, Vec::new());
        let late = due + self.timeout;
        let talked = timeout_at(late.into(), self.converse(due, &mut first, &mut by)).await;
        Talk {
            at,
            took: due.elapsed(),
            outcome: match talked {
                Err(_) => Outcome::TimedOut,
                Ok(Err(error)) if error.kind() == ErrorKind::InvalidData => Outcome::BadStatus,
                Ok(Err(error)) => Outcome::of_error(error.kind()),
                Ok(Ok(())) => Outcome::Ok,
            },
            first,
            by,
        }
    }

    async fn converse(
        self,
        due: Instant,
        first: &mut Option<Duration>,
        by: &mut Vec<String>,
    ) -> io::Result<()> {
        let mut stream = BufReader::new(TcpStream::connect(self.target).await?);
        stream.get_ref().set_nodelay(true)?;
        let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", self.target);
        for ask in 0..self.asks {
            if ask > 0 {
                sleep(self.pause).await;
            }
            stream.write_all(request.as_bytes()).await?;
            let name = answer(&mut stream).await?;
            first.get_or_insert_with(|| due.elapsed());
            if !by.contains(&name) {
                by.push(name);
            }
        }
        Ok(())
    }
}

/// Reads one answer, and returns what it says.
async fn answer(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    read_line(stream, &mut line).await?;
    if !line.starts_with("HTTP/1.1 200 ") {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut length = 0;
    loop {
        read_line(stream, &mut line).await?;
        match line.trim_end().split_once(':') {
            None => break,
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().map_err(|_| ErrorKind::InvalidData)?;
            }
            Some(_) => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(String::from_utf8_lossy(&body).trim_end().to_owned())
}

async fn read_line(stream: &mut BufReader<TcpStream>, line: &mut String) -> io::Result<()> {
    line.clear();
    match stream.read_line(line).await? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use std::io::Write as _;

    use super::*;

    fn read(bytes: &'static [u8]) -> io::Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let send = move || listener.accept().unwrap().0.write_all(bytes);
        let thread = std::thread::spawn(send);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let got = runtime.block_on(async {
            let stream = TcpStream::connect(address).await.unwrap();
            answer(&mut BufReader::new(stream)).await
        });
        thread.join().unwrap().unwrap();
        got
    }

    #[test]
    fn an_answer_is_who_gave_it() {
        let name = read(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nX: y\r\n\r\nb\n");
        assert_eq!(name.unwrap(), "b");
    }

    #[test]
    fn what_is_no_whole_answer_is_an_error() {
        for (bytes, kind) in [
            (&b""[..], ErrorKind::UnexpectedEof),
            (b"HTTP/1.1 200 OK\r\n", ErrorKind::UnexpectedEof),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nb\n",
                ErrorKind::UnexpectedEof,
            ),
            (
                b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
                ErrorKind::InvalidData,
            ),
        ] {
            assert_eq!(read(bytes).unwrap_err().kind(), kind);
        }
    }
}
