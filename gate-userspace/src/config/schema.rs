//! The configuration's form as a JSON schema, and as a reference for people.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::file::File;

/// The JSON schema of a configuration file (draft 2020-12).
#[must_use]
pub fn schema() -> &'static Value {
    static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
        let settings = SchemaSettings::draft2020_12().with(|it| it.inline_subschemas = true);
        let mut schema = settings.into_generator().into_root_schema_for::<File>();
        let mut schema = std::mem::take(schema.ensure_object());
        plain(&mut schema);
        Value::Object(schema)
    });
    &SCHEMA
}

/// TOML has no null: a key that may be left out has one type.
fn plain(schema: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|it| it != "null");
        if let [only] = &mut types[..] {
            let only = only.take();
            schema.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(mut any)) = schema.remove("anyOf") {
        any.retain(|it| it.get("type").is_none_or(|kind| kind != "null"));
        for one in any {
            if let Value::Object(one) = one {
                for (key, value) in one {
                    schema.entry(key).or_insert(value);
                }
            }
        }
    }
    // The descriptions tell them, in the words of the file.
    schema.remove("default");
    schema.remove("format");
    if let Some(Value::String(text)) = schema.get_mut("description") {
        *text = text.replace('\n', " ");
    }
    for (key, value) in schema.iter_mut() {
        match (key.as_str(), value) {
            ("properties", Value::Object(properties)) => {
                properties
                    .values_mut()
                    .filter_map(Value::as_object_mut)
                    .for_each(plain);
            }
            ("items" | "additionalProperties", Value::Object(inner)) => plain(inner),
            ("oneOf", Value::Array(all)) => {
                all.iter_mut()
                    .filter_map(Value::as_object_mut)
                    .for_each(plain);
            }
            _ => {}
        }
    }
}

/// The reference of all keys, as Markdown, from the schema.
#[must_use]
pub fn markdown() -> String {
    let schema = schema();
    let mut text = format!("# gate.toml\n\n{}\n", description(schema));
    section(&mut text, "", schema);
    text
}

fn description(schema: &Value) -> String {
    let text = schema.get("description").and_then(Value::as_str);
    text.unwrap_or_default().to_owned()
}

/// A table's keys, then the tables in it.
fn section(text: &mut String, path: &str, schema: &Value) {
    let Some(Value::Object(keys)) = schema.get("properties") else {
        return;
    };
    let required = schema.get("required").and_then(Value::as_array);
    let is_required = |key: &str| required.is_some_and(|all| all.iter().any(|it| it == key));
    let (tables, plain): (Vec<_>, Vec<_>) = keys.iter().partition(|(_, it)| table(it).is_some());
    if !plain.is_empty() {
        *text += "\n| key | what it takes | meaning |\n|---|---|---|\n";
    }
    for (key, schema) in plain {
        let needed = if is_required(key) { " Required." } else { "" };
        let meaning = description(schema).replace('|', "\\|");
        *text += &format!("| `{key}` | {} | {meaning}{needed} |\n", takes(schema));
    }
    for (key, schema) in tables {
        let Some((suffix, inner)) = table(schema) else {
            continue;
        };
        let dot = if path.is_empty() { "" } else { "." };
        let path = format!("{path}{dot}{key}{suffix}");
        let title = match is_list(schema) {
            true => format!("[[{path}]]"),
            false => format!("[{path}]"),
        };
        *text += &format!("\n## `{title}`\n\n{}\n", description(schema));
        if inner.get("description") != schema.get("description") {
            *text += &format!("\n{}\n", description(inner));
        }
        section(text, &path, inner);
    }
}

fn is_list(schema: &Value) -> bool {
    schema.get("type").is_some_and(|it| it == "array")
}

/// The table that a key holds, or many of: what follows its name, and its schema.
fn table(schema: &Value) -> Option<(&'static str, &Value)> {
    let is_table = |it: &&Value| it.get("properties").is_some();
    let any = schema.get("additionalProperties").filter(is_table);
    let item = schema.get("items").filter(is_table);
    let own = Some(schema).filter(is_table);
    let of = |suffix| move |it| (suffix, it);
    any.map(of(".NAME"))
        .or(item.map(of("")))
        .or(own.map(of("")))
}

/// What a key takes, in words.
fn takes(schema: &Value) -> String {
    let limit = |key| schema.get(key).map(Value::to_string);
    if let Some(Value::Array(choices)) = schema.get("oneOf") {
        let word = |it: &Value| {
            let word = it.get("const").and_then(Value::as_str).unwrap_or_default();
            format!("`\"{word}\"`: {}", description(it))
        };
        let words: Vec<String> = choices.iter().map(word).collect();
        return words.join(" <br> ");
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("array") => "a list of texts".to_owned(),
        Some("boolean") => "`true` or `false`".to_owned(),
        Some("integer") => match (limit("minimum"), limit("maximum")) {
            (Some(least), Some(most)) => format!("a number from {least} to {most}"),
            _ => "a number".to_owned(),
        },
        _ => "a text".to_owned(),
    }
}
