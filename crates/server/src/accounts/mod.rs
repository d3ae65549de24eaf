//! Users, projects and their backends: what both the API and the start of the server do with them.

mod backends;
mod keys;
mod projects;
mod users;

pub use backends::{
    add_backend, backend_config, backend_notes, check_backends, draining_note, remove_backend, set_backend,
};
pub use keys::{KeyPair, PublicKeyFacts, read_public_key};
pub use projects::{InUse, NewProject, create_project, delete_projects, is_project_name};
pub use users::{NewUser, create_user, delete_user, is_username, refresh_ssh_key, refresh_token};

/// What is said of a backend that would use what the server itself is given, where that is forbidden.
pub const DEFAULT_CREDS_DISABLED: &str =
    "Default credentials are disabled on this server (DSTACK_DEFAULT_CREDS_DISABLED)";

/// The project that every server begins with.
pub const MAIN_PROJECT: &str = "main";

/// The user that every server begins with.
pub const ADMIN_USER: &str = "admin";

use api::events::EventTargetType;
use lifecycle::events::{NewEvent, Target};
use store::projects::ProjectRow;
use store::users::UserRow;
use store::{Tx, events};

use crate::deps::Deps;

/// The user as what an event is about.
pub fn user_target(user: &UserRow) -> Target {
    Target::other(EventTargetType::User, None, user.id.0, &user.name)
}

/// The project as what an event is about.
pub fn project_target(project: &ProjectRow) -> Target {
    Target::other(EventTargetType::Project, Some(project.id), project.id.0, &project.name)
}

/// Records an event in the transaction of the change that it tells of.
pub async fn record(deps: &Deps, tx: &mut Tx, event: &NewEvent) -> store::Result<()> {
    events::insert(tx, deps.ids.id(), deps.clock.now(), event).await
}

/// Whether a text has 1 to `longest` letters, digits, dashes and underscores.
pub fn is_plain_name(text: &str, longest: usize) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=longest).contains(&text.len()) && text.chars().all(allowed)
}
