//! The recorded readings of the official client, against ours.
#![cfg(test)]

use api::configurations::{
    Configuration, CpuSpec, DiskSpec, FleetConfiguration, GpuSpec, Memory, Range, ResourcesSpec, Seconds,
    TaskConfiguration,
};
use api::yaml;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const VECTORS: &str = include_str!("golden/parse-vectors.json");

#[derive(Deserialize)]
struct Vector {
    kind: String,
    #[serde(default)]
    input: Value,
    ok: bool,
    #[serde(default)]
    json: Value,
    target: Option<u32>,
}

impl Vector {
    /// The input with its kind, to name it in failures.
    fn title(&self) -> String {
        format!("{}: {}", self.kind, self.input)
    }

    /// What the input is a part of, and the key of that which it is under.
    fn wrapped(&self) -> (Value, Option<&str>) {
        let task = |key: &str| {
            let mut task = json!({"type": "task", "commands": ["x"]});
            if key == "groups" {
                task = json!({"type": "task"});
            }
            task[key] = self.input.clone();
            task
        };
        let resources = |key: &str| json!({"type": "task", "commands": ["x"], "resources": {key: self.input}});
        match self.kind.as_str() {
            "gpu" => (resources("gpu"), Some("gpu")),
            "cpu" => (resources("cpu"), Some("cpu")),
            "memory" => (resources("memory"), Some("memory")),
            "shm" => (resources("shm_size"), Some("shm_size")),
            "disk" => (resources("disk"), Some("disk")),
            "resources" => (task("resources"), Some("resources")),
            "fleet.nodes" => (json!({"type": "fleet", "nodes": self.input}), Some("nodes")),
            "fleet.blocks" => (json!({"type": "fleet", "nodes": 1, "blocks": self.input}), Some("blocks")),
            // Every place where a plain duration may stand also takes null.
            "duration" => (
                json!({
                    "type": "task",
                    "commands": ["x"],
                    "utilization_policy": {"min_gpu_utilization": 1, "time_window": self.input},
                }),
                Some("time_window"),
            ),
            "duration.offable(max_duration,stop_duration)" => (task("max_duration"), Some("max_duration")),
            "duration.idle(idle_duration,auto_cleanup_duration)" => (task("idle_duration"), Some("idle_duration")),
            "configuration" => (self.input.clone(), None),
            kind => {
                let key = kind.strip_prefix("task.").expect("a kind that this test knows");
                (task(key), Some(key))
            }
        }
    }

    /// Reads the input as what its kind says and prints it in the wire form.
    fn read(&self) -> Result<Value, String> {
        match self.kind.as_str() {
            "gpu" => reread::<GpuSpec>(&self.input),
            "cpu" => reread::<CpuSpec>(&self.input),
            "memory" => reread::<Range<Memory>>(&self.input),
            "shm" => reread::<Memory>(&self.input),
            "disk" => reread::<DiskSpec>(&self.input),
            "resources" => reread::<ResourcesSpec>(&self.input),
            "duration" => reread::<Seconds>(&self.input),
            "configuration" => reread::<Configuration>(&self.input),
            kind if kind.starts_with("fleet.") => {
                let (wrapped, key) = self.wrapped();
                Ok(reread::<FleetConfiguration>(&wrapped)?[key.expect("a key")].take())
            }
            _ => {
                let (wrapped, key) = self.wrapped();
                Ok(reread::<TaskConfiguration>(&wrapped)?[key.expect("a key")].take())
            }
        }
    }
}

/// Reads a value, prints it, and checks that what is printed reads and prints the same.
fn reread<T: DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug>(
    input: &Value,
) -> Result<Value, String> {
    let value: T = serde_json::from_value(input.clone()).map_err(|error| error.to_string())?;
    let printed = serde_json::to_value(&value).expect("configurations print");
    let again: T = serde_json::from_value(printed.clone()).expect("what is printed reads");
    assert_eq!(again, value, "{printed}");
    assert_eq!(serde_json::to_value(&again).expect("configurations print"), printed);
    Ok(printed)
}

fn vectors() -> Vec<Vector> {
    let vectors: Vec<Vector> = serde_json::from_str(VECTORS).expect("the vectors are JSON");
    assert_eq!(vectors.len(), 205);
    vectors
}

#[test]
fn the_official_readings_are_ours() {
    let mut failures = Vec::new();
    for vector in vectors() {
        let result = vector.read();
        let is_right = match &result {
            Ok(json) => vector.ok && same(json, &vector.json),
            Err(_) => !vector.ok,
        };
        if !is_right {
            failures.push(format!("{}\n  expected {}\n  got {result:?}", vector.title(), vector.json));
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// Equality that tells `8` from `8.0`, as the wire does.
fn same(left: &Value, right: &Value) -> bool {
    left == right
}

#[test]
fn the_target_of_fleet_nodes_is_kept_although_it_is_not_printed() {
    for vector in vectors().into_iter().filter(|vector| vector.target.is_some()) {
        let (wrapped, _) = vector.wrapped();
        let fleet: FleetConfiguration = serde_json::from_value(wrapped).unwrap();
        assert_eq!(fleet.nodes.map(|nodes| nodes.target), vector.target, "{}", vector.title());
    }
}

#[test]
fn a_refused_file_names_the_line_and_the_key() {
    let mut refused = 0;
    for vector in vectors() {
        let (wrapped, key) = vector.wrapped();
        // JSON is YAML; one key a line makes the lines mean something.
        let text = block(&wrapped);
        let result = yaml::parse::<Configuration>(&text, "x.dstack.yml");
        // Null is a value wherever the whole can do without a key.
        let may_be_null = vector.input.is_null() && matches!(vector.kind.as_str(), "gpu" | "disk");
        // A second is shorter than a window may be.
        let is_short = vector.kind == "duration" && vector.ok;
        if vector.ok || may_be_null {
            match result {
                Ok(_) => {}
                Err(error) => assert!(is_short, "{}\n{text}\n{error}", vector.title()),
            }
            continue;
        }
        refused += 1;
        let error = result.unwrap_err();
        let shown = error.to_string();
        assert!(shown.contains(&format!("x.dstack.yml:{}:{}", error.line, error.column)), "{shown}");
        if let Some(key) = key {
            assert!(error.message.contains(key), "{}: {shown}", vector.title());
            // An inner key is nearer to the trouble than the outer one.
            let line = &error.source_line;
            let is_near = line.contains(key) || line.starts_with("  ");
            assert!(is_near, "{}: {shown}", vector.title());
        }
    }
    assert!(60 < refused, "{refused}");
}

/// The document with each key of the two outer levels on its own line.
fn block(value: &Value) -> String {
    let mut lines = Vec::new();
    for (key, value) in value.as_object().expect("a mapping") {
        match value.as_object().filter(|_| key == "resources" || key == "utilization_policy") {
            None => lines.push(format!("{key}: {value}")),
            Some(inner) => {
                lines.push(format!("{key}:"));
                lines.extend(inner.iter().map(|(key, value)| format!("  {key}: {value}")));
                if inner.is_empty() {
                    lines.push("  {}".to_owned());
                }
            }
        }
    }
    if lines.is_empty() {
        lines.push("{}".to_owned());
    }
    lines.join("\n")
}
