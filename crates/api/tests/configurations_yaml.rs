//! What of YAML works, and that no text is too much.
#![cfg(test)]

use std::time::{Duration, Instant};

use api::configurations::{Configuration, TaskConfiguration};
use api::yaml;
use proptest::prelude::*;

fn task(text: &str) -> TaskConfiguration {
    match yaml::parse_configuration(text, "x.dstack.yml") {
        Ok(Configuration::Task(task)) => *task,
        Ok(other) => panic!("{other:?}"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn anchors_and_merges_work() {
    let task = task(
        r"
type: task
groups:
- name: head
  commands: &run [python train.py]
  resources: &large
    gpu: H100:8
    memory: 512GB..
- name: workers
  nodes: 3
  commands: *run
  resources:
    <<: *large
    memory: 1TB..
",
    );
    let groups = task.node_groups();
    assert_eq!(groups[0].commands, groups[1].commands);
    assert_eq!(groups[0].resources.gpu, groups[1].resources.gpu);
    assert_eq!(groups[1].resources.memory.to_string(), "1024GB..");
}

#[test]
fn an_error_in_an_alias_points_to_the_anchor() {
    let text = "type: task\ncommands: [a]\nworking_dir: &x zsh\nshell: *x\n";
    let error = yaml::parse_configuration(text, "x").unwrap_err();
    assert_eq!((error.line, error.message.contains("`shell`")), (3, true), "{error}");
}

#[test]
fn text_of_many_lines_works() {
    let task = task("type: task\ncommands:\n- |\n  a\n  b\n- >-\n  c\n  d\n- 'e\n  f'\n- g\n  h\n");
    assert_eq!(task.commands, ["a\nb\n", "c d", "e f", "g h"]);
}

#[test]
fn text_is_as_written() {
    let task = task(
        "type: task\nname: no\nuser: 1000\npython: 3.10\ncommands: [true, 1.10, 0x1F]\nenv: {A: 1.10, B: 007, C: 'yes', D: 1_000, E: y, F: 1e3, G: .inf}\n",
    );
    assert_eq!(task.name.as_deref(), Some("no"));
    assert_eq!(task.user.as_deref(), Some("1000"));
    assert_eq!(task.python.map(|python| python.to_string()).as_deref(), Some("3.10"));
    assert_eq!(task.commands, ["true", "1.10", "0x1F"]);
    let env: Vec<(&str, &str)> = task.env.known().collect();
    let expected = [("A", "1.10"), ("B", "007"), ("C", "yes"), ("D", "1_000"), ("E", "y"), ("F", "1e3")];
    assert_eq!(env[..6], expected);
    assert_eq!(task.env.get("G"), Some(".inf"));
}

#[test]
fn old_booleans_are_booleans() {
    let task = task(
        "type: task\ncommands: [a]\nprivileged: yes\ndstack: On\nretry: no\nstop_duration: off\nmax_duration: on\n",
    );
    assert!(task.privileged && task.dstack);
    let printed = serde_json::to_value(&task).unwrap();
    assert_eq!(printed["retry"], false);
    assert_eq!(printed["stop_duration"], "off");
    assert_eq!(printed["max_duration"], serde_json::Value::Null);
}

#[test]
fn json_is_yaml() {
    assert_eq!(task(r#"{"type": "task", "commands": ["a"]}"#).commands, ["a"]);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the time that the real reader takes is the point")]
fn bombs_are_refused_quickly() {
    let mut aliases = vec!["a: &a [x, x, x, x, x, x, x, x, x, x]".to_owned()];
    for (from, to) in ('a'..'i').zip('b'..='i') {
        let items = vec![format!("*{from}"); 10].join(", ");
        aliases.push(format!("{to}: &{to} [{items}]"));
    }
    let blocks: Vec<String> = (0..2_000).map(|i| format!("{}- ", " ".repeat(i))).collect();
    let anchors: Vec<String> = (0..5_000).map(|i| format!("k{i}: &a{i} 1")).collect();
    let cases = [
        ("aliases", aliases.join("\n")),
        ("depth", format!("type: {}", "[".repeat(10_000))),
        ("depth of blocks", blocks.join("\n")),
        ("nodes", format!("type: task\ncommands: [{}]", "a, ".repeat(200_000))),
        ("bytes", format!("type: task\ncommands: [{}]", "a".repeat(2_000_000))),
        ("anchors", anchors.join("\n")),
    ];
    for (name, text) in cases {
        let start = Instant::now();
        let error = yaml::parse_configuration(&text, "x").expect_err(name);
        let taken = start.elapsed();
        // Milliseconds where nothing else runs; what is caught here would take hours.
        assert!(taken < Duration::from_mins(1), "{name} took {taken:?}");
        assert!(error.to_string().len() < 1_000, "{name}: {error}");
    }
}

#[test]
fn long_lines_are_shown_in_part() {
    let text = format!("type: task\ncommands: [{}, {{}}]\n", vec!["abc"; 100].join(", "));
    let error = yaml::parse_configuration(&text, "x").unwrap_err().to_string();
    let lines: Vec<&str> = error.lines().collect();
    let column = lines[4].find('^').expect("a caret");
    assert_eq!(lines[3].as_bytes()[column], b'{');
    assert!(lines[3].len() < 140, "{error}");
}

/// Pieces of which mistaken configurations are made.
fn yaml_like() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("type: task\n"),
        Just("type: service\n"),
        Just("type: fleet\n"),
        Just("type: "),
        Just("commands:"),
        Just("resources:"),
        Just("gpu: "),
        Just("H100:8"),
        Just("groups:"),
        Just("nodes: "),
        Just("env: "),
        Just("ports: "),
        Just("volumes: "),
        Just("files: "),
        Just("repos: "),
        Just("\n"),
        Just("\n  "),
        Just("\n- "),
        Just("- "),
        Just("  "),
        Just("\t"),
        Just(": "),
        Just("{"),
        Just("}"),
        Just("["),
        Just("]"),
        Just(", "),
        Just("&a "),
        Just("*a"),
        Just("<<: "),
        Just("|\n"),
        Just(">\n"),
        Just("'"),
        Just("\""),
        Just("#"),
        Just("---\n"),
        Just("?"),
        Just("!!str "),
        Just("!x "),
        Just("~"),
        Just("1.10"),
        Just("-5"),
        Just("1e999"),
        Just(".nan"),
        Just("é🦀"),
        Just("\u{feff}"),
        Just("\r\n"),
        Just("\\"),
        Just("a:b:c"),
        Just(".."),
        Just("1..2"),
        Just("C:\\x"),
        Just("null"),
        Just("yes"),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

/// Reads and, where that fails, renders; the place must be inside the text.
fn read_and_render(text: &str) {
    match yaml::parse_configuration(text, "x.dstack.yml") {
        Ok(configuration) => {
            let printed = serde_json::to_string(&configuration).unwrap();
            let again: Configuration = serde_json::from_str(&printed).unwrap();
            assert_eq!(again, configuration);
        }
        Err(error) => {
            let lines = text.lines().count() as u64;
            assert!(1 <= error.line && error.line <= lines.max(1) + 1, "{error}");
            assert!(error.to_string().contains("error: "));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_is_too_much(text in any::<String>()) {
        read_and_render(&text);
    }

    #[test]
    fn no_almost_yaml_is_too_much(text in yaml_like()) {
        read_and_render(&text);
        read_and_render(&format!("type: task\ncommands: [a]\n{text}"));
    }

    #[test]
    fn no_shorthand_is_too_much(text in "[0-9a-zA-Z:./,~@{}* =é-]{0,20}", key in 0..12_usize) {
        let keys = [
            "files", "repos", "volumes", "ports", "env", "fleets", "instances", "cpu", "gpu",
            "memory", "max_duration", "schedule",
        ];
        let value = serde_json::Value::String(text);
        let line = match keys[key] {
            key @ ("files" | "repos" | "volumes" | "ports" | "env" | "fleets" | "instances") => {
                format!("{key}: [{value}]")
            }
            key @ ("cpu" | "gpu" | "memory") => format!("resources: {{{key}: {value}}}"),
            "schedule" => format!("schedule: {{cron: {value}}}"),
            key => format!("{key}: {value}"),
        };
        read_and_render(&format!("type: task\ncommands: [a]\n{line}\n"));
    }
}
