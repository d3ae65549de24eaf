//! `dstack secret`: the secrets of a project.

use api::client::endpoints;
use api::secrets::{DeleteSecretsRequest, GetSecretRequest, Secret, SetSecretRequest};

use crate::Outcome;
use crate::args::{SecretArgs, SecretCommand};
use crate::output::Table;
use crate::session::Session;

/// What stands for a value that is not shown.
const HIDDEN: &str = "******";

pub(super) async fn run(session: &mut Session, args: SecretArgs) -> anyhow::Result<Outcome> {
    let project = session.project(args.project.project.as_deref())?;
    let client = &project.client;
    match args.command.unwrap_or(SecretCommand::List) {
        SecretCommand::List => {
            let secrets = client.call(&endpoints::LIST_SECRETS, &project.name, &()).await?;
            print(session, &secrets)?;
        }
        SecretCommand::Get { name } => {
            let secret = client.call(&endpoints::GET_SECRET, &project.name, &GetSecretRequest { name }).await?;
            print(session, &[secret])?;
        }
        SecretCommand::Set { name, value } => {
            client.call(&endpoints::SET_SECRET, &project.name, &SetSecretRequest { name, value }).await?;
            session.printer.line("OK")?;
        }
        SecretCommand::Delete(delete) => {
            if super::agreed(session, delete.confirm.yes, &format!("Delete the secret {}?", delete.name)).await? {
                let request = DeleteSecretsRequest { secrets_names: vec![delete.name] };
                client.call(&endpoints::DELETE_SECRETS, &project.name, &request).await?;
                session.printer.line("OK")?;
            }
        }
    }
    Ok(Outcome::Done)
}

fn print(session: &mut Session, secrets: &[Secret]) -> anyhow::Result<()> {
    let mut table = Table::new(&["NAME", "VALUE"]);
    for secret in secrets {
        let value = secret.value.as_deref().unwrap_or(HIDDEN);
        table.row(vec![secret.name.as_str().into(), value.into()]);
    }
    session.printer.table(&table)?;
    session.printer.blank()?;
    Ok(())
}
