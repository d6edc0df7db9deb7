//! Whatever stands in a file, it is answered.

use proptest::prelude::*;

use super::main_file;

/// Words that are likely to lead somewhere.
fn words() -> impl Strategy<Value = String> {
    const WORDS: &[&str] = &[
        "[",
        "]",
        "[[",
        "]]",
        "gate",
        ".",
        "web",
        "=",
        "'",
        "\"",
        "{",
        "}",
        ",",
        "\n",
        "1",
        "true",
        "endpoints",
        "*:80",
        "10.0.0.5:80",
        "check",
        "tcp",
        "on_down",
        "do",
        "hold",
        "backends",
        "address",
        "weight",
        "defaults",
        "daemon",
        "1979-05-27",
        "0x",
        "é",
        "#",
        "\\",
        "[gate.web]\n",
        "endpoints = ['*:80']\n",
    ];
    proptest::collection::vec(proptest::sample::select(WORDS), 0..40)
        .prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn any_text_is_answered(text in prop_oneof![".{0,200}", words()]) {
        if let Err(error) = main_file(text).load() {
            prop_assert!(!error.problems.is_empty());
            for problem in &error.problems {
                let line = problem.to_string();
                prop_assert!(!line.contains('\n'), "{:?}", line);
                prop_assert!(problem.text.contains(": ") || problem.text.ends_with('?'), "{}", line);
            }
        }
    }

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _answered = main_file(bytes).load();
    }
}
