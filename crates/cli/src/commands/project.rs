//! `dstack project`: the servers that the user knows.

use anyhow::bail;
use api::client::endpoints;

use crate::Outcome;
use crate::args::{ProjectArgs, ProjectCommand};
use crate::config::{ConfigFile, ProjectConfig};
use crate::output::{Cell, Table};
use crate::printer::STRONG;
use crate::session::Session;

pub(super) async fn run(session: &mut Session, args: ProjectArgs) -> anyhow::Result<Outcome> {
    let path = session.config_path();
    let mut file = ConfigFile::read(&path)?;
    match args.command.unwrap_or(ProjectCommand::List) {
        ProjectCommand::List => list(session, &file, args.verbose).await?,
        ProjectCommand::Add { name, url, token, yes, no } => {
            let project = ProjectConfig { default: false, name, token, url: url.trim_end_matches('/').to_owned() };
            let answer = if yes { Some(true) } else { no.then_some(false) };
            add(session, file, project, answer).await?;
        }
        ProjectCommand::SetDefault { name } => {
            let Some(project) = file.get(&name).cloned() else { bail!("Project '{name}' not found") };
            file.set(ProjectConfig { default: true, ..project });
            file.write(&path)?;
            session.printer.line("OK")?;
        }
        ProjectCommand::Delete { name, yes } => {
            if super::agreed(session, yes, &format!("Are you sure you want to delete project {name}?")).await? {
                file.projects.retain(|project| project.name != name);
                file.write(&path)?;
                session.printer.line("OK")?;
            }
        }
    }
    Ok(Outcome::Done)
}

async fn list(session: &mut Session, file: &ConfigFile, verbose: bool) -> anyhow::Result<()> {
    let titles: &[&'static str] =
        if verbose { &["PROJECT", "URL", "USER", "DEFAULT"] } else { &["PROJECT", "URL", "DEFAULT"] };
    let mut table = Table::new(titles).centre("DEFAULT");
    for project in &file.projects {
        let mut cells: Vec<Cell> = vec![Cell::styled(project.name.clone(), STRONG), project.url.as_str().into()];
        if verbose {
            cells.push(user(session, project).await.into());
        }
        cells.push(if project.default { "✓" } else { "" }.into());
        table.row(cells);
    }
    session.printer.table(&table)?;
    Ok(())
}

// One server that does not answer is no reason to hide the others.
async fn user(session: &Session, project: &ProjectConfig) -> String {
    let Ok(client) = session.client(&project.url, &project.token) else { return "(error)".to_owned() };
    match client.call(&endpoints::GET_MY_USER, "", &()).await {
        Ok(user) => user.username,
        Err(_) => "(error)".to_owned(),
    }
}

async fn add(
    session: &mut Session,
    mut file: ConfigFile,
    project: ProjectConfig,
    answer: Option<bool>,
) -> anyhow::Result<()> {
    let client = session.client(&project.url, &project.token)?;
    client.call(&endpoints::GET_PROJECT, &project.name, &()).await?;
    let default = match (file.default_project(), answer) {
        (None, _) => true,
        (Some(old), _) if old.name == project.name => true,
        (Some(_), Some(answer)) => answer,
        (Some(old), None) => {
            let question = format!("Set '{}' as your default project instead of '{}'?", project.name, old.name);
            session.printer.confirm(&question).await?
        }
    };
    file.set(ProjectConfig { default, ..project });
    let path = session.config_path();
    file.write(&path)?;
    session.printer.line(format!("Configuration updated at {}", path.display()))?;
    Ok(())
}
