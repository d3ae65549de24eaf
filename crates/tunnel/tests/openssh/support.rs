//! Servers, users, keys, and a proxy that misbehaves.

use std::fs::{self, File};
use std::net::TcpListener as StdListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tunnel::{Key, Limits, Session, Target};

/// How long anything may take on a machine that does much else.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Whether there is a server to test with.
pub(crate) fn enabled() -> bool {
    let enabled = std::env::var_os("DSTACK_TEST_SSHD").is_some();
    if !enabled {
        eprintln!("SKIPPED: set DSTACK_TEST_SSHD to test with OpenSSH's server");
    }
    enabled
}

/// Runs a program of this machine and gives back what it prints.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Limits for a machine that does much else.
pub(crate) fn limits() -> Limits {
    Limits { connect: PATIENCE, dead_after: PATIENCE, open: PATIENCE, ..Limits::default() }
}

/// A key pair that `ssh-keygen` made.
pub(crate) struct Pair {
    pub(crate) key: Key,
    pub(crate) public: String,
    pub(crate) path: PathBuf,
}

/// Makes a key pair, of the kind and format that the arguments of `ssh-keygen` say.
pub(crate) fn pair(dir: &Path, name: &str, arguments: &[&str]) -> Pair {
    let path = dir.join(name);
    let file = path.to_str().unwrap();
    run("ssh-keygen", &[&["-q", "-N", "", "-C", name, "-f", file], arguments].concat());
    let key = Key::parse(name, &fs::read_to_string(&path).unwrap()).unwrap();
    Pair { key, public: fs::read_to_string(path.with_extension("pub")).unwrap(), path }
}

pub(crate) const ED25519: &[&str] = &["-t", "ed25519"];

/// A running `sshd`, with everything that it needs in a folder of its own.
pub(crate) struct Sshd {
    pub(crate) dir: TempDir,
    pub(crate) port: u16,
    child: Child,
    /// A key that may log in as everybody.
    pub(crate) key: Key,
}

impl Sshd {
    /// A server that lets anybody in with its key.
    pub(crate) async fn start() -> Sshd {
        Sshd::with("").await
    }

    /// A server with more settings.
    pub(crate) async fn with(settings: &str) -> Sshd {
        Sshd::prepared(tempfile::tempdir().unwrap(), settings).await
    }

    /// A server in a folder where some of its keys may be already.
    pub(crate) async fn prepared(dir: TempDir, settings: &str) -> Sshd {
        // Users read their authorized keys themselves.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // The server insists on this folder, which the package makes when its service starts.
        fs::create_dir_all("/run/sshd").unwrap();
        if !dir.path().join("host_ed25519").exists() {
            pair(dir.path(), "host_ed25519", ED25519);
        }
        let login = pair(dir.path(), "login", ED25519);
        fs::write(dir.path().join("authorized"), &login.public).unwrap();
        let (child, port) = launch(dir.path(), settings).await;
        Sshd { dir, port, child, key: login.key }
    }

    /// Lets one more key in.
    pub(crate) fn authorize(&self, line: &str) {
        let path = self.dir.path().join("authorized");
        fs::write(&path, fs::read_to_string(&path).unwrap() + line).unwrap();
    }

    pub(crate) fn target(&self) -> Target {
        let mut target = Target::new("127.0.0.1", "root", vec![self.key.clone()]);
        target.port = self.port;
        target
    }

    pub(crate) fn target_of(&self, user: &User) -> Target {
        Target { user: user.name.clone(), ..self.target() }
    }

    pub(crate) async fn session(&self) -> Session {
        Session::connect(&self.target(), &limits()).await.unwrap()
    }

    pub(crate) async fn session_of(&self, user: &User) -> Session {
        Session::connect(&self.target_of(user), &limits()).await.unwrap()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn launch(dir: &Path, settings: &str) -> (Child, u16) {
    for _ in 0..5 {
        let port = free_port();
        let dir_text = dir.display();
        // Of two settings, the first counts. Root gets a home of its own, because shells run what this machine's begins
        // with: that may wait for a lock which a command that was cut has left.
        let config = format!(
            "{settings}\nPort {port}\nListenAddress 127.0.0.1\nHostKey {dir_text}/host_ed25519\nPidFile none\n\
             AuthorizedKeysFile {dir_text}/authorized\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nPermitRootLogin yes\nMaxStartups 100\nLogLevel VERBOSE\n\
             Match User root\nSetEnv HOME={dir_text}\n"
        );
        fs::write(dir.join("config"), config).unwrap();
        let log = File::create(dir.join("log")).unwrap();
        let program = std::env::var_os("DSTACK_TEST_SSHD").expect("the test asked whether it is there");
        let mut server = Command::new(program);
        server.args(["-D", "-e", "-f"]).arg(dir.join("config")).stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = server.stderr(log).spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return (child, port);
            }
            // Somebody else may have taken the port meanwhile.
            if child.try_wait().unwrap().is_some() {
                break;
            }
            assert!(Instant::now() < deadline, "the server does not start");
            sleep(Duration::from_millis(10)).await;
        }
    }
    panic!("the server does not start: {}", fs::read_to_string(dir.join("log")).unwrap());
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A user of this machine, until it is dropped.
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) home: PathBuf,
    _dir: TempDir,
}

/// What the names of our users begin with; the maker's process comes next.
const PREFIX: &str = "dstack-t";

static USERS: AtomicUsize = AtomicUsize::new(0);

impl User {
    pub(crate) fn new(shell: &str) -> User {
        let _lock = users_lock();
        remove_leftovers();
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let home = dir.path().join("home");
        let number = USERS.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let home_text = home.to_str().unwrap();
        // This password fits nothing, but the account is not locked.
        run(
            "useradd",
            &[
                "-p",
                "*",
                "-K",
                "MAIL_DIR=/nonexistent",
                "-m",
                "-k",
                "/nonexistent",
                "-d",
                home_text,
                "-s",
                shell,
                &name,
            ],
        );
        User { name, home, _dir: dir }
    }

    /// Writes a file into the user's home.
    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.home.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        run("chown", &["-R", &self.name, self.home.to_str().unwrap()]);
    }

    /// Says what the user may do with `sudo`. `%` stands for the name.
    pub(crate) fn sudo(&self, rules: &str) {
        let path = sudo_rules(&self.name);
        fs::write(&path, rules.replace('%', &self.name) + "\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o440)).unwrap();
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _lock = users_lock();
        remove_user(&self.name);
    }
}

fn sudo_rules(user: &str) -> PathBuf {
    Path::new("/etc/sudoers.d").join(user)
}

fn remove_user(name: &str) {
    let _ = fs::remove_file(sudo_rules(name));
    let _ = Command::new("userdel").args(["-f", name]).stderr(Stdio::null()).status();
}

/// Only one at a time may change the list of users.
fn users_lock() -> Flock<File> {
    let path = std::env::temp_dir().join("dstack-test-users.lock");
    Flock::lock(File::create(path).unwrap(), FlockArg::LockExclusive).unwrap()
}

/// Removes the users of tests that were killed.
fn remove_leftovers() {
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let names = users.lines().filter_map(|line| line.split(':').next());
    for name in names {
        let maker = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if maker.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove_user(name);
        }
    }
}

/// What a proxy does with what it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Forward,
    /// Take no byte and give none, and close nothing.
    Freeze,
    /// Close everything, and whatever comes.
    Cut,
}

/// A proxy in front of a server.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    /// What to do, and with which port.
    order: watch::Sender<(Mode, u16)>,
    open: Arc<AtomicUsize>,
}

impl Proxy {
    /// Before the server that listens on a port.
    pub(crate) async fn to(port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let order = watch::Sender::new((Mode::Forward, port));
        let open = Arc::new(AtomicUsize::new(0));
        let (orders, counter) = (order.subscribe(), Arc::clone(&open));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (orders, counter) = (orders.clone(), Arc::clone(&counter));
                counter.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    forward(client, orders).await;
                    counter.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Proxy { port: own, order, open }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.order.send_modify(|order| order.0 = mode);
    }

    /// Cuts what is open, and leads what comes to another server.
    pub(crate) fn redirect(&self, port: u16) {
        self.order.send_modify(|order| order.1 = port);
    }

    pub(crate) fn connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

async fn forward(mut client: TcpStream, mut orders: watch::Receiver<(Mode, u16)>) {
    let port = orders.borrow().1;
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    loop {
        let (mode, wanted) = *orders.borrow_and_update();
        if mode == Mode::Cut || wanted != port {
            return;
        }
        tokio::select! {
            // Bytes that are between two hands when this stops are lost, which only matters to who goes on later.
            _ = copy_bidirectional(&mut client, &mut server), if mode == Mode::Forward => return,
            changed = orders.changed() => if changed.is_err() { return },
        }
    }
}

/// A lot of bytes that do not compress or repeat soon.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
