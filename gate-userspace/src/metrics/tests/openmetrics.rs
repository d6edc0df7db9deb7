//! A strict reader of OpenMetrics 1.0 text, as far as gate writes it.

use std::collections::BTreeSet;

#[derive(Debug)]
pub struct Family {
    pub name: String,
    kind: String,
    pub samples: Vec<Sample>,
}

#[derive(Debug)]
pub struct Sample {
    pub name: String,
    pub labels: Vec<(String, String)>,
    value: f64,
}

/// What the specification says of each kind: the suffixes of its samples.
fn suffixes(kind: &str) -> Option<&'static [&'static str]> {
    Some(match kind {
        "gauge" => &[""],
        "counter" => &["_total"],
        "histogram" => &["_bucket", "_count", "_sum"],
        "info" => &["_info"],
        _ => return None,
    })
}

fn is_name(text: &str) -> bool {
    let is_first = |it: char| it.is_ascii_alphabetic() || it == '_' || it == ':';
    text.starts_with(is_first) && text.chars().all(|it| is_first(it) || it.is_ascii_digit())
}

pub fn parse(text: &str) -> Result<Vec<Family>, String> {
    let body = text.strip_suffix("# EOF\n").ok_or("no EOF at the end")?;
    let mut families: Vec<Family> = Vec::new();
    let mut seen = BTreeSet::new();
    for line in body.lines() {
        if let Some(about) = line.strip_prefix("# ") {
            metadata(about, &mut families)?;
            continue;
        }
        let sample = sample(line)?;
        let family = families.last_mut().ok_or("a sample without a family")?;
        let allowed = suffixes(&family.kind).ok_or(format!("{} is no type", family.kind))?;
        let suffix = sample.name.strip_prefix(family.name.as_str());
        if !suffix.is_some_and(|suffix| allowed.contains(&suffix)) {
            return Err(format!("{line}: not of family {}", family.name));
        }
        let mut labels = sample.labels.clone();
        labels.sort();
        if !seen.insert((sample.name.clone(), labels)) {
            return Err(format!("{line}: twice"));
        }
        if family.kind != "gauge" && sample.value.is_sign_negative() {
            return Err(format!("{line}: negative"));
        }
        family.samples.push(sample);
    }
    let names: BTreeSet<&str> = families.iter().map(|family| family.name.as_str()).collect();
    if names.len() != families.len() {
        return Err("a family comes twice".to_owned());
    }
    families.iter().try_for_each(check)?;
    Ok(families)
}

/// `HELP`, `TYPE` and `UNIT`, which come before a family's samples, each once.
fn metadata(about: &str, families: &mut Vec<Family>) -> Result<(), String> {
    let mut words = about.splitn(3, ' ');
    let (what, name, rest) = (words.next(), words.next(), words.next());
    let (Some(what), Some(name), Some(rest)) = (what, name, rest) else {
        return Err(format!("{about}: no metadata"));
    };
    if !is_name(name) {
        return Err(format!("{name}: no name"));
    }
    let is_new = families.last().is_none_or(|family| family.name != name);
    if is_new {
        families.push(Family {
            name: name.to_owned(),
            kind: String::new(),
            samples: Vec::new(),
        });
    }
    let Some(family) = families.last_mut() else {
        return Err("no family".to_owned());
    };
    if !family.samples.is_empty() {
        return Err(format!("{about}: after samples of the family"));
    }
    match what {
        "HELP" => Ok(()),
        "TYPE" if family.kind.is_empty() => {
            family.kind = rest.to_owned();
            Ok(())
        }
        "UNIT" if name.ends_with(&format!("_{rest}")) => Ok(()),
        _ => Err(format!("{about}: wrong metadata")),
    }
}

fn sample(line: &str) -> Result<Sample, String> {
    let (name, rest) = line
        .find(['{', ' '])
        .map(|at| line.split_at(at))
        .ok_or(format!("{line}: no sample"))?;
    if !is_name(name) {
        return Err(format!("{line}: no name"));
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest).ok_or(format!("{line}: labels"))?,
        None => (Vec::new(), rest),
    };
    let text = rest.strip_prefix(' ').ok_or(format!("{line}: no value"))?;
    // Neither a timestamp nor an exemplar is written.
    let value = text.parse().map_err(|_| format!("{line}: no number"))?;
    let names: BTreeSet<&String> = labels.iter().map(|(name, _)| name).collect();
    if names.len() != labels.len() {
        return Err(format!("{line}: a label comes twice"));
    }
    Ok(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// The labels, and what comes after the bracket.
fn labels(mut rest: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        let (name, after) = rest.split_once("=\"")?;
        if !is_name(name) || name.contains(':') {
            return None;
        }
        let mut value = String::new();
        let mut letters = after.char_indices();
        let end = loop {
            match letters.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match letters.next()?.1 {
                    'n' => '\n',
                    it @ ('\\' | '"') => it,
                    _ => return None,
                }),
                (_, '\n') => return None,
                (_, it) => value.push(it),
            }
        };
        labels.push((name.to_owned(), value));
        rest = &after[end + 1..];
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return Some((labels, rest.strip_prefix('}')?)),
        }
    }
}

/// What must hold of a family as a whole.
fn check(family: &Family) -> Result<(), String> {
    if family.kind != "histogram" {
        return Ok(());
    }
    let without_le = |sample: &Sample| {
        let labels = sample.labels.iter().filter(|(name, _)| name != "le");
        labels.cloned().collect::<Vec<_>>()
    };
    let of = |suffix: &str| {
        let name = format!("{}{suffix}", family.name);
        family.samples.iter().filter(move |it| it.name == name)
    };
    for count in of("_count") {
        let own = |it: &&Sample| without_le(it) == count.labels;
        let mut before = (f64::NEG_INFINITY, 0.0);
        for bucket in of("_bucket").filter(own) {
            let le = bucket.labels.iter().find(|(name, _)| name == "le");
            let le: Option<f64> = le.and_then(|(_, bound)| bound.parse().ok());
            let le = le.ok_or("a bucket without a bound")?;
            if le <= before.0 || bucket.value < before.1 {
                return Err(format!("{}: buckets out of order", family.name));
            }
            before = (le, bucket.value);
        }
        let is_whole = before.0.is_infinite() && before.1.to_bits() == count.value.to_bits();
        if !is_whole || of("_sum").filter(own).count() != 1 {
            return Err(format!("{}: the last bucket is not the count", family.name));
        }
    }
    Ok(())
}
