//! The wire form: recorded official traffic, and every key of every type.
#![cfg(test)]

use api::configurations::{
    Configuration, FleetConfiguration, Profile, ProfilesFile, RunConfiguration, ServiceConfiguration,
    TaskConfiguration, VolumeConfiguration,
};
use api::yaml;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

const RECORDED: &str = include_str!("golden/wire-configurations.json");

#[derive(Deserialize)]
struct Recorded {
    capture: String,
    /// Whether all keys are there, as in the answers of servers.
    complete: bool,
    configuration: Value,
}

fn print<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap()
}

fn read_yaml(text: &str) -> Configuration {
    match yaml::parse_configuration(text, "test.dstack.yml") {
        Ok(configuration) => configuration,
        Err(error) => panic!("{error}"),
    }
}

/// Checks what `text` prints as, at the keys of `expected`, and that the print reads back.
#[track_caller]
fn check(text: &str, expected: Value) {
    let configuration = read_yaml(text);
    let printed = print(&configuration);
    let Value::Object(expected) = expected else { panic!("expected keys") };
    for (key, value) in expected {
        assert_eq!(printed[&key], value, "{key}");
    }
    let again: Configuration = serde_json::from_value(printed.clone()).unwrap();
    assert_eq!(again, configuration);
    let as_yaml = read_yaml(&printed.to_string());
    assert_eq!(as_yaml, configuration);
}

#[test]
fn recorded_configurations_print_as_they_were() {
    let recorded: Vec<Recorded> = serde_json::from_str(RECORDED).unwrap();
    assert!(recorded.len() > 50);
    for Recorded { capture, complete, configuration } in recorded {
        let read: Configuration = serde_json::from_value(configuration.clone())
            .unwrap_or_else(|error| panic!("{capture}: {error}\n{configuration}"));
        if complete {
            assert_eq!(print(&read), configuration, "{capture}");
        }
        let again: Configuration = serde_json::from_value(print(&read)).unwrap();
        assert_eq!(again, read, "{capture}");
    }
}

#[test]
fn what_is_left_out_equals_its_default() {
    let short = read_yaml("type: task\ncommands: [a]\n");
    let long = read_yaml(
        "type: task\ncommands: [a]\nprivileged: false\nhome_dir: /root\nresources: {cpu: 2.., memory: 8GB.., disk: 100GB..}\n",
    );
    assert_eq!(short, long);
}

#[test]
fn every_common_key_is_read() {
    check(
        r"
type: task
name: all-keys
image: ghcr.io/a/b:1
user: 1000:users
privileged: true
entrypoint: /bin/run --fast
working_dir: /work
home_dir: /home/me
registry_auth: {username: me, password: '${{ secrets.token }}'}
single_branch: false
env: [A=1, B=, C]
shell: /bin/zsh
resources: {cpu: 'arm:4..8', memory: 16GB.., shm_size: 512MB, gpu: 'nvidia:H100,A100:80GB..:8', disk: 1TB}
priority: 7
volumes: [vol:/data, /host:/mnt, {name: [a, b], path: /x}, {instance_path: /y, path: /z, optional: true}]
repos: ['https://github.com/a/b:/repo']
files: ['./a.txt:/a.txt']
dstack: true
setup: [old]
commands: [run]
ports: [80, '8080:81', '*:82']
nodes: 2
runtime: docker
",
        json!({
            "name": "all-keys", "image": "ghcr.io/a/b:1", "user": "1000:users", "privileged": true,
            "entrypoint": "/bin/run --fast", "working_dir": "/work", "home_dir": "/home/me",
            "registry_auth": {"username": "me", "password": "${{ secrets.token }}"},
            "single_branch": false, "env": {"A": "1", "B": "", "C": {"key": "C"}},
            "shell": "/bin/zsh", "priority": 7,
            "resources": {
                "cpu": {"arch": "arm", "count": {"min": 4, "max": 8}},
                "memory": {"min": 16.0, "max": null}, "shm_size": 0.5,
                "gpu": {
                    "vendor": "nvidia", "name": ["H100", "A100"], "count": {"min": 8, "max": 8},
                    "memory": {"min": 80.0, "max": null}, "total_memory": null,
                    "compute_capability": null,
                },
                "disk": {"size": {"min": 1024.0, "max": 1024.0}},
            },
            "volumes": [
                {"name": "vol", "path": "/data"},
                {"instance_path": "/host", "path": "/mnt", "optional": false},
                {"name": ["a", "b"], "path": "/x"},
                {"instance_path": "/y", "path": "/z", "optional": true},
            ],
            "repos": [{
                "local_path": null, "url": "https://github.com/a/b", "branch": null, "hash": null,
                "path": "/repo", "if_exists": "error",
            }],
            "files": [{"local_path": "./a.txt", "path": "/a.txt"}],
            "dstack": true, "setup": ["old"], "commands": ["run"], "nodes": 2, "groups": null,
            "ports": [
                {"local_port": 80, "container_port": 80},
                {"local_port": 8080, "container_port": 81},
                {"local_port": null, "container_port": 82},
            ],
            "runtime": "docker",
        }),
    );
    check(
        "type: task\ncommands: [a]\npython: 3.10\nnvcc: true\n",
        json!({"python": "3.10", "nvcc": true, "docker": null}),
    );
    check("type: task\ncommands: [a]\ndocker: true\n", json!({"docker": true}));
    check("type: task\ncommands: [a]\nruntime: process\nbackends: [local]\n", json!({"runtime": "process"}));
}

#[test]
fn the_runtime_is_on_the_wire_only_when_it_is_set() {
    let printed = print(&read_yaml("type: task\ncommands: [a]\n"));
    assert_eq!(printed.get("runtime"), None);
    assert_eq!(printed.as_object().unwrap().len(), 46);
}

const PROFILE_KEYS: &str = r"
backends: [aws, gcp]
regions: [us-east-1]
availability_zones: [us-east-1a]
instance_types: [p5.48xlarge]
reservation: cr-1
spot_policy: auto
retry: {on_events: [no-capacity, error], duration: 4h}
max_duration: 2h
stop_duration: off
max_price: 5
creation_policy: reuse
idle_duration: off
utilization_policy: {min_gpu_utilization: 10, time_window: 10m}
startup_order: master-first
stop_criteria: master-done
schedule: {cron: 0 8 * * mon-fri}
fleets: [mine, other/theirs]
instances: [f-0, {hostname: h}, {fleet: p/f, instance: 1}]
tags: {team: a b}
backend_options: [{type: vastai, offer_order: price, min_reliability: 0.5, min_score: 3}]
";

fn profile_wire() -> Value {
    json!({
        "backends": ["aws", "gcp"], "regions": ["us-east-1"],
        "availability_zones": ["us-east-1a"], "instance_types": ["p5.48xlarge"],
        "reservation": "cr-1", "spot_policy": "auto",
        "retry": {"on_events": ["no-capacity", "error"], "duration": 14400},
        "max_duration": 7200, "stop_duration": "off", "max_price": 5.0,
        "creation_policy": "reuse", "idle_duration": -1,
        "utilization_policy": {"min_gpu_utilization": 10, "time_window": 600},
        "startup_order": "master-first", "stop_criteria": "master-done",
        "schedule": {"cron": ["0 8 * * mon-fri"]},
        "fleets": [{"project": null, "name": "mine"}, {"project": "other", "name": "theirs"}],
        "instances": [
            {"name": "f-0"}, {"hostname": "h"},
            {"fleet": {"project": "p", "name": "f"}, "instance": 1},
        ],
        "tags": {"team": "a b"},
        "backend_options": [{
            "type": "vastai", "offer_order": "price", "min_reliability": 0.5, "min_score": 3,
        }],
    })
}

#[test]
fn every_profile_key_is_read_in_every_run_configuration() {
    let heads = ["type: task\ncommands: [a]", "type: dev-environment", "type: service\nport: 1\ncommands: [a]"];
    for head in heads {
        check(&format!("{head}{PROFILE_KEYS}"), profile_wire());
    }
}

#[test]
fn a_profile_has_the_same_keys_and_a_name() {
    let profile: Profile = yaml::parse(&format!("name: fast\ndefault: true{PROFILE_KEYS}"), "x").unwrap();
    let mut expected = profile_wire();
    expected["name"] = json!("fast");
    expected["default"] = json!(true);
    assert_eq!(print(&profile), expected);
    let empty: Profile = serde_json::from_value(json!({})).unwrap();
    assert_eq!(empty, Profile::default());
    assert_eq!(print(&empty).as_object().unwrap().len(), 22);
}

#[test]
fn profiles_have_names_and_one_default() {
    let text = "profiles:\n- name: a\n- name: b\n  default: true\n";
    let file: ProfilesFile = yaml::parse(text, "profiles.yml").unwrap();
    assert_eq!(file.default_profile().map(|profile| profile.name.as_str()), Some("b"));
    assert!(file.get("a").is_some() && file.get("c").is_none());
    let twice = "profiles:\n- name: a\n- name: a\n";
    let error = yaml::parse::<ProfilesFile>(twice, "profiles.yml").unwrap_err();
    assert_eq!((error.line, error.column), (3, 3));
}

#[test]
fn the_configuration_wins_over_the_profile() {
    let text = "type: task\ncommands: [a]\nmax_price: 1\nregions: []\n";
    let run = read_yaml(text).into_run().unwrap();
    let profile: Profile = yaml::parse("name: p\nmax_price: 2\nregions: [r]\nspot_policy: spot\n", "x").unwrap();
    let merged = print(&run.merged_profile(Some(&profile)));
    assert_eq!(merged["max_price"], json!(1.0));
    assert_eq!(merged["regions"], json!([]));
    assert_eq!(merged["spot_policy"], json!("spot"));
    assert_eq!(print(&run.merged_profile(None)), print(&run.profile_params()));
    let mut changed = run.clone();
    changed.set_profile_params(run.merged_profile(Some(&profile)));
    assert_eq!(print(&changed)["spot_policy"], json!("spot"));
}

#[test]
fn common_keys_are_reached_without_knowing_the_type() {
    let mut run: RunConfiguration =
        serde_json::from_value(json!({"type": "dev-environment", "name": "dev"})).unwrap();
    assert_eq!(run.common().name.as_deref(), Some("dev"));
    *run.common_mut().name = Some("other".to_owned());
    assert_eq!(print(&run)["name"], json!("other"));
    assert_eq!(run.kind().as_str(), "dev-environment");
}

#[test]
fn every_key_of_a_dev_environment_is_read() {
    check(
        "type: dev-environment\nide: windsurf\nversion: 1.2@abc123\ninit: [a]\ninactivity_duration: 2h\nports: [80]\n",
        json!({
            "ide": "windsurf", "version": "1.2@abc123", "init": ["a"],
            "inactivity_duration": 7200, "ports": [{"local_port": 80, "container_port": 80}],
        }),
    );
}

#[test]
fn every_key_of_a_service_is_read() {
    check(
        r"
type: service
port: '8080:8000'
gateway: other/gate
strip_prefix: false
model: {name: m, format: tgi, chat_template: t, eos_token: e}
https: auto
auth: no
scaling: {metric: rps, target: 10, window: 1m, scale_up_delay: 1m, scale_down_delay: 2m}
rate_limits:
- {prefix: /a, key: {type: header, header: X-Key}, rps: 0.5, burst: 3}
- {rps: 4}
probes:
- {type: http, url: /health, method: post, headers: [{name: A, value: b}], body: x, timeout: 5s, interval: 20, ready_after: 2, until_ready: true}
- {type: http}
replicas: 1..4
commands: [serve]
",
        json!({
            "port": {"local_port": 8080, "container_port": 8000},
            "gateway": {"project": "other", "name": "gate"}, "strip_prefix": false,
            "model": {
                "type": "chat", "name": "m", "format": "tgi", "chat_template": "t", "eos_token": "e",
            },
            "https": "auto", "auth": false,
            "scaling": {
                "metric": "rps", "target": 10.0, "window": 60, "scale_up_delay": 60,
                "scale_down_delay": 120,
            },
            "rate_limits": [
                {"prefix": "/a", "key": {"type": "header", "header": "X-Key"}, "rps": 0.5, "burst": 3},
                {"prefix": "/", "key": {"type": "ip_address"}, "rps": 4.0, "burst": 0},
            ],
            "probes": [
                {
                    "type": "http", "url": "/health", "method": "post",
                    "headers": [{"name": "A", "value": "b"}], "body": "x", "timeout": 5,
                    "interval": 20, "ready_after": 2, "until_ready": true,
                },
                {
                    "type": "http", "url": null, "method": null, "headers": [], "body": null,
                    "timeout": null, "interval": null, "ready_after": null, "until_ready": null,
                },
            ],
            "replicas": {"min": 1, "max": 4}, "groups": null, "commands": ["serve"],
        }),
    );
    check(
        "type: service\nport: 80\nimage: i\nmodel: {name: m, format: openai, prefix: /x}\n",
        json!({
            "model": {"type": "chat", "name": "m", "format": "openai", "prefix": "/x"},
            "port": {"local_port": 80, "container_port": 80},
        }),
    );
}

#[test]
fn every_key_of_a_replica_group_is_read() {
    let text = r"
type: service
port: 8000
spot_policy: spot
groups:
- name: router
  replicas: 1
  router: {type: smg}
  image: i
  privileged: true
  reservation: cr
  spot_policy: on-demand
- replicas: ..2
  scaling: {metric: rps, target: 1}
  resources: {gpu: 1}
  commands: [b]
  python: 3.12
  nvcc: true
- count: 1
  commands: [c]
  docker: true
";
    let printed = print(&read_yaml(text));
    let groups = printed["groups"].as_array().unwrap();
    assert_eq!(groups[0]["router"], json!({"type": "smg"}));
    assert_eq!(groups[1]["name"], json!("1"));
    assert_eq!(groups[1]["replicas"], json!({"min": 0, "max": 2}));
    assert_eq!(groups[1]["python"], json!("3.12"));
    assert_eq!(groups[2]["docker"], json!(true));
    let service: ServiceConfiguration = serde_json::from_value(printed).unwrap();
    let views = service.replica_groups();
    assert_eq!(views.len(), 3);
    assert_eq!((views[0].name, views[0].privileged, views[0].reservation), ("router", true, Some("cr")));
    assert_eq!(print(&views[1].spot_policy), json!("spot"));
}

#[test]
fn a_service_without_groups_has_one() {
    let service: ServiceConfiguration = yaml::parse("type: service\nport: 1\ncommands: [a]\n", "x").unwrap();
    let views = service.replica_groups();
    assert_eq!((views.len(), views[0].name), (1, "0"));
    assert_eq!((views[0].replicas.min, views[0].replicas.max), (Some(1), Some(1)));
}

#[test]
fn node_groups_are_one_view_of_both_forms() {
    let text = "type: task\ngroups:\n- {nodes: 1, commands: [a], ports: [1]}\n- {name: w, nodes: 3, commands: [b], ports: [2]}\n";
    let task: TaskConfiguration = yaml::parse(text, "x").unwrap();
    assert_eq!(task.total_nodes(), 4);
    assert_eq!(task.node_groups()[0].name, "0");
    let run = RunConfiguration::Task(Box::new(task));
    assert_eq!(run.ports().len(), 2);
    let plain: TaskConfiguration = yaml::parse("type: task\nnodes: 2\nimage: i\n", "x").unwrap();
    assert_eq!((plain.total_nodes(), plain.node_groups()[0].name), (2, "0"));
}

#[test]
fn every_key_of_a_fleet_is_read() {
    check(
        r"
type: fleet
name: cloud
placement: cluster
blocks: auto
nodes: {min: 0, target: 1, max: 4}
reservation: cr
resources: {gpu: 8}
backends: [aws]
regions: [r]
availability_zones: [z]
instance_types: [t]
spot_policy: on-demand
retry: true
max_price: 9.5
idle_duration: 1h
tags: {a: b}
backend_options: [{offer_order: score}]
",
        json!({
            "name": "cloud", "placement": "cluster", "blocks": "auto",
            "nodes": {"min": 0, "target": 1, "max": 4}, "reservation": "cr", "backends": ["aws"],
            "regions": ["r"], "availability_zones": ["z"], "instance_types": ["t"],
            "spot_policy": "on-demand", "retry": true, "max_price": 9.5, "idle_duration": 3600,
            "tags": {"a": "b"}, "ssh_config": null, "env": {},
            "backend_options": [{
                "type": "vastai", "offer_order": "score", "min_reliability": null, "min_score": null,
            }],
        }),
    );
    check(
        r"
type: fleet
name: on-prem
ssh_config:
  user: u
  port: 22
  identity_file: ~/.ssh/id
  ssh_key: {public: pub, private: priv}
  proxy_jump: {hostname: jump, port: 23, user: j, identity_file: k, ssh_key: {public: p}}
  hosts:
  - 1.2.3.4
  - {hostname: h, port: 24, user: v, identity_file: l, proxy_jump: {hostname: j, user: j, identity_file: k}, internal_ip: 10.0.0.1, ssh_key: {public: p}, blocks: 2}
  network: 10.0.0.0/24
env: {A: 1}
",
        json!({
            "env": {"A": "1"}, "nodes": null, "blocks": 1,
            "ssh_config": {
                "user": "u", "port": 22, "identity_file": "~/.ssh/id",
                "ssh_key": {"public": "pub", "private": "priv"},
                "proxy_jump": {
                    "hostname": "jump", "port": 23, "user": "j", "identity_file": "k",
                    "ssh_key": {"public": "p", "private": null},
                },
                "hosts": ["1.2.3.4", {
                    "hostname": "h", "port": 24, "user": "v", "identity_file": "l",
                    "proxy_jump": {
                        "hostname": "j", "port": null, "user": "j", "identity_file": "k",
                        "ssh_key": null,
                    },
                    "internal_ip": "10.0.0.1", "ssh_key": {"public": "p", "private": null},
                    "blocks": 2,
                }],
                "network": "10.0.0.0/24",
            },
        }),
    );
}

#[test]
fn fleets_have_the_profile_keys_that_make_sense() {
    let fleet: FleetConfiguration = yaml::parse("type: fleet\nnodes: 1\nmax_price: 1\n", "x").unwrap();
    let profile: Profile = yaml::parse("name: p\nmax_price: 2\nregions: [r]\n", "x").unwrap();
    let merged = print(&fleet.merged_profile(Some(&profile)));
    assert_eq!((&merged["max_price"], &merged["regions"]), (&json!(1.0), &json!(["r"])));
}

#[test]
fn submission_errors_are_the_official_ones() {
    let cases = [
        (json!({"type": "fleet"}), "No ssh_config or nodes specified"),
        (
            json!({"type": "fleet", "nodes": 1, "ssh_config": {"hosts": ["h"]}}),
            "ssh_config and nodes are mutually exclusive",
        ),
        (
            json!({"type": "fleet", "name": "A b", "nodes": 1}),
            "Resource name should match regex '^[a-z][a-z0-9-]{1,40}$'",
        ),
        (
            json!({"type": "fleet", "ssh_config": {"hosts": ["h"]}, "regions": ["r"]}),
            "SSH fleet configuration does not support the following fields: ['regions']",
        ),
        (
            json!({"type": "volume", "backend": "aws", "region": "r", "name": "v2"}),
            "Volume must specify either existing identifier or size",
        ),
    ];
    for (input, expected) in cases {
        let configuration: Configuration = serde_json::from_value(input).unwrap();
        assert_eq!(configuration.check_submission(), Err(expected.to_owned()));
    }
}

#[test]
fn every_key_of_a_volume_is_read() {
    check(
        "type: volume\nbackend: aws\nname: vol\nauto_cleanup_duration: off\ntags: {a: b}\nsize: 1TB\nvolume_id: v\nregion: r\navailability_zone: z\n",
        json!({
            "type": "volume", "backend": "aws", "name": "vol", "auto_cleanup_duration": -1,
            "tags": {"a": "b"}, "size": 1024.0, "volume_id": "v", "region": "r",
            "availability_zone": "z",
        }),
    );
    let text =
        "type: volume\nbackend: kubernetes\nsize: 10\nclaim_name: c\nstorage_class_name: s\nread_only: true\n";
    let volume: VolumeConfiguration = yaml::parse(text, "x").unwrap();
    assert_eq!(
        print(&volume),
        json!({
            "type": "volume", "backend": "kubernetes", "name": null, "auto_cleanup_duration": null,
            "tags": null, "size": 10.0, "region": "", "claim_name": "c", "storage_class_name": "s",
            "access_modes": ["ReadWriteOnce"], "read_only": true,
        })
    );
    check("type: volume\nbackend: lium\nvolume_id: v\n", json!({"backend": "lium", "volume_id": "v"}));
}

#[test]
fn every_key_of_a_gateway_is_read() {
    check(
        "type: gateway\nname: gate\ndefault: true\nbackend: aws\nregion: r\ninstance_type: t\ndomain: a.b\npublic_ip: false\nload_balancer: {type: alb}\ncertificate: {type: acm, arn: x}\nreplicas: 2\ntags: {a: b}\n",
        json!({
            "type": "gateway", "name": "gate", "default": true, "backend": "aws", "region": "r",
            "instance_type": "t", "domain": "a.b", "public_ip": false,
            "load_balancer": {"type": "alb"}, "certificate": {"type": "acm", "arn": "x"},
            "replicas": 2, "tags": {"a": "b"},
        }),
    );
    check(
        "type: gateway\nbackend: gcp\nregion: r\ncertificate: {type: gcp-cm, name: c}\n",
        json!({"certificate": {"type": "gcp-cm", "name": "c"}}),
    );
}

#[test]
fn schemas_know_the_shorthands() {
    let schema = serde_json::to_string(&schemars::schema_for!(Configuration)).unwrap();
    for word in ["H100:8", "80:8000", "NAME=value", "project/name", "TaskConfiguration", "runtime"] {
        assert!(schema.contains(word), "{word}");
    }
}
