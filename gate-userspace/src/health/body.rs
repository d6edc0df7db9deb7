//! The body of an HTTP/1.1 answer, taken out of what was read (RFC 9112, 6 and 7). Pure.

use bytes::{Buf as _, Bytes, BytesMut};
use httparse::Status;

/// The longest line that says how long a chunk is.
const CHUNK_LINE_MAX: usize = 1 << 10;

/// A body, as far as it has come.
#[derive(Debug)]
pub(super) struct Body(Part);

#[derive(Clone, Copy, Debug)]
enum Part {
    /// That many bytes are to come.
    Length(u64),
    /// Whatever comes until the connection ends.
    Rest,
    /// A chunk's length is to come.
    ChunkLine,
    /// That many bytes of a chunk are to come.
    Chunk(u64),
    /// The line's end after a chunk is to come.
    ChunkEnd,
    /// No more is to come.
    Over,
}

/// What was in the bytes that were read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    /// Some of the body.
    Data(Bytes),
    /// Nothing yet.
    More,
    /// The body's end.
    End,
    /// No chunk, where one must be.
    Wrong,
}

impl Body {
    /// One of so many bytes.
    pub fn of_length(length: u64) -> Self {
        Self(Part::Length(length))
    }

    /// One that ends with the connection.
    pub fn to_the_end() -> Self {
        Self(Part::Rest)
    }

    /// One in chunks.
    pub fn chunked() -> Self {
        Self(Part::ChunkLine)
    }

    /// Takes the next part of it out of what was read.
    pub fn next(&mut self, read: &mut BytesMut) -> Decoded {
        loop {
            match self.0 {
                Part::Over | Part::Length(0) => return Decoded::End,
                Part::Rest | Part::Length(_) | Part::Chunk(1..) if read.is_empty() => {
                    return Decoded::More;
                }
                Part::Rest => return Decoded::Data(read.split().freeze()),
                Part::Length(left) => {
                    let (data, left) = take(read, left);
                    self.0 = Part::Length(left);
                    return Decoded::Data(data);
                }
                Part::Chunk(0) => self.0 = Part::ChunkEnd,
                Part::Chunk(left) => {
                    let (data, left) = take(read, left);
                    self.0 = Part::Chunk(left);
                    return Decoded::Data(data);
                }
                Part::ChunkEnd => match read.get(..2) {
                    Some(b"\r\n") => {
                        read.advance(2);
                        self.0 = Part::ChunkLine;
                    }
                    Some(_) => return Decoded::Wrong,
                    None => return Decoded::More,
                },
                Part::ChunkLine => match httparse::parse_chunk_size(read) {
                    Ok(Status::Complete((line, length))) => {
                        read.advance(line);
                        self.0 = match length {
                            // The trailers that may follow are none of the body.
                            0 => Part::Over,
                            length => Part::Chunk(length),
                        };
                    }
                    Ok(Status::Partial) if read.len() <= CHUNK_LINE_MAX => return Decoded::More,
                    Ok(Status::Partial) | Err(_) => return Decoded::Wrong,
                },
            }
        }
    }
}

fn take(read: &mut BytesMut, left: u64) -> (Bytes, u64) {
    let count = usize::try_from(left).unwrap_or(usize::MAX).min(read.len());
    let data = read.split_to(count).freeze();
    (data, left.saturating_sub(count as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All of a body that comes in these parts, and how it ended.
    fn decoded<'a>(mut body: Body, parts: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, Decoded) {
        let (mut read, mut whole) = (BytesMut::new(), Vec::new());
        let mut last = Decoded::More;
        for part in parts {
            read.extend_from_slice(part);
            loop {
                match body.next(&mut read) {
                    Decoded::Data(data) => whole.extend_from_slice(&data),
                    other => {
                        last = other;
                        break;
                    }
                }
            }
        }
        (whole, last)
    }

    #[test]
    fn what_is_no_chunk_is_wrong() {
        let long = "1;".to_owned() + &"x".repeat(CHUNK_LINE_MAX);
        for text in ["x\r\n", "1\r\nab\r\n", "fffffffffffffffff\r\n", &long] {
            let (_, end) = decoded(Body::chunked(), [text.as_bytes()].into_iter());
            assert_eq!(end, Decoded::Wrong, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_body_is_the_same_however_it_is_sent_and_cut(
            chunks in prop::collection::vec("[a-z]{1,20}", 0..6),
            cut in 1_usize..9,
        ) {
            let plain = chunks.concat();
            let line = |chunk: &String| format!("{:X};x=y\r\n{chunk}\r\n", chunk.len());
            let chunked: String = chunks.iter().map(line).collect();
            let chunked = chunked + "0\r\n\r\n";
            let more = plain.clone() + "more";
            let length = Body::of_length(plain.len() as u64);
            for (body, sent, end) in [
                (Body::chunked(), &chunked, Decoded::End),
                (length, &more, Decoded::End),
                (Body::to_the_end(), &plain, Decoded::More),
            ] {
                let (whole, last) = decoded(body, sent.as_bytes().chunks(cut));
                prop_assert_eq!(whole, plain.as_bytes());
                prop_assert_eq!(last, end);
            }
        }

        #[test]
        fn any_chunks_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..99)) {
            let _decoded = decoded(Body::chunked(), bytes.chunks(3));
        }
    }
}
