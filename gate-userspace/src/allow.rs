//! Sources as people write them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use gate_common::abi::{ALLOWED, AllowKey};
use gate_common::flow::{Address, GateId};

use crate::endpoint;

/// A prefix of addresses: `10.0.0.0/8`, `fd00::/8`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    address: IpAddr,
    bits: u8,
}

/// Why a text is no prefix.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// An address that is none.
    #[error("{0} is no address: write a source like 10.0.0.0/8, fd00::/8 or 10.0.0.7")]
    Address(String),
    /// A length that is none.
    #[error("{text} is no length of a prefix: it is a number from 0 to {most}")]
    Length {
        /// As given.
        text: String,
        /// The most that the address takes.
        most: u8,
    },
    /// Bits are set behind the prefix.
    #[error("{address}/{} has bits set behind its prefix: write {prefix}, or {address} alone", prefix.bits)]
    HostBits {
        /// As given.
        address: IpAddr,
        /// What it would be without them.
        prefix: Cidr,
    },
}

/// Bits of an IPv4 address's v4-mapped form before the address itself.
const MAPPED_BITS: u8 = 96;

impl Cidr {
    /// The v4-mapped addresses, and so every IPv4 source.
    const MAPPED: Self = Self {
        address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        bits: 0,
    };

    /// Whether every source of one family is in it.
    #[must_use]
    pub const fn is_everything(&self) -> bool {
        self.bits == 0
    }

    /// Whether it is an IPv6 prefix that the v4-mapped addresses begin with.
    fn covers_mapped(&self) -> bool {
        let mapped = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
        match self.address {
            IpAddr::V4(_) => false,
            IpAddr::V6(v6) => self.bits <= MAPPED_BITS && truncated(mapped.into(), self.bits) == v6,
        }
    }

    /// The prefix in the form of the maps: an address and the number of its bits that count.
    fn mapped(&self) -> (Address, u32) {
        match self.address {
            IpAddr::V4(v4) => (
                Address::from_v4(v4.octets()),
                u32::from(MAPPED_BITS + self.bits),
            ),
            IpAddr::V6(v6) => (Address::from_v6(v6.octets()), u32::from(self.bits)),
        }
    }

    /// Back from the form of the maps.
    pub(crate) fn from_mapped(address: &Address, bits: u32) -> Self {
        let bits = u8::try_from(bits).unwrap_or(u8::MAX);
        match (endpoint::ip(address), bits.checked_sub(MAPPED_BITS)) {
            (address @ IpAddr::V4(_), Some(bits)) => Self { address, bits },
            _ => Self {
                address: Ipv6Addr::from(address.octets()).into(),
                bits,
            },
        }
    }
}

/// An entry of the `ALLOW` trie: bits of the prefix, those of the gate included, key and value.
pub type Entry = (u32, AllowKey, u32);

/// The entries that let these sources, and no others, pass a gate.
#[must_use]
pub fn entries(gate: GateId, sources: &[Cidr]) -> Vec<Entry> {
    /// Value for a part that is taken out of a wider prefix.
    const EXCEPTED: u32 = 0;
    let entry = |source: Cidr, value| {
        let (address, bits) = source.mapped();
        (
            AllowKey::GATE_BITS + bits,
            AllowKey { gate, address },
            value,
        )
    };
    let mut entries = Vec::new();
    let allows_v4 = sources.contains(&Cidr::MAPPED);
    if !allows_v4 && sources.iter().any(Cidr::covers_mapped) {
        // `::/0` is every IPv6 source, and IPv4 is told by its own prefixes.
        entries.push(entry(Cidr::MAPPED, EXCEPTED));
    }
    entries.extend(sources.iter().map(|source| entry(*source, ALLOWED)));
    entries
}

/// A line for each of these that lets everyone pass, so that the gate is hardly closed.
#[must_use]
pub fn warnings(sources: &[Cidr]) -> Vec<String> {
    let every = sources.iter().filter(|source| source.is_everything());
    let warn = |source: &Cidr| {
        let family = match source.address {
            IpAddr::V4(_) => "IPv4",
            IpAddr::V6(_) => "IPv6",
        };
        format!("--allow {source}: every {family} client passes, as if the gate were open")
    };
    every.map(warn).collect()
}

/// The address with all bits behind the prefix cleared.
fn truncated(address: IpAddr, bits: u8) -> IpAddr {
    let bits = u32::from(bits);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

const fn width(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, length) = match text.split_once('/') {
            Some((host, length)) => (host, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = host
            .parse()
            .map_err(|_| CidrError::Address(host.to_owned()))?;
        let most = width(address);
        let bits = match length {
            None => most,
            // The standard library also reads "+8" and "08"; a length is written in one way.
            Some(length) => length
                .parse()
                .ok()
                .filter(|bits: &u8| *bits <= most && bits.to_string() == length)
                .ok_or_else(|| CidrError::Length {
                    text: length.to_owned(),
                    most,
                })?,
        };
        let prefix = truncated(address, bits);
        if prefix != address {
            return Err(CidrError::HostBits {
                address,
                prefix: Self {
                    address: prefix,
                    bits,
                },
            });
        }
        // The IPv4 form of what is one.
        Ok(
            match (address.to_canonical(), bits.checked_sub(MAPPED_BITS)) {
                (canonical @ IpAddr::V4(_), Some(bits)) if address.is_ipv6() => Self {
                    address: canonical,
                    bits,
                },
                _ => Self { address, bits },
            },
        )
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bits == width(self.address) {
            true => self.address.fmt(f),
            false => write!(f, "{}/{}", self.address, self.bits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().expect(text)
    }

    #[test]
    fn reads_what_people_write() {
        for (text, shown, bits) in [
            ("10.0.0.0/8", "10.0.0.0/8", 104),
            ("10.0.0.7", "10.0.0.7", 128),
            ("10.0.0.7/32", "10.0.0.7", 128),
            ("0.0.0.0/0", "0.0.0.0/0", 96),
            ("fd00::/8", "fd00::/8", 8),
            ("fd00::7", "fd00::7", 128),
            ("::/0", "::/0", 0),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8", 104),
            ("::ffff:10.0.0.7", "10.0.0.7", 128),
        ] {
            let read = cidr(text);
            assert_eq!(read.to_string(), shown);
            let (address, mapped) = read.mapped();
            assert_eq!(mapped, bits, "{text}");
            assert_eq!(Cidr::from_mapped(&address, mapped), read);
        }
    }

    #[test]
    fn refuses_the_rest() {
        use CidrError as E;
        let length = |text: &str, most| E::Length {
            text: text.to_owned(),
            most,
        };
        for (text, error) in [
            ("", E::Address(String::new())),
            ("/8", E::Address(String::new())),
            ("localhost", E::Address("localhost".into())),
            ("10.0.0/8", E::Address("10.0.0".into())),
            ("[fd00::]/8", E::Address("[fd00::]".into())),
            ("10.0.0.0/33", length("33", 32)),
            ("10.0.0.0/08", length("08", 32)),
            ("10.0.0.0/+8", length("+8", 32)),
            ("10.0.0.0/", length("", 32)),
            ("fd00::/129", length("129", 128)),
        ] {
            assert_eq!(text.parse::<Cidr>(), Err(error), "{text}");
        }
        let error = "10.0.0.7/8".parse::<Cidr>().expect_err("bits are set");
        assert_eq!(
            error.to_string(),
            "10.0.0.7/8 has bits set behind its prefix: write 10.0.0.0/8, or 10.0.0.7 alone"
        );
    }

    #[test]
    fn what_covers_the_mapped_addresses_is_known() {
        for (text, covers) in [
            ("::/0", true),
            ("::/64", true),
            ("::/80", true),
            ("::/96", false),
            ("fd00::/8", false),
            ("0.0.0.0/0", false),
        ] {
            assert_eq!(cidr(text).covers_mapped(), covers, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(address: IpAddr, bits in 0_u8..=128) {
            let bits = bits.min(width(address));
            let text = format!("{}/{bits}", truncated(address, bits));
            let read = cidr(&text);
            prop_assert_eq!(cidr(&read.to_string()), read);
        }

        #[test]
        fn any_text_is_answered(text in ".{0,40}") {
            let _answered = text.parse::<Cidr>();
        }
    }
}
