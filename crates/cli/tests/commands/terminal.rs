//! A session of the command line whose terminal is a test.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Cursor, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};

use cli::{Interrupts, Printer, Session, Terminal};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use tempfile::TempDir;
use tokio::io::DuplexStream;

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
    pub(crate) terminal: Terminal,
    variables: Vec<(String, String)>,
    answers: String,
    reactions: Vec<(String, Act)>,
    /// What bytes are carried from and to.
    pub(crate) pipe: Mutex<Option<DuplexStream>>,
}

/// What the user does at something that is seen.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// Types this.
    Type(&'static str),
    /// Presses Ctrl-C.
    Interrupt,
    /// Ends the input, as Ctrl-D does.
    End,
    /// Copies the files of a folder into another, to be looked at later; the same text may lead to the next act.
    Keep(PathBuf, PathBuf),
}

/// The screen, and the user who watches it.
#[derive(Clone)]
struct Screen {
    text: Arc<Mutex<Vec<u8>>>,
    watcher: Arc<Mutex<Watcher>>,
}

struct Watcher {
    /// What is done next, once its text has appeared.
    reactions: VecDeque<(String, Act)>,
    /// What has appeared since the last act.
    seen: Vec<u8>,
    keyboard: Option<Sender<String>>,
    interrupts: Interrupts,
}

impl Watcher {
    fn watch(&mut self, bytes: &[u8]) {
        self.seen.extend_from_slice(bytes);
        while let Some((text, act)) = self.reactions.front().cloned() {
            if !String::from_utf8_lossy(&self.seen).contains(&text) {
                return;
            }
            self.reactions.pop_front();
            if let Act::Keep(from, to) = &act {
                keep(from, to);
                continue;
            }
            self.seen.clear();
            match (act, &self.keyboard) {
                (Act::Type(text), Some(keyboard)) => keyboard.send(text.to_owned()).unwrap(),
                (Act::Type(_), None) => panic!("nothing can be typed"),
                (Act::Interrupt, _) => self.interrupts.press(),
                (Act::End, _) => self.keyboard = None,
                (Act::Keep(..), _) => {}
            }
        }
    }
}

fn keep(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.lock().unwrap().extend_from_slice(bytes);
        self.watcher.lock().unwrap().watch(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Screen {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap()).into_owned()
    }
}

/// What is typed while a command runs; reading waits for it.
struct Keyboard {
    typed: Receiver<String>,
    rest: Cursor<Vec<u8>>,
}

impl io::Read for Keyboard {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = io::Read::read(&mut self.rest, buffer)?;
        if read != 0 {
            return Ok(read);
        }
        let Ok(text) = self.typed.recv() else { return Ok(0) };
        self.rest = Cursor::new(text.into_bytes());
        io::Read::read(&mut self.rest, buffer)
    }
}

impl User {
    pub(crate) fn new() -> User {
        User {
            home: tempfile::tempdir().unwrap(),
            now: None,
            terminal: Terminal::default(),
            variables: Vec::new(),
            answers: String::new(),
            reactions: Vec::new(),
            pipe: Mutex::default(),
        }
    }

    /// A user of the project `main` of `server`.
    pub(crate) fn of(server: &Server) -> User {
        User::new()
            .with("DSTACK_SERVER_URL", &server.url)
            .with("DSTACK_TOKEN", "secret")
            .with("DSTACK_PROJECT", "main")
    }

    /// Does something once `text` is seen, after what was asked for before. The input stays open.
    pub(crate) fn at(mut self, text: &str, act: Act) -> User {
        self.reactions.push((text.to_owned(), act));
        self
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
        let interrupts = Interrupts::default();
        let (sender, typed) = std::sync::mpsc::channel();
        let input: Box<dyn BufRead + Send> = if self.reactions.is_empty() {
            Box::new(Cursor::new(self.answers.clone()))
        } else {
            Box::new(BufReader::new(Keyboard { typed, rest: Cursor::default() }))
        };
        let watcher = Watcher {
            reactions: self.reactions.iter().cloned().collect(),
            seen: Vec::new(),
            keyboard: Some(sender),
            interrupts: interrupts.clone(),
        };
        let watcher = Arc::new(Mutex::new(watcher));
        let screen = || Screen { text: Arc::default(), watcher: Arc::clone(&watcher) };
        let (out, err) = (screen(), screen());
        let printer = Printer::new(Box::new(out.clone()), Box::new(err.clone()), input, self.terminal);
        let mut session = Session {
            printer,
            variables: self.variables.iter().cloned().collect(),
            directory: self.directory(),
            home: self.home.path().to_owned(),
            zone: TimeZone::UTC,
            stopped_at: self.now,
            interrupts,
            program: "/opt/dstack".into(),
            pipe: self.pipe.lock().unwrap().take(),
        };
        let words = std::iter::once(&"dstack").chain(words).map(Into::into);
        let code = cli::run_in(&mut session, words);
        drop(session);
        let left = watcher.lock().unwrap().reactions.clone();
        assert!(left.is_empty(), "never seen: {left:?}\n{}{}", out.text(), err.text());
        Ran { code, out: out.text(), err: err.text() }
    }
}
