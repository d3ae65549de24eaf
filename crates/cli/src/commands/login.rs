//! `dstack login`: through an identity provider, where the server has any.

use anyhow::bail;
use api::client::endpoints;

use crate::Outcome;
use crate::args::LoginArgs;
use crate::session::Session;

pub(super) async fn run(session: &mut Session, args: &LoginArgs) -> anyhow::Result<Outcome> {
    let has_scheme = args.url.contains("://");
    let url = if has_scheme { args.url.clone() } else { format!("http://{}", args.url) };
    let client = session.client(&url, "")?;
    let providers = client.call(&endpoints::LIST_AUTH_PROVIDERS, "", &()).await?;
    if providers.is_empty() {
        bail!("No SSO providers configured on the server.");
    }
    bail!("Logging in through a provider is not supported yet; use `dstack project add` with a token")
}
