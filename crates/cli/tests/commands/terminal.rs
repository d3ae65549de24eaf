//! A session of the command line whose terminal is a test.

use std::io::{self, Cursor, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use cli::{Printer, Session, Terminal};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use tempfile::TempDir;

use crate::server::Server;

/// What a command printed and how it ended.
#[derive(Debug, Clone)]
pub(crate) struct Ran {
    pub(crate) code: u8,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A user in front of a terminal that shows no colours.
pub(crate) struct User {
    pub(crate) home: TempDir,
    pub(crate) now: Option<Timestamp>,
    variables: Vec<(String, String)>,
    answers: String,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl User {
    pub(crate) fn new() -> User {
        User { home: tempfile::tempdir().unwrap(), now: None, variables: Vec::new(), answers: String::new() }
    }

    /// A user of the project `main` of `server`.
    pub(crate) fn of(server: &Server) -> User {
        User::new()
            .with("DSTACK_SERVER_URL", &server.url)
            .with("DSTACK_TOKEN", "secret")
            .with("DSTACK_PROJECT", "main")
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> User {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What the user types when asked.
    pub(crate) fn typing(mut self, answers: &str) -> User {
        answers.clone_into(&mut self.answers);
        self
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.home.path().join("work")
    }

    /// Puts a file into the user's current directory, or elsewhere if `path` starts in the home.
    pub(crate) fn file(self, path: &str, text: &str) -> User {
        let path = match path.strip_prefix("~/") {
            Some(rest) => self.home.path().join(rest),
            None => self.directory().join(path),
        };
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    pub(crate) fn read(&self, path: impl AsRef<Path>) -> String {
        std::fs::read_to_string(self.home.path().join(path)).unwrap()
    }

    /// Runs a command line, split at spaces.
    pub(crate) fn runs(&self, line: &str) -> Ran {
        let words: Vec<&str> = line.split(' ').collect();
        self.runs_words(&words)
    }

    pub(crate) fn runs_words(&self, words: &[&str]) -> Ran {
        std::fs::create_dir_all(self.directory()).unwrap();
        let (out, err) = (Shared::default(), Shared::default());
        let input = Box::new(Cursor::new(self.answers.clone()));
        let printer = Printer::new(Box::new(out.clone()), Box::new(err.clone()), input, Terminal::default());
        let mut session = Session {
            printer,
            variables: self.variables.iter().cloned().collect(),
            directory: self.directory(),
            home: self.home.path().to_owned(),
            zone: TimeZone::UTC,
            stopped_at: self.now,
        };
        let words = std::iter::once(&"dstack").chain(words).map(Into::into);
        let code = cli::run_in(&mut session, words);
        drop(session);
        Ran { code, out: out.text(), err: err.text() }
    }
}
