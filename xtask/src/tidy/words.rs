//! Words that do not belong into the clone: work left open, and names of machines.

use super::Finding;
use super::source::File;

/// Work that is left open belongs into a ticket. Written in halves, so that this file keeps to its own rule.
const OPEN: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// Paths of somebody's machine, wherever a path may begin.
const PATHS: [&str; 3] = [concat!("/wo", "rk/"), concat!("/ro", "ot/."), concat!("/ho", "me/user/")];

/// Hosts of package registries: mirrors are configured on the machine, never in the clone.
const HOSTS: [&str; 6] = [
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("pythonhosted", ".org"),
    concat!("deb.debian", ".org"),
    concat!("npmjs", ".org"),
    concat!("proxy.golang", ".org"),
];

/// Endings of files that people write.
const WRITTEN: [&str; 10] = [".rs", ".md", ".toml", ".yml", ".yaml", ".sh", ".py", ".sql", ".html", "/run"];

pub(super) fn check(files: &[File]) -> Vec<Finding> {
    let written = files.iter().filter(|file| WRITTEN.iter().any(|end| file.path.ends_with(end)));
    let mut findings = Vec::new();
    for file in written {
        for (index, line) in file.text.lines().enumerate() {
            let what = forbidden(line);
            findings.extend(what.map(|what| Finding {
                path: file.path.clone(),
                line: index + 1,
                rule: "words",
                what,
            }));
        }
    }
    findings
}

fn forbidden(line: &str) -> Option<String> {
    let open =
        OPEN.iter().find(|word| line.split(|c: char| !c.is_ascii_alphanumeric()).any(|part| part == **word));
    let path = PATHS.iter().find(|path| {
        let mut starts = line.match_indices(*path).map(|(index, _)| line[..index].chars().next_back());
        starts.any(|before| before.is_none_or(|c| !c.is_ascii_alphanumeric() && !"}./~_-".contains(c)))
    });
    let host = HOSTS.iter().find(|host| line.contains(**host));
    if let Some(word) = open {
        return Some(format!("`{word}`: do it, or write it down where work is planned"));
    }
    if let Some(path) = path {
        return Some(format!("`{path}` is a path of somebody's machine"));
    }
    host.map(|host| format!("`{host}`: registries are configured on the machine"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_where_they_stand_alone() {
        assert!(forbidden(&format!("// {}: later", OPEN[0])).is_some());
        assert!(forbidden("a METHOD").is_none());
        assert!(forbidden(&format!("cd {}main", PATHS[0])).is_some());
        assert!(forbidden(&format!("~/net{}main", PATHS[0])).is_none());
        assert!(forbidden(&format!("https://{}", HOSTS[0])).is_some());
    }
}
