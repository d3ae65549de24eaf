//! What a repository has, and how to get it: versions 0 and 2 of Git's protocol, as far as a clone needs them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use gix_hash::ObjectId;
use tokio::runtime::Handle;

use super::dial::{Dialer, Waiting};
use super::error::Error;
use super::http::{AGENT, HttpRemote};
use super::packets::{self, DELIMITER, FLUSH, Packet, SideBand};
use super::ssh::{Output, Program};
use super::url::{Scheme, Url};

/// How many branches and tags a repository may have.
const REFS_LIMIT: usize = 1_000_000;

/// How a repository is read.
#[derive(Clone, Default)]
pub(super) struct Login {
    /// For HTTP.
    pub(super) token: Option<String>,
    /// For SSH.
    pub(super) private_key: Option<String>,
}

/// A connection to a repository.
pub(super) struct Remote {
    runtime: Handle,
    dialer: Dialer,
    kind: Kind,
    version: Version,
    /// What the other side said first that is still to be read, in version 0.
    capabilities: Vec<String>,
}

enum Kind {
    Http(HttpRemote),
    Ssh { program: Program, rest: Vec<u8> },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    Old,
    Two,
}

/// The branches and tags of a repository.
#[derive(Debug, Default)]
pub(super) struct Refs {
    /// The full name of the default branch.
    pub(super) head: Option<String>,
    /// Commits and tags by full names.
    pub(super) ids: BTreeMap<String, ObjectId>,
}

impl Refs {
    /// The commit of a branch.
    pub(super) fn branch(&self, name: &str) -> Option<ObjectId> {
        self.ids.get(&format!("refs/heads/{name}")).copied()
    }

    /// The default branch's short name.
    pub(super) fn default_branch(&self) -> Option<&str> {
        self.head.as_deref()?.strip_prefix("refs/heads/")
    }
}

/// What is to be fetched.
pub(super) struct Want<'a> {
    pub(super) ids: &'a [ObjectId],
    /// What is here already, with all of its history.
    pub(super) have: &'a [ObjectId],
    /// How many commits of each history; unset: all.
    pub(super) depth: Option<u32>,
}

impl Remote {
    /// Connects, and asks for branches and tags.
    pub(super) fn open(
        runtime: Handle,
        mut dialer: Dialer,
        url: &Url,
        login: &Login,
        home: &Path,
    ) -> Result<(Remote, Refs), Error> {
        let kind = match url.scheme {
            Scheme::Ssh => {
                let key = login.private_key.as_deref().ok_or(Error::Unauthorized)?;
                let program = runtime.block_on(Program::start(&mut dialer, url, key, home))?;
                Kind::Ssh { program, rest: Vec::new() }
            }
            Scheme::Http | Scheme::Https => Kind::Http(HttpRemote::new(url, http_login(url, login))),
        };
        let mut remote = Remote { runtime, dialer, kind, version: Version::Old, capabilities: Vec::new() };
        let refs = remote.greet()?;
        Ok((remote, refs))
    }

    fn greet(&mut self) -> Result<Refs, Error> {
        let mut first = self.advertisement(read_greeting)?;
        if first.is_version_two {
            self.version = Version::Two;
            self.capabilities = first.capabilities;
            self.check_format()?;
            return self.list_refs();
        }
        self.capabilities = std::mem::take(&mut first.capabilities);
        self.check_format()?;
        let symref = self.capabilities.iter().find_map(|capability| capability.strip_prefix("symref=HEAD:"));
        let head = symref.map(str::to_owned).or_else(|| guess_head(&first.refs));
        first.refs.ids.retain(|name, _| name.starts_with("refs/"));
        Ok(Refs { head, ids: first.refs.ids })
    }

    /// Gets a pack with everything wanted, hands it to `take`, and answers the commits at which it ends early.
    pub(super) fn fetch(
        &mut self,
        want: &Want<'_>,
        take: impl FnOnce(&mut dyn BufRead) -> Result<(), Error>,
    ) -> Result<Vec<ObjectId>, Error> {
        let version = self.version;
        let has_bands = version == Version::Two || self.has("side-band-64k");
        let question = match version {
            Version::Two => question_two(want),
            Version::Old => self.question_old(want),
        };
        let is_shallow = want.depth.is_some();
        self.ask(question, |reader| {
            let ends = match version {
                Version::Two => read_to_pack(reader)?,
                Version::Old => read_to_pack_old(reader, is_shallow)?,
            };
            if has_bands {
                let mut pack = BufReader::with_capacity(64 * 1024, SideBand::new(reader));
                take(&mut pack)?;
                // What follows the pack belongs to this answer.
                std::io::copy(&mut pack, &mut std::io::sink())?;
            } else {
                take(reader)?;
            }
            Ok(ends)
        })
    }

    /// Ends the connection.
    pub(super) fn end(self) {
        if let Kind::Ssh { program, .. } = self.kind {
            self.runtime.block_on(program.end());
        }
    }

    fn list_refs(&mut self) -> Result<Refs, Error> {
        let mut question = Vec::new();
        packets::push_line(&mut question, "command=ls-refs");
        packets::push_line(&mut question, &format!("agent={AGENT}"));
        question.extend_from_slice(DELIMITER);
        for line in ["symrefs", "ref-prefix HEAD", "ref-prefix refs/heads/", "ref-prefix refs/tags/"] {
            packets::push_line(&mut question, line);
        }
        question.extend_from_slice(FLUSH);
        self.ask(question, |reader| {
            let mut refs = Refs::default();
            while let Some(Packet::Data(line)) = packets::read(reader)? {
                let line = packets::text(&line)?;
                let mut words = line.split(' ');
                let (Some(id), Some(name)) = (words.next(), words.next()) else { return Err(Error::NotGit) };
                let target = words.find_map(|word| word.strip_prefix("symref-target:"));
                if name == "HEAD" {
                    refs.head = target.map(str::to_owned);
                } else if id != "unborn" {
                    insert(&mut refs, name, id)?;
                }
            }
            Ok(refs)
        })
    }

    fn has(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|own| own == capability)
    }

    fn check_format(&self) -> Result<(), Error> {
        match self.capabilities.iter().find_map(|capability| capability.strip_prefix("object-format=")) {
            None | Some("sha1") => Ok(()),
            Some(other) => Err(Error::Other(format!("its objects are named by {other}, which is not supported"))),
        }
    }

    fn question_old(&self, want: &Want<'_>) -> Vec<u8> {
        let wished = ["side-band-64k", "ofs-delta", "include-tag", "no-progress", "shallow"];
        let mut capabilities: Vec<&str> = wished.into_iter().filter(|capability| self.has(capability)).collect();
        let agent = format!("agent={AGENT}");
        if self.capabilities.iter().any(|own| own.starts_with("agent=")) {
            capabilities.push(&agent);
        }
        let mut question = Vec::new();
        for (index, id) in want.ids.iter().enumerate() {
            let rest = if index == 0 { format!(" {}", capabilities.join(" ")) } else { String::new() };
            packets::push_line(&mut question, &format!("want {id}{rest}"));
        }
        if let Some(depth) = want.depth {
            packets::push_line(&mut question, &format!("deepen {depth}"));
        }
        question.extend_from_slice(FLUSH);
        for id in want.have {
            packets::push_line(&mut question, &format!("have {id}"));
        }
        packets::push_line(&mut question, "done");
        question
    }

    fn advertisement<T>(&mut self, read: impl FnOnce(&mut dyn BufRead) -> Result<T, Error>) -> Result<T, Error> {
        match &mut self.kind {
            Kind::Http(remote) => {
                let body = self.runtime.block_on(remote.advertisement(&mut self.dialer))?;
                read(&mut BufReader::with_capacity(64 * 1024, Waiting::new(self.runtime.clone(), body)))
            }
            Kind::Ssh { program, rest } => read(&mut Listening::new(&self.runtime, &mut program.output, rest)),
        }
    }

    fn ask<T>(
        &mut self,
        question: Vec<u8>,
        read: impl FnOnce(&mut dyn BufRead) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match &mut self.kind {
            Kind::Http(remote) => {
                let body = self.runtime.block_on(remote.ask(&mut self.dialer, question))?;
                read(&mut BufReader::with_capacity(64 * 1024, Waiting::new(self.runtime.clone(), body)))
            }
            Kind::Ssh { program, rest } => {
                self.runtime.block_on(program.write(question))?;
                read(&mut Listening::new(&self.runtime, &mut program.output, rest))
            }
        }
    }
}

/// User and password for a web server. A token needs some user's name; services differ in which.
pub(super) fn http_login(url: &Url, login: &Login) -> Option<(String, String)> {
    if let Some(token) = &login.token {
        let usual = if url.host == "bitbucket.org" { "x-token-auth" } else { "oauth2" };
        return Some((url.user.clone().unwrap_or_else(|| usual.to_owned()), token.clone()));
    }
    let password = url.password.clone()?;
    Some((url.user.clone().unwrap_or_default(), password))
}

struct Greeting {
    is_version_two: bool,
    capabilities: Vec<String>,
    /// With `HEAD` among them.
    refs: Refs,
}

fn read_greeting(reader: &mut dyn BufRead) -> Result<Greeting, Error> {
    let mut greeting = Greeting { is_version_two: false, capabilities: Vec::new(), refs: Refs::default() };
    let mut is_first = true;
    loop {
        let data = match packets::read(reader)? {
            Some(Packet::Data(data)) => data,
            // The name of the service, which web servers say first, is a message of its own.
            Some(Packet::Flush) if is_first => continue,
            Some(Packet::Flush) => return Ok(greeting),
            _ => return Err(Error::NotGit),
        };
        if data.starts_with(b"# service=") || data.starts_with(b"version 1") {
            continue;
        }
        if is_first && packets::text(&data).is_ok_and(|line| line == "version 2") {
            (greeting.is_version_two, is_first) = (true, false);
            continue;
        }
        if greeting.is_version_two {
            greeting.capabilities.push(packets::text(&data)?.to_owned());
            continue;
        }
        let (line, capabilities) = match data.iter().position(|byte| *byte == 0) {
            Some(end) if is_first => (&data[..end], packets::text(&data[end + 1..])?),
            _ => (&data[..], ""),
        };
        if is_first {
            greeting.capabilities = capabilities.split(' ').map(str::to_owned).collect();
        }
        is_first = false;
        let (id, name) = packets::text(line)?.split_once(' ').ok_or(Error::NotGit)?;
        // An empty repository has nothing but capabilities; a peeled tag is what the tag before it means.
        if name != "capabilities^{}" && !name.ends_with("^{}") && !id.starts_with("shallow") {
            insert(&mut greeting.refs, name, id)?;
        }
    }
}

fn insert(refs: &mut Refs, name: &str, id: &str) -> Result<(), Error> {
    let id = ObjectId::from_hex(id.as_bytes()).map_err(|_| Error::NotGit)?;
    if refs.ids.len() >= REFS_LIMIT {
        return Err(Error::Other(format!("it has more than {REFS_LIMIT} branches and tags")));
    }
    if is_safe_name(name) {
        refs.ids.insert(name.to_owned(), id);
    }
    Ok(())
}

/// Whether a name may become the path of a file of ours.
pub(super) fn is_safe_name(name: &str) -> bool {
    let is_safe = |part: &str| {
        !part.is_empty() && !part.starts_with('.') && !part.ends_with('.') && part.strip_suffix(".lock").is_none()
    };
    let has_odd = name.bytes().any(|byte| byte <= b' ' || byte == 0x7f || b"~^:?*[\\".contains(&byte));
    (name == "HEAD" || name.starts_with("refs/"))
        && !has_odd
        && !name.contains("..")
        && name.split('/').all(is_safe)
}

/// Servers that do not tell the default branch: one of those with the same commit.
fn guess_head(refs: &Refs) -> Option<String> {
    let head = refs.ids.get("HEAD")?;
    let usual = ["refs/heads/main", "refs/heads/master"];
    let is_head = |name: &&str| refs.ids.get(*name) == Some(head);
    let usual = usual.into_iter().find(is_head).map(str::to_owned);
    usual.or_else(|| {
        let other = refs.ids.iter().find(|(name, id)| name.starts_with("refs/heads/") && *id == head);
        other.map(|(name, _)| name.clone())
    })
}

fn question_two(want: &Want<'_>) -> Vec<u8> {
    let mut question = Vec::new();
    packets::push_line(&mut question, "command=fetch");
    packets::push_line(&mut question, &format!("agent={AGENT}"));
    question.extend_from_slice(DELIMITER);
    for line in ["ofs-delta", "no-progress", "include-tag"] {
        packets::push_line(&mut question, line);
    }
    for id in want.ids {
        packets::push_line(&mut question, &format!("want {id}"));
    }
    for id in want.have {
        packets::push_line(&mut question, &format!("have {id}"));
    }
    if let Some(depth) = want.depth {
        packets::push_line(&mut question, &format!("deepen {depth}"));
    }
    packets::push_line(&mut question, "done");
    question.extend_from_slice(FLUSH);
    question
}

/// Reads until the pack begins; answers where histories end early.
fn read_to_pack(reader: &mut dyn BufRead) -> Result<Vec<ObjectId>, Error> {
    let mut ends = Vec::new();
    loop {
        match packets::read(reader)? {
            Some(Packet::Data(line)) => {
                let line = packets::text(&line)?;
                if line == "packfile" {
                    return Ok(ends);
                }
                if let Some(id) = line.strip_prefix("shallow ") {
                    ends.push(ObjectId::from_hex(id.as_bytes()).map_err(|_| Error::NotGit)?);
                }
            }
            Some(Packet::Delimiter) => {}
            _ => return Err(Error::NotGit),
        }
    }
}

fn read_to_pack_old(reader: &mut dyn BufRead, is_shallow: bool) -> Result<Vec<ObjectId>, Error> {
    let mut ends = Vec::new();
    if is_shallow {
        read_shallow_ends(reader, &mut ends)?;
    }
    match packets::read(reader)? {
        Some(Packet::Data(line)) if line.starts_with(b"NAK") || line.starts_with(b"ACK ") => Ok(ends),
        _ => Err(Error::NotGit),
    }
}

/// Reads which commits are the oldest that come.
fn read_shallow_ends(reader: &mut dyn BufRead, ends: &mut Vec<ObjectId>) -> Result<(), Error> {
    loop {
        match packets::read(reader)? {
            Some(Packet::Data(line)) => {
                if let Some(id) = packets::text(&line)?.strip_prefix("shallow ") {
                    ends.push(ObjectId::from_hex(id.as_bytes()).map_err(|_| Error::NotGit)?);
                }
            }
            Some(Packet::Flush) => return Ok(()),
            _ => return Err(Error::NotGit),
        }
    }
}

/// Reads what a program prints; what is left over is for the next one who listens.
struct Listening<'a> {
    runtime: &'a Handle,
    output: &'a mut Output,
    rest: &'a mut Vec<u8>,
    read: usize,
}

impl<'a> Listening<'a> {
    fn new(runtime: &'a Handle, output: &'a mut Output, rest: &'a mut Vec<u8>) -> Listening<'a> {
        Listening { runtime, output, rest, read: 0 }
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.rest.drain(..self.read);
    }
}

impl BufRead for Listening<'_> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        if self.read == self.rest.len() {
            self.rest.clear();
            self.read = 0;
            let next = self.runtime.block_on(self.output.next()).map_err(std::io::Error::other)?;
            self.rest.extend_from_slice(&next.unwrap_or_default());
        }
        Ok(&self.rest[self.read..])
    }

    fn consume(&mut self, length: usize) {
        self.read += length;
    }
}

impl Read for Listening<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_greeting_is_understood() {
        let id = "1".repeat(40);
        let mut text = b"001e# service=git-upload-pack\n0000".to_vec();
        let mut push = |line: String| text.extend_from_slice(format!("{:04x}{line}", line.len() + 4).as_bytes());
        push(format!("{id} HEAD\0side-band-64k symref=HEAD:refs/heads/dev\n"));
        push(format!("{id} refs/heads/dev\n"));
        push(format!("{id} refs/tags/v1\n"));
        push(format!("{id} refs/tags/v1^{{}}\n"));
        text.extend_from_slice(FLUSH);
        let greeting = read_greeting(&mut &text[..]).unwrap();
        assert!(!greeting.is_version_two);
        assert!(greeting.capabilities.contains(&"symref=HEAD:refs/heads/dev".to_owned()));
        let names: Vec<&String> = greeting.refs.ids.keys().collect();
        assert_eq!(names, ["HEAD", "refs/heads/dev", "refs/tags/v1"]);
        assert_eq!(guess_head(&greeting.refs).as_deref(), Some("refs/heads/dev"));
    }

    #[test]
    fn names_that_would_leave_the_folder_are_dropped() {
        let check = |name: &str, expected: bool| assert_eq!(is_safe_name(name), expected, "{name}");
        check("refs/heads/feature/a-b", true);
        check("refs/heads/../../config", false);
        check("refs/heads/.hidden", false);
        check("refs/heads//a", false);
        check("config", false);
        check("refs/heads/a.lock", false);
    }
}
