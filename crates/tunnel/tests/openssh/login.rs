//! Getting in, and not getting in.

use std::fs;
use std::process::{Child, Command as Process, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tunnel::*;

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_key_logs_in() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let kinds: [(&str, &[&str]); 8] = [
        ("ed25519", ED25519),
        ("ecdsa256", &["-t", "ecdsa", "-b", "256"]),
        ("ecdsa384", &["-t", "ecdsa", "-b", "384"]),
        ("ecdsa521", &["-t", "ecdsa", "-b", "521"]),
        ("rsa", &["-t", "rsa", "-b", "2048"]),
        ("rsa_pem", &["-t", "rsa", "-b", "2048", "-m", "PEM"]),
        ("rsa_pkcs8", &["-t", "rsa", "-b", "2048", "-m", "PKCS8"]),
        ("ecdsa_pem", &["-t", "ecdsa", "-b", "256", "-m", "PEM"]),
    ];
    for (name, arguments) in kinds {
        let pair = pair(sshd.dir.path(), name, arguments);
        sshd.authorize(&pair.public);
        let public = pair.key.public_line().unwrap();
        assert!(pair.public.starts_with(&public), "{name}: {public}");
        let target = Target { keys: vec![pair.key], ..sshd.target() };
        let session = Session::connect(&target, &limits()).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(session.exec(Command::new("id -un")).await.unwrap().text().unwrap(), "root", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_rsa_key_signs_with_the_hash_that_the_host_takes() {
    if !enabled() {
        return;
    }
    for algorithm in ["rsa-sha2-256", "rsa-sha2-512"] {
        let sshd = Sshd::with(&format!("PubkeyAcceptedAlgorithms {algorithm}")).await;
        let pair = pair(sshd.dir.path(), "rsa", &["-t", "rsa", "-b", "2048"]);
        sshd.authorize(&pair.public);
        let target = Target { keys: vec![pair.key], ..sshd.target() };
        Session::connect(&target, &limits()).await.unwrap_or_else(|error| panic!("{algorithm}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_do_not_fit_are_named_with_the_user() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let keys = ["one", "two"].map(|name| pair(sshd.dir.path(), name, ED25519).key);
    let target = Target { keys: keys.to_vec(), ..sshd.target() };
    let error = Session::connect(&target, &limits()).await.unwrap_err();
    let expected = format!(
        "`{}` does not let `root` in: tried the ed25519 key `one`, the ed25519 key `two`",
        target.address()
    );
    assert_eq!(error.to_string(), expected);
    let none = Target { keys: Vec::new(), ..sshd.target() };
    let error = Session::connect(&none, &limits()).await.unwrap_err().to_string();
    assert_eq!(error, format!("there is no key to log in to `{}` as `root` with", target.address()));
    // The right one does after wrong ones.
    let target = Target { keys: [keys.to_vec(), vec![sshd.key.clone()]].concat(), ..sshd.target() };
    Session::connect(&target, &limits()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_has_had_enough_of_keys_is_no_lost_connection() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::with("MaxAuthTries 2").await;
    let keys = ["one", "two", "three", "four"].map(|name| pair(sshd.dir.path(), name, ED25519).key);
    let target = Target { keys: keys.to_vec(), ..sshd.target() };
    let error = Session::connect(&target, &limits()).await.unwrap_err();
    assert!(matches!(&error, Error::NoKeyAccepted { user, .. } if user == "root"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_wants_more_than_a_key_is_named_so() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::with("PasswordAuthentication yes\nAuthenticationMethods publickey,password").await;
    let error = Session::connect(&sshd.target(), &limits()).await.unwrap_err();
    assert!(error.to_string().ends_with("(it accepts the key only together with password)"), "{error}");
}

#[test]
fn an_encrypted_key_is_refused_before_anybody_is_asked() {
    if !enabled() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (name, format) in [("new", "RFC4716"), ("old", "PEM"), ("pkcs8", "PKCS8")] {
        let path = dir.path().join(name);
        run(
            "ssh-keygen",
            &["-q", "-N", "secret", "-t", "rsa", "-b", "2048", "-m", format, "-f", path.to_str().unwrap()],
        );
        let error = Key::parse(name, &fs::read_to_string(&path).unwrap()).unwrap_err();
        let encrypted = Error::Key { name: name.to_owned(), problem: KeyProblem::Encrypted };
        assert_eq!(error, encrypted, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_known_again_and_refused_when_its_key_changes() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let session = sshd.session().await;
    let written = session.host_key().to_string();
    let public = fs::read_to_string(sshd.dir.path().join("host_ed25519.pub")).unwrap();
    assert!(public.starts_with(&written), "{public}");
    let listed = run("ssh-keygen", &["-l", "-f", sshd.dir.path().join("host_ed25519.pub").to_str().unwrap()]);
    assert!(listed.contains(&session.host_key().fingerprint()), "{listed}");

    let known = Target { known_host: Some(written.parse().unwrap()), ..sshd.target() };
    Session::connect(&known, &limits()).await.unwrap();

    let other = Sshd::start().await;
    let expected = Target { known_host: Some(written.parse().unwrap()), ..other.target() };
    let error = Session::connect(&expected, &limits()).await.unwrap_err();
    let seen = other.session().await.host_key().fingerprint();
    let known = session.host_key().fingerprint();
    assert_eq!(error, Error::HostKeyChanged { address: expected.address(), known, seen });
    assert!(!error.may_pass());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_stays_the_same_when_it_gets_more_keys() {
    if !enabled() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let rsa = pair(dir.path(), "host_rsa", &["-t", "rsa", "-b", "2048"]);
    let settings = format!("HostKey {}", rsa.path.display());
    let sshd = Sshd::prepared(dir, &settings).await;
    // Asked without knowing it, the host shows the other key.
    assert!(sshd.session().await.host_key().to_string().starts_with("ssh-ed25519 "));
    let known = Target { known_host: Some(rsa.public.parse().unwrap()), ..sshd.target() };
    let session = Session::connect(&known, &limits()).await.unwrap();
    assert!(session.host_key().to_string().starts_with("ssh-rsa "));
}

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_an_agent_log_in() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let socket = sshd.dir.path().join("agent");
    let gone = Target { keys: vec![Key::agent(&socket)], ..sshd.target() };
    let error = Session::connect(&gone, &limits()).await.unwrap_err();
    assert!(matches!(error, Error::Agent { .. }), "{error:?}");

    let agent = Process::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn();
    let _agent = Agent(agent.unwrap());
    eventually("the agent listens", || socket.exists()).await;
    for (name, arguments) in [("wrong", ED25519), ("agent_rsa", &["-t", "rsa", "-b", "2048"])] {
        let pair = pair(sshd.dir.path(), name, arguments);
        let add = Process::new("ssh-add").arg("-q").arg(&pair.path).env("SSH_AUTH_SOCK", &socket).status();
        assert!(add.unwrap().success());
        if name == "agent_rsa" {
            sshd.authorize(&pair.public);
        }
    }
    let target = Target { keys: vec![Key::agent(&socket)], ..sshd.target() };
    let session = Session::connect(&target, &limits()).await.unwrap();
    assert_eq!(session.exec(Command::new("id -u")).await.unwrap().text().unwrap(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_answers_instead_of_a_host_is_told_apart() {
    let connect = async |host: &str, port: u16, connect: Duration| {
        let target = Target { port, ..Target::new(host, "root", Vec::new()) };
        Session::connect(&target, &Limits { connect, ..limits() }).await.unwrap_err()
    };
    let short = Duration::from_millis(1500);

    let error = connect("127.0.0.1", free_port(), PATIENCE).await;
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");

    let error = connect("no such host", 22, PATIENCE).await;
    assert!(matches!(&error, Error::Resolve { host, .. } if host == "no such host"), "{error:?}");

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = connect("127.0.0.1", silent.local_addr().unwrap().port(), short).await;
    assert!(matches!(error, Error::TimedOut { step: Step::Handshake, .. }), "{error:?}");
    assert!(error.to_string().ends_with("did not finish the SSH handshake within 1.5 s"), "{error}");

    for (greeting, is_right) in [
        ("", (|error| matches!(error, Error::HungUp { .. })) as fn(&Error) -> bool),
        ("Exceeded MaxStartups\r\n", |error| matches!(error, Error::HungUp { .. })),
        ("SSH-2.0-strange\r\n\0\0\0\x0cbad packet!!", |error| {
            matches!(error, Error::Protocol { .. } | Error::HungUp { .. })
        }),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(greeting.as_bytes()).await.unwrap();
        });
        let error = connect("127.0.0.1", port, PATIENCE).await;
        assert!(is_right(&error), "{greeting:?}: {error:?}");
    }
}
