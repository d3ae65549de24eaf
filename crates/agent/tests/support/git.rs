//! Real peers of clones: `git http-backend` behind a small web server, and OpenSSH's server.

use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use api::agent::{CodeDelivery, GitRepo};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::DEADLINE;

/// The only token that opens private repositories.
pub const TOKEN: &str = "tok-3nEvEr-seen";

/// Runs `git` in a folder and gives back what it prints.
pub fn git(dir: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(dir)
        .args(["-c", "protocol.file.allow=always", "-c", "commit.gpgSign=false"])
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .envs([("GIT_AUTHOR_NAME", "a"), ("GIT_AUTHOR_EMAIL", "a@b"), ("GIT_COMMITTER_NAME", "a")])
        .env("GIT_COMMITTER_EMAIL", "a@b")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// The exact bytes that `git` prints.
pub fn git_bytes(dir: &Path, arguments: &[&str], accepted: i32) -> Vec<u8> {
    let output = Command::new("git").current_dir(dir).args(arguments).output().unwrap();
    assert!(output.status.code().is_some_and(|code| code <= accepted), "git {arguments:?}");
    output.stdout
}

/// What is not committed, as the command line's client sends it.
pub fn diff_of(dir: &Path) -> Vec<u8> {
    let mut diff = git_bytes(dir, &["diff", "--binary", "HEAD"], 0);
    for name in git(dir, &["ls-files", "--others", "--exclude-standard", "-z"]).split('\0') {
        if !name.is_empty() {
            diff.extend(git_bytes(dir, &["diff", "--binary", "--no-index", "/dev/null", name], 1));
        }
    }
    diff
}

/// Repositories, each with a folder to work in.
pub struct Origin {
    pub dir: TempDir,
}

impl Origin {
    pub fn new() -> Origin {
        let dir = tempfile::Builder::new().prefix("origin").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Origin { dir }
    }

    /// A repository with one commit of these files, on the branch `main`.
    pub fn repo(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let work = self.dir.path().join("work").join(name);
        fs::create_dir_all(&work).unwrap();
        git(&work, &["init", "-q", "-b", "main"]);
        for (path, text) in files {
            let path = work.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        commit(&work, "first");
        let bare = self.bare(name);
        git(self.dir.path(), &["init", "-q", "--bare", "-b", "main", bare.to_str().unwrap()]);
        git(&work, &["remote", "add", "origin", bare.to_str().unwrap()]);
        push(&work);
        work
    }

    pub fn bare(&self, name: &str) -> PathBuf {
        self.dir.path().join("repos").join(format!("{name}.git"))
    }
}

/// Commits everything and answers the commit.
pub fn commit(work: &Path, message: &str) -> String {
    git(work, &["add", "-A"]);
    git(work, &["commit", "-q", "--allow-empty", "-m", message]);
    git(work, &["rev-parse", "HEAD"])
}

pub fn push(work: &Path) {
    git(work, &["push", "-q", "--all", "origin"]);
    git(work, &["push", "-q", "--tags", "origin"]);
}

/// How a web server behaves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manners {
    /// Whoever asks needs the token.
    pub is_private: bool,
    /// It knows the older protocol only.
    pub is_old: bool,
}

/// A web server that gives out the repositories of an origin.
pub struct Web {
    pub address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Web {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Web {
    pub async fn serve(origin: &Origin, manners: Manners) -> Web {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let root: Arc<PathBuf> = Arc::new(origin.dir.path().join("repos"));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let root = root.clone();
                let answer = service_fn(move |request| respond(root.clone(), manners, request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer),
                );
            }
        });
        Web { address, task }
    }

    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}.git", self.address)
    }
}

async fn respond(
    root: Arc<PathBuf>,
    manners: Manners,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let login = request.headers().get("authorization").map(|login| login.to_str().unwrap().to_owned());
    let login = login.and_then(|login| STANDARD.decode(login.strip_prefix("Basic ")?).ok());
    let has_token = login.is_some_and(|login| login.ends_with(format!(":{TOKEN}").as_bytes()));
    if manners.is_private && !has_token {
        let refused = Response::builder().status(401).header("www-authenticate", "Basic realm=\"x\"");
        return Ok(refused.body(Full::default()).unwrap());
    }
    if request.uri().path().starts_with("/moved/") {
        let place = request.uri().to_string().replacen("/moved/", "/", 1);
        return Ok(Response::builder().status(301).header("location", place).body(Full::default()).unwrap());
    }
    if request.uri().path().starts_with("/page") {
        let page = Response::builder().header("content-type", "text/html");
        return Ok(page.body(Full::from("<html>hello</html>")).unwrap());
    }
    let program = git(Path::new("/"), &["--exec-path"]) + "/git-http-backend";
    let header =
        |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut command = tokio::process::Command::new(program);
    command
        .env("GIT_PROJECT_ROOT", root.as_path())
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("REQUEST_METHOD", request.method().as_str())
        .env("PATH_INFO", request.uri().path())
        .env("QUERY_STRING", request.uri().query().unwrap_or_default())
        .env("CONTENT_TYPE", header("content-type"));
    if !manners.is_old {
        command.env("GIT_PROTOCOL", header("git-protocol"));
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let question = request.into_body().collect().await.unwrap().to_bytes();
    let mut input = child.stdin.take().unwrap();
    let writing = tokio::spawn(async move {
        let _ = input.write_all(&question).await;
    });
    let output = child.wait_with_output().await.unwrap();
    writing.await.unwrap();
    Ok(from_cgi(output.stdout))
}

fn from_cgi(output: Vec<u8>) -> Response<Full<Bytes>> {
    let end = output.windows(4).position(|part| part == b"\r\n\r\n").unwrap();
    let mut response = Response::builder();
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        let (name, value) = line.split_once(": ").unwrap();
        response = if name.eq_ignore_ascii_case("status") {
            response.status(value.split(' ').next().unwrap().parse::<u16>().unwrap())
        } else {
            response.header(name, value)
        };
    }
    response.body(Full::from(Bytes::from(output).slice(end + 4..))).unwrap()
}

/// A repository to clone, with nothing said about it.
pub fn repo(url: &str) -> GitRepo {
    GitRepo {
        url: url.to_owned(),
        token: None,
        private_key: None,
        branch: None,
        hash: None,
        all_branches: false,
        user_name: None,
        user_email: None,
    }
}

pub fn delivery(git: GitRepo) -> CodeDelivery {
    CodeDelivery { blob_sha256: None, repo_dir: "repo".to_owned(), skip_if_exists: false, git: Some(git) }
}

/// OpenSSH's server, which lets root in with one key.
pub struct Sshd {
    pub port: u16,
    pub key: String,
    pub other_key: String,
    dir: TempDir,
    child: Child,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Sshd {
    /// None, and said so: there is no server to test with.
    pub async fn start(settings: &str) -> Option<Sshd> {
        let Some(program) = std::env::var_os("DSTACK_TEST_SSHD") else {
            eprintln!("SKIPPED: set DSTACK_TEST_SSHD to test with OpenSSH's server");
            return None;
        };
        fs::create_dir_all("/run/sshd").unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let host = keygen(dir.path(), "host");
        let (key, other) = (keygen(dir.path(), "key"), keygen(dir.path(), "other"));
        fs::copy(key.with_extension("pub"), dir.path().join("authorized")).unwrap();
        for _ in 0..5 {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let text = dir.path().display();
            // In a home of its own, because shells run what the user's begins with.
            let config = format!(
                "{settings}\nPort {port}\nListenAddress 127.0.0.1\nHostKey {}\nPidFile none\nStrictModes no\n\
                 AuthorizedKeysFile {text}/authorized\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n\
                 SetEnv PATH={} HOME={text} GIT_CONFIG_GLOBAL=/dev/null\nLogLevel VERBOSE\n",
                host.display(),
                std::env::var("PATH").unwrap(),
            );
            fs::write(dir.path().join("config"), config).unwrap();
            let log = fs::File::create(dir.path().join("log")).unwrap();
            let mut server = Command::new(&program);
            server
                .args(["-D", "-e", "-f"])
                .arg(dir.path().join("config"))
                .stdin(Stdio::null())
                .stdout(Stdio::null());
            let mut child = server.stderr(log).spawn().unwrap();
            let end = tokio::time::Instant::now() + DEADLINE;
            while child.try_wait().unwrap().is_none() {
                if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                    let read = |path: &Path| fs::read_to_string(path).unwrap();
                    return Some(Sshd { port, key: read(&key), other_key: read(&other), dir, child });
                }
                assert!(tokio::time::Instant::now() < end, "the SSH server does not start");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
        panic!("the SSH server does not start: {}", fs::read_to_string(dir.path().join("log")).unwrap());
    }

    pub fn url(&self, bare: &Path) -> String {
        format!("ssh://root@127.0.0.1:{}{}", self.port, bare.display())
    }

    /// The public key of the host, as a file of known hosts has it.
    pub fn known_host(&self) -> String {
        let key = fs::read_to_string(self.dir.path().join("host.pub")).unwrap();
        format!("[127.0.0.1]:{} {key}", self.port)
    }

    pub fn other_public(&self) -> String {
        fs::read_to_string(self.dir.path().join("other.pub")).unwrap()
    }
}

fn keygen(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    let made =
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path).status().unwrap();
    assert!(made.success());
    path
}
