//! Benchmarks: they print what one run on this machine gave, and judge nothing.

mod baseline;
pub mod cost;
pub mod daemon;
pub mod datapath;
pub mod endurance;
pub mod flood;
pub mod handover;
pub mod nginx;
pub mod path;
pub mod recipes;
pub mod record;
pub mod restart;
pub mod rig;
pub mod scale;
pub mod setup;
mod single;
mod spread;
pub mod throughput;
pub mod whole;
