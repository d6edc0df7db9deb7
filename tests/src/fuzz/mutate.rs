//! Inputs made from others.

use fastrand::Rng;

/// Longest input, in bytes.
const LONGEST: usize = 4096;

/// A source of inputs; the same seed makes the same ones.
pub struct Inputs {
    random: Rng,
    seeds: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
}

impl Inputs {
    /// Those that can be made of these.
    pub fn new(seed: u64, seeds: Vec<Vec<u8>>) -> Self {
        let is_of_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        let words = seeds
            .iter()
            .flat_map(|bytes| bytes.split(|byte| !is_of_word(byte)));
        let words = words.filter(|word| word.len() > 1).map(<[u8]>::to_vec);
        Self {
            random: Rng::with_seed(seed),
            words: words.collect(),
            seeds,
        }
    }

    /// The next one.
    pub fn make(&mut self) -> Vec<u8> {
        let mut bytes = self.pick();
        for _ in 0..self.random.usize(1..6) {
            self.change(&mut bytes);
        }
        bytes.truncate(LONGEST);
        bytes
    }

    fn pick(&mut self) -> Vec<u8> {
        self.seeds[self.random.usize(..self.seeds.len())].clone()
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        const BYTES: &[u8] = b"\0\x01\x7f\x80\xff\n\r\t \"'[]{}=:,.#-\\/0919";
        let at = self.random.usize(..=bytes.len());
        let to = (at + self.random.usize(..32)).min(bytes.len());
        let random = &mut self.random;
        match random.u8(..9) {
            0 => bytes.insert(at, random.u8(..)),
            1 => bytes.insert(at, BYTES[random.usize(..BYTES.len())]),
            2 if at < bytes.len() => bytes[at] ^= 1 << random.u8(..8),
            3 if at < bytes.len() => bytes[at] = BYTES[random.usize(..BYTES.len())],
            4 => drop(bytes.drain(at..to)),
            5 => {
                let part = bytes[at..to].to_vec();
                let from = random.usize(..=bytes.len());
                bytes.splice(from..from, part);
            }
            6 if !self.words.is_empty() => {
                let word = self.words[random.usize(..self.words.len())].clone();
                bytes.splice(at..to, word);
            }
            7 => {
                let other = self.pick();
                let from = self.random.usize(..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => bytes.truncate(at),
        }
    }
}
