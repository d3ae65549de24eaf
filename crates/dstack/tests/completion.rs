//! Completion as shells ask for it: the program itself says what can be typed next.

#![cfg(test)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

/// A server that answers every request with this, where `{project}` stands for the project in question, and its
/// address.
fn server(body: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || listener.incoming().for_each(|stream| answer(stream.unwrap(), body)));
    url
}

fn answer(mut stream: TcpStream, body: &str) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut request = String::new();
    reader.read_line(&mut request).unwrap();
    let body = body.replace("{project}", request.split('/').nth(3).unwrap_or_default());
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    reader.read_exact(&mut vec![0; length]).unwrap();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n", body.len());
    write!(stream, "{head}connection: close\r\n\r\n{body}").unwrap();
}

/// What is offered for the last of these words.
fn offered(url: &str, words: &[&str]) -> Vec<String> {
    let home = std::env::temp_dir();
    let output = Command::new(env!("CARGO_BIN_EXE_dstack"))
        .args(["--", "dstack"])
        .args(words)
        .env_clear()
        .envs([
            ("COMPLETE", "fish"),
            ("DSTACK_SERVER_URL", url),
            ("DSTACK_TOKEN", "t"),
            ("DSTACK_PROJECT", "main"),
        ])
        .env("HOME", home)
        .output()
        .unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
}

#[test]
fn commands_and_options_are_offered() {
    let url = server("[]");
    assert!(offered(&url, &["va"]).contains(&"validate".to_owned()));
    assert!(offered(&url, &["logs", "--fo"]).contains(&"--follow".to_owned()));
    // The tests run in the folder of their package.
    assert_eq!(offered(&url, &["apply", "-f", "Car"]), ["Cargo.toml"]);
    // These belong to another part of the program.
    let of_server = offered(&url, &["server", "--"]);
    assert!(
        of_server.contains(&"--port".to_owned()) && of_server.contains(&"--token".to_owned()),
        "{of_server:?}"
    );
}

#[test]
fn names_are_asked_of_the_server() {
    let url = server(r#"[{"id": "80b0f384-8ca7-4baa-bf48-2e3cf3f42b7b", "name": "hf_token"}]"#);
    let names = offered(&url, &["secret", "get", "hf"]);
    assert_eq!(names, ["hf_token"]);
    assert_eq!(offered(&url, &["secret", "delete", "other"]), Vec::<String>::new());
}

#[test]
fn names_are_those_of_the_project_that_is_typed() {
    let url = server(r#"[{"id": "80b0f384-8ca7-4baa-bf48-2e3cf3f42b7b", "name": "of_{project}"}]"#);
    // Bash makes three words of `--project=other`.
    let spellings: [&[&str]; 3] = [&["--project=other"], &["--project", "other"], &["--project", "=", "other"]];
    for spelling in spellings {
        let words: [&[&str]; 3] = [&["event"], spelling, &["--target-secret", "of"]];
        assert_eq!(offered(&url, &words.concat()), ["of_other"], "{spelling:?}");
    }
    assert_eq!(offered(&url, &["event", "--target-secret", "of"]), ["of_main"]);
}

#[test]
fn a_server_that_is_not_there_is_no_error() {
    assert_eq!(offered("http://127.0.0.1:1", &["secret", "get", "x"]), Vec::<String>::new());
}
