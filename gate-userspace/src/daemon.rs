//! `gate daemon`: watches the backends, closes and opens gates by their health, releases what guards
//! hold, and serves the API. It holds nothing that the next one could not read from the kernel or the
//! configuration, so killing it changes nothing in the data path.

pub mod access;
pub mod client;
pub mod control;
