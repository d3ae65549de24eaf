//! What people are told when a file is wrong, and where it points.
#![cfg(test)]

use api::configurations::{Configuration, RunConfiguration};
use api::yaml;
use serde_json::json;

#[track_caller]
fn check_rendering(text: &str, expected: &str) {
    let error = yaml::parse_configuration(text, "a.dstack.yml").unwrap_err();
    assert_eq!(error.to_string(), expected.trim_matches('\n'));
}

#[test]
fn an_unknown_key_shows_the_line_and_the_near_miss() {
    check_rendering(
        "type: task\nnodes: 2\n\ncomands:\n  - echo\n",
        "
error: unknown key `comands`
 --> a.dstack.yml:4:1
  |
4 | comands:
  | ^^^^^^^
  = help: did you mean `commands`?
",
    );
    check_rendering(
        "type: task\ncommands: [a]\nresources:\n  gpu:\n    nam: H100\n",
        "
error: unknown key `nam` in `resources.gpu`
 --> a.dstack.yml:5:5
  |
5 |     nam: H100
  |     ^^^
  = help: did you mean `name`?
",
    );
}

#[test]
fn a_wrong_word_shows_what_is_accepted() {
    check_rendering(
        "type: dev-environment\nide: vscod\n",
        "
error: `ide`: expected one of `vscode`, `cursor`, `windsurf`, `zed`, found `vscod`
 --> a.dstack.yml:2:6
  |
2 | ide: vscod
  |      ^^^^^
  = help: did you mean `vscode`?
",
    );
    check_rendering(
        "type: fleet\nnodes: 1\nbackends: [aws, gpc]\n",
        "
error: `backends[1]`: `gpc` is not known here
 --> a.dstack.yml:3:17
  |
3 | backends: [aws, gpc]
  |                 ^^^
  = help: did you mean `gcp`?
",
    );
    check_rendering(
        "type: taks\n",
        "
error: `type`: expected one of `task`, `dev-environment`, `service`, `fleet`, `volume`, `gateway`, found `taks`
 --> a.dstack.yml:1:7
  |
1 | type: taks
  |       ^^^^
  = help: did you mean `task`?
",
    );
}

#[test]
fn a_wrong_value_is_underlined() {
    check_rendering(
        "type: task\ncommands: [a]\nresources:\n  memory: 8GiB\n",
        "
error: `resources.memory`: expected an amount in GB such as `8`, `512MB`, `8GB` or `1.5TB`, found `8GiB`
 --> a.dstack.yml:4:11
  |
4 |   memory: 8GiB
  |           ^^^^
",
    );
}

#[test]
fn a_name_that_may_not_be_is_underlined() {
    check_rendering(
        "type: task\nname: A_b\ncommands: [a]\n",
        "
error: `name` must be 2 to 41 lower-case letters, digits and `-`, starting with a letter, found `A_b`
 --> a.dstack.yml:2:7
  |
2 | name: A_b
  |       ^^^
",
    );
}

#[test]
fn a_broken_rule_points_to_the_key_that_it_names() {
    check_rendering(
        "type: task\nimage: x\ncommands:\n  - a\n\n\n\n\n\npython: 3.10\n",
        "
error: `python` and `image` are mutually exclusive
  --> a.dstack.yml:10:1
   |
10 | python: 3.10
   | ^^^^^^
",
    );
}

#[test]
fn tabs_before_the_place_keep_the_carets_in_line() {
    check_rendering(
        "type:\ttsk\n",
        "
error: `type`: expected one of `task`, `dev-environment`, `service`, `fleet`, `volume`, `gateway`, found `tsk`
 --> a.dstack.yml:1:7
  |
1 | type:\ttsk
  |      \t^^^
  = help: did you mean `task`?
",
    );
}

#[test]
fn broken_documents_are_explained() {
    let cases = [
        ("", 1, "the file is empty"),
        ("# only a comment\n", 1, "the file is empty"),
        ("---\n", 1, "the file is empty"),
        ("null", 1, "the file is empty"),
        ("{}", 1, "missing key `type`"),
        ("- a\n- b\n", 1, "expected a mapping of keys to values, found a list"),
        ("hello", 1, "expected a mapping of keys to values, found text"),
        ("type: task\n\tcommands: [a]\n", 2, "spaces, not by tabs"),
        ("type: task\ncommands:\n\t- a\n", 3, "spaces, not by tabs"),
        ("type: task\ncommands: [a]\n---\ntype: task\n", 4, "expected one document"),
        ("type: task\ncommands: [a]\ncommands: [b]\n", 3, "`commands` is set twice"),
        ("type: task\ncommands: [a]\nenv:\n  A: '1'\n  A: '2'\n", 5, "`A` is set twice"),
        ("type: task\ncommands: [a\n", 2, "no valid YAML: unclosed bracket"),
        ("type: task\ncommands: [*nope]\n", 2, "alias has no anchor"),
        ("type: task\n? [a, b]\n: c\n", 2, "a key must be text"),
        ("type: task\r\ncomands: [a]\r\n", 2, "unknown key `comands`"),
        ("\u{feff}tpe: task\n", 1, "missing key `type`"),
        ("type: preset\n", 1, "found `preset`"),
        ("type: [task]\n", 1, "`type`: expected text, found a list"),
    ];
    for (text, line, message) in cases {
        let error = yaml::parse_configuration(text, "x").expect_err(text);
        assert!(error.message.contains(message), "{text:?}: {error}");
        assert_eq!(error.line, line, "{text:?}: {error}");
    }
}

/// Keys after `type: task` and `commands`, the line of the error after those, and its message.
const TASK_CASES: &[(&str, u64, &str)] = &[
    ("name: A_b", 1, "`name` must be 2 to 41 lower-case letters"),
    ("docker: true\nimage: i", 1, "`docker` and `image` are mutually exclusive"),
    ("docker: true\npython: 3.12", 1, "`docker` and `python`"),
    ("docker: true\nnvcc: true", 1, "`docker` and `nvcc`"),
    ("image: i\nruntime: process", 2, "`runtime: process` and `image`"),
    ("runtime: podman", 1, "`runtime`: expected one of `docker`, `process`"),
    ("repos: ['.', ./b]", 1, "`repos` can have only one repository"),
    ("repos: [a:b:c]", 1, "`repos[0]`: expected a repository"),
    ("nodes: 0", 1, "`nodes`: expected an integer of at least 1"),
    ("nodes: 0..2", 1, "`nodes`: expected an integer, found `0..2`"),
    ("nodes: 1\ngroups: [{commands: [a]}]", 1, "`nodes` and `groups` are mutually exclusive"),
    ("groups: []", 0, "`commands` and `groups` are mutually exclusive"),
    ("user: 'a:b:c'", 1, "`user`: expected `user` or `user:group`"),
    ("python: 3.8", 1, "`python`: expected a Python version from `3.9` to `3.15`, found `3.8`"),
    ("priority: -1", 1, "`priority`: expected an integer from 0 to 100"),
    ("privileged: maybe", 1, "`privileged`: expected `true` or `false`, found `maybe`"),
    ("env: [A=1, 2B=1]", 1, "`env[1]`: expected `NAME=value` or `NAME`"),
    ("env: [A=1, A=2]", 1, "`env`: `A=2` sets a variable a second time"),
    ("env:\n  A:", 2, "`env.A`: expected text"),
    ("volumes: [a]", 1, "`volumes[0]`: expected a mount"),
    ("volumes: ['a:/b/../c']", 1, "must have no `..` in it"),
    ("volumes: [{path: /a}]", 1, "a mount needs `name` or `instance_path`"),
    ("volumes: [{name: a, instance_path: /b, path: /c}]", 1, "mutually exclusive"),
    ("volumes: [{name: a, path: /c, optional: true}]", 1, "`optional` is for mounts"),
    ("volumes: [{name: a}]", 1, "missing key `path` in `volumes[0]`"),
    ("files: ['C:\\x']", 1, "`path` is a path in the container"),
    ("retry: {on_events: []}", 1, "`on_events` must not be an empty list"),
    ("retry: {on_events: [crash]}", 1, "`retry.on_events[0]`: expected one of"),
    ("retry: maybe", 1, "`retry`: expected `true`, `false` or a mapping"),
    ("max_price: 0", 1, "`max_price`: expected a number above 0"),
    ("stop_duration: -5", 1, "`stop_duration`: a duration cannot be negative"),
    ("utilization_policy: {min_gpu_utilization: 101, time_window: 5m}", 1, "from 0 to 100"),
    ("schedule: {cron: 61 * * * *}", 1, "`61` is no minute in the crontab line"),
    ("schedule: {cron: '* *'}", 1, "a crontab line has 5 fields"),
    ("instances: []", 1, "`instances` must not be an empty list"),
    ("instances: [{name: a, hostname: b}]", 1, "expected `name` alone"),
    ("tags: {a: 'é'}", 1, "the value of the tag `a`"),
    ("backend_options: [{type: aws}]", 1, "expected `vastai`, found `aws`"),
    ("backend_options: [{min_reliability: 2}]", 1, "`min_reliability` must be from 0 to 1"),
    ("backend_options: [{}, {}]", 1, "more than one entry"),
    ("resources:\n  cpu: mips:4", 2, "expected a count, `x86` or `arm`, found `mips`"),
    ("resources:\n  cpu: {count: 1, min: 2}", 2, "`count` and `min`/`max`"),
    ("resources:\n  disk: 10..5", 2, "ends before it starts"),
    ("resources:\n  gpu: {count: {}}", 2, "a range needs `min` or `max`"),
    ("resources:\n  gpu: {compute_capability: 8}", 2, "a compute capability such as `7.5`"),
    ("registry_auth: {username: a}", 1, "missing key `password` in `registry_auth`"),
];

#[test]
fn tasks_say_what_is_wrong_with_them() {
    for (keys, line, message) in TASK_CASES {
        let text = format!("type: task\ncommands: [a]\n{keys}\n");
        let error = yaml::parse_configuration(&text, "x").expect_err(keys);
        assert!(error.message.contains(message), "{keys:?}: {error}");
        assert_eq!(error.line, line + 2, "{keys:?}: {error}");
    }
}

const SERVICE_CASES: &[(&str, u64, &str)] = &[
    ("scaling: {metric: rps, target: 1}", 1, "`scaling` needs `replicas` to be a range"),
    ("replicas: 1..4", 1, "`replicas: 1..4` is a range, which needs `scaling`"),
    ("replicas: 1..", 1, "`replicas` needs an upper bound"),
    ("replicas: 1..2\nscaling: {metric: rps, target: 1, window: 2m}", 2, "`window` must be"),
    ("replicas: 1..2\nscaling: {metric: cpu, target: 1}", 2, "expected `rps`, found `cpu`"),
    ("replicas: 1..2\nscaling: {metric: rps, target: 0}", 2, "a number above 0"),
    ("groups: [{replicas: 1, commands: [a]}]", 0, "`commands` cannot be used with groups"),
    ("rate_limits: [{rps: 1}, {rps: 2}]", 1, "`rate_limits[1].prefix`: `/` is limited"),
    ("rate_limits: [{rps: 0.001}]", 1, "`rps` must be at least 1/60"),
    ("rate_limits: [{rps: 1, prefix: a}]", 1, "`prefix` must start with `/`"),
    ("rate_limits: [{rps: 1, key: {type: header}}]", 1, "missing key `header`"),
    ("rate_limits: [{rps: 1, key: {header: a}}]", 1, "`header` is for `type: header`"),
    ("probes: [{type: http, url: a}]", 1, "`url` must start with `/`"),
    ("probes: [{type: http, body: a}]", 1, "`body` needs another `method`"),
    ("probes: [{type: http, timeout: 0}]", 1, "`timeout` must be at least 1 second"),
    ("probes: [{type: http, timeout: 301}]", 1, "`timeout` must be at most 300 seconds"),
    ("probes: [{type: http}, {type: http}]", 1, "`probes[1]` repeats another probe"),
    ("probes: [{url: /}]", 1, "missing key `type` in `probes[0]`"),
    ("model: {name: m, eos_token: e}", 1, "`eos_token` is for `format: tgi`"),
    ("model: {name: m, format: tgi, prefix: /}", 1, "`prefix` is for `format: openai`"),
    ("https: maybe", 1, "`https`: expected `true`, `false` or `auto`"),
    ("gateway: a/b/c", 1, "`gateway`: expected `name` or `project/name`"),
    ("port: '*:80'", 1, "`port`: expected a port such as `8000` or `80:8000`"),
];

#[test]
fn services_say_what_is_wrong_with_them() {
    for (keys, line, message) in SERVICE_CASES {
        let port = if keys.starts_with("port") { "auth: true" } else { "port: 80" };
        let text = format!("type: service\n{port}\ncommands: [a]\n{keys}\n");
        let error = yaml::parse_configuration(&text, "x").expect_err(keys);
        assert!(error.message.contains(message), "{keys:?}: {error}");
        assert_eq!(error.line, line + 3, "{keys:?}: {error}");
    }
}

const OTHER_CASES: &[(&str, u64, &str)] = &[
    ("type: task\n", 1, "a task needs `commands` or `image`"),
    ("type: task\ngroups: []\n", 2, "`groups` must not be an empty list"),
    ("type: task\ngroups:\n- commands: [a]\n- nodes: 2\n", 4, "`groups[1]` needs `commands`"),
    ("type: task\ngroups:\n- {name: a, commands: [a]}\n- {name: a, commands: [a]}\n", 4, "taken"),
    ("type: task\nentrypoint: e\ngroups:\n- {commands: [a]}\n", 2, "`entrypoint` and `groups`"),
    ("type: task\nports: [1]\ngroups:\n- {commands: [a]}\n", 2, "`ports` and `groups`"),
    ("type: service\ncommands: [a]\n", 1, "missing key `port`"),
    ("type: service\nport: 1\n", 1, "a service needs `commands` or `image`"),
    ("type: service\nport: 1\ngroups: []\n", 3, "`groups` must not be an empty list"),
    ("type: service\nport: 1\nreplicas: []\n", 3, "`replicas` must not be an empty list"),
    ("type: service\nport: 1\nreplicas:\n- count: 1\n", 4, "`replicas[0]` needs `commands`"),
    (
        "type: service\nport: 1\nimage: i\ngroups:\n- replicas: 1\n  image: j\n",
        6,
        "`groups[0].image` is also set for the whole service",
    ),
    (
        "type: service\nport: 1\nimage: i\ngroups:\n- replicas: 1\n  python: 3.12\n",
        6,
        "`groups[0].python` and `image` are mutually exclusive",
    ),
    (
        "type: service\nport: 1\ngroups:\n- {replicas: 1, commands: [a], router: {}}\n- {replicas: 1, commands: [a], router: {}}\n",
        5,
        "`groups[1].router`: only one group can be the router",
    ),
    (
        "type: service\nport: 1\ngroups:\n- {replicas: 2, commands: [a], router: {type: smg}}\n",
        4,
        "`groups[0].replicas` of a router must be 1",
    ),
    (
        "type: service\nport: 1\nretry: true\ngroups:\n- {replicas: 1, commands: [a], router: {type: dynamo}}\n",
        3,
        "`retry` cannot be used with a `dynamo` router",
    ),
    ("type: dev-environment\nentrypoint: e\n", 2, "`entrypoint` is not for dev environments"),
    ("type: dev-environment\nversion: '1'\n", 2, "`version` needs `ide`"),
    ("type: dev-environment\nide: windsurf\nversion: '1'\n", 3, "`version@commit`"),
    (
        "type: dev-environment\ndstack: true\ninactivity_duration: 1h\n",
        3,
        "`inactivity_duration` and `dstack` are mutually exclusive",
    ),
    ("type: fleet\nname: ab\n", 1, "No ssh_config or nodes specified"),
    ("type: fleet\nnodes: 1\nssh_config: {hosts: [a]}\n", 3, "mutually exclusive"),
    ("type: fleet\nregions: [r]\nssh_config: {hosts: [a]}\n", 2, "['regions']"),
    ("type: fleet\nnodes: 1\nenv: [A=1]\n", 3, "['env']"),
    ("type: fleet\nnodes: {min: 2, target: 1}\n", 2, "`target` (1) must not be less than `min`"),
    ("type: fleet\nnodes: 1\nblocks: 0\n", 3, "`blocks`: expected a number of at least 1"),
    ("type: fleet\nssh_config: {user: u}\n", 2, "missing key `hosts` in `ssh_config`"),
    (
        "type: fleet\nssh_config: {hosts: [{hostname: a, internal_ip: 8.8.8.8}]}\n",
        2,
        "`internal_ip` must be a private address",
    ),
    ("type: fleet\nssh_config:\n  hosts: [a]\n  network: 8.8.8.0/24\n", 4, "`network` must be a private network"),
    (
        "type: fleet\nssh_config:\n  hosts: [a]\n  network: 10.0.0.1/24\n",
        4,
        "`network` is written as `10.0.0.0/24`",
    ),
    ("type: volume\nname: vol\nbackend: aws\nsize: 1\n", 3, "missing key `region`"),
    ("type: volume\nbackend: azure\nregion: r\n", 2, "`backend: azure` has no volumes"),
    ("type: volume\nbackend: lium\nsize: 1\n", 3, "`size` is not for volumes of `backend: lium`"),
    ("type: volume\nname: vol\nbackend: aws\nregion: r\n", 1, "existing identifier or size"),
    ("type: gateway\nbackend: aws\n", 1, "missing key `region`"),
    ("type: gateway\nbackend: aws\nregion: r\nreplicas: 10\n", 4, "from 1 to 9"),
    ("type: gateway\nbackend: aws\nregion: r\ncertificate: {type: acm}\n", 4, "missing key `arn`"),
    (
        "type: gateway\nbackend: aws\nregion: r\ncertificate: {type: acm, arn: a, name: b}\n",
        4,
        "`name` is not for this `type`",
    ),
    (
        "type: task\ncommands:\n- |\n  working_dir: x\n\"working_dir\": sub/dir\n",
        5,
        "working_dir must be absolute",
    ),
];

#[test]
fn configurations_say_what_is_wrong_with_them() {
    for (text, line, message) in OTHER_CASES {
        let error = yaml::parse_configuration(text, "x").expect_err(text);
        assert!(error.message.contains(message), "{text:?}: {error}");
        assert_eq!(error.line, *line, "{text:?}: {error}");
    }
}

#[test]
fn a_folder_starts_at_the_root_or_at_the_home() {
    for folder in ["/sub", "~/x"] {
        let text = format!("type: task\ncommands: [x]\nworking_dir: {folder}\n");
        assert!(yaml::parse_configuration(&text, "x").is_ok(), "{folder}");
    }
}

#[test]
fn requests_are_told_the_path_of_the_key() {
    let cases = [
        (json!({"commands": [], "type": "task"}), "a task needs `commands` or `image`"),
        (
            json!({"commands": ["a"], "type": "task", "resources": {"gpu": "H100::8"}}),
            "`resources.gpu`: the GPU specification `H100::8` has an empty part",
        ),
        (
            json!({"commands": ["a"], "type": "task", "resources": {"gpus": 1}}),
            "unknown key `gpus` in `resources`",
        ),
        (json!({"commands": [1], "type": "task"}), "`commands[0]`: expected text, found the number `1`"),
        (
            json!({"commands": ["a"], "type": "task", "spot_policy": true}),
            "`spot_policy`: expected one of `spot`, `on-demand`, `auto`, found `true`",
        ),
        (json!({"commands": ["a"]}), "missing field `type`"),
        (json!({}), "missing field `type`"),
        (json!([]), "invalid type: sequence, expected a mapping with the key `type`"),
    ];
    for (input, expected) in cases {
        let error = serde_json::from_value::<Configuration>(input.clone()).unwrap_err();
        assert!(error.to_string().contains(expected), "{input}: {error}");
    }
    let fleet = json!({"nodes": 1, "type": "fleet"});
    let error = serde_json::from_value::<RunConfiguration>(fleet).unwrap_err();
    assert!(error.to_string().contains("`task`, `dev-environment`, `service`"), "{error}");
}
