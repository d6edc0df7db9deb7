//! Benchmarks: they print what one run on this machine gave, and judge nothing.

mod baseline;
pub mod datapath;
pub mod restart;
