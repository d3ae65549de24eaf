//! The environment of a job's command.

use std::collections::BTreeMap;
use std::fmt::Write;

use api::agent::{ClusterInfo, TaskSpec};

use crate::shell::quote;
use crate::wire::JobFile;

/// Where programs are looked for when nobody says.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What was found out about the job while it was prepared.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Whom it runs as.
    pub(crate) username: String,
    /// That user's home.
    pub(crate) home: String,
    /// Where the command starts.
    pub(crate) working_dir: String,
    /// Where uploaded code is.
    pub(crate) repo_dir: String,
    /// The virtual environment, if one was made.
    pub(crate) venv_dir: Option<String>,
}

/// The command's environment. `inherited` is the supervisor's own: the image's in a container, of which all
/// stays; the user's on a host, of which next to nothing does.
pub(crate) fn build(
    job: &JobFile,
    facts: &Facts,
    inherited: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    if job.container {
        env.extend(inherited.clone());
        env.retain(|name, _| !name.starts_with("BASH_FUNC_"));
    } else {
        let kept = ["PATH", "LANG"].iter().filter_map(|name| inherited.get_key_value(*name));
        env.extend(kept.map(|(name, value)| (name.clone(), value.clone())));
    }
    let path = env.remove("PATH").filter(|path| !path.is_empty());
    let path = path.unwrap_or_else(|| DEFAULT_PATH.to_owned());
    let mut set = |name: &str, value: String| {
        env.insert(name.to_owned(), value);
    };
    set("HOME", facts.home.clone());
    set("USER", facts.username.clone());
    match &facts.venv_dir {
        Some(venv) => {
            set("PATH", format!("{venv}/bin:{path}"));
            set("VIRTUAL_ENV", venv.clone());
            set("DSTACK_VENV_DIR", venv.clone());
        }
        None => set("PATH", path),
    }
    for (name, value) in &job.gpu_env {
        set(name, value.clone());
    }
    for (name, value) in dstack_variables(&job.spec, job.gpu_uuids.len() as u32, facts) {
        set(name, value);
    }
    set("DSTACK_MPI_HOSTFILE", job.hostfile.to_string_lossy().into_owned());
    env.entry("LANG".to_owned()).or_insert_with(|| "C.UTF-8".to_owned());
    env.extend(job.spec.env.clone());
    env
}

fn dstack_variables(spec: &TaskSpec, granted: u32, facts: &Facts) -> Vec<(&'static str, String)> {
    let cluster = &spec.cluster;
    let gpus_here = cluster.gpus_per_node.get(cluster.node_rank as usize).copied();
    let gpus_total = match cluster.gpus_per_node.as_slice() {
        [] => granted,
        nodes => nodes.iter().sum(),
    };
    vec![
        ("DSTACK_RUN_ID", spec.run_id.to_string()),
        ("DSTACK_JOB_ID", spec.id.to_string()),
        ("DSTACK_RUN_NAME", spec.run_name.clone()),
        ("DSTACK_REPO_ID", spec.repo_id.clone().unwrap_or_default()),
        ("DSTACK_REPO_DIR", facts.repo_dir.clone()),
        ("DSTACK_WORKING_DIR", facts.working_dir.clone()),
        ("DSTACK_NODES_NUM", cluster.node_ips.len().max(1).to_string()),
        ("DSTACK_NODE_RANK", cluster.node_rank.to_string()),
        ("DSTACK_NODES_IPS", cluster.node_ips.join("\n")),
        ("DSTACK_MASTER_NODE_IP", cluster.node_ips.first().cloned().unwrap_or_default()),
        ("DSTACK_GPUS_PER_NODE", gpus_here.unwrap_or(granted).to_string()),
        ("DSTACK_GPUS_NUM", gpus_total.to_string()),
    ]
}

/// The nodes for MPI, one a line; nothing where an address is unknown.
pub(crate) fn hostfile(cluster: &ClusterInfo) -> String {
    if cluster.node_ips.iter().any(String::is_empty) {
        return String::new();
    }
    let mut text = String::new();
    for (rank, ip) in cluster.node_ips.iter().enumerate() {
        text.push_str(ip);
        match cluster.gpus_per_node.get(rank) {
            None | Some(0) => {}
            Some(gpus) => {
                let _ = write!(text, " slots={gpus}");
            }
        }
        text.push('\n');
    }
    text
}

/// Lines for login shells that bring the environment back, as `/dstack/profile` has them. Who has it already keeps what
/// they made of it, but for the search path, which login shells begin anew.
pub(crate) fn profile(env: &BTreeMap<String, String>, working_dir: &str) -> String {
    const OWN: [&str; 8] = ["HOSTNAME", "USER", "HOME", "SHELL", "SHLVL", "PWD", "TERM", "_"];
    let mut text = String::new();
    let _ = writeln!(text, "[ -n \"${{DSTACK_RUN_ID+x}}\" ] || cd {}", quote(working_dir));
    for (name, value) in env {
        let value = quote(value);
        let _ = match name.as_str() {
            name if !is_identifier(name) || OWN.contains(&name) => Ok(()),
            "PATH" => {
                writeln!(text, "case \":$PATH:\" in *:{value}:*) ;; *) export PATH={value}:\"$PATH\" ;; esac")
            }
            name => writeln!(text, "[ -n \"${{{name}+x}}\" ] || export {name}={value}"),
        };
    }
    text
}

fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(ips: &[&str], gpus: &[u32]) -> ClusterInfo {
        ClusterInfo {
            node_rank: 0,
            node_ips: ips.iter().map(|ip| (*ip).to_owned()).collect(),
            gpus_per_node: gpus.to_vec(),
        }
    }

    #[test]
    fn the_hostfile_names_slots_for_gpu_nodes_only() {
        let mixed = cluster(&["10.0.0.1", "10.0.0.2"], &[8, 0]);
        assert_eq!(hostfile(&mixed), "10.0.0.1 slots=8\n10.0.0.2\n");
        assert_eq!(hostfile(&cluster(&["10.0.0.1", ""], &[8, 8])), "");
        assert_eq!(hostfile(&cluster(&[], &[])), "");
    }

    #[test]
    fn a_shell_has_the_environment_after_the_profile_and_keeps_what_it_had() {
        let dir = tempfile::Builder::new().prefix("it's a").tempdir().unwrap();
        let work = dir.path().to_str().unwrap();
        let variables = [
            ("A", "it's $HOME"),
            ("B", "the job's"),
            ("DSTACK_RUN_ID", "7"),
            ("HOME", "/root"),
            ("PATH", "/venv/bin:/usr/bin"),
            ("not-a-name", "x"),
        ];
        let env = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let script =
            format!("{0}{0}printf '%s\\n' \"$A\" \"$B\" \"$HOME\" \"$PATH\" \"$PWD\"", profile(&env, work));
        let check = |own: &[(&str, &str)], expected: [&str; 5]| {
            let mut shell = std::process::Command::new("/bin/sh");
            shell.args(["-euc", &script]).current_dir("/").env_clear().envs(own.iter().copied());
            let output = shell.output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(text.lines().collect::<Vec<_>>(), expected, "{output:?}");
        };
        let fresh = [("HOME", "/mine"), ("PATH", "/bin")];
        check(&fresh, ["it's $HOME", "the job's", "/mine", "/venv/bin:/usr/bin:/bin", work]);
        let known = [("DSTACK_RUN_ID", "7"), ("B", ""), ("HOME", "/"), ("PATH", "/x:/venv/bin:/usr/bin")];
        check(&known, ["it's $HOME", "", "/", "/x:/venv/bin:/usr/bin", "/"]);
    }
}
