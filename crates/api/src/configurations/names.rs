//! The rules for names.

/// Checks the name of a run, fleet, volume or gateway: `^[a-z][a-z0-9-]{1,40}$`.
///
/// The error is the official one, on which clients may depend.
pub fn check_resource_name(name: &str) -> Result<(), String> {
    let has_length = (2..=41).contains(&name.len());
    let is_valid =
        has_length && name.starts_with(|c: char| c.is_ascii_lowercase()) && name.bytes().all(is_name_byte);
    if is_valid {
        return Ok(());
    }
    Err("Resource name should match regex '^[a-z][a-z0-9-]{1,40}$'".to_owned())
}

/// Checks the name of a group of nodes or replicas: `^[a-z0-9][a-z0-9-]{0,39}$`.
pub(crate) fn check_group_name(name: &str) -> Result<(), String> {
    let has_length = (1..=40).contains(&name.len());
    let is_valid = has_length && !name.starts_with('-') && name.bytes().all(is_name_byte);
    if is_valid {
        return Ok(());
    }
    Err(format!(
        "the group name `{name}` must be 1 to 40 lower-case letters, digits and `-`, and not start with `-`"
    ))
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'
}

/// Names the groups that have none by their place, and checks that names differ. The groups are
/// listed under `list_key`.
pub(crate) fn settle_group_names<'a>(
    list_key: &str,
    names: impl Iterator<Item = &'a mut String>,
) -> Result<(), String> {
    let mut seen = Vec::new();
    for (index, name) in names.enumerate() {
        if name.is_empty() {
            *name = index.to_string();
        }
        check_group_name(name).map_err(|reason| format!("`{list_key}[{index}].name`: {reason}"))?;
        if seen.contains(name) {
            return Err(format!("`{list_key}[{index}].name`: the name `{name}` is taken by another group"));
        }
        seen.push(name.clone());
    }
    Ok(())
}
