//! Endpoints as people write them.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use gate_common::flow::{Address, EndpointKey, Port};

/// Where new connections go: `10.0.0.5:8080`, `[fd00::5]:8080`, or `*:8080` for any address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address, v4-mapped forms made IPv4; none for any.
    pub address: Option<IpAddr>,
    /// The port, not 0.
    pub port: u16,
}

/// Why a text is no endpoint.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// No port.
    #[error("the port is missing: write ADDRESS:PORT, as in 10.0.0.5:8080 or [fd00::5]:8080")]
    NoPort,
    /// A port that is none.
    #[error("{0} is no port: it is a number from 1 to 65535")]
    Port(String),
    /// An IPv6 address without brackets.
    #[error("an IPv6 address goes in brackets, as in [fd00::5]:8080")]
    Brackets,
    /// An address that is none.
    #[error("{0} is no address: names are not looked up, so write the address, or * for any")]
    Address(String),
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port, bracketed) = match text.strip_prefix('[') {
            Some(rest) => rest.split_once("]:").map(|(host, port)| (host, port, true)),
            None => text
                .rsplit_once(':')
                .map(|(host, port)| (host, port, false)),
        }
        .ok_or(EndpointError::NoPort)?;
        if !bracketed && host.contains(':') {
            return Err(EndpointError::Brackets);
        }
        let number = port.parse().unwrap_or(0);
        // The standard library also reads "+80" and "080"; a port is written in one way.
        if number == 0 || number.to_string() != port {
            return Err(EndpointError::Port(port.to_owned()));
        }
        let address = match (host, bracketed) {
            ("*", false) => None,
            _ => host
                .parse()
                .ok()
                .filter(|address: &IpAddr| address.is_ipv6() == bracketed)
                .ok_or_else(|| EndpointError::Address(host.to_owned()))
                .map(|address| Some(address.to_canonical()).filter(|a| !a.is_unspecified()))?,
        };
        Ok(Self {
            address,
            port: number,
        })
    }
}

impl Endpoint {
    /// Whether some connection goes to both.
    #[must_use]
    pub fn meets(self, other: Self) -> bool {
        let same_address = match (self.address, other.address) {
            (Some(own), Some(other)) => own == other,
            (None, _) | (_, None) => true,
        };
        self.port == other.port && same_address
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => SocketAddr::new(address, self.port).fmt(f),
            None => write!(f, "*:{}", self.port),
        }
    }
}

impl From<Endpoint> for EndpointKey {
    fn from(endpoint: Endpoint) -> Self {
        let address = match endpoint.address {
            None => Address::ANY,
            Some(IpAddr::V4(v4)) => Address::from_v4(v4.octets()),
            Some(IpAddr::V6(v6)) => Address::from_v6(v6.octets()),
        };
        Self::new(address, Port::new(endpoint.port))
    }
}

/// An address of the maps, v4-mapped ones made IPv4.
#[must_use]
pub fn ip(address: &Address) -> IpAddr {
    Ipv6Addr::from(address.octets()).to_canonical()
}

impl From<EndpointKey> for Endpoint {
    fn from(key: EndpointKey) -> Self {
        Self {
            address: Some(ip(&key.address)).filter(|_| key.address != Address::ANY),
            port: key.port.number(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_people_write() {
        for (text, shown) in [
            ("10.0.0.5:8080", "10.0.0.5:8080"),
            ("[fd00::5]:80", "[fd00::5]:80"),
            ("[::ffff:10.0.0.5]:80", "10.0.0.5:80"),
            ("*:65535", "*:65535"),
            ("0.0.0.0:80", "*:80"),
            ("[::]:80", "*:80"),
        ] {
            let endpoint: Endpoint = text.parse().expect(text);
            assert_eq!(endpoint.to_string(), shown);
            assert_eq!(Endpoint::from(EndpointKey::from(endpoint)), endpoint);
        }
    }

    #[test]
    fn refuses_the_rest() {
        use EndpointError as E;
        for (text, error) in [
            ("", E::NoPort),
            ("8080", E::NoPort),
            ("10.0.0.5", E::NoPort),
            ("[fd00::5]", E::NoPort),
            ("[fd00::5]80", E::NoPort),
            ("fd00::5:80", E::Brackets),
            ("10.0.0.5:0", E::Port("0".into())),
            ("10.0.0.5:65536", E::Port("65536".into())),
            ("10.0.0.5:+80", E::Port("+80".into())),
            ("10.0.0.5:080", E::Port("080".into())),
            ("10.0.0.5:http", E::Port("http".into())),
            ("10.0.0.5:", E::Port(String::new())),
            ("localhost:80", E::Address("localhost".into())),
            (":80", E::Address(String::new())),
            ("[10.0.0.5]:80", E::Address("10.0.0.5".into())),
            ("[*]:80", E::Address("*".into())),
            ("10.0.0.256:80", E::Address("10.0.0.256".into())),
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(address: IpAddr, port in 1_u16..) {
            let endpoint = Endpoint {
                address: Some(address.to_canonical()).filter(|address| !address.is_unspecified()),
                port,
            };
            prop_assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
            prop_assert_eq!(Endpoint::from(EndpointKey::from(endpoint)), endpoint);
        }

        #[test]
        fn any_text_is_answered(text in ".{0,40}") {
            let _answered = text.parse::<Endpoint>();
        }
    }
}
