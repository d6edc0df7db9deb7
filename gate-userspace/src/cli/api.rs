//! The commands of the API: the same definition as the command line's, with JSON for the words.

use std::ffi::OsString;

use clap::{Arg, ArgAction, CommandFactory as _, Parser as _};
use gate_userspace::daemon::{Commands, Done, Misuse};
use serde_json::{Map, Value};

use super::Cli;

/// Commands that the API has. The others run programs, read files that a member of the socket's group may
/// not, end with their terminal, or concern the daemon itself.
const ALLOWED: [&str; 17] = [
    "up",
    "down",
    "define",
    "forget",
    "hold",
    "drop",
    "reject",
    "open",
    "drain",
    "flush",
    "guard",
    "handover",
    "alias",
    "soft-stop",
    "soft-start",
    "status",
    "doctor",
];

/// Options that run a program or never end.
const DENIED: [(&str, &str); 2] = [("guard", "watch"), ("handover", "then")];

/// The commands, run in this process.
pub struct FromJson;

impl Commands for FromJson {
    fn names(&self) -> Vec<String> {
        ALLOWED.map(str::to_owned).to_vec()
    }

    fn run(&self, command: &str, arguments: &Map<String, Value>) -> Result<Done, Misuse> {
        let words = words(command, arguments)?;
        let cli = Cli::try_parse_from(words)
            .map_err(|error| Misuse::Arguments(crate::mistake(&error)))?;
        Ok(match cli.command.run(true) {
            Ok(answer) => {
                let mut fields = answer.fields;
                if let Some(complaint) = answer.complaint {
                    fields["error"] = complaint.into();
                }
                Done {
                    code: answer.code,
                    fields,
                }
            }
            Err(error) => Done {
                code: crate::exit_code(&error),
                fields: serde_json::json!({ "error": format!("{error:#}") }),
            },
        })
    }
}

/// The command line that says the same.
fn words(command: &str, arguments: &Map<String, Value>) -> Result<Vec<OsString>, Misuse> {
    let mut definition = Cli::command();
    // Only then positionals have their places.
    definition.build();
    let known = definition.find_subcommand(command);
    let Some(known) = known.filter(|_| ALLOWED.contains(&command)) else {
        let why = match known {
            Some(_) => format!("{command} is not in the API: run `gate {command}`"),
            None => format!("there is no command {command}: GET /v1 lists them"),
        };
        return Err(Misuse::Command(why));
    };
    let mut options = Vec::new();
    let mut positionals = Vec::new();
    for (key, value) in arguments {
        let arg = known.get_arguments().find(|arg| key_of(arg) == *key);
        let Some(arg) = arg.filter(|_| !DENIED.contains(&(command, key.as_str()))) else {
            return Err(Misuse::Arguments(unknown(command, known, key)));
        };
        let texts = texts(arg, key, value).map_err(Misuse::Arguments)?;
        match arg.get_index() {
            Some(index) => positionals.push((index, texts)),
            None => options.extend(texts.into_iter().map(|text| match text {
                Some(text) => format!("--{key}={text}"),
                None => format!("--{key}"),
            })),
        }
    }
    positionals.sort();
    let mut words: Vec<OsString> = vec!["gate".into(), "--json".into(), command.into()];
    words.extend(options.into_iter().map(OsString::from));
    // Whatever it begins with, it is none of the options.
    words.push("--".into());
    let positionals = positionals.into_iter().flat_map(|(_, texts)| texts);
    words.extend(positionals.flatten().map(OsString::from));
    Ok(words)
}

/// The key of an argument: a long option's name, or what a positional stands for.
fn key_of(arg: &Arg) -> String {
    let stands_for = || {
        let names = arg.get_value_names().unwrap_or_default();
        names.first().map(|name| name.to_lowercase())
    };
    let long = arg.get_long().map(str::to_owned);
    long.or_else(stands_for).unwrap_or_default()
}

fn unknown(command: &str, known: &clap::Command, key: &str) -> String {
    let keys = known.get_arguments().map(key_of);
    let taken: Vec<String> = keys
        .filter(|key| !["help", "json"].contains(&key.as_str()))
        .filter(|key| !DENIED.contains(&(command, key.as_str())))
        .collect();
    match taken.is_empty() {
        true => format!("{command} takes no {key:?}, and nothing else"),
        false => format!("{command} takes no {key:?}: it takes {}", taken.join(", ")),
    }
}

/// The values of an argument: none for a flag.
fn texts(arg: &Arg, key: &str, value: &Value) -> Result<Vec<Option<String>>, String> {
    let is_flag = matches!(arg.get_action(), ArgAction::SetTrue);
    match (is_flag, value) {
        (true, Value::Bool(true)) => Ok(vec![None]),
        (true, Value::Bool(false)) => Ok(Vec::new()),
        (true, _) => Err(format!("{key} is true or false")),
        (false, Value::String(text)) => Ok(vec![Some(text.clone())]),
        (false, Value::Number(number)) => Ok(vec![Some(number.to_string())]),
        (false, Value::Array(values)) => {
            let each = values.iter().map(|value| match value {
                Value::String(text) => Ok(Some(text.clone())),
                Value::Number(number) => Ok(Some(number.to_string())),
                _ => Err(format!("{key} has texts and numbers only")),
            });
            each.collect()
        }
        (false, Value::Null | Value::Bool(_) | Value::Object(_)) => {
            Err(format!("{key} is a text, a number, or a list of them"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn line(command: &str, arguments: Value) -> Result<String, String> {
        let Value::Object(arguments) = arguments else {
            panic!("{arguments} is no object");
        };
        let words = words(command, &arguments).map_err(|error| error.to_string())?;
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        Ok(words.join(" "))
    }

    #[test]
    fn json_says_what_a_command_line_says() {
        for (command, arguments, expected) in [
            ("status", json!({}), "gate --json status --"),
            (
                "hold",
                json!({ "gate": ["web", "10.0.0.5:80"], "for": "5s", "allow": ["10.0.0.0/8"] }),
                "gate --json hold --allow=10.0.0.0/8 --for=5s -- web 10.0.0.5:80",
            ),
            (
                "define",
                json!({ "endpoint": ["*:80"], "name": "web" }),
                "gate --json define -- web *:80",
            ),
            ("open", json!({ "all": true }), "gate --json open --all --"),
            (
                "up",
                json!({ "interface": "eth0", "held": 64, "debug": false }),
                "gate --json up --held=64 -- eth0",
            ),
            (
                "hold",
                json!({ "gate": "--help" }),
                "gate --json hold -- --help",
            ),
        ] {
            assert_eq!(line(command, arguments).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn what_it_does_not_have_is_refused() {
        for (command, arguments, part) in [
            ("restart", json!({}), "not in the API"),
            ("holdd", json!({}), "no command holdd"),
            ("hold", json!({ "fro": 1 }), "it takes gate, for, allow"),
            (
                "guard",
                json!({ "gate": "web", "watch": true }),
                "takes no \"watch\"",
            ),
            ("handover", json!({ "then": "id" }), "takes no \"then\""),
            ("open", json!({ "all": 1 }), "all is true or false"),
            ("hold", json!({ "gate": { "a": 1 } }), "gate is a text"),
            ("hold", json!({ "gate": [[]] }), "texts and numbers only"),
        ] {
            let refused = line(command, arguments).expect_err(command);
            assert!(refused.contains(part), "{refused}");
        }
    }

    /// Some JSON: what arguments may be, and what they may not.
    fn any_json() -> impl Strategy<Value = Value> {
        let text = prop_oneof![
            "[-a-z0-9.:/*,=]{0,12}",
            Just("--json".to_owned()),
            Just("--".to_owned()),
            Just("10.0.0.5:80".to_owned()),
            any::<String>(),
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            text.prop_map(Value::from),
        ];
        leaf.prop_recursive(2, 8, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("[a-z-]{0,8}", inner), 0..3)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    /// Mostly an argument that some command has.
    fn key() -> impl Strategy<Value = String> {
        let definition = Cli::command();
        let of = |command: &clap::Command| command.get_arguments().map(key_of).collect::<Vec<_>>();
        let keys: Vec<String> = definition.get_subcommands().flat_map(of).collect();
        prop_oneof![4 => prop::sample::select(keys), 1 => any::<String>()]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Whatever is asked for, it is that command or a refusal: no text becomes an option, and
        /// nothing panics.
        #[test]
        fn any_json_is_the_command_that_it_names_or_is_refused(
            command in prop_oneof![
                8 => prop::sample::select(ALLOWED.to_vec()).prop_map(str::to_owned),
                1 => any::<String>(),
            ],
            arguments in prop::collection::btree_map(key(), any_json(), 0..4),
        ) {
            let arguments: Map<String, Value> = arguments.into_iter().collect();
            if let Ok(words) = words(&command, &arguments) {
                prop_assert_eq!(&words[..3], ["gate", "--json", command.as_str()]);
                let options = words[3..].iter().take_while(|word| *word != "--");
                let options: Vec<_> = options.map(|word| word.to_string_lossy()).collect();
                for option in &options {
                    let key = option.trim_start_matches("--").split('=').next();
                    prop_assert!(arguments.contains_key(key.unwrap_or_default()), "{option}");
                }
                if let Ok(cli) = Cli::try_parse_from(&words) {
                    prop_assert!(cli.json);
                }
            }
        }
    }

    #[test]
    fn every_command_is_allowed_or_left_out_for_a_reason() {
        let left_out = [
            "restart",
            "log",
            "daemon",
            "reload",
            "check",
            "plan",
            "apply",
            "schema",
            "events",
            "top",
            "metrics",
            "man",
            "completions",
            "purge",
        ];
        let definition = Cli::command();
        for command in definition.get_subcommands() {
            let name = command.get_name();
            let known = [&ALLOWED[..], &left_out[..]].concat().contains(&name);
            assert!(known, "{name} is neither in the API nor left out of it");
        }
        for name in ALLOWED {
            assert!(definition.find_subcommand(name).is_some(), "{name}");
        }
    }
}
