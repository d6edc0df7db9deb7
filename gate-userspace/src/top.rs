//! `gate top`: what is live, in a terminal.
//!
//! A [`Model`] has all that is shown, [`view`] draws it and nothing else, and [`keys`] tells what a key
//! means. All three are pure. [`run()`] has the terminal, and the threads that look and act.

mod act;
pub mod keys;
mod look;
mod model;
mod run;
pub mod view;

pub use model::{Backend, Connected, Daemon, Dialog, Found, Model, Rates, Row, Sampled, Verb};
pub use run::run;
