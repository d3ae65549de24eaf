//! `dstack why`: why a run, a fleet or an instance is as it is, and what happens next.

use api::client::endpoints;
use api::why::WhyRequest;

use crate::Outcome;
use crate::args::WhyArgs;
use crate::output::why;
use crate::session::Session;

pub(super) async fn run(session: &mut Session, args: &WhyArgs) -> anyhow::Result<Outcome> {
    let project = session.project(args.project.project.as_deref())?;
    let request = WhyRequest { name: args.name.clone(), kind: args.kind() };
    let answer = project.client.call(&endpoints::WHY, &project.name, &request).await?;
    if args.json {
        session.printer.json(&answer)?;
    } else {
        why::print(session, &answer)?;
    }
    Ok(Outcome::Done)
}
