//! Compares a file with the schema: unknown keys, wrong types, what is missing. What is wrong is told
//! and taken out, so that the rest can be looked at as well.

use std::ops::Range;

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::error::{Place, Problems};

/// A longer word is nobody's slip of the pen.
const WORD_MAX: usize = 64;

/// The walk through one file.
pub(super) struct Walk<'a> {
    pub problems: &'a mut Problems,
    pub file: usize,
}

impl Walk<'_> {
    fn tell(&mut self, bytes: &Range<usize>, text: String) {
        self.problems.add(Place::new(self.file, bytes), text);
    }

    /// Looks through a table. `at` is where it begins, `name` how people call it.
    pub(super) fn table(
        &mut self,
        table: &mut DeTable<'_>,
        schema: &Value,
        (at, name): (&Range<usize>, &str),
    ) {
        let properties = schema.get("properties").and_then(Value::as_object);
        let any = schema
            .get("additionalProperties")
            .filter(|it| it.is_object());
        let required = schema.get("required").and_then(Value::as_array);
        let required = required.into_iter().flatten().filter_map(Value::as_str);
        let missing: Vec<&str> = required.filter(|key| !table.contains_key(*key)).collect();
        for key in missing {
            self.tell(at, format!("{name} has no `{key}`: add it"));
        }
        for (key, mut value) in std::mem::replace(table, DeTable::new()) {
            let word = key.get_ref().as_ref();
            let inner = match name {
                "" => word.to_owned(),
                name => format!("{name}.{word}"),
            };
            let known = properties.and_then(|all| all.get(word));
            let Some(schema) = known.or(any) else {
                let all = properties.into_iter().flat_map(|all| all.keys());
                let all: Vec<&str> = all.map(String::as_str).collect();
                self.tell(&key.span(), unknown(word, &value, name, &all));
                continue;
            };
            if self.value(&mut value, schema, (&key.span(), &inner)) {
                table.insert(key, value);
            }
        }
    }

    /// Looks at a value; whether its form is right. `at` is its key.
    fn value(
        &mut self,
        value: &mut Spanned<DeValue<'_>>,
        schema: &Value,
        (at, name): (&Range<usize>, &str),
    ) -> bool {
        let bytes = value.span();
        let choices = choices(schema);
        let wanted = schema.get("type").and_then(Value::as_str);
        let wanted = wanted.unwrap_or("string");
        match (wanted, value.get_mut()) {
            ("object", DeValue::Table(table)) => self.table(table, schema, (at, name)),
            ("array", DeValue::Array(items)) => self.array(items, schema, name),
            ("string", DeValue::String(text)) if !choices.is_empty() => {
                if !choices.contains(&text.as_ref()) {
                    self.tell(&bytes, not_among(text, name, &choices));
                    return false;
                }
            }
            ("string", DeValue::String(_)) | ("boolean", DeValue::Boolean(_)) => {}
            ("integer", DeValue::Integer(number)) => {
                let text = number.as_str().replace('_', "");
                let number = i128::from_str_radix(&text, number.radix()).unwrap_or(i128::MAX);
                let limit = |key| schema.get(key).and_then(Value::as_i64).map(i128::from);
                let (least, most) = (limit("minimum"), limit("maximum"));
                if least.is_some_and(|it| number < it) || most.is_some_and(|it| number > it) {
                    let (least, most) = (least.unwrap_or(0), most.unwrap_or(i128::MAX));
                    let text = format!("`{name}` is out of range: write {least} to {most}");
                    self.tell(&bytes, text);
                    return false;
                }
            }
            (_, found) => {
                let text = wrong_type(name, found, wanted);
                // A table's own place is its first line, wherever that is.
                let at = if matches!(found, DeValue::Table(_)) {
                    at
                } else {
                    &bytes
                };
                self.tell(at, text);
                return false;
            }
        }
        true
    }

    fn array(&mut self, items: &mut DeArray<'_>, schema: &Value, name: &str) {
        let Some(schema) = schema.get("items") else {
            return;
        };
        let mut right = DeArray::new();
        for mut item in std::mem::replace(items, DeArray::new()) {
            let bytes = item.span();
            if self.value(&mut item, schema, (&bytes, name)) {
                right.push(item);
            }
        }
        *items = right;
    }
}

/// The words that a value may be; none where it is any text.
fn choices(schema: &Value) -> Vec<&str> {
    let one_of = schema.get("oneOf").and_then(Value::as_array);
    let of_one = |it| Value::as_str(Value::get(it, "const")?);
    one_of.into_iter().flatten().filter_map(of_one).collect()
}

fn unknown(key: &str, value: &Spanned<DeValue<'_>>, name: &str, all: &[&str]) -> String {
    let is_gate = name.is_empty() && value.get_ref().get("endpoints").is_some();
    if is_gate {
        return format!("unknown key `{key}`: a gate is written as [gate.{key}]");
    }
    let place = match name {
        "" => String::new(),
        name => format!(" in {name}"),
    };
    let remedy = match nearest(key, all) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("the keys here are {}", all.join(", ")),
    };
    format!("unknown key `{}`{place}: {remedy}", short(key))
}

fn not_among(text: &str, name: &str, choices: &[&str]) -> String {
    let remedy = match nearest(text, choices) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("write one of {}", choices.join(", ")),
    };
    format!("`{name}` can't be \"{}\": {remedy}", short(text))
}

/// What is shown of a text that someone wrote.
pub(super) fn short(text: &str) -> String {
    match text.char_indices().nth(WORD_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
    }
}

fn wrong_type(name: &str, found: &DeValue<'_>, wanted: &str) -> String {
    let found = match found {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or a time of day",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    let last = name.rsplit('.').next().unwrap_or(name);
    let remedy = match wanted {
        "object" => format!("write it as a table, [{name}]"),
        "array" => format!("write it as a list, {last} = [...]"),
        "integer" => format!("write it as a whole number, {last} = 1"),
        "boolean" => format!("write {last} = true or {last} = false"),
        _ => format!("write it as a text in quotes, {last} = \"...\""),
    };
    format!("`{name}` is {found} here: {remedy}")
}

/// The word that was probably meant.
fn nearest<'a>(word: &str, all: &[&'a str]) -> Option<&'a str> {
    if word.len() > WORD_MAX {
        return None;
    }
    let slips = (word.chars().count() / 3).max(1);
    let near = all.iter().map(|it| (distance(word, it), *it));
    let (_, best) = near.filter(|(count, _)| *count <= slips).min()?;
    Some(best)
}

/// Letters that must be put in, taken out, changed, or swapped with the next, to make one word the
/// other (the optimal string alignment distance).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut before_last = Vec::new();
    let mut last: Vec<usize> = (0..=other.len()).collect();
    let mut previous = None;
    for (line, letter) in one.chars().enumerate() {
        let mut row = vec![line + 1];
        for (column, candidate) in other.iter().enumerate() {
            let at = |row: &[usize], column: usize| row.get(column).copied().unwrap_or(usize::MAX);
            let changed = at(&last, column) + usize::from(*candidate != letter);
            let mut least = changed
                .min(at(&row, column) + 1)
                .min(at(&last, column + 1) + 1);
            let beside = column.checked_sub(1).and_then(|it| other.get(it));
            if beside == Some(&letter) && previous == Some(*candidate) {
                least = least.min(at(&before_last, column - 1) + 1);
            }
            row.push(least);
        }
        before_last = std::mem::replace(&mut last, row);
        previous = Some(letter);
    }
    last.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_is_known() {
        let all = ["endpoints", "max_hold", "mode", "hook", "on_down"];
        for (word, meant) in [
            ("endpoint", Some("endpoints")),
            ("max-hold", Some("max_hold")),
            ("maxhold", Some("max_hold")),
            ("on_dwon", Some("on_down")),
            ("hooks", Some("hook")),
            ("colour", None),
            ("ohok", Some("hook")),
            ("x", None),
        ] {
            assert_eq!(nearest(word, &all), meant, "{word}");
        }
        assert_eq!(nearest(&"e".repeat(1 << 20), &all), None);
    }
}
