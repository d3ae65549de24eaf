//! Files put on a host with nothing but a shell, `cat`, `chmod` and `mv` there.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::{Command, Error, Privilege, Result, Session, Stream, checksum, exec, words};

/// How long a file may take, and how much more for its bytes.
const TIME: Duration = Duration::from_mins(1);
const LEAST_BYTES_PER_SECOND: u64 = 128 * 1024;

/// How much a host may say about a file.
const LONGEST_ANSWER: u64 = 64 * 1024;

/// A file as it should be on a host.
#[derive(Debug, Clone)]
pub struct File {
    pub bytes: Bytes,
    /// The hash of the bytes, in lower-case hex.
    pub sha256: String,
    /// An absolute path. Folders on the way are made.
    pub path: String,
    pub mode: u32,
    /// With whose rights it is written; this decides who owns it.
    pub privilege: Privilege,
}

impl File {
    /// A file that its owner may write and everybody may read.
    pub fn new(path: impl Into<String>, bytes: impl Into<Bytes>) -> File {
        let bytes = bytes.into();
        let sha256 = checksum::sha256(&bytes);
        File { bytes, sha256, path: path.into(), mode: 0o644, privilege: Privilege::User }
    }
}

/// What was needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    Written,
    /// It was there already.
    Same,
}

/// Makes a file on the host be as it should.
///
/// The path has the old content or the new one and never a part of it: the bytes go into a file beside it, are checked
/// there, and take its place at once. A failure leaves the path as it was and nothing beside it.
pub async fn push_file(session: &Session, file: &File) -> Result<Pushed> {
    let limit = TIME + Duration::from_secs(file.bytes.len() as u64 / LEAST_BYTES_PER_SECOND);
    let name = format!("write {}", file.path);
    let late = |_| Error::CommandTimedOut { command: name.clone(), limit };
    timeout(limit, push(session, file, &name)).await.map_err(late)?
}

async fn push(session: &Session, file: &File, name: &str) -> Result<Pushed> {
    let command = Command::new(script(file)).named(name).privilege(file.privilege);
    let mut stream = session.stream(command).await?;
    let first =
        read_line(&mut stream).await.map_err(|_| session.lost("it was closed while a file was written"))?;
    match first.split_once(' ').unwrap_or((first.as_str(), "")) {
        ("same", _) => return Ok(Pushed::Same),
        ("send", check) => send(&mut stream, file, check).await,
        ("failed", words) => return Err(failed(session, file, words)),
        _ => return Err(unclear(stream, name).await),
    }
    let mut answer = String::new();
    let reading = (&mut stream).take(LONGEST_ANSWER).read_to_string(&mut answer).await;
    reading.map_err(|_| session.lost("it was closed while a file was written"))?;
    match answer.trim().split_once(' ').unwrap_or((answer.trim(), "")) {
        ("done", _) => Ok(Pushed::Written),
        ("failed", words) => Err(failed(session, file, words)),
        _ => Err(unclear(stream, name).await),
    }
}

/// Sends the bytes. That this fails is seen by what the host says afterwards.
async fn send(stream: &mut Stream, file: &File, check: &str) {
    if check == "cksum" {
        let line = format!("{}\n", checksum::cksum(&file.bytes));
        if stream.write_all(line.as_bytes()).await.is_err() {
            return;
        }
    }
    // The host stops reading when it cannot write, and then it says why.
    if stream.write_all(&file.bytes).await.is_ok() {
        let _ = stream.shutdown().await;
    }
}

async fn read_line(stream: &mut Stream) -> std::io::Result<String> {
    let mut line = Vec::new();
    while (line.len() as u64) < LONGEST_ANSWER {
        let mut byte = [0];
        if stream.read(&mut byte).await? == 0 || byte[0] == b'\n' {
            break;
        }
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

fn failed(session: &Session, file: &File, said: &str) -> Error {
    let (address, path) = (session.address().to_owned(), file.path.clone());
    if ["No space left", "Disk quota exceeded"].iter().any(|words| said.contains(words)) {
        return Error::DiskFull { address, path, bytes: file.bytes.len() as u64 };
    }
    Error::Push { address, path, reason: words::last_lines(said.as_bytes()) }
}

/// The script ended without a word, so its shell has one.
async fn unclear(stream: Stream, name: &str) -> Error {
    let ending = match stream.into_ending().await {
        Ok(ending) => ending,
        Err(error) => return error,
    };
    exec::failure(name.to_owned(), &ending)
}

/// Says `same`, or `send` with the check that it can make, or `failed` with words; after `send` comes `done` or
/// `failed`. Before the bytes it reads a line with their checksum if it asked for one.
fn script(file: &File) -> String {
    let File { bytes, sha256, path, mode, .. } = file;
    let variables = format!(
        "path={}; size={}; want={}; mode={mode:o}\n",
        words::quote(path),
        bytes.len(),
        words::quote(sha256)
    );
    variables + SCRIPT
}

const SCRIPT: &str = r#"
LC_ALL=C; export LC_ALL; umask 077
fail() { printf 'failed %s\n' "$*"; exit 0; }
hash() {
  { sha256sum <"$1" || busybox sha256sum <"$1" || shasum -a 256 <"$1" || openssl dgst -sha256 -r <"$1"; } 2>/dev/null |
    { read -r first rest; printf %s "$first"; }
}
[ -d "$path" ] && fail it is a folder
if [ -f "$path" ] && [ "$(hash "$path")" = "$want" ]; then
  err=$(chmod "$mode" "$path" 2>&1) || fail "$err"
  echo same; exit 0
fi
dir=${path%/*}
err=$(umask 022; mkdir -p "${dir:-/}" 2>&1) || fail "$err"
tmp=$path.$$.part
trap 'rm -f "$tmp"' EXIT
trap 'exit 1' HUP INT TERM PIPE
rm -f "$tmp"
err=$( { set -C; : >"$tmp"; } 2>&1) || fail "$err"
if [ -n "$(hash /dev/null)" ]; then check=sha256
elif command -v cksum >/dev/null 2>&1; then check=cksum
else check=size; fi
echo send $check
[ $check = cksum ] && read -r want
err=$(cat 2>&1 >>"$tmp") || fail "$err"
got=$(($(wc -c <"$tmp")))
[ "$got" -eq "$size" ] || fail "only $got of $size bytes arrived"
case $check in
  sha256) got=$(hash "$tmp");;
  cksum) got=$(cksum <"$tmp"); got=${got%% *};;
  size) got=$want;;
esac
[ "$got" = "$want" ] || fail its checksum is wrong after writing
err=$(chmod "$mode" "$tmp" 2>&1) || fail "$err"
sync "$tmp" 2>/dev/null
err=$(mv -f "$tmp" "$path" 2>&1) || fail "$err"
echo done
"#;
