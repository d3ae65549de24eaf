//! What a node of the task has shown of itself, read from what `apply` printed.

use std::collections::{BTreeMap, BTreeSet};

/// What begins the header of a section.
const HEADER: &str = "= ";

/// What one node printed, by section.
#[derive(Debug)]
pub(super) struct Node {
    sections: BTreeMap<String, Vec<String>>,
}

impl Node {
    /// Finds what the node of a rank printed, which stands behind its number.
    pub(super) fn of(lines: &[String], rank: usize) -> Node {
        let prefix = format!("[{rank}] ");
        let mut sections: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut section = String::new();
        for line in lines.iter().filter_map(|line| line.strip_prefix(&prefix)) {
            let line = line.trim_end();
            match line.strip_prefix(HEADER) {
                Some(name) => name.clone_into(&mut section),
                None => sections.entry(section.clone()).or_default().push(line.to_owned()),
            }
        }
        Node { sections }
    }

    fn lines(&self, section: &str) -> impl Iterator<Item = &str> {
        self.sections.get(section).into_iter().flatten().map(String::as_str)
    }

    /// The text of a section.
    pub(super) fn text(&self, section: &str) -> String {
        self.lines(section).collect::<Vec<_>>().join("\n").trim().to_owned()
    }

    /// The devices that a container may have been given.
    pub(super) fn devices(&self) -> BTreeSet<&str> {
        self.lines("devices").collect()
    }

    /// The addresses of all of its interfaces.
    pub(super) fn addresses(&self) -> Vec<&str> {
        self.lines("addresses").flat_map(str::split_whitespace).collect()
    }

    /// The names of the GPUs, and their identifiers.
    pub(super) fn gpus(&self) -> Vec<(&str, &str)> {
        let parts = |line| {
            let (name, uuid) = <str>::split_once(line, " (UUID: ")?;
            Some((name, uuid.strip_suffix(')')?))
        };
        // A line that is none of a GPU is kept, so that somebody wonders.
        self.lines("gpus").map(|line| parts(line).unwrap_or((line, ""))).collect()
    }

    /// The environment of the commands.
    pub(super) fn variables(&self) -> BTreeMap<&str, String> {
        let pair = |line| {
            let (name, value) = <str>::split_once(line, "=")?;
            Some((name, serde_json::from_str(value).ok()?))
        };
        self.lines("variables").filter_map(pair).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_is_read_from_between_the_lines_of_the_others() {
        let text = "Provisioning...\n[0] = gpus\n[1] = gpus\n[0] GPU 0: H100 (UUID: GPU-a)\n[1] No devices\r\n\
                    [0] = variables\n[0] A=\"x\\ny\"\n[0] B=\"=\"\n[0] = addresses\n[0] 10.0.0.4 172.17.0.1 \n";
        let lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
        let node = Node::of(&lines, 0);
        assert_eq!(node.gpus(), [("GPU 0: H100", "GPU-a")]);
        assert_eq!(node.variables(), BTreeMap::from([("A", "x\ny".to_owned()), ("B", "=".to_owned())]));
        assert_eq!(node.addresses(), ["10.0.0.4", "172.17.0.1"]);
        assert_eq!(Node::of(&lines, 1).gpus(), [("No devices", "")]);
        assert_eq!(Node::of(&lines, 2).text("gpus"), "");
    }
}
