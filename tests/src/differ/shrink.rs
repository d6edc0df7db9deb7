//! Making a difference small: the fewest frames, the smallest tables, the plainest last frame.

use anyhow::{Context, Result};

use super::Differ;
use crate::kernel::Setup;

/// The smallest tables and frames that still differ, and how they do.
pub(super) fn smallest(
    differ: &mut Differ,
    tables: Setup,
    frames: &[Vec<u8>],
) -> Result<(Setup, Vec<Vec<u8>>, String)> {
    let found = differ.difference(&tables, frames)?;
    let found = found.context("the difference does not come again")?;
    let frames = shortest(differ, &tables, frames[..found.frames].to_vec())?;
    let frames = fewest(differ, &tables, frames)?;
    let tables = plainest(differ, tables, &frames)?;
    let frames = simplest(differ, &tables, frames)?;
    let found = differ.difference(&tables, &frames)?;
    let found = found.context("the difference does not come again")?;
    Ok((tables, frames, found.text))
}

/// The shortest beginning that differs.
fn shortest(differ: &mut Differ, tables: &Setup, mut frames: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
    let (mut alike, mut unlike) = (0, frames.len());
    while unlike - alike > 1 {
        let middle = alike.midpoint(unlike);
        match differ.difference(tables, &frames[..middle])? {
            Some(found) => unlike = found.frames,
            None => alike = middle,
        }
    }
    frames.truncate(unlike);
    Ok(frames)
}

/// The same without the frames that it does not take.
fn fewest(differ: &mut Differ, tables: &Setup, mut frames: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
    let mut size = frames.len() / 2;
    while size > 0 {
        let mut from = 0;
        while from < frames.len() {
            let mut fewer = frames.clone();
            fewer.drain(from..(from + size).min(frames.len()));
            if !fewer.is_empty() && differ.difference(tables, &fewer)?.is_some() {
                frames = fewer;
            } else {
                from += size;
            }
        }
        size /= 2;
    }
    Ok(frames)
}

/// The same without what of the tables it does not take.
fn plainest(differ: &mut Differ, mut tables: Setup, frames: &[Vec<u8>]) -> Result<Setup> {
    macro_rules! without_each {
        ($($field:ident)*) => { $(
            for index in (0..tables.$field.len()).rev() {
                let mut fewer = tables.clone();
                fewer.$field.remove(index);
                if differ.difference(&fewer, frames)?.is_some() {
                    tables = fewer;
                }
            }
        )* };
    }
    without_each!(allowed checks released listening missing endpoints words);
    Ok(tables)
}

/// The same with zeros instead of bytes that it does not take.
fn simplest(differ: &mut Differ, tables: &Setup, mut frames: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
    for index in 0..frames.len() {
        let shorter = |frame: &Vec<u8>| frame[..frame.len() - 1].to_vec();
        let mut candidates: Vec<usize> = (0..frames[index].len()).rev().collect();
        while frames[index].len() > 14 {
            let mut fewer = frames.clone();
            fewer[index] = shorter(&frames[index]);
            if !differ.takes(&fewer[index]) || differ.difference(tables, &fewer)?.is_none() {
                break;
            }
            frames = fewer;
        }
        candidates.retain(|at| *at < frames[index].len());
        for at in candidates {
            let mut plainer = frames.clone();
            plainer[index][at] = 0;
            let takes = differ.takes(&plainer[index]);
            if takes && differ.difference(tables, &plainer)?.is_some() {
                frames = plainer;
            }
        }
    }
    Ok(frames)
}
