//! Users, projects, members.

use api::ids::{ProjectId, UserId};
use api::projects::ProjectRole;
use api::users::GlobalRole;
use store::projects::{ProjectRow, VisibleTo};
use store::users::{PublicKeyRow, UserRow};
use store::{Db, Error, Page, members, projects, users};

use crate::harness::{at, id, on_every_engine, random_id};

on_every_engine! {
    a_user_is_found_again
    user_names_are_unique_in_any_letter_case_until_deleted
    a_token_opens_only_for_active_users
    a_token_belongs_to_one_user
    details_tokens_and_keys_can_be_changed
    user_pages_follow_one_another
    names_are_matched_literally
    public_keys_belong_to_their_user
    project_names_are_unique_in_any_letter_case_until_deleted
    projects_are_listed_for_those_who_may_see_them
    project_details_can_be_changed
    memberships_come_change_and_go
}

pub(crate) fn user(name: &str, created: i64) -> UserRow {
    UserRow {
        id: id(),
        name: name.to_owned(),
        role: GlobalRole::User,
        email: None,
        active: true,
        deleted: false,
        created_at: at(created),
        token_hash: format!("hash of {name} {}", random_id()),
        sealed_token: "sealed token".to_owned(),
        ssh_public_key: "ssh-ed25519 AAAA x\n".to_owned(),
        sealed_ssh_private_key: "sealed key".to_owned(),
    }
}

pub(crate) fn project(name: &str, owner: UserId, created: i64) -> ProjectRow {
    ProjectRow {
        id: id(),
        name: name.to_owned(),
        owner_id: owner,
        is_public: false,
        templates_repo: None,
        created_at: at(created),
        deleted: false,
        ssh_public_key: "ssh-ed25519 AAAA main@dstack\n".to_owned(),
        sealed_ssh_private_key: "sealed key".to_owned(),
    }
}

async fn a_user_is_found_again(db: Db) {
    let mut row = user("Bob", 0);
    row.email = Some("b@x.y".to_owned());
    row.role = GlobalRole::Admin;
    users::insert(&db, &row).await.unwrap();
    assert_eq!(users::get(&db, row.id).await.unwrap(), Some(row.clone()));
    assert_eq!(users::find_by_name(&db, "bOB").await.unwrap(), Some(row.clone()));
    assert_eq!(users::find_by_email(&db, "b@x.y").await.unwrap(), Some(row.clone()));
    assert_eq!(users::get_many(&db, &[id(), row.id]).await.unwrap(), vec![row]);
    assert_eq!(users::get_many(&db, &[]).await.unwrap(), vec![]);
    assert_eq!(users::get(&db, id()).await.unwrap(), None);
    assert_eq!(users::find_by_name(&db, "nobody").await.unwrap(), None);
}

async fn user_names_are_unique_in_any_letter_case_until_deleted(db: Db) {
    let first = user("bob", 0);
    users::insert(&db, &first).await.unwrap();
    assert!(matches!(users::insert(&db, &user("Bob", 1)).await, Err(Error::Taken(_))));
    users::delete(&db, first.id).await.unwrap();
    assert!(matches!(users::delete(&db, first.id).await, Err(Error::Stale)));
    let second = user("Bob", 1);
    users::insert(&db, &second).await.unwrap();
    assert_eq!(users::find_by_name(&db, "bob").await.unwrap().unwrap().id, second.id);
    assert!(users::get(&db, first.id).await.unwrap().unwrap().deleted);
}

async fn a_token_opens_only_for_active_users(db: Db) {
    let row = user("bob", 0);
    users::insert(&db, &row).await.unwrap();
    let found = async || users::find_by_token_hash(&db, &row.token_hash).await.unwrap().map(|user| user.id);
    assert_eq!(found().await, Some(row.id));
    users::set_details(&db, row.id, GlobalRole::User, None, false).await.unwrap();
    assert_eq!(found().await, None);
    users::set_details(&db, row.id, GlobalRole::User, None, true).await.unwrap();
    assert_eq!(found().await, Some(row.id));
    users::delete(&db, row.id).await.unwrap();
    assert_eq!(found().await, None);
}

async fn a_token_belongs_to_one_user(db: Db) {
    let first = user("bob", 0);
    users::insert(&db, &first).await.unwrap();
    let mut second = user("carol", 0);
    second.token_hash.clone_from(&first.token_hash);
    assert!(matches!(users::insert(&db, &second).await, Err(Error::Taken(_))));
}

async fn details_tokens_and_keys_can_be_changed(db: Db) {
    let mut row = user("bob", 0);
    users::insert(&db, &row).await.unwrap();
    users::set_details(&db, row.id, GlobalRole::Admin, Some("e".to_owned()), false).await.unwrap();
    users::set_token(&db, row.id, "h2", "t2").await.unwrap();
    users::set_ssh_key(&db, row.id, "p2", "s2").await.unwrap();
    row.role = GlobalRole::Admin;
    row.email = Some("e".to_owned());
    row.active = false;
    row.token_hash = "h2".to_owned();
    row.sealed_token = "t2".to_owned();
    row.ssh_public_key = "p2".to_owned();
    row.sealed_ssh_private_key = "s2".to_owned();
    assert_eq!(users::get(&db, row.id).await.unwrap(), Some(row));
}

async fn user_pages_follow_one_another(db: Db) {
    // Two of them at the same moment, where identifiers run against time.
    for (name, created) in [("a", 0), ("b", 1), ("c", 1), ("d", 2), ("gone", 3)] {
        let row = user(name, created);
        users::insert(&db, &row).await.unwrap();
        if name == "gone" {
            users::delete(&db, row.id).await.unwrap();
        }
    }
    for ascending in [false, true] {
        let whole = Page { ascending, limit: 100, ..Page::default() };
        let all = users::list(&db, &whole).await.unwrap();
        assert_eq!(all.len(), 4);
        let newest_first = all[0].name == "d";
        assert_eq!(newest_first, !ascending);
        let (mut seen, mut after) = (vec![], None);
        loop {
            let page = Page { ascending, after, limit: 1, ..Page::default() };
            let Some(next) = users::list(&db, &page).await.unwrap().pop() else { break };
            after = Some((next.created_at, Some(next.id.0)));
            seen.push(next);
        }
        assert_eq!(seen, all);
    }
    let since = Page { after: Some((at(1), None)), limit: 100, ..Page::default() };
    let names: Vec<String> = users::list(&db, &since).await.unwrap().into_iter().map(|user| user.name).collect();
    assert_eq!(names, ["a"]);
    assert_eq!(users::list(&db, &Page::default()).await.unwrap(), vec![]);
}

async fn names_are_matched_literally(db: Db) {
    for name in ["a_b", "aXb", "A-b"] {
        users::insert(&db, &user(name, 0)).await.unwrap();
    }
    let page = |pattern: &str| Page { name_pattern: Some(pattern.to_owned()), limit: 10, ..Page::default() };
    for (pattern, count) in [("_", 1), ("A", 3), ("%", 0), ("\\", 0), ("a-", 1), ("x", 1), ("", 3)] {
        let page = page(pattern);
        assert_eq!(users::list(&db, &page).await.unwrap().len(), count, "{pattern}");
        assert_eq!(users::count(&db, &page).await.unwrap(), count as u64, "{pattern}");
    }
}

async fn public_keys_belong_to_their_user(db: Db) {
    let (bob, carol): (UserId, UserId) = (id(), id());
    let key = |user_id, fingerprint: &str, added| PublicKeyRow {
        id: id(),
        user_id,
        added_at: at(added),
        name: "laptop".to_owned(),
        kind: "ssh-ed25519".to_owned(),
        fingerprint: fingerprint.to_owned(),
        public_key: "ssh-ed25519 AAAA".to_owned(),
    };
    let (old, new, others) = (key(bob, "f1", 0), key(bob, "f2", 1), key(carol, "f1", 0));
    for row in [&old, &new, &others] {
        users::insert_public_key(&db, row).await.unwrap();
    }
    assert!(matches!(users::insert_public_key(&db, &key(bob, "f1", 5)).await, Err(Error::Taken(_))));
    assert_eq!(users::list_public_keys(&db, bob).await.unwrap(), vec![new.clone(), old]);
    assert_eq!(users::delete_public_key(&db, carol, new.id).await.unwrap(), 0);
    assert_eq!(users::delete_public_key(&db, bob, new.id).await.unwrap(), 1);
    assert_eq!(users::list_public_keys(&db, bob).await.unwrap().len(), 1);
}

async fn project_names_are_unique_in_any_letter_case_until_deleted(db: Db) {
    let first = project("Team1", id(), 0);
    projects::insert(&db, &first).await.unwrap();
    assert_eq!(projects::get(&db, first.id).await.unwrap(), Some(first.clone()));
    assert_eq!(projects::find_by_name(&db, "tEAM1").await.unwrap(), Some(first.clone()));
    assert!(matches!(projects::insert(&db, &project("team1", id(), 1)).await, Err(Error::Taken(_))));
    projects::delete(&db, first.id).await.unwrap();
    assert!(matches!(projects::delete(&db, first.id).await, Err(Error::Stale)));
    assert_eq!(projects::find_by_name(&db, "team1").await.unwrap(), None);
    projects::insert(&db, &project("team1", id(), 1)).await.unwrap();
    assert!(projects::get(&db, first.id).await.unwrap().unwrap().deleted);
    assert_eq!(projects::all(&db).await.unwrap().len(), 1);
}

async fn projects_are_listed_for_those_who_may_see_them(db: Db) {
    let bob: UserId = id();
    let mut public = project("public", id(), 2);
    public.is_public = true;
    let (own, other) = (project("own", bob, 0), project("other", id(), 1));
    for row in [&own, &other, &public] {
        projects::insert(&db, row).await.unwrap();
    }
    members::set(&db, own.id, bob, ProjectRole::Admin).await.unwrap();
    let page = Page { limit: 100, ..Page::default() };
    for (visible, expected) in [
        (VisibleTo::Everyone, vec!["public", "other", "own"]),
        (VisibleTo::Member(bob), vec!["own"]),
        (VisibleTo::MemberOrPublic(bob), vec!["public", "own"]),
        (VisibleTo::MemberOrPublic(id()), vec!["public"]),
    ] {
        let names = |rows: Vec<ProjectRow>| rows.into_iter().map(|row| row.name).collect::<Vec<_>>();
        assert_eq!(names(projects::list(&db, visible, &page).await.unwrap()), expected);
        assert_eq!(names(projects::list_without_fleets(&db, visible).await.unwrap()), expected);
        assert_eq!(projects::count(&db, visible, &page).await.unwrap(), expected.len() as u64);
    }
    let only_one = Page { limit: 1, after: Some((public.created_at, Some(public.id.0))), ..Page::default() };
    let rows = projects::list(&db, VisibleTo::Everyone, &only_one).await.unwrap();
    assert_eq!(rows, vec![other]);
    assert_eq!(projects::count_live(&db, own.id).await.unwrap(), (0, 0));
}

async fn project_details_can_be_changed(db: Db) {
    let mut row = project("team", id(), 0);
    projects::insert(&db, &row).await.unwrap();
    projects::set_details(&db, row.id, true, Some("https://x.y/z".to_owned())).await.unwrap();
    row.is_public = true;
    row.templates_repo = Some("https://x.y/z".to_owned());
    assert_eq!(projects::get(&db, row.id).await.unwrap(), Some(row));
}

async fn memberships_come_change_and_go(db: Db) {
    let (bob, ann) = (user("bob", 0), user("Ann", 1));
    users::insert(&db, &bob).await.unwrap();
    users::insert(&db, &ann).await.unwrap();
    let (team, gone) = (project("team", bob.id, 0), project("gone", bob.id, 1));
    projects::insert(&db, &team).await.unwrap();
    projects::insert(&db, &gone).await.unwrap();
    let role = async |project: ProjectId, user| members::role(&db, project, user).await.unwrap();
    assert_eq!(role(team.id, bob.id).await, None);
    members::set(&db, team.id, bob.id, ProjectRole::User).await.unwrap();
    members::set(&db, team.id, bob.id, ProjectRole::Manager).await.unwrap();
    members::set(&db, team.id, ann.id, ProjectRole::Admin).await.unwrap();
    members::set(&db, gone.id, bob.id, ProjectRole::Admin).await.unwrap();
    projects::delete(&db, gone.id).await.unwrap();
    assert_eq!(role(team.id, bob.id).await, Some(ProjectRole::Manager));
    let listed = members::list(&db, team.id).await.unwrap();
    assert_eq!(listed, vec![(ann.id, ProjectRole::Admin), (bob.id, ProjectRole::Manager)]);
    assert_eq!(members::list_of_user(&db, bob.id).await.unwrap(), vec![(team.id, ProjectRole::Manager)]);
    assert!(members::remove(&db, team.id, ann.id).await.unwrap());
    assert!(!members::remove(&db, team.id, ann.id).await.unwrap());
    members::remove_user(&db, bob.id).await.unwrap();
    assert_eq!(members::list(&db, team.id).await.unwrap(), vec![]);
}
