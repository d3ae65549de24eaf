//! `${{ namespace.name }}` in configurations: what the client knows is put in, the rest is left to the server.

use anyhow::bail;

/// What a reference stands for.
pub(super) enum Value<'a> {
    /// This text.
    Text(&'a str),
    /// Something that the server knows.
    Later,
    /// Nothing.
    Unknown,
}

/// Puts in what `lookup` knows of a reference such as `run.args`. `$${{` stands for `${{` itself.
pub(super) fn interpolate<'a>(text: &str, lookup: impl Fn(&str) -> Value<'a>) -> anyhow::Result<String> {
    let mut result = String::new();
    let mut missing = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("${{") {
        let (before, after) = rest.split_at(start);
        if let Some(before) = before.strip_suffix('$') {
            result.push_str(before);
            result.push_str("${{");
            rest = &after[3..];
            continue;
        }
        let Some(end) = after.find("}}") else { break };
        result.push_str(before);
        let reference = after[3..end].trim();
        match lookup(reference) {
            Value::Text(text) => result.push_str(text),
            Value::Later => result.push_str(&after[..end + 2]),
            Value::Unknown => missing.push(format!("'{reference}'")),
        }
        rest = &after[end + 2..];
    }
    if !missing.is_empty() {
        bail!("Failed to interpolate due to missing vars: [{}]", missing.join(", "));
    }
    result.push_str(rest);
    Ok(result)
}

/// The arguments as a shell reads them back.
pub(super) fn quoted(args: &[String]) -> String {
    let quote = |arg: &String| {
        let is_plain =
            !arg.is_empty() && arg.bytes().all(|b| b.is_ascii_alphanumeric() || b"@%+=:,./-_".contains(&b));
        if is_plain { arg.clone() } else { format!("'{}'", arg.replace('\'', r#"'"'"'"#)) }
    };
    args.iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let lookup = |reference: &str| match reference {
            "run.args" => Value::Text("a b"),
            reference if reference.starts_with("secrets.") => Value::Later,
            _ => Value::Unknown,
        };
        match interpolate(text, lookup) {
            Ok(text) => assert_eq!(text, expected),
            Err(error) => assert_eq!(error.to_string(), expected),
        }
    }

    #[test]
    fn known_references_are_put_in_and_others_left() {
        check("run ${{ run.args }} now", "run a b now");
        check("${{run.args}}", "a b");
        check("echo $$ ${HOME} ${{ secrets.X }}", "echo $$ ${HOME} ${{ secrets.X }}");
        check("$${{ run.args }}", "${{ run.args }}");
        check("${{ run.args", "${{ run.args");
        check("${{ env.X }} ${{ y.z }}", "Failed to interpolate due to missing vars: ['env.X', 'y.z']");
    }

    #[test]
    fn arguments_survive_a_shell() {
        let args = ["a b", "c", "it's", ""].map(str::to_owned);
        assert_eq!(quoted(&args), r#"'a b' c 'it'"'"'s' ''"#);
    }
}
