//! A stand-in until the real one lands: on a conflict take yours, and adapt daemon/{reload,run}.rs.
#![allow(missing_docs)]
use super::*;
use crate::datapath::{self, UpOptions};
use crate::error::{Error, Result};
use crate::gates::{self, Target};
use crate::pins::Pins;
use crate::tables::Tables;
use crate::{clock, guard, interfaces};

#[derive(Debug, Default)]
pub struct Applied {
    pub changes: Vec<String>,
    pub awaited: Vec<String>,
}

pub fn apply(pins: &Pins, config: &Config) -> Result<Applied> {
    let mut applied = Applied::default();
    let there: BTreeSet<String> = interfaces::list()?.into_iter().map(|it| it.name).collect();
    let live: BTreeSet<String> = crate::attach::attachments(pins)?
        .into_iter()
        .filter_map(|it| it.interface)
        .collect();
    for gate in config.gates.values() {
        if let Interfaces::Named(names) = &gate.interfaces {
            for name in names {
                if !there.contains(name) {
                    applied.awaited.push(name.clone());
                } else if !live.contains(name) {
                    datapath::up(
                        pins,
                        &[name.clone()],
                        UpOptions {
                            hook: gate.hook,
                            held: None,
                            debug: false,
                        },
                    )?;
                    applied.changes.push(name.clone());
                }
            }
        }
    }
    for (name, gate) in &config.gates {
        let lock = pins.lock()?;
        let mut tables = Tables::open(pins)?;
        let defined = gates::define(
            pins,
            &lock,
            &mut tables,
            (name, &gate.endpoints),
            clock::now(),
        )?;
        drop(lock);
        if !defined.already {
            applied.changes.push(name.to_string());
        }
        if gate.mode == DefaultMode::Guard {
            guard::guard(pins, &[Target::Named(name.clone())], gate.max_hold)?;
        }
    }
    for name in pins.names().into_keys() {
        if !config.gates.contains_key(&name) {
            let lock = pins.lock()?;
            let mut tables = Tables::open(pins)?;
            gates::forget(pins, &lock, &mut tables, &name, clock::now())?;
        }
    }
    let _ = Error::NotUp;
    Ok(applied)
}
