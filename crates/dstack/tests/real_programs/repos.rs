//! Repositories of Git: from a user's folder over the server into a job, with a private one behind a web server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, thread};

use crate::rig::{FLEET, Rig};

/// The only token that opens the repository.
pub(crate) const TOKEN: &str = "tok-7f3a-of-the-user";

/// The same as web clients send it: `oauth2:` and the token.
const LOGIN: &str = "b2F1dGgyOnRvay03ZjNhLW9mLXRoZS11c2Vy";

/// Runs `git` and expects it to succeed.
#[track_caller]
pub(crate) fn git(dir: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.current_dir(dir).args(arguments).env("GIT_CONFIG_GLOBAL", "/dev/null").stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Gives out the repositories in a folder to who has the token, for as long as the test runs.
fn serve(root: PathBuf) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let root = root.clone();
            thread::spawn(move || {
                // A client that leaves early is its own business.
                let _ = answer(&stream, &root);
            });
        }
    });
    address
}

fn answer(mut stream: &TcpStream, root: &Path) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let header = |name: &str| {
        let found =
            lines.iter().find_map(|line| line.split_once(": ").filter(|(own, _)| own.eq_ignore_ascii_case(name)));
        found.map(|(_, value)| value.to_owned()).unwrap_or_default()
    };
    let words: Vec<&str> = lines.first().map(|line| line.split(' ').collect()).unwrap_or_default();
    let [method, target, _] = words[..] else { return Ok(()) };
    if header("authorization") != format!("Basic {LOGIN}") {
        let refusal = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\
                       Connection: close\r\n\r\n";
        return stream.write_all(refusal.as_bytes());
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let program = git(Path::new("/"), &["--exec-path"]) + "/git-http-backend";
    let mut child = Command::new(program)
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .envs([("REQUEST_METHOD", method), ("PATH_INFO", path), ("QUERY_STRING", query)])
        .env("CONTENT_TYPE", header("content-type"))
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut question = vec![0; header("content-length").parse().unwrap_or(0)];
    reader.read_exact(&mut question)?;
    let mut input = child.stdin.take().unwrap();
    thread::spawn(move || {
        let _ = input.write_all(&question);
    });
    let output = child.wait_with_output()?.stdout;
    stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n")?;
    stream.write_all(&output)
}

/// A private repository and a clone of it, with what is not committed.
pub(crate) fn prepare(rig: &Rig) -> (String, PathBuf) {
    let root = rig.dir.join("origin");
    fs::create_dir(&root).unwrap();
    git(&root, &["init", "-q", "--bare", "-b", "main", "app.git"]);
    let url = format!("http://{}/app.git", serve(root.clone()));
    let work = rig.dir.join("work");
    git(&rig.dir, &["clone", "-q", root.join("app.git").to_str().unwrap(), "work"]);
    git(&work, &["config", "user.name", "Ann"]);
    git(&work, &["config", "user.email", "ann@example.com"]);
    git(&work, &["checkout", "-q", "-b", "main"]);
    fs::write(work.join("main.txt"), "committed\n").unwrap();
    git(&work, &["add", "-A"]);
    git(&work, &["commit", "-q", "-m", "first"]);
    git(&work, &["push", "-q", "-u", "origin", "main"]);
    git(&work, &["remote", "set-url", "origin", &url]);
    fs::write(work.join("main.txt"), "changed\n").unwrap();
    fs::write(work.join("new.txt"), "new\n").unwrap();
    (url, work)
}

const RESOURCES: &str = "resources: {cpu: 1.., memory: 256MB.., disk: 1GB..}\n";

#[test]
fn a_folder_goes_into_a_job_with_what_is_not_committed() {
    let Some(rig) = Rig::start("a_folder_goes_into_a_job_with_what_is_not_committed") else { return };
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let (_, work) = prepare(&rig);
    let task = "type: task\nname: local\nrepos: [\".:code\"]\ncommands:\n  - cd code\n  - cat main.txt new.txt\n  \
                - git --no-pager log --format=%s\n  - git status --porcelain\n  - git config user.email\n";
    fs::write(work.join("t.dstack.yml"), format!("{task}{RESOURCES}")).unwrap();
    git(&work, &["add", "-A"]);
    let refused = rig.run(&["apply", "-f", "work/t.dstack.yml", "-R", "-y"]).expect_status(1);
    let said = refused.text() + &refused.stderr;
    assert!(said.contains("No valid default Git credentials found. Pass valid `--token` or"), "{said}");
    let applied = rig.run(&["apply", "-f", "work/t.dstack.yml", "-R", "-y", "-t", TOKEN]).expect_status(0).text();
    let log = String::from_utf8_lossy(&rig.log("local", 0)).replace('\r', "");
    let expected = "changed\nnew\nfirst\n M main.txt\n?? new.txt\n?? t.dstack.yml\nann@example.com\n";
    assert_eq!(log, expected, "{applied}");
    // The server knows the token now, and nobody else does.
    rig.run(&["apply", "-f", "work/t.dstack.yml", "-R", "-y"]).expect_status(0);
    for file in files_below(&rig.dir.join("s")) {
        let bytes = fs::read(&file).unwrap_or_default();
        let tells = |word: &str| bytes.windows(word.len()).any(|window| window == word.as_bytes());
        let may_tell = file.components().any(|part| part.as_os_str() == "tasks");
        assert!(may_tell || !(tells(TOKEN) || tells(LOGIN)), "{}", file.display());
    }
}

#[test]
fn an_address_goes_into_a_job_once_it_is_known() {
    let Some(rig) = Rig::start("an_address_goes_into_a_job_once_it_is_known") else { return };
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let (url, _) = prepare(&rig);
    let wrong = rig.run(&["init", "-P", &url, "-t", "wrong"]).expect_status(1);
    let said = wrong.text() + &wrong.stderr;
    assert!(said.contains("No valid default Git credentials found"), "{said}");
    assert_eq!(rig.run(&["init", "-P", &url, "-t", TOKEN]).expect_status(0).text(), "OK\n");
    let task = |name: &str, keys: &str| {
        format!(
            "type: task\nname: {name}\nrepos: [{{url: \"{url}\", path: code{keys}}}]\ncommands: [cat code/main.txt]\n{RESOURCES}"
        )
    };
    rig.apply("t.dstack.yml", &task("known", ", branch: main"), &["-R"]);
    assert_eq!(rig.log("known", 0), b"committed\r\n");
    rig.write("t.dstack.yml", &task("lost", ", branch: nope"));
    let ended = rig.run(&["apply", "-f", "t.dstack.yml", "-R", "-y"]).expect_status(1);
    let said = ended.text() + &ended.stderr;
    assert!(said.contains("it has no branch `nope`"), "{said}");
    assert!(!said.contains(TOKEN), "{said}");
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files.extend(files_below(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files
}
