//! Repositories that are cloned before a job's command, from real servers.

#![cfg(test)]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use api::agent::*;
use support::git::*;
use support::*;

/// A task that works in a clone.
fn cloning(text: &str, git: GitRepo) -> TaskSpec {
    TaskSpec { code: Some(delivery(git)), ..script(text) }
}

/// Runs a task that is to succeed, and answers what it printed.
async fn run_well(agent: &mut Agent, spec: &TaskSpec) -> String {
    let (state, log) = agent.run(spec).await;
    let exit = state.exit.unwrap();
    assert_eq!(exit.reason, ExitReason::Done, "{:?} {}", exit.message, text(&log));
    text(&log)
}

/// Runs a task that cannot be prepared, and answers why.
async fn refusal(agent: &mut Agent, git: GitRepo) -> String {
    let (state, _) = agent.run(&cloning("true", git)).await;
    let exit = state.exit.unwrap();
    assert_eq!(exit.reason, ExitReason::ExecutorError);
    exit.message.unwrap()
}

#[tokio::test]
async fn a_public_repository_is_there_before_the_command() {
    let origin = Origin::new();
    let work = origin.repo("app", &[("main.txt", "hello\n"), ("deep/run.sh", "#!/bin/sh\necho ran\n")]);
    fs::set_permissions(work.join("deep/run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("main.txt", work.join("link")).unwrap();
    commit(&work, "second");
    git(&work, &["tag", "-a", "v1", "-m", "one"]);
    push(&work);
    let web = Web::serve(&origin, Manners::default()).await;
    let mut agent = Agent::new(&[]);
    let mut source = repo(&web.url("app"));
    (source.user_name, source.user_email) = (Some("Ann \"A\"".to_owned()), Some("ann@example.com".to_owned()));
    let script = "cd $DSTACK_REPO_DIR; cat link; ./deep/run.sh; git status --porcelain --branch; git log --oneline | \
                  wc -l; git describe; git config user.name; git remote get-url origin; git fsck --strict --no-progress 2>&1";
    let printed = run_well(&mut agent, &cloning(script, source)).await;
    let expected = format!("hello\nran\n## main...origin/main\n2\nv1\nAnn \"A\"\n{}\n", web.url("app"));
    assert_eq!(printed, expected);
}

#[tokio::test]
async fn a_server_of_the_older_protocol_is_understood() {
    let origin = Origin::new();
    let work = origin.repo("app", &[("a", "a\n")]);
    let lib = origin.repo("lib", &[("lib.txt", "lib\n")]);
    drop(lib);
    git(&work, &["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "../lib.git", "lib"]);
    commit(&work, "with a submodule");
    push(&work);
    let web = Web::serve(&origin, Manners { is_old: true, ..Manners::default() }).await;
    let mut agent = Agent::new(&[]);
    let printed = run_well(
        &mut agent,
        &cloning("cd repo; cat a lib/lib.txt; git status --porcelain", repo(&web.url("app"))),
    )
    .await;
    assert_eq!(printed, "a\nlib\n");
}

#[tokio::test]
async fn a_branch_a_tag_and_any_commit_can_be_named() {
    let origin = Origin::new();
    let work = origin.repo("app", &[("f", "first\n")]);
    let first = git(&work, &["rev-parse", "HEAD"]);
    git(&work, &["tag", "old"]);
    fs::write(work.join("f"), "second\n").unwrap();
    commit(&work, "second");
    git(&work, &["checkout", "-q", "-b", "feature/x"]);
    fs::write(work.join("f"), "feature\n").unwrap();
    let feature = commit(&work, "feature");
    push(&work);
    let web = Web::serve(&origin, Manners::default()).await;
    let mut agent = Agent::new(&[]);
    let script =
        "cd repo; cat f; git rev-parse --abbrev-ref HEAD; git --no-pager branch -r; git status --porcelain";
    let check = async |agent: &mut Agent, branch: Option<&str>, hash: Option<&str>, all: bool, expected: &str| {
        let mut source = repo(&web.url("app"));
        (source.branch, source.hash) = (branch.map(str::to_owned), hash.map(str::to_owned));
        source.all_branches = all;
        assert_eq!(run_well(agent, &cloning(script, source)).await, expected, "{branch:?} {hash:?}");
    };
    let agent = &mut agent;
    check(agent, None, None, false, "second\nmain\n  origin/main\n").await;
    check(agent, Some("feature/x"), None, false, "feature\nfeature/x\n  origin/feature/x\n").await;
    check(agent, Some("main"), Some(&first), false, "first\nmain\n  origin/main\n").await;
    check(agent, Some("main"), Some(&first[..9]), false, "first\nmain\n  origin/main\n").await;
    check(agent, Some("old"), None, false, "first\nHEAD\n").await;
    check(agent, None, Some(&feature), false, "feature\nHEAD\n  origin/main\n").await;
    check(agent, None, None, true, "second\nmain\n  origin/feature/x\n  origin/main\n").await;
}

#[tokio::test]
async fn a_token_opens_a_private_repository_for_the_jobs_own_git_too_and_is_in_no_text() {
    let origin = Origin::new();
    let work = origin.repo("app", &[("f", "private\n")]);
    git(&origin.bare("app"), &["config", "http.receivepack", "true"]);
    let web = Web::serve(&origin, Manners { is_private: true, ..Manners::default() }).await;
    let mut agent = Agent::new(&[]);
    let source = GitRepo { token: Some(TOKEN.to_owned()), ..repo(&web.url("app")) };
    let spec = cloning(
        "cat repo/f; env; cat /proc/*/cmdline | tr '\\0' ' '; grep -r tok-3n repo; \
         cd repo; GIT_TERMINAL_PROMPT=0 git push -q origin HEAD:refs/heads/from-job",
        source.clone(),
    );
    let printed = run_well(&mut agent, &spec).await;
    assert!(printed.starts_with("private\n"));
    let pushed = git(&work, &["ls-remote", &origin.bare("app").to_string_lossy(), "refs/heads/from-job"]);
    assert!(pushed.ends_with("refs/heads/from-job"), "{pushed}");
    assert!(!printed.contains(TOKEN), "{printed}");
    assert!(!fs::read_to_string(agent.home.path().join("agent.log")).unwrap().contains(TOKEN));
    assert!(!format!("{source:?} {spec:?}").contains(TOKEN));
    let wrong = refusal(&mut agent, GitRepo { token: Some("wrong".to_owned()), ..source.clone() }).await;
    assert!(wrong.contains("its credentials were refused: run `dstack init`"), "{wrong}");
    let none = refusal(&mut agent, GitRepo { token: None, ..source }).await;
    assert!(none.contains("does not exist, or is private and the server has no credentials for it"), "{none}");
}

#[tokio::test]
async fn what_was_not_committed_arrives_whole() {
    let origin = Origin::new();
    let lines: String = (0..200).map(|number| format!("line {number}\n")).collect::<Vec<_>>().concat();
    let files = [
        ("text", lines.as_str()),
        ("gone/only", "x\n"),
        ("moved from", "1\n2\n3\n4\n"),
        ("run", "echo\n"),
        ("no-end", "a"),
    ];
    let work = origin.repo("app", &files);
    let random = |seed: u64, length: usize| -> Vec<u8> {
        let next = |state: &mut u64| {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (*state >> 56) as u8
        };
        let mut state = seed;
        (0..length).map(|_| next(&mut state)).collect()
    };
    fs::write(work.join("binary"), random(1, 100_000)).unwrap();
    symlink("text", work.join("link")).unwrap();
    commit(&work, "more");
    push(&work);
    let changed = lines.replace("line 7\n", "LINE 7\n").replace("line 150\n", "") + "last without end";
    fs::write(work.join("text"), changed).unwrap();
    fs::remove_dir_all(work.join("gone")).unwrap();
    fs::create_dir(work.join("déjà vu")).unwrap();
    git(&work, &["mv", "moved from", "déjà vu/moved \"to\""]);
    fs::set_permissions(work.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(work.join("no-end"), "b").unwrap();
    let mut binary = random(1, 100_000);
    binary.splice(50_000..50_010, random(2, 5_000));
    fs::write(work.join("binary"), binary).unwrap();
    fs::write(work.join("new.bin"), random(3, 10_000)).unwrap();
    fs::write(work.join("new"), "new\n").unwrap();
    fs::write(work.join("empty"), "").unwrap();
    fs::remove_file(work.join("link")).unwrap();
    symlink("elsewhere", work.join("link")).unwrap();
    let web = Web::serve(&origin, Manners::default()).await;
    let mut agent = Agent::new(&[]);
    let blob = agent.upload(diff_of(&work)).await;
    let mut spec = cloning("true", repo(&web.url("app")));
    spec.code.as_mut().unwrap().blob_sha256 = Some(blob);
    let script = format!(
        "cd repo; git status --porcelain | sort; diff -r --no-dereference --exclude=.git . {}",
        work.display()
    );
    spec.argv = vec!["/bin/sh".to_owned(), "-c".to_owned(), script];
    let printed = run_well(&mut agent, &spec).await;
    assert!(printed.contains(" M binary\n") && printed.contains(" D gone/only\n"), "{printed}");
    assert!(printed.contains("?? new.bin\n") && !printed.contains("diff"), "{printed}");
}

#[tokio::test]
async fn changes_of_another_commit_are_refused() {
    let origin = Origin::new();
    let work = origin.repo("app", &[("f", "one\n")]);
    fs::write(work.join("f"), "other\n").unwrap();
    commit(&work, "not pushed");
    fs::write(work.join("f"), "changed\n").unwrap();
    let web = Web::serve(&origin, Manners::default()).await;
    let mut agent = Agent::new(&[]);
    let blob = agent.upload(diff_of(&work)).await;
    let mut spec = cloning("true", repo(&web.url("app")));
    spec.code.as_mut().unwrap().blob_sha256 = Some(blob);
    let (state, _) = agent.run(&spec).await;
    let message = state.exit.unwrap().message.unwrap();
    assert!(message.contains("the changes to `f` that were not committed do not fit the commit"), "{message}");
}

#[tokio::test]
async fn submodules_come_along_with_the_same_credentials() {
    let origin = Origin::new();
    let inner = origin.repo("inner", &[("inner.txt", "inner\n")]);
    drop(inner);
    let lib = origin.repo("lib", &[("lib.txt", "old\n")]);
    git(&lib, &["submodule", "--quiet", "add", "../inner.git", "nested/inner"]);
    let pinned = commit(&lib, "nested");
    fs::write(lib.join("lib.txt"), "new\n").unwrap();
    commit(&lib, "later");
    push(&lib);
    let app = origin.repo("app", &[("app.txt", "app\n")]);
    git(&app, &["submodule", "--quiet", "add", "../lib.git", "libs/lib"]);
    git(&app.join("libs/lib"), &["checkout", "-q", &pinned]);
    commit(&app, "with lib");
    push(&app);
    let web = Web::serve(&origin, Manners { is_private: true, ..Manners::default() }).await;
    let mut agent = Agent::new(&[]);
    let source = GitRepo { token: Some(TOKEN.to_owned()), ..repo(&web.url("app")) };
    let script = "cd repo; cat app.txt libs/lib/lib.txt libs/lib/nested/inner/inner.txt; git status --porcelain; \
                  git -C libs/lib rev-parse HEAD; git -C libs/lib rev-list --count HEAD";
    let printed = run_well(&mut agent, &cloning(script, source)).await;
    assert_eq!(printed, format!("app\nold\ninner\n{pinned}\n1\n"));
}

#[tokio::test]
async fn a_folder_with_something_in_it_is_an_error_or_stays() {
    let origin = Origin::new();
    origin.repo("app", &[("f", "cloned\n")]);
    let web = Web::serve(&origin, Manners::default()).await;
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("code");
    fs::create_dir(&folder).unwrap();
    fs::create_dir(folder.join("lost+found")).unwrap();
    let mut agent = Agent::new(&[]);
    let spec = |skip: bool| {
        let mut spec = cloning("cat $DSTACK_REPO_DIR/f", repo(&web.url("app")));
        let code = spec.code.as_mut().unwrap();
        (code.repo_dir, code.skip_if_exists) = (folder.to_str().unwrap().to_owned(), skip);
        spec
    };
    assert_eq!(run_well(&mut agent, &spec(false)).await, "cloned\n");
    fs::write(folder.join("f"), "mine\n").unwrap();
    let (state, _) = agent.run(&spec(false)).await;
    let message = state.exit.unwrap().message.unwrap();
    assert!(message.contains("is not empty: choose another `path`, or set `if_exists: skip`"), "{message}");
    assert_eq!(run_well(&mut agent, &spec(true)).await, "mine\n");
}

#[tokio::test]
async fn the_clone_is_made_by_the_jobs_user() {
    let origin = Origin::new();
    let work = origin.repo("app", &[("f", "x\n")]);
    fs::write(work.join("f"), "y\n").unwrap();
    let web = Web::serve(&origin, Manners::default()).await;
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut agent = Agent::new(&[]);
    let blob = agent.upload(diff_of(&work)).await;
    let mut spec =
        cloning("cat repo/f; find . ! -user 4711 -o ! -group 4712; touch repo/mine", repo(&web.url("app")));
    spec.user = Some("4711:4712".to_owned());
    spec.working_dir = Some(place.path().join("job").to_str().unwrap().to_owned());
    spec.code.as_mut().unwrap().blob_sha256 = Some(blob);
    assert_eq!(run_well(&mut agent, &spec).await, "y\n");
}

#[tokio::test]
async fn what_goes_wrong_is_said_in_a_sentence() {
    let origin = Origin::new();
    origin.repo("app", &[("f", "x\n")]);
    git(origin.dir.path(), &["init", "-q", "--bare", origin.bare("empty").to_str().unwrap()]);
    let web = Web::serve(&origin, Manners::default()).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = web.url("app");
    let agent = &mut Agent::new(&[]);
    let check = async |agent: &mut Agent, git: GitRepo, expected: &str| {
        let message = refusal(agent, git).await;
        assert!(message.contains(expected), "{message}");
    };
    let branch = GitRepo { branch: Some("nope".to_owned()), ..repo(&url) };
    check(agent, branch, "it has no branch `nope`").await;
    let hash = GitRepo { hash: Some("1234567890123456789012345678901234567890".to_owned()), ..repo(&url) };
    check(agent, hash, "it has no commit `1234567890123456789012345678901234567890`; was it pushed?").await;
    check(agent, repo(&web.url("missing")), "it does not exist, or is private").await;
    check(agent, repo(&web.url("empty")), "it has no commits yet").await;
    check(agent, repo(&format!("http://{}/page", web.address)), "does not speak Git's protocol").await;
    check(agent, repo(&format!("http://{closed}/a")), "the host `127.0.0.1` cannot be reached on port").await;
    check(agent, repo("http://no-such-host.invalid/a"), "the host name `no-such-host.invalid` cannot be resolved")
        .await;
    check(agent, repo("file:///etc"), "repositories are reached by https, http or ssh only").await;
}

#[tokio::test]
async fn a_repository_that_has_moved_is_followed() {
    let origin = Origin::new();
    origin.repo("app", &[("f", "x\n")]);
    let web = Web::serve(&origin, Manners::default()).await;
    let mut agent = Agent::new(&[]);
    let source = repo(&format!("http://{}/moved/app.git", web.address));
    assert_eq!(run_well(&mut agent, &cloning("cat repo/f", source)).await, "x\n");
}

#[tokio::test]
async fn a_full_disk_is_named() {
    let origin = Origin::new();
    let work = origin.repo("app", &[]);
    let mut noise = Vec::new();
    let mut state = 7_u64;
    while noise.len() < 8 << 20 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        noise.extend_from_slice(&(state ^ state >> 31).to_be_bytes());
    }
    fs::write(work.join("noise"), noise).unwrap();
    commit(&work, "noise");
    push(&work);
    let web = Web::serve(&origin, Manners::default()).await;
    let place = tempfile::tempdir().unwrap();
    let small = nix::mount::mount(
        Some("none"),
        place.path(),
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        Some("size=4m"),
    );
    if let Err(error) = small {
        eprintln!("SKIPPED: a small file system cannot be made here: {error}");
        return;
    }
    let mut agent = Agent::new(&[]);
    let mut spec = cloning("true", repo(&web.url("app")));
    spec.code.as_mut().unwrap().repo_dir = place.path().to_str().unwrap().to_owned();
    let (state, _) = agent.run(&spec).await;
    nix::mount::umount(place.path()).unwrap();
    let message = state.exit.unwrap().message.unwrap();
    assert!(message.contains("no space is left on the disk of"), "{message}");
}

/// The most private memory that any clone has had.
fn watch_clones(peak: &mut u64) {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if command.ends_with(b"\0clone\0") {
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or("0 kB");
            let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
            *peak = kib.max(*peak);
        }
    }
}

#[tokio::test]
async fn a_large_repository_takes_little_memory() {
    const FILES: usize = 100;
    let origin = Origin::new();
    let work = origin.repo("app", &[]);
    let mut state = 7_u64;
    for file in 0..FILES {
        let mut noise = Vec::with_capacity(1 << 20);
        while noise.len() < 1 << 20 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            noise.extend_from_slice(&(state ^ state >> 31).to_be_bytes());
        }
        fs::write(work.join(format!("file-{file}")), noise).unwrap();
    }
    commit(&work, "noise");
    push(&work);
    let web = Web::serve(&origin, Manners::default()).await;
    let mut agent = Agent::new(&[]);
    let spec =
        cloning("cd repo; ls | wc -l; du -sm --apparent-size --exclude=.git . | cut -f1", repo(&web.url("app")));
    agent.put(&spec).await;
    let mut peak = 0;
    agent
        .wait_for(&spec, "sealed", |state| {
            watch_clones(&mut peak);
            state.phase == TaskPhase::Sealed
        })
        .await;
    let log = agent.read_log(spec.id, 0).await;
    assert!(text(&log.bytes).starts_with(&format!("{FILES}\n10")), "{}", text(&log.bytes));
    assert!(peak > 0, "no clone was seen");
    println!("a clone of {FILES} MiB took at most {peak} KiB");
    assert!(peak < 64 * 1024, "a clone took {peak} KiB");
}

#[tokio::test]
async fn a_private_key_opens_a_repository_over_ssh() {
    for settings in ["AcceptEnv GIT_PROTOCOL", ""] {
        let Some(sshd) = Sshd::start(settings).await else { return };
        let origin = Origin::new();
        origin.repo("lib", &[("lib.txt", "lib\n")]);
        let work = origin.repo("app", &[("f", "over ssh\n")]);
        git(&work, &["submodule", "--quiet", "add", "../lib.git", "lib"]);
        commit(&work, "with a submodule");
        push(&work);
        let url = sshd.url(&origin.bare("app"));
        let mut agent = Agent::new(&[]);
        let source = GitRepo { private_key: Some(sshd.key.clone()), ..repo(&url) };
        let printed =
            run_well(&mut agent, &cloning("cd repo; cat f lib/lib.txt; git status --porcelain", source.clone()))
                .await;
        assert_eq!(printed, "over ssh\nlib\n", "{settings}");
        let push = "cd repo && GIT_SSH_VARIANT=ssh git push -q origin HEAD:refs/heads/from-job";
        run_well(&mut agent, &cloning(push, source.clone())).await;
        let pushed = git(&work, &["ls-remote", &origin.bare("app").to_string_lossy(), "refs/heads/from-job"]);
        assert!(pushed.ends_with("refs/heads/from-job"), "{pushed}");
        let wrong =
            refusal(&mut agent, GitRepo { private_key: Some(sshd.other_key.clone()), ..source.clone() }).await;
        assert!(wrong.contains("its credentials were refused"), "{wrong}");
        let broken =
            refusal(&mut agent, GitRepo { private_key: Some("no key".to_owned()), ..source.clone() }).await;
        assert!(broken.contains("its private key cannot be read"), "{broken}");
        let missing = GitRepo { url: sshd.url(Path::new("/no/such/repo.git")), ..source };
        let missing = refusal(&mut agent, missing).await;
        assert!(missing.contains("it does not exist, or is not for its credentials"), "{missing}");
    }
}

#[tokio::test]
async fn a_host_that_shows_another_key_than_the_known_one_is_refused() {
    let Some(sshd) = Sshd::start("").await else { return };
    let origin = Origin::new();
    origin.repo("app", &[("f", "x\n")]);
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join(".ssh")).unwrap();
    let mut agent = Agent::with_env(&[], &[("HOME", home.path().to_str().unwrap())]);
    let source = GitRepo { private_key: Some(sshd.key.clone()), ..repo(&sshd.url(&origin.bare("app"))) };
    let known = home.path().join(".ssh/known_hosts");
    fs::write(&known, sshd.known_host()).unwrap();
    let home_is_ours = run_well(&mut agent, &script("echo $HOME")).await.trim() == home.path().to_str().unwrap();
    assert_eq!(run_well(&mut agent, &cloning("cat repo/f", source.clone())).await, "x\n");
    let key = sshd.other_public();
    fs::write(&known, format!("[127.0.0.1]:{} {key}", sshd.port)).unwrap();
    if home_is_ours {
        let message = refusal(&mut agent, source).await;
        assert!(message.contains("shows another key than the one in"), "{message}");
    }
}
