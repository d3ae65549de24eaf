//! Entering a job: how long until its shell answers, and how fast files and connections come through its SSH server,
//! beside OpenSSH's own server on the same machine.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::samples::{Samples, show};
use super::{Bench, logs};
use crate::dstack::{Place, free_address};
use crate::shell;

const RUN: &str = "entered";

/// How much goes through one stream.
const MEGABYTES: usize = 400;

const PATIENCE: Duration = Duration::from_secs(30);

/// Where OpenSSH's server is on most systems, which is not among the programs of users.
const SSHD: &str = "/usr/sbin/sshd";

/// A child that ends with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is measured on each way, and how.
type Measure<'a> = (&'a str, Box<dyn Fn(&Way) -> Result<Duration> + 'a>);

/// One way to an SSH server: the options that lead there.
struct Way {
    what: &'static str,
    options: Vec<String>,
    target: String,
}

pub(super) fn measure(bench: &Bench<'_>) -> Result<()> {
    if shell::find("ssh").is_none() || !Path::new(SSHD).exists() {
        println!("(left out: OpenSSH's client and server are not installed)");
        return Ok(());
    }
    let (place, server) = bench.server_with_fleet("entering")?;
    logs::write_task(&place, RUN, None, "sleep 3600")?;
    let file = format!("{RUN}.dstack.yml");
    shell::capture(place.cli(&["apply", "-f", &file, "-R", "-y", "-d"]).current_dir(&place.home))?;
    shell::wait_for("the run", PATIENCE, || (field(&place, "status").ok()? == "\"running\"").then_some(()))?;
    until_prompt(&place, bench.samples)?;
    let (attached, _) = attach(&place)?;
    let ways = [through_server(&place), straight(&place)?];
    let (sshd, baseline) = openssh(&place)?;
    throughput(&place, &ways, &baseline, bench.samples.min(5))?;
    drop((attached, sshd));
    shell::capture(&mut place.cli(&["stop", RUN, "-x", "-y"]))?;
    server.stop()
}

/// A user attaches and opens a shell, as in two terminals.
fn until_prompt(place: &Place<'_>, samples: usize) -> Result<()> {
    let (mut attaching, mut entering, mut both) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..samples {
        let (attached, attach_took) = attach(place)?;
        let started = Instant::now();
        let mut command = ssh(place, "ssh", &["-tt", RUN]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut shell = Running(child.context("start `ssh`")?);
        let mut out = shell.0.stdout.take().context("the output of `ssh` is piped")?;
        read_until(&mut out, |text| text.trim_end().ends_with(['#', '$']))?;
        let enter_took = started.elapsed();
        attaching.push(attach_took);
        entering.push(enter_took);
        both.push(attach_took + enter_took);
        drop((shell, attached));
    }
    show("`dstack attach` to its last line", Samples::of_durations(attaching));
    show("`ssh RUN` to the shell's prompt, through the server", Samples::of_durations(entering));
    show("both, one after the other", Samples::of_durations(both));
    Ok(())
}

fn attach(place: &Place<'_>) -> Result<(Running, Duration)> {
    let started = Instant::now();
    let mut command = place.cli(&["attach", RUN]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut attached = Running(child.context("start `dstack attach`")?);
    let out = attached.0.stdout.as_mut().context("the output of `dstack attach` is piped")?;
    read_until(out, |text| text.contains("Ctrl+C"))?;
    Ok((attached, started.elapsed()))
}

/// Reads until what came is enough.
fn read_until(out: &mut impl std::io::Read, is_enough: impl Fn(&str) -> bool) -> Result<()> {
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let read = out.read(&mut chunk).context("read what a program prints")?;
        let so_far = String::from_utf8_lossy(&text).into_owned();
        ensure!(0 < read, "a program ended after `{so_far}`");
        text.extend_from_slice(&chunk[..read]);
        if is_enough(&String::from_utf8_lossy(&text)) {
            return Ok(());
        }
    }
}

/// One of OpenSSH's programs, with what attaching has configured.
fn ssh(place: &Place<'_>, program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.arg("-F").arg(place.home.join(".dstack/ssh/config")).args(["-o", "BatchMode=yes"]).args(args);
    command.env("HOME", &place.home).env_remove("SSH_AUTH_SOCK").stdin(Stdio::null());
    command
}

fn through_server(_: &Place<'_>) -> Way {
    Way { what: "the job's SSH server, through our server", options: Vec::new(), target: RUN.to_owned() }
}

/// To the job's own port, as whoever is on its machine.
fn straight(place: &Place<'_>) -> Result<Way> {
    let port = field(place, "jobs/0/job_submissions/0/job_runtime_data/ports/10022")?;
    let options = ["ProxyCommand=none".to_owned(), "HostName=127.0.0.1".to_owned(), format!("Port={port}")];
    Ok(Way { what: "the job's SSH server", options: options.into(), target: RUN.to_owned() })
}

/// A member of the run, as JSON.
fn field(place: &Place<'_>, path: &str) -> Result<String> {
    let run: serde_json::Value =
        serde_json::from_str(&shell::capture(&mut place.cli(&["run", "get", RUN, "--json"]))?)?;
    let found = run.pointer(&format!("/{path}")).with_context(|| format!("the run has no `{path}`"))?;
    Ok(found.to_string())
}

/// OpenSSH's server, for the same user and the same key.
fn openssh(place: &Place<'_>) -> Result<(Running, Way)> {
    let dir = place.home.join("sshd");
    fs::create_dir(&dir)?;
    // Where the server separates its rights, which its package makes at the first start.
    fs::create_dir_all("/run/sshd").context("make `/run/sshd`")?;
    let key = dir.join("host_key");
    shell::capture(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key))?;
    let identity = identity(place)?;
    let public = shell::capture(Command::new("ssh-keygen").arg("-y").arg("-f").arg(&identity))?;
    let authorized = dir.join("authorized_keys");
    fs::write(&authorized, public)?;
    let address = free_address()?;
    let config = format!(
        "ListenAddress 127.0.0.1:{}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\n\
         StrictModes no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\nSetEnv HOME={}\n",
        address.port(),
        key.display(),
        authorized.display(),
        dir.display()
    );
    fs::write(dir.join("config"), config)?;
    let mut command = Command::new(SSHD);
    command.args(["-D", "-f"]).arg(dir.join("config")).stdin(Stdio::null()).stderr(Stdio::null());
    let sshd = Running(command.spawn().context("start OpenSSH's server")?);
    let listens = || std::net::TcpStream::connect(address).ok().map(drop);
    shell::wait_for("OpenSSH's server", PATIENCE, listens)?;
    let options = [
        format!("Port={}", address.port()),
        format!("IdentityFile={}", identity.display()),
        "StrictHostKeyChecking=no".to_owned(),
        "UserKnownHostsFile=/dev/null".to_owned(),
        "LogLevel=ERROR".to_owned(),
    ];
    Ok((sshd, Way { what: "OpenSSH's server", options: options.into(), target: "127.0.0.1".to_owned() }))
}

/// The key that `dstack attach` uses.
fn identity(place: &Place<'_>) -> Result<PathBuf> {
    let config = fs::read_to_string(place.home.join(".dstack/ssh/config")).context("read the entry")?;
    let line = config.lines().find_map(|line| line.trim().strip_prefix("IdentityFile "));
    Ok(PathBuf::from(line.context("the entry names no key")?.trim_matches('"')))
}

fn throughput(place: &Place<'_>, ways: &[Way], baseline: &Way, samples: usize) -> Result<()> {
    let folder = tempfile::tempdir_in("/dev/shm").context("make a folder in memory")?;
    let (there, back) = (folder.path().join("there"), folder.path().join("back"));
    let mut file = fs::File::create(&there)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..MEGABYTES {
        // Nothing that could be compressed.
        let chunk: Vec<u8> = (0..1_000_000 / 8)
            .flat_map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()
            })
            .collect();
        file.write_all(&chunk)?;
    }
    drop(file);
    let source = source()?;
    let measures: [Measure<'_>; 3] = [
        ("a file from the job by `sftp`", Box::new(|way| copy(place, way, &remote(way, &there), &path(&back)))),
        ("a file to the job by `sftp`", Box::new(|way| copy(place, way, &path(&there), &remote(way, &back)))),
        ("a forwarded connection", Box::new(|way| forwarded(place, way, source))),
    ];
    for (what, measure) in measures {
        let mut figures: Vec<Samples> = (0..=ways.len()).map(|_| Samples::new("MB/s")).collect();
        for _ in 0..samples {
            // In turns, so that a busy moment meets them all.
            for (way, samples) in std::iter::once(baseline).chain(ways).zip(&mut figures) {
                samples.add(MEGABYTES as f64 / measure(way)?.as_secs_f64());
            }
        }
        let reference = figures[0].quantile(0.5);
        for (way, samples) in std::iter::once(baseline).chain(ways).zip(figures) {
            let share = Samples::of_one(100.0 * samples.quantile(0.5) / reference, "%");
            show(format!("{what}, {}", way.what), samples);
            if way.what != baseline.what {
                show("… share of OpenSSH's server", share);
            }
        }
    }
    Ok(())
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

fn remote(way: &Way, path: &Path) -> String {
    format!("{}:{}", way.target, path.display())
}

fn options(way: &Way) -> impl Iterator<Item = &str> {
    way.options.iter().flat_map(|option| ["-o", option.as_str()])
}

fn copy(place: &Place<'_>, way: &Way, from: &str, to: &str) -> Result<Duration> {
    let mut args: Vec<&str> = options(way).collect();
    args.extend(["-q", "-s", from, to]);
    let started = Instant::now();
    shell::capture(&mut ssh(place, "scp", &args))?;
    Ok(started.elapsed())
}

/// Reads from a connection that the other side opens, as behind a forwarded port.
fn forwarded(place: &Place<'_>, way: &Way, source: SocketAddr) -> Result<Duration> {
    let target = source.to_string();
    let mut args: Vec<&str> = options(way).collect();
    args.extend(["-W", &target, &way.target]);
    let child = ssh(place, "ssh", &args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = Running(child.context("start `ssh`")?);
    let out = child.0.stdout.as_mut().context("the output of `ssh` is piped")?;
    let mut chunk = vec![0; 1 << 16];
    // Counted from the first byte on, as a connection that is there already.
    let mut read = out.read(&mut chunk)?;
    let started = Instant::now();
    while read < MEGABYTES * 1_000_000 {
        let more = out.read(&mut chunk)?;
        ensure!(0 < more, "the connection ended after {read} bytes");
        read += more;
    }
    Ok(started.elapsed())
}

/// Something to connect to, that sends and sends.
fn source() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let chunk = vec![0x55; 1 << 16];
                while stream.write_all(&chunk).is_ok() {}
            });
        }
    });
    Ok(address)
}
