//! A run's configuration with everything that only the user's side knows: options, environment, arguments, paths.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};
use api::configurations::{Env, EnvValue, RunConfiguration};

use super::interpolate::{Value, interpolate, quoted};
use super::options;
use crate::args::ApplyArgs;
use crate::session::Session;

/// Completes `configuration`; `folder` is where its relative paths start.
pub(super) fn complete(
    session: &Session,
    args: &ApplyArgs,
    configuration: &mut RunConfiguration,
    folder: &Path,
) -> anyhow::Result<()> {
    if let Some(name) = &args.name {
        *configuration.common_mut().name = Some(name.clone());
    }
    complete_env(session, &args.env, configuration.common_mut().env)?;
    options::set_resources(&args.run.resources, configuration.common_mut().resources);
    let params = options::with_selection(configuration.profile_params(), &args.run.selection);
    configuration.set_profile_params(params);
    set_ports(args, configuration)?;
    interpolate_commands(&args.run.run_args, configuration)?;
    interpolate_registry_auth(configuration)?;
    for file in configuration.common_mut().files {
        file.local_path = absolute(session, folder, &file.local_path);
    }
    Ok(())
}

/// Adds what was typed, then gives each variable without a value the one that it has here.
pub(super) fn complete_env(session: &Session, typed: &[String], env: &mut Env) -> anyhow::Result<()> {
    for line in typed {
        env.add(line).map_err(anyhow::Error::msg).with_context(|| format!("`-e {line}`"))?;
    }
    for (name, value) in &mut env.0 {
        if let EnvValue::FromCaller(key) = value {
            let here =
                session.variables.get(key).with_context(|| format!("Environment variable {name} is not set"))?;
            *value = EnvValue::Text(here.clone());
        }
    }
    Ok(())
}

fn set_ports(args: &ApplyArgs, configuration: &mut RunConfiguration) -> anyhow::Result<()> {
    let typed = &args.run.ports;
    match configuration {
        RunConfiguration::Task(task) => task.ports = options::with_ports(&task.ports, typed),
        RunConfiguration::DevEnvironment(environment) => {
            environment.ports = options::with_ports(&environment.ports, typed);
        }
        RunConfiguration::Service(_) if !typed.is_empty() => {
            bail!("Unrecognized arguments: -p; the port of a service is in its configuration")
        }
        RunConfiguration::Service(_) => {}
    }
    Ok(())
}

fn interpolate_commands(run_args: &[String], configuration: &mut RunConfiguration) -> anyhow::Result<()> {
    let args = quoted(run_args);
    let lookup = |reference: &str| match reference {
        "run.args" => Value::Text(args.as_str()),
        reference if reference.starts_with("secrets.") || reference.starts_with("groups[") => Value::Later,
        _ => Value::Unknown,
    };
    let mut lists: Vec<&mut Vec<String>> = Vec::new();
    match configuration {
        RunConfiguration::Task(task) => {
            lists.push(&mut task.commands);
            lists.extend(task.groups.iter_mut().flatten().map(|group| &mut group.commands));
        }
        RunConfiguration::Service(service) => {
            lists.push(&mut service.commands);
            lists.extend(service.groups.iter_mut().flatten().map(|group| &mut group.commands));
        }
        RunConfiguration::DevEnvironment(_) if !run_args.is_empty() => {
            bail!("Unrecognized arguments: {args}")
        }
        RunConfiguration::DevEnvironment(_) => {}
    }
    for command in lists.into_iter().flatten() {
        *command = interpolate(command, lookup)?;
    }
    Ok(())
}

fn interpolate_registry_auth(configuration: &mut RunConfiguration) -> anyhow::Result<()> {
    let env = configuration.common().env.clone();
    let lookup = |reference: &str| match reference.split_once('.') {
        Some(("env", name)) => env.get(name).map_or(Value::Unknown, Value::Text),
        Some(("secrets", _)) => Value::Later,
        _ => Value::Unknown,
    };
    if let Some(auth) = configuration.common_mut().registry_auth {
        auth.username = interpolate(&auth.username, lookup)?;
        auth.password = interpolate(&auth.password, lookup)?;
    }
    Ok(())
}

/// A path of a configuration as one that does not depend on where it is read.
pub(in crate::commands) fn absolute(session: &Session, folder: &Path, path: &str) -> String {
    let path = match path.strip_prefix('~') {
        Some("") => session.home.clone(),
        Some(rest) if rest.starts_with('/') => session.home.join(rest.trim_start_matches('/')),
        _ => folder.join(path),
    };
    clean(&path).to_string_lossy().into_owned()
}

/// A path without `.` and `..`.
pub(super) fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    clean
}
