//! `dstack validate`: reads a configuration as `apply` would, and prints what it means.

use api::configurations::Configuration;
use serde::Serialize;
use serde_json::Value;

use super::apply::source::ConfigurationFile;
use crate::Outcome;
use crate::args::ValidateArgs;
use crate::session::Session;

pub(super) async fn run(session: &mut Session, args: &ValidateArgs) -> anyhow::Result<Outcome> {
    let file = ConfigurationFile::read(session, Some(&args.file)).await?;
    if args.json {
        print_json(session, &file.configuration)?;
    } else {
        let text = serde_saphyr::to_string(&said(&file.configuration)?)?;
        session.printer.raw(text.trim_end().as_bytes())?;
        session.printer.blank()?;
    }
    Ok(Outcome::Done)
}

fn print_json(session: &mut Session, configuration: &Configuration) -> anyhow::Result<()> {
    match configuration {
        Configuration::Task(task) => session.printer.json(task)?,
        Configuration::DevEnvironment(environment) => session.printer.json(environment)?,
        Configuration::Service(service) => session.printer.json(service)?,
        Configuration::Fleet(fleet) => session.printer.json(fleet)?,
        Configuration::Volume(volume) => session.printer.json(volume)?,
        Configuration::Gateway(gateway) => session.printer.json(gateway)?,
    }
    Ok(())
}

/// The canonical form without the keys that say nothing.
fn said(configuration: &Configuration) -> anyhow::Result<Value> {
    let value = match configuration {
        Configuration::Task(task) => to_value(task)?,
        Configuration::DevEnvironment(environment) => to_value(environment)?,
        Configuration::Service(service) => to_value(service)?,
        Configuration::Fleet(fleet) => to_value(fleet)?,
        Configuration::Volume(volume) => to_value(volume)?,
        Configuration::Gateway(gateway) => to_value(gateway)?,
    };
    Ok(without_empty(value).unwrap_or_default())
}

fn to_value<T: Serialize>(value: &T) -> serde_json::Result<Value> {
    serde_json::to_value(value)
}

fn without_empty(value: Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Object(map) => {
            let kept: serde_json::Map<_, _> =
                map.into_iter().filter_map(|(key, value)| Some((key, without_empty(value)?))).collect();
            (!kept.is_empty()).then_some(Value::Object(kept))
        }
        Value::Array(items) if items.is_empty() => None,
        value => Some(value),
    }
}
