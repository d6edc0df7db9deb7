//! Netlink requests, and all that the kernel answers.

use std::io;

use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

/// Largest answer that the kernel packs into one datagram of a dump.
const DATAGRAM: usize = 32 * 1024;

/// Sends `request` over a new socket of `protocol` and returns what the kernel dumps, in
/// the calling thread's network namespace.
///
/// # Errors
/// Those of the socket calls, and the kernel's own answer.
pub fn dump<M>(protocol: isize, request: M) -> io::Result<Vec<M>>
where
    M: NetlinkSerializable + NetlinkDeserializable,
{
    talk(protocol, request, NLM_F_DUMP)
}

/// Sends a request that is no dump, with these `NLM_F_*` flags besides, and returns what the
/// kernel answers before it acknowledges.
///
/// # Errors
/// Those of the socket calls, and the kernel's own answer.
pub fn ask<M>(protocol: isize, request: M, flags: u16) -> io::Result<Vec<M>>
where
    M: NetlinkSerializable + NetlinkDeserializable,
{
    talk(protocol, request, NLM_F_ACK | flags)
}

fn talk<M>(protocol: isize, request: M, flags: u16) -> io::Result<Vec<M>>
where
    M: NetlinkSerializable + NetlinkDeserializable,
{
    Channel::open(protocol)?.talk(request, flags)
}

/// A netlink socket, for many requests. It belongs to the network namespace in which it was opened.
pub struct Channel {
    socket: Socket,
    datagram: Vec<u8>,
}

impl Channel {
    /// Opens one of `protocol` in the calling thread's network namespace.
    ///
    /// # Errors
    /// Those of the socket calls.
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            datagram: Vec::with_capacity(DATAGRAM),
        })
    }

    /// As [`dump`].
    ///
    /// # Errors
    /// Those of the socket calls, and the kernel's own answer.
    pub fn dump<M>(&mut self, request: M) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        self.talk(request, NLM_F_DUMP)
    }

    /// As [`ask`], with no flags besides.
    ///
    /// # Errors
    /// Those of the socket calls, and the kernel's own answer.
    pub fn ask<M>(&mut self, request: M) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        self.talk(request, NLM_F_ACK)
    }

    fn talk<M>(&mut self, request: M, flags: u16) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let mut answers = Vec::new();
        loop {
            self.datagram.clear();
            self.socket.recv(&mut self.datagram, 0)?;
            if read(&self.datagram, &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

/// Reads the answers that are in a datagram; true where no more will come.
///
/// # Errors
/// The kernel's own answer, and `InvalidData` for what is none.
pub fn read<M: NetlinkDeserializable>(datagram: &[u8], answers: &mut Vec<M>) -> io::Result<bool> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkMessage::<M>::deserialize(rest)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let len = (message.header.length as usize).next_multiple_of(4);
        match message.payload {
            NetlinkPayload::InnerMessage(answer) => answers.push(answer),
            NetlinkPayload::Done(_) => return Ok(true),
            // Code 0 acknowledges.
            NetlinkPayload::Error(error) => match error.code {
                None => return Ok(true),
                Some(_) => return Err(refusal(&error)),
            },
            _ => {}
        }
        rest = rest.get(len..).unwrap_or_default();
    }
    Ok(false)
}

/// The kernel's answer as an error, whatever its code: the least there is has no positive one.
pub fn refusal(answer: &ErrorMessage) -> io::Error {
    io::Error::from_raw_os_error(answer.raw_code().saturating_abs())
}
