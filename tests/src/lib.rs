//! Gate's laboratory: what its live tests, its demo and its benchmarks share.
//!
//! | module | one idea |
//! |---|---|
//! | [`topology`] | a client and a server network namespace, joined by a veth pair |
//! | [`backend`], [`bounce`], [`service`] | a small HTTP backend, its restart command, and both in a topology |
//! | [`nginx`] | the same for a real nginx, and one in front of it |
//! | [`apache`], [`haproxy`], [`gunicorn`] | other real servers |
//! | [`mod@recipes`] | what happens in the recipes, with them |
//! | [`iptables`], [`xdp_filter`] | what people do without Gate |
//! | [`nft`] | a firewall, and what it counts |
//! | [`nfqueue`] | a program that holds the SYNs of such a firewall |
//! | [`iperf3`] | how many bytes a second |
//! | [`load`] | new connections on a fixed schedule |
//! | [`visit`] | one request with a name and cookies, and the whole answer |
//! | [`talk`] | the same, but they last, and note who answers |
//! | [`dial`] | many clients at once, each from a network of its own |
//! | [`listener`] | does a socket listen on this address, and when did none |
//! | [`summary`], [`text`], [`chart`] | what a run of load came to: in numbers, as a table, as a picture |
//! | [`plot`] | the figures of a benchmark as a picture |
//! | [`extent`] | how much of a fault is tried |
//! | [`mod@clock`] | the machine's time of day, set for a while |
//! | [`mod@suspend`] | the machine, asleep for a while |
//! | [`leftovers`] | what is left of a run of tests |
//! | [`syscalls`] | a command that is traced call by call, and killed or stopped at one of them |
//! | [`demo`], [`mod@bench`] | the two things that `gate-lab` shows |
//! | [`packet`], [`kernel`] | frames, and what the kernel and the pure function make of them |
//! | [`cases`] | single frames through both, and what is expected |
//! | [`differ`] | frames and tables made by chance through both |
//! | [`fuzz`] | what reads input from outside, for any bytes |
//! | [`require`] | what not every kernel has, and whether this one should |
//! | [`tap`], [`tun`] | frames sent and seen by packet sockets, and packets without an Ethernet header |
//! | [`mod@flood`] | SYNs from spoofed sources, a million a second |
//! | [`ethertap`] | an interface whose frames this process writes |
//! | [`foreign`] | BPF programs and maps that are not gate's |
//! | [`machine`] | systemd as the first process, over a copy of the file system |
//! | [`exe`], [`stop`] | where the binaries are, and what Ctrl-C does |
//!
//! Nothing here sends a packet outside namespaces it made itself, and nothing outlives the process.

pub mod apache;
pub mod backend;
pub mod bench;
pub mod bounce;
mod bpf;
pub mod cases;
pub mod chart;
pub mod clock;
pub mod demo;
pub mod dial;
pub mod differ;
pub mod ethertap;
pub mod exe;
pub mod extent;
pub mod flood;
pub mod foreign;
pub mod fuzz;
pub mod gunicorn;
pub mod haproxy;
pub mod iperf3;
pub mod iptables;
pub mod kernel;
pub mod leftovers;
pub mod listener;
pub mod load;
pub mod machine;
pub mod nfqueue;
pub mod nft;
pub mod nginx;
pub mod packet;
pub mod plot;
pub mod recipes;
pub mod require;
pub mod service;
pub mod stop;
pub mod summary;
pub mod suspend;
pub mod syscalls;
pub mod talk;
pub mod tap;
pub mod text;
pub mod topology;
pub mod tun;
pub mod verifier;
pub mod visit;
pub mod xdp_filter;
