//! One GET as a browser makes it, with the site's name and with cookies, and the whole answer.

use std::net::SocketAddr;
use std::time::Instant;

use crate::load::{self, Outcome};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Visit {
    /// Where it goes.
    pub target: SocketAddr,
    /// The site.
    pub host: String,
    /// The page.
    pub path: String,
    /// The header `Cookie`; empty: none.
    pub cookies: String,
}

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    head: String,
    /// All that follows the head.
    pub body: Vec<u8>,
}

impl Visit {
    /// Makes it from the calling thread.
    pub fn once(&self, late: Instant) -> anyhow::Result<Result<Answer, Outcome>> {
        Ok(load::runtime()?.block_on(self.make(late)))
    }

    /// Makes it over a connection of its own. An answer that is not complete, or of another status
    /// than 200, is none.
    pub async fn make(&self, late: Instant) -> Result<Answer, Outcome> {
        let cookies = match self.cookies.as_str() {
            "" => String::new(),
            cookies => format!("Cookie: {cookies}\r\n"),
        };
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\n{cookies}Connection: close\r\n\r\n",
            self.path, self.host
        );
        let bytes = load::exchange(self.target, &request, late).await?;
        match Outcome::of_answer(&bytes) {
            Outcome::Ok => Answer::read(&bytes).ok_or(Outcome::Other),
            failure => Err(failure),
        }
    }
}

impl Answer {
    fn read(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        Some(Self {
            head: String::from_utf8_lossy(&bytes[..end]).into_owned(),
            body: bytes[end + 4..].to_vec(),
        })
    }

    /// The value of a cookie that it sets.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        let cookies = self.head.lines().filter_map(|line| {
            let (header, value) = line.split_once(": ")?;
            header.eq_ignore_ascii_case("set-cookie").then_some(value)
        });
        let pairs = cookies.filter_map(|cookie| cookie.split(';').next()?.split_once('='));
        pairs
            .filter(|pair| pair.0 == name)
            .map(|pair| pair.1)
            .next_back()
    }

    /// Its first line of text.
    pub fn line(&self) -> &str {
        let text = std::str::from_utf8(&self.body).unwrap_or_default();
        text.lines().next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_cookies_and_a_body() {
        let answer = Answer::read(
            b"HTTP/1.1 200 OK\r\nSet-Cookie: session=a1; path=/\r\nset-cookie: SRV=b\r\n\r\nhello\n",
        )
        .unwrap();
        assert_eq!(answer.cookie("session"), Some("a1"));
        assert_eq!(answer.cookie("SRV"), Some("b"));
        assert_eq!(answer.cookie("other"), None);
        assert_eq!(answer.line(), "hello");
        assert_eq!(Answer::read(b"HTTP/1.1 200 OK\r\n"), None);
    }
}
