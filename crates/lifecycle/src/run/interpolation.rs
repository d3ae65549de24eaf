//! The texts of a configuration that are known only later: `${{ secrets.X }}`, `${{ dstack.node_rank }}` and
//! `${{ groups[0].nodes[1].IP_ADDRESS }}`. `$$` stands for `$`.

use std::collections::BTreeSet;
use std::fmt;

use api::configurations::RunConfiguration;
use api::jobs::JobSpec;

/// Why a text could not be completed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InterpolationError {
    /// A `${{` has no `}}`.
    Unclosed(String),
    /// What stands between the braces is no name.
    Illegal(String),
    /// Nothing has these names.
    Missing(Vec<String>),
}

impl fmt::Display for InterpolationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InterpolationError::Unclosed(text) => write!(f, "`${{{{{text}` has no closing `}}}}`"),
            InterpolationError::Illegal(name) => write!(f, "`{name}` is not a name such as `secrets.token`"),
            // The official words, which programs may look for.
            InterpolationError::Missing(names) => {
                let names: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
                write!(f, "Failed to interpolate due to missing vars: [{}]", names.join(", "))
            }
        }
    }
}

impl std::error::Error for InterpolationError {}

/// A piece of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece<'a> {
    Literal(&'a str),
    Name(&'a str),
}

/// Cuts a text into what stays and the names in it.
fn pieces(text: &str) -> Result<Vec<Piece<'_>>, InterpolationError> {
    let mut pieces = vec![];
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        let after = &rest[dollar..];
        if after.starts_with("$$") {
            pieces.push(Piece::Literal(&rest[..=dollar]));
            rest = &rest[dollar + 2..];
        } else if let Some(inside) = after.strip_prefix("${{") {
            pieces.push(Piece::Literal(&rest[..dollar]));
            let Some((name, tail)) = inside.split_once("}}") else {
                return Err(InterpolationError::Unclosed(inside.to_owned()));
            };
            let name = name.trim();
            if !is_name(name) {
                return Err(InterpolationError::Illegal(name.to_owned()));
            }
            pieces.push(Piece::Name(name));
            rest = tail;
        } else {
            pieces.push(Piece::Literal(&rest[..=dollar]));
            rest = &rest[dollar + 1..];
        }
    }
    pieces.push(Piece::Literal(rest));
    Ok(pieces)
}

fn is_name(name: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
    };
    name.contains('.') && name.split('.').all(is_part)
}

/// Puts values in place of names. The lookup is asked for whole names, such as `secrets.token`.
pub fn interpolate(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<String, InterpolationError> {
    let mut result = String::with_capacity(text.len());
    let mut missing = vec![];
    for piece in pieces(text)? {
        match piece {
            Piece::Literal(literal) => result.push_str(literal),
            Piece::Name(name) => match lookup(name) {
                Some(value) => result.push_str(&value),
                None => missing.push(name.to_owned()),
            },
        }
    }
    if missing.is_empty() { Ok(result) } else { Err(InterpolationError::Missing(missing)) }
}

/// The names that a text asks for, in order.
pub fn names_in(text: &str) -> Result<Vec<String>, InterpolationError> {
    let names = pieces(text)?.into_iter().filter_map(|piece| match piece {
        Piece::Name(name) => Some(name.to_owned()),
        Piece::Literal(_) => None,
    });
    Ok(names.collect())
}

/// The texts of a job in which secrets may be named.
fn secret_texts(spec: &JobSpec) -> impl Iterator<Item = &str> {
    let auth = spec.registry_auth.iter().flat_map(|auth| [auth.username.as_str(), auth.password.as_str()]);
    spec.env.values().map(String::as_str).chain(auth)
}

/// The names of the secrets that a job needs. What is malformed is found when it is resolved.
pub fn secret_names(spec: &JobSpec) -> BTreeSet<String> {
    let names = secret_texts(spec).filter_map(|text| names_in(text).ok()).flatten();
    names.filter_map(|name| name.strip_prefix("secrets.").map(str::to_owned)).collect()
}

/// Puts secrets into a job's environment and its registry's credentials. The lookup is asked for bare names. On an
/// error nothing is changed, and all that is missing is named at once.
pub fn resolve_job_secrets(
    spec: &mut JobSpec,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<(), InterpolationError> {
    let by_name = |name: &str| name.strip_prefix("secrets.").and_then(&lookup);
    let mut missing = vec![];
    for text in secret_texts(spec) {
        match interpolate(text, by_name) {
            Ok(_) => {}
            Err(InterpolationError::Missing(names)) => missing.extend(names),
            Err(error) => return Err(error),
        }
    }
    if !missing.is_empty() {
        missing.sort_unstable();
        missing.dedup();
        return Err(InterpolationError::Missing(missing));
    }
    for value in spec.env.values_mut() {
        *value = interpolate(value, by_name)?;
    }
    if let Some(auth) = &mut spec.registry_auth {
        auth.username = interpolate(&auth.username, by_name)?;
        auth.password = interpolate(&auth.password, by_name)?;
    }
    Ok(())
}

/// How many nodes each group of a run's replica has.
fn group_sizes(configuration: &RunConfiguration) -> Vec<usize> {
    match configuration {
        RunConfiguration::Task(task) => task.node_groups().iter().map(|group| group.nodes as usize).collect(),
        RunConfiguration::DevEnvironment(_) | RunConfiguration::Service(_) => vec![1],
    }
}

/// Puts the addresses of nodes, by rank, in place of `${{ groups[i].nodes[j].IP_ADDRESS }}`.
pub fn resolve_commands(
    commands: &[String],
    configuration: &RunConfiguration,
    node_ips: &[String],
) -> Result<Vec<String>, String> {
    let sizes = group_sizes(configuration);
    let address = |group: usize, node: usize| {
        let rank = rank_of(&sizes, group, node)?;
        node_ips.get(rank).cloned().ok_or_else(|| format!("the address of node {rank} is not known"))
    };
    commands.iter().map(|command| replace_addresses(command, &address)).collect()
}

/// Checks that the nodes whose addresses a command asks for exist.
pub fn check_commands(commands: &[String], configuration: &RunConfiguration) -> Result<(), String> {
    let sizes = group_sizes(configuration);
    let address = |group: usize, node: usize| rank_of(&sizes, group, node).map(|rank| rank.to_string());
    commands.iter().try_for_each(|command| replace_addresses(command, &address).map(|_| ()))
}

fn rank_of(sizes: &[usize], group: usize, node: usize) -> Result<usize, String> {
    let Some(size) = sizes.get(group) else {
        return Err(format!("`groups[{group}]` does not exist: there are {} groups", sizes.len()));
    };
    if *size <= node {
        return Err(format!("`groups[{group}].nodes[{node}]` does not exist: the group has {size} nodes"));
    }
    Ok(sizes[..group].iter().sum::<usize>() + node)
}

// Commands are the user's own language, so nothing but the one form is touched: `$$` is a process number there.
fn replace_addresses(
    command: &str,
    address: &impl Fn(usize, usize) -> Result<String, String>,
) -> Result<String, String> {
    let mut result = String::with_capacity(command.len());
    let mut rest = command;
    while let Some(start) = rest.find("${{") {
        let Some(end) = rest[start..].find("}}").map(|end| start + end) else { break };
        let name = rest[start + 3..end].trim();
        let escaped = rest[..start].ends_with('$');
        if !name.starts_with("groups[") {
            result.push_str(&rest[..end + 2]);
        } else if escaped {
            result.push_str(&rest[..start - 1]);
            result.push_str(&rest[start..end + 2]);
        } else {
            result.push_str(&rest[..start]);
            let (group, node) = parse_node(name)
                .ok_or_else(|| format!("`{name}` is not of the form `groups[0].nodes[1].IP_ADDRESS`"))?;
            result.push_str(&address(group, node)?);
        }
        rest = &rest[end + 2..];
    }
    result.push_str(rest);
    Ok(result)
}

fn parse_node(name: &str) -> Option<(usize, usize)> {
    let rest = name.strip_prefix("groups[")?;
    let (group, rest) = rest.split_once("].nodes[")?;
    let (node, attribute) = rest.split_once(']')?;
    (attribute == ".IP_ADDRESS").then_some(())?;
    Some((group.trim().parse().ok()?, node.trim().parse().ok()?))
}

/// The name of a volume for one node.
pub fn resolve_volume_name(name: &str, node_rank: u32) -> Result<String, InterpolationError> {
    let lookup = |name: &str| match name {
        "dstack.node_rank" | "dstack.job_num" => Some(node_rank.to_string()),
        _ => None,
    };
    interpolate(name, lookup)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, InterpolationError>) {
        let lookup = |name: &str| (name == "secrets.token").then(|| "t0p$ecret".to_owned());
        assert_eq!(interpolate(text, lookup), expected.map(str::to_owned));
    }

    #[test]
    fn names_are_replaced_and_the_rest_is_literal() {
        check("plain", Ok("plain"));
        check("$HOME ${HOME} 100$", Ok("$HOME ${HOME} 100$"));
        check("a${{ secrets.token }}b${{secrets.token}}", Ok("at0p$ecretbt0p$ecret"));
        check("$${{ secrets.token }}", Ok("${{ secrets.token }}"));
        check("a$$b", Ok("a$b"));
        check(
            "${{ secrets.x }} ${{ env.Y }}",
            Err(InterpolationError::Missing(vec!["secrets.x".into(), "env.Y".into()])),
        );
        check("${{ secrets.token", Err(InterpolationError::Unclosed(" secrets.token".into())));
        check("${{ a b }}", Err(InterpolationError::Illegal("a b".into())));
    }

    fn two_groups() -> RunConfiguration {
        serde_json::from_value(json!({
            "type": "task",
            "groups": [{ "nodes": 2, "commands": ["a"] }, { "nodes": 1, "commands": ["b"] }],
        }))
        .unwrap()
    }

    #[track_caller]
    fn check_command(command: &str, expected: Result<&str, &str>) {
        let ips = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(str::to_owned);
        let resolved = resolve_commands(&[command.to_owned()], &two_groups(), &ips);
        assert_eq!(resolved, expected.map(|text| vec![text.to_owned()]).map_err(str::to_owned));
        let checked = check_commands(&[command.to_owned()], &two_groups());
        assert_eq!(checked, expected.map(|_| ()).map_err(str::to_owned));
    }

    #[test]
    fn commands_get_the_addresses_of_nodes() {
        check_command("echo $$ ${X} $${HOME}", Ok("echo $$ ${X} $${HOME}"));
        check_command("ping ${{ groups[1].nodes[0].IP_ADDRESS }}:1", Ok("ping 10.0.0.3:1"));
        check_command("${{groups[0].nodes[1].IP_ADDRESS}} ${{ github.x }}", Ok("10.0.0.2 ${{ github.x }}"));
        check_command("$${{ groups[0].nodes[1].IP_ADDRESS }}", Ok("${{ groups[0].nodes[1].IP_ADDRESS }}"));
        check_command("${{ open", Ok("${{ open"));
        check_command(
            "${{ groups[0].nodes[2].IP_ADDRESS }}",
            Err("`groups[0].nodes[2]` does not exist: the group has 2 nodes"),
        );
        check_command(
            "${{ groups[2].nodes[0].IP_ADDRESS }}",
            Err("`groups[2]` does not exist: there are 2 groups"),
        );
        check_command(
            "${{ groups[0].nodes.IP }}",
            Err("`groups[0].nodes.IP` is not of the form `groups[0].nodes[1].IP_ADDRESS`"),
        );
    }

    #[test]
    fn volume_names_get_the_rank() {
        assert_eq!(resolve_volume_name("data-${{ dstack.node_rank }}", 3), Ok("data-3".to_owned()));
    }
}
