//! Repositories and uploads.

use reqwest::Method;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use sha2::{Digest as _, Sha256};

use crate::harness::{ADMIN, Answer, Home, TestServer, answer};

fn hash_of(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Uploads a file under its own hash.
async fn upload_file(server: &TestServer, path: &str, bytes: Vec<u8>) -> Answer {
    upload(server, path, &hash_of(&bytes), bytes).await
}

async fn upload(server: &TestServer, path: &str, name: &str, bytes: Vec<u8>) -> Answer {
    let form = Form::new().part("file", Part::bytes(bytes).file_name(name.to_owned()));
    answer(server.request(Method::POST, path).bearer_auth(ADMIN).multipart(form)).await
}

#[tokio::test]
async fn repositories_are_told_read_and_forgotten() {
    let server = TestServer::new().await;
    let at = |verb: &str| format!("/api/project/main/repos/{verb}");
    let creds = json!({"clone_url": "https://x.y/z.git", "private_key": null, "oauth_token": "t0ken"});
    let info = json!({"repo_type": "remote", "repo_name": "z"});
    let init = json!({"repo_id": "z-1", "repo_info": info, "repo_creds": creds});
    assert_eq!(server.post(&at("init"), init).await.ok(), Value::Null);
    assert_eq!(server.post(&at("list"), Value::Null).await.ok(), json!([{"repo_id": "z-1", "repo_info": info}]));
    let whole = server.post(&at("get"), json!({"repo_id": "z-1", "include_creds": true})).await.ok();
    assert_eq!(whole, json!({"repo_id": "z-1", "repo_info": info, "repo_creds": creds}));
    let bare = server.post(&at("get"), json!({"repo_id": "z-1", "include_creds": false})).await.ok();
    assert_eq!(bare["repo_creds"], Value::Null);
    // Without credentials the old ones are forgotten.
    server.post(&at("init"), json!({"repo_id": "z-1", "repo_info": info})).await.ok();
    let whole = server.post(&at("get"), json!({"repo_id": "z-1", "include_creds": true})).await.ok();
    assert_eq!(whole["repo_creds"], Value::Null);
    server.post(&at("delete"), json!({"repos_ids": ["z-1", "unknown"]})).await.ok();
    assert_eq!(server.post(&at("list"), Value::Null).await.ok(), json!([]));
}

#[tokio::test]
async fn each_user_reads_a_repository_with_their_own_creds() {
    let server = TestServer::new().await;
    let bob = server.user("bob").await;
    let add = json!({"members": [{"username": "bob", "project_role": "user"}]});
    server.post("/api/projects/main/add_members", add).await.ok();
    let init = json!({"repo_id": "z", "repo_info": {"repo_type": "remote", "repo_name": "z"},
                      "repo_creds": {"clone_url": "u", "oauth_token": "of-admin"}});
    server.post("/api/project/main/repos/init", init).await.ok();
    let get = json!({"repo_id": "z", "include_creds": true});
    let seen = server.post_as(&bob, "/api/project/main/repos/get", get).await.ok();
    assert_eq!(seen["repo_creds"], Value::Null);
}

#[tokio::test]
async fn archives_are_kept_once() {
    let server = TestServer::new().await;
    let hash = hash_of(&[0, 1, 255]);
    let first = upload(&server, "/api/files/upload_archive", &hash, vec![0, 1, 255]).await.ok();
    assert_eq!(first["hash"], hash);
    let again = upload(&server, "/api/files/upload_archive", &hash.to_uppercase(), vec![0, 1, 255]).await.ok();
    assert_eq!(again, first);
    let found = server.post("/api/files/get_archive_by_hash", json!({ "hash": hash })).await.ok();
    assert_eq!(found, first);
    let bob = server.user("bob").await;
    let other = server.post_as(&bob, "/api/files/get_archive_by_hash", json!({ "hash": hash })).await;
    other.expect_bad_request("Resource not found", "resource_not_exists");
    let id = first["id"].as_str().unwrap().parse().unwrap();
    let bytes = store::blobs::archive_bytes(&server.server.deps.db, id).await.unwrap();
    assert_eq!(bytes, Some(vec![0, 1, 255]));
}

#[tokio::test]
async fn a_file_that_was_broken_on_its_way_is_refused_and_can_be_uploaded_again() {
    let server = TestServer::new().await;
    let repo = json!({"repo_id": "none", "repo_info": {"repo_type": "virtual"}});
    server.post("/api/project/main/repos/init", repo).await.ok();
    let hash = hash_of(b"whole");
    for path in ["/api/files/upload_archive", "/api/project/main/repos/upload_code?repo_id=none"] {
        let broken = upload(&server, path, &hash, b"who".to_vec()).await;
        assert_eq!(broken.status, 400);
        let message = broken.body["detail"][0]["msg"].as_str().unwrap().to_owned();
        assert!(message.contains("was changed on its way") && message.contains(&hash_of(b"who")), "{message}");
        upload(&server, path, &hash, b"whole".to_vec()).await.ok();
        for name in ["", "whole.tar", &hash[1..], "../../../etc/passwd"] {
            let unnamed = upload(&server, path, name, b"whole".to_vec()).await;
            assert!(matches!(unnamed.status, 400 | 422), "{name}: {}", unnamed.body);
        }
    }
    let kept = server.post("/api/files/get_archive_by_hash", json!({ "hash": hash })).await.ok();
    let id = kept["id"].as_str().unwrap().parse().unwrap();
    let bytes = store::blobs::archive_bytes(&server.server.deps.db, id).await.unwrap();
    assert_eq!(bytes.as_deref(), Some(&b"whole"[..]));
}

#[tokio::test]
async fn uploads_have_a_limit() {
    let server = TestServer::new().await;
    let large = upload(&server, "/api/files/upload_archive", "h", vec![0; 2 * 1024 * 1024]).await;
    assert_eq!(large.status, 400);
    let message = large.body["detail"][0]["msg"].as_str().unwrap();
    assert!(
        message.starts_with("Archive size is ") && message.contains("exceeds the limit of 2097152B."),
        "{message}"
    );
    upload_file(&server, "/api/files/upload_archive", vec![0; 2 * 1024 * 1024 - 1000]).await.ok();
    let repo = json!({"repo_id": "none", "repo_info": {"repo_type": "virtual"}});
    server.post("/api/project/main/repos/init", repo).await.ok();
    let path = "/api/project/main/repos/upload_code?repo_id=none";
    let large = upload(&server, path, "h", vec![0; 3 * 1024 * 1024]).await;
    assert!(large.body["detail"][0]["msg"].as_str().unwrap().starts_with("Repo diff size is "), "{}", large.body);
    assert_eq!(upload_file(&server, path, vec![7; 100]).await.ok(), Value::Null);

    let unlimited = Home::new().start(&["--code-upload-limit", "0"]).await;
    upload_file(&unlimited, "/api/files/upload_archive", vec![0; 5 * 1024 * 1024]).await.ok();
}

#[tokio::test]
async fn an_upload_that_does_not_say_its_size_is_counted() {
    let server = TestServer::new().await;
    let head = "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"h\"\r\n\r\n";
    let chunks = (0..64).map(|_| Ok::<_, std::io::Error>(vec![0_u8; 64 * 1024]));
    let chunks =
        std::iter::once(Ok(head.as_bytes().to_vec())).chain(chunks).chain([Ok(b"\r\n--B--\r\n".to_vec())]);
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks.collect::<Vec<_>>()));
    let request = server.request(Method::POST, "/api/files/upload_archive").bearer_auth(ADMIN);
    let got = answer(request.header("Content-Type", "multipart/form-data; boundary=B").body(body)).await;
    assert_eq!(got.status, 400, "{}", got.body);
    assert!(got.body["detail"][0]["msg"].as_str().unwrap().starts_with("Archive size is "), "{}", got.body);
}
