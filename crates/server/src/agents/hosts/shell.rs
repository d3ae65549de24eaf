//! Words and texts for `sh`.

/// One word, whatever is in it.
pub(super) fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Lines that set variables.
pub(super) fn variables<'a>(values: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let lines: Vec<String> =
        values.into_iter().map(|(name, value)| format!("{name}={}\n", quote(value))).collect();
    lines.concat()
}

/// Whether every shell takes it for the name of a variable.
pub(super) fn is_name(word: &str) -> bool {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    word.chars().all(is_plain) && word.starts_with(|first: char| !first.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_shell_gives_back_every_value_as_it_was() {
        for value in ["", "a b", "it's", "$HOME `id` \\ \"x\" !!", "two\nlines\n", "-n", "é\t*"] {
            let script = variables([("value", value)]) + "printf '%s|' \"$value\"";
            let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{value}|"));
        }
    }

    #[test]
    fn names_are_told_from_what_a_shell_would_run() {
        let check = |word, expected| assert_eq!(is_name(word), expected, "{word}");
        check("NCCL_DEBUG", true);
        check("_x1", true);
        check("", false);
        check("1x", false);
        check("a-b", false);
        check("a;b", false);
    }
}
