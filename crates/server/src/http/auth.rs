//! Who asks, and what they may do.
//!
//! Each extractor proves one right; a handler that takes it cannot run without. The order of the checks is the
//! official one: token, then project, then role.

use api::projects::ProjectRole;
use api::users::GlobalRole;
use axum::extract::{FromRequestParts, RawPathParams};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::request::Parts;
use store::projects::ProjectRow;
use store::users::UserRow;
use store::{members, projects, users};

use super::error::{Error, Result};
use crate::deps::Deps;
use crate::sealing::token_hash;

/// Any user who is logged in.
#[derive(Debug, Clone)]
pub struct AuthUser(pub UserRow);

impl AuthUser {
    /// Whether they may do everything on the whole server.
    pub fn is_global_admin(&self) -> bool {
        self.0.role == GlobalRole::Admin
    }
}

impl FromRequestParts<Deps> for AuthUser {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, deps: &Deps) -> Result<Self> {
        let token = bearer_token(&parts.headers).ok_or_else(Error::not_authenticated)?;
        let user = users::find_by_token_hash(&deps.db, &token_hash(token)).await?;
        Ok(AuthUser(user.ok_or_else(Error::invalid_token)?))
    }
}

/// The token that a request brings.
pub(super) fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// A user who may do everything on the whole server.
#[derive(Debug, Clone)]
pub struct GlobalAdmin(pub UserRow);

impl FromRequestParts<Deps> for GlobalAdmin {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, deps: &Deps) -> Result<Self> {
        let user = AuthUser::from_request_parts(parts, deps).await?;
        if user.is_global_admin() { Ok(GlobalAdmin(user.0)) } else { Err(Error::access_denied()) }
    }
}

/// A user, and the project that the path names.
#[derive(Debug, Clone)]
pub struct Access {
    /// Who asks.
    pub user: UserRow,
    /// The project.
    pub project: ProjectRow,
    /// Their role in it; unset for those who are no members and may look all the same.
    pub role: Option<ProjectRole>,
}

impl Access {
    /// Whether they may do everything on the whole server.
    pub fn is_global_admin(&self) -> bool {
        self.user.role == GlobalRole::Admin
    }

    /// Whether they may do everything in the project.
    pub fn is_project_admin(&self) -> bool {
        self.is_global_admin() || self.role == Some(ProjectRole::Admin)
    }

    /// Whether they may change members.
    pub fn is_manager(&self) -> bool {
        self.is_project_admin() || self.role == Some(ProjectRole::Manager)
    }

    /// Whether they may have fleets of machines of their own.
    pub fn may_manage_ssh_fleets(&self, deps: &Deps) -> bool {
        self.is_project_admin() || deps.settings.default_permissions.allow_non_admins_manage_ssh_fleets
    }

    /// Whether the project is theirs to use.
    pub fn is_member(&self) -> bool {
        self.is_global_admin() || self.role.is_some()
    }

    async fn find(parts: &mut Parts, deps: &Deps) -> Result<Access> {
        let AuthUser(user) = AuthUser::from_request_parts(parts, deps).await?;
        let params = RawPathParams::from_request_parts(parts, deps).await.map_err(|_| Error::route_not_found())?;
        let name = params.iter().find(|(key, _)| *key == "project_name").map(|(_, name)| name.to_owned());
        let name = name.ok_or_else(|| Error::internal(anyhow::anyhow!("the route names no project")))?;
        let project = projects::find_by_name(&deps.db, &name).await?.ok_or_else(Error::project_not_found)?;
        let role = members::role(&deps.db, project.id, user.id).await?;
        Ok(Access { user, project, role })
    }
}

macro_rules! project_right {
    ($(#[$doc:meta])* $name:ident, $allows:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub struct $name(pub Access);

        impl std::ops::Deref for $name {
            type Target = Access;

            fn deref(&self) -> &Access {
                &self.0
            }
        }

        impl FromRequestParts<Deps> for $name {
            type Rejection = Error;

            async fn from_request_parts(parts: &mut Parts, deps: &Deps) -> Result<Self> {
                let access = Access::find(parts, deps).await?;
                let allows: fn(&Access, &Deps) -> bool = $allows;
                if allows(&access, deps) { Ok($name(access)) } else { Err(Error::access_denied()) }
            }
        }
    };
}

project_right!(
    /// Somebody who may look at the project: a member, or anyone if it is public.
    ProjectViewer,
    |access, _| access.is_member() || access.project.is_public
);

project_right!(
    /// A member of the project.
    ProjectMember,
    |access, _| access.is_member()
);

project_right!(
    /// A member who may change members.
    ProjectManager,
    |access, _| access.is_manager()
);

project_right!(
    /// A member who may do everything in the project.
    ProjectAdmin,
    |access, _| access.is_project_admin()
);

project_right!(
    /// A member who may read and write secrets.
    SecretsManager,
    |access, deps| {
        access.is_project_admin()
            || (access.is_manager() && deps.settings.default_permissions.allow_managers_manage_secrets)
    }
);
