//! Projects.

use api::projects::{
    CreateProjectRequest, DeleteProjectsRequest, ListProjectsRequest, Project, ProjectList, UpdateProjectRequest,
};
use axum::extract::State;
use lifecycle::events::NewEvent;
use store::projects::{self, ProjectRow, VisibleTo};
use store::{members, users};

use super::account_views as views;
use super::auth::{AuthUser, ProjectAdmin, ProjectViewer};
use super::error::{Error, Result, check_length};
use super::extract::{Json, OptionalJson};
use super::paging::{self, Listing};
use crate::accounts::{self, NewProject};
use crate::deps::Deps;

pub async fn get(State(deps): State<Deps>, viewer: ProjectViewer) -> Result<Json<Project>> {
    views::whole_project(&deps, viewer.0.project).await.map(Json)
}

pub async fn list(
    State(deps): State<Deps>,
    asking: AuthUser,
    OptionalJson(request): OptionalJson<ListProjectsRequest>,
) -> Result<Json<ProjectList>> {
    let visible = match &request.username {
        Some(name) => of_member(&deps, &asking, name).await?,
        None if !request.include_not_joined.unwrap_or(true) => VisibleTo::Member(asking.0.id),
        None if asking.is_global_admin() => VisibleTo::Everyone,
        None => VisibleTo::MemberOrPublic(asking.0.id),
    };
    let page = paging::page(Listing {
        name_pattern: request.name_pattern,
        prev_time: request.prev_created_at,
        prev_id: request.prev_id.map(|id| id.0),
        limit: request.limit,
        ascending: request.ascending,
    })?;
    let projects = views::listed_projects(&deps, projects::list(&deps.db, visible, &page).await?).await?;
    if !request.return_total_count {
        return Ok(Json(ProjectList::Plain(projects)));
    }
    let total_count = projects::count(&deps.db, visible, &page).await?;
    Ok(Json(ProjectList::Counted { total_count, projects }))
}

async fn of_member(deps: &Deps, asking: &AuthUser, name: &str) -> Result<VisibleTo> {
    if asking.0.name.eq_ignore_ascii_case(name) {
        return Ok(VisibleTo::Member(asking.0.id));
    }
    if !asking.is_global_admin() {
        return Err(Error::access_denied());
    }
    let user = users::find_by_name(&deps.db, name).await?;
    Ok(VisibleTo::Member(user.ok_or_else(|| Error::not_exists("User not found"))?.id))
}

pub async fn list_only_no_fleets(
    State(deps): State<Deps>,
    AuthUser(user): AuthUser,
) -> Result<Json<Vec<Project>>> {
    let rows = projects::list_without_fleets(&deps.db, VisibleTo::Member(user.id)).await?;
    views::listed_projects(&deps, rows).await.map(Json)
}

pub async fn create(
    State(deps): State<Deps>,
    asking: AuthUser,
    Json(request): Json<CreateProjectRequest>,
) -> Result<Json<Project>> {
    if !asking.is_global_admin() && !deps.settings.default_permissions.allow_non_admins_create_projects {
        return Err(Error::access_denied());
    }
    if !accounts::is_project_name(&request.project_name) {
        return Err(Error::bad_request("Project name should match regex '^[a-zA-Z0-9-_]{1,50}$'"));
    }
    let new = NewProject {
        name: request.project_name,
        is_public: request.is_public,
        templates_repo: request.templates_repo,
    };
    match accounts::create_project(&deps, asking.0.id, new).await {
        Ok(project) => views::whole_project(&deps, project).await.map(Json),
        Err(store::Error::Taken(_)) => Err(Error::resource_exists()),
        Err(error) => Err(error.into()),
    }
}

pub async fn update(
    State(deps): State<Deps>,
    admin: ProjectAdmin,
    Json(request): Json<UpdateProjectRequest>,
) -> Result<Json<Project>> {
    let mut project = admin.project.clone();
    project.is_public = request.is_public.unwrap_or(project.is_public);
    if request.reset_templates_repo {
        project.templates_repo = None;
    } else if request.templates_repo.is_some() {
        project.templates_repo = request.templates_repo;
    }
    let event = NewEvent::by_user(admin.user.id, "Project updated", vec![accounts::project_target(&project)]);
    let mut tx = deps.db.begin().await?;
    projects::set_details(&mut tx, project.id, project.is_public, project.templates_repo.clone()).await?;
    accounts::record(&deps, &mut tx, &event).await?;
    tx.commit().await?;
    views::whole_project(&deps, project).await.map(Json)
}

pub async fn delete(
    State(deps): State<Deps>,
    asking: AuthUser,
    Json(request): Json<DeleteProjectsRequest>,
) -> Result<Json<()>> {
    check_length("projects_names", request.projects_names.len())?;
    let mut deleted: Vec<ProjectRow> = Vec::new();
    for name in &request.projects_names {
        let project = deletable(&deps, &asking, name).await?;
        if deleted.iter().all(|other| other.id != project.id) {
            deleted.push(project);
        }
    }
    accounts::delete_projects(&deps, asking.0.id, &deleted).await?.map_err(|in_use| {
        Error::bad_request(format!(
            "Failed to delete project {}. Project is in use: {} active runs, {} active fleets. \
             Stop the runs and delete the fleets first.",
            in_use.project, in_use.runs, in_use.fleets
        ))
    })?;
    Ok(Json(()))
}

async fn deletable(deps: &Deps, asking: &AuthUser, name: &str) -> Result<ProjectRow> {
    let Some(project) = projects::find_by_name(&deps.db, name).await? else {
        // Those who may not see every project are not told which names are taken.
        let may_know = asking.is_global_admin();
        return Err(if may_know { Error::resource_not_found() } else { Error::access_denied() });
    };
    let role = members::role(&deps.db, project.id, asking.0.id).await?;
    let is_admin = asking.is_global_admin() || role == Some(api::projects::ProjectRole::Admin);
    if !is_admin && project.owner_id != asking.0.id {
        return Err(Error::access_denied());
    }
    Ok(project)
}
