//! Users and the public keys that they add.

use api::users::{
    AddPublicKeyRequest, CreateUserRequest, DeletePublicKeysRequest, DeleteUsersRequest, GlobalRole,
    ListUsersRequest, PublicKeyInfo, User, UserList, UserWithCreds, UsernameRequest,
};
use axum::extract::State;
use lifecycle::events::NewEvent;
use store::users::{self, PublicKeyRow, UserRow};

use super::account_views as views;
use super::auth::{AuthUser, GlobalAdmin};
use super::error::{Error, Result, check_length};
use super::extract::{Json, OptionalJson};
use super::paging::{self, Listing};
use crate::accounts::{self, ADMIN_USER, NewUser};
use crate::deps::Deps;

pub async fn get_my_user(State(deps): State<Deps>, AuthUser(user): AuthUser) -> Result<Json<UserWithCreds>> {
    views::user_with_creds(&deps, &user).map(Json)
}

pub async fn get_user(
    State(deps): State<Deps>,
    asking: AuthUser,
    Json(request): Json<UsernameRequest>,
) -> Result<Json<UserWithCreds>> {
    let user = themselves_or_any_for_admins(&deps, &asking, &request.username).await?;
    views::user_with_creds(&deps, &user).map(Json)
}

pub async fn list(
    State(deps): State<Deps>,
    asking: AuthUser,
    OptionalJson(request): OptionalJson<ListUsersRequest>,
) -> Result<Json<UserList>> {
    let page = paging::page(Listing {
        name_pattern: request.name_pattern,
        prev_time: request.prev_created_at,
        prev_id: request.prev_id.map(|id| id.0),
        limit: request.limit,
        ascending: request.ascending,
    })?;
    let allowed = deps.settings.default_permissions;
    let (total_count, rows) = if asking.is_global_admin() {
        let total = if request.return_total_count { users::count(&deps.db, &page).await? } else { 0 };
        (total, users::list(&deps.db, &page).await?)
    } else {
        // Users who are no admins are told of nobody but themselves.
        (1, vec![asking.0])
    };
    let users: Vec<User> = rows.iter().map(|row| views::user(row, allowed)).collect();
    Ok(Json(if request.return_total_count {
        UserList::Counted { total_count, users }
    } else {
        UserList::Plain(users)
    }))
}

pub async fn create(
    State(deps): State<Deps>,
    GlobalAdmin(admin): GlobalAdmin,
    Json(request): Json<CreateUserRequest>,
) -> Result<Json<User>> {
    if !accounts::is_username(&request.username) {
        return Err(Error::bad_request("Username should match regex '^[a-zA-Z0-9-_]{1,60}$'"));
    }
    let new = NewUser {
        name: request.username,
        role: request.global_role,
        email: request.email,
        active: request.active,
        token: None,
    };
    match accounts::create_user(&deps, Some(admin.id), new).await {
        Ok(user) => Ok(Json(views::user(&user, deps.settings.default_permissions))),
        Err(store::Error::Taken(_)) => Err(Error::resource_exists()),
        Err(error) => Err(error.into()),
    }
}

pub async fn update(
    State(deps): State<Deps>,
    GlobalAdmin(admin): GlobalAdmin,
    Json(request): Json<CreateUserRequest>,
) -> Result<Json<User>> {
    let mut user = find(&deps, &request.username).await?;
    // Somebody must be left who may do everything; the first admin cannot be deleted either.
    let stays_admin = request.global_role == GlobalRole::Admin && request.active;
    if user.name.eq_ignore_ascii_case(ADMIN_USER) && !stays_admin {
        return Err(Error::bad_request(format!("User '{ADMIN_USER}' must stay an active admin")));
    }
    user.role = request.global_role;
    user.email = request.email;
    user.active = request.active;
    let event = NewEvent::by_user(admin.id, "User updated", vec![accounts::user_target(&user)]);
    let mut tx = deps.db.begin().await?;
    users::set_details(&mut tx, user.id, user.role, user.email.clone(), user.active).await?;
    accounts::record(&deps, &mut tx, &event).await?;
    tx.commit().await?;
    Ok(Json(views::user(&user, deps.settings.default_permissions)))
}

pub async fn refresh_token(
    State(deps): State<Deps>,
    asking: AuthUser,
    Json(request): Json<UsernameRequest>,
) -> Result<Json<UserWithCreds>> {
    let mut user = themselves_or_any_for_admins(&deps, &asking, &request.username).await?;
    accounts::refresh_token(&deps, asking.0.id, &mut user).await?;
    views::user_with_creds(&deps, &user).map(Json)
}

pub async fn refresh_ssh_key(
    State(deps): State<Deps>,
    asking: AuthUser,
    Json(request): Json<UsernameRequest>,
) -> Result<Json<UserWithCreds>> {
    let mut user = themselves_or_any_for_admins(&deps, &asking, &request.username).await?;
    accounts::refresh_ssh_key(&deps, asking.0.id, &mut user).await?;
    views::user_with_creds(&deps, &user).map(Json)
}

pub async fn delete(
    State(deps): State<Deps>,
    GlobalAdmin(admin): GlobalAdmin,
    Json(request): Json<DeleteUsersRequest>,
) -> Result<Json<()>> {
    check_length("users", request.users.len())?;
    let mut deleted: Vec<UserRow> = Vec::new();
    for name in &request.users {
        // The first admin's token is in the hands of whoever runs the server; nobody deletes themselves.
        if name.eq_ignore_ascii_case(ADMIN_USER) || name.eq_ignore_ascii_case(&admin.name) {
            return Err(Error::bad_request(format!("User '{name}' cannot be deleted")));
        }
        match users::find_by_name(&deps.db, name).await? {
            Some(user) if deleted.iter().all(|other| other.id != user.id) => deleted.push(user),
            Some(_) => {}
            None => return Err(Error::not_exists(format!("User not found: {name}"))),
        }
    }
    accounts::delete_user(&deps, admin.id, &deleted).await?;
    Ok(Json(()))
}

pub async fn list_public_keys(
    State(deps): State<Deps>,
    AuthUser(user): AuthUser,
) -> Result<Json<Vec<PublicKeyInfo>>> {
    let rows = users::list_public_keys(&deps.db, user.id).await?;
    Ok(Json(rows.into_iter().map(public_key_info).collect()))
}

pub async fn add_public_key(
    State(deps): State<Deps>,
    AuthUser(user): AuthUser,
    Json(request): Json<AddPublicKeyRequest>,
) -> Result<Json<PublicKeyInfo>> {
    let facts = accounts::read_public_key(&request.key).ok_or_else(|| Error::bad_request("Invalid public key"))?;
    let named = [request.name.unwrap_or_default(), facts.comment].into_iter().find(|name| !name.trim().is_empty());
    let row = PublicKeyRow {
        id: deps.ids.id(),
        user_id: user.id,
        added_at: deps.clock.now(),
        name: named.unwrap_or_else(|| facts.kind.clone()),
        kind: facts.kind,
        fingerprint: facts.fingerprint,
        public_key: facts.text,
    };
    match users::insert_public_key(&deps.db, &row).await {
        Ok(()) => Ok(Json(public_key_info(row))),
        Err(store::Error::Taken(_)) => Err(Error::resource_exists()),
        Err(error) => Err(error.into()),
    }
}

pub async fn delete_public_keys(
    State(deps): State<Deps>,
    AuthUser(user): AuthUser,
    Json(request): Json<DeletePublicKeysRequest>,
) -> Result<Json<()>> {
    check_length("ids", request.ids.len())?;
    for id in request.ids {
        users::delete_public_key(&deps.db, user.id, id).await?;
    }
    Ok(Json(()))
}

fn public_key_info(row: PublicKeyRow) -> PublicKeyInfo {
    PublicKeyInfo {
        id: row.id,
        added_at: row.added_at,
        name: row.name,
        r#type: row.kind,
        fingerprint: row.fingerprint,
    }
}

async fn find(deps: &Deps, name: &str) -> Result<UserRow> {
    users::find_by_name(&deps.db, name).await?.ok_or_else(Error::resource_not_found)
}

async fn themselves_or_any_for_admins(deps: &Deps, asking: &AuthUser, name: &str) -> Result<UserRow> {
    if asking.is_global_admin() {
        return find(deps, name).await;
    }
    // Whether there is such a user is not told either.
    if asking.0.name.eq_ignore_ascii_case(name) { Ok(asking.0.clone()) } else { Err(Error::access_denied()) }
}
