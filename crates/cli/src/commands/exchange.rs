//! `dstack export` and `dstack import`: what projects give to each other. Servers that know neither refuse with a
//! sentence of their own.

use api::client::endpoints;
use api::exports::{CreateExportRequest, DeleteExportRequest, DeleteImportRequest, UpdateExportRequest};
use serde_json::Value;

use crate::args::{ExportArgs, ExportCommand, ImportArgs, ImportCommand};
use crate::output::Table;
use crate::session::Session;
use crate::{Outcome, UsageError};

pub(super) async fn exports(session: &mut Session, args: ExportArgs) -> anyhow::Result<Outcome> {
    let project = session.project(args.project.project.as_deref())?;
    match args.command.unwrap_or(ExportCommand::List) {
        ExportCommand::List => {
            let answer = project.client.call(&endpoints::LIST_EXPORTS, &project.name, &()).await?;
            print_exports(session, &listed(&answer, "exports"))?;
        }
        ExportCommand::Create { name, importers, fleets, gateways, is_global } => {
            let request = CreateExportRequest {
                name,
                is_global,
                importer_projects: importers,
                exported_fleets: fleets,
                exported_gateways: gateways,
            };
            let export = project.client.call(&endpoints::CREATE_EXPORT, &project.name, &request).await?;
            print_exports(session, &[&export])?;
        }
        ExportCommand::Update { name, changes } => {
            let request = UpdateExportRequest {
                name,
                set_global: changes.set_global,
                unset_global: changes.unset_global,
                add_importer_projects: changes.add_importers,
                remove_importer_projects: changes.remove_importers,
                add_exported_fleets: changes.add_fleets,
                remove_exported_fleets: changes.remove_fleets,
                add_exported_gateways: changes.add_gateways,
                remove_exported_gateways: changes.remove_gateways,
            };
            let export = project.client.call(&endpoints::UPDATE_EXPORT, &project.name, &request).await?;
            print_exports(session, &[&export])?;
        }
        ExportCommand::Delete { name, confirm } => {
            if super::agreed(session, confirm.yes, &format!("Delete the export {name}?")).await? {
                let request = DeleteExportRequest { name: name.clone() };
                project.client.call(&endpoints::DELETE_EXPORT, &project.name, &request).await?;
                session.printer.line(format!("Export {name} deleted"))?;
            }
        }
    }
    Ok(Outcome::Done)
}

pub(super) async fn imports(session: &mut Session, args: ImportArgs) -> anyhow::Result<Outcome> {
    let project = session.project(args.project.project.as_deref())?;
    match args.command.unwrap_or(ImportCommand::List) {
        ImportCommand::List => {
            let answer = project.client.call(&endpoints::LIST_IMPORTS, &project.name, &()).await?;
            print_imports(session, &listed(&answer, "imports"))?;
        }
        ImportCommand::Delete { name, confirm } => {
            let parts = name.split_once('/').filter(|(from, export)| !from.is_empty() && !export.is_empty());
            let Some((from, export)) = parts.filter(|(_, export)| !export.contains('/')) else {
                let wanted = "Expected <export-project>/<export-name>";
                return Err(UsageError(format!("Invalid format: '{name}'. {wanted}")).into());
            };
            if super::agreed(session, confirm.yes, &format!("Delete the import {name}?")).await? {
                let request =
                    DeleteImportRequest { export_name: export.to_owned(), export_project_name: from.to_owned() };
                project.client.call(&endpoints::DELETE_IMPORT, &project.name, &request).await?;
                session.printer.line(format!("Import {name} deleted"))?;
            }
        }
    }
    Ok(Outcome::Done)
}

fn listed<'a>(answer: &'a Value, key: &str) -> Vec<&'a Value> {
    let list = answer.get(key).unwrap_or(answer);
    list.as_array().into_iter().flatten().collect()
}

fn print_exports(session: &mut Session, exports: &[&Value]) -> anyhow::Result<()> {
    let mut table = Table::new(&["NAME", "FLEETS", "GATEWAYS", "IMPORTERS"]);
    for export in exports {
        let is_global = export["is_global"].as_bool().unwrap_or(false);
        let importers = if is_global { "*".to_owned() } else { names(&export["imports"], "project_name") };
        table.row(vec![
            export["name"].as_str().unwrap_or_default().into(),
            names(&export["exported_fleets"], "name").into(),
            names(&export["exported_gateways"], "name").into(),
            importers.into(),
        ]);
    }
    print(session, &table)
}

fn print_imports(session: &mut Session, imports: &[&Value]) -> anyhow::Result<()> {
    let mut table = Table::new(&["NAME", "FLEETS", "GATEWAYS"]);
    for import in imports {
        let export = &import["export"];
        let text = |key: &str| export[key].as_str().unwrap_or_default().to_owned();
        table.row(vec![
            format!("{}/{}", text("project_name"), text("name")).into(),
            names(&export["exported_fleets"], "name").into(),
            names(&export["exported_gateways"], "name").into(),
        ]);
    }
    print(session, &table)
}

fn print(session: &mut Session, table: &Table) -> anyhow::Result<()> {
    session.printer.table(table)?;
    session.printer.blank()?;
    Ok(())
}

fn names(list: &Value, key: &str) -> String {
    let names: Vec<&str> = list.as_array().into_iter().flatten().filter_map(|item| item[key].as_str()).collect();
    if names.is_empty() { "-".to_owned() } else { names.join(", ") }
}
