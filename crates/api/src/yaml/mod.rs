//! Reading of YAML files, with errors that show the line.
//!
//! A file is read in two steps: into nodes that know where they stand, and from those into a type.
//! The first step is the only place that knows the YAML library.

mod deserializer;
mod node;
mod reader;

use std::fmt;

use serde::de::DeserializeOwned;

use crate::configurations::{Configuration, check_resource_name};
pub(crate) use deserializer::{NodeError, read};
pub(crate) use node::{Node, Span};

/// Files above this are no configurations, in bytes.
const MAX_LENGTH: usize = 1024 * 1024;

/// Reads a configuration file of any type. Checks it as the server will when it is submitted, and as the official
/// client does by itself.
pub fn parse_configuration(text: &str, file_name: &str) -> Result<Configuration, YamlError> {
    parse_checked(text, file_name, check_submission)
}

fn check_submission(configuration: &Configuration) -> Result<(), String> {
    let working_dir = match configuration {
        Configuration::Task(task) => task.working_dir.as_deref(),
        Configuration::DevEnvironment(environment) => environment.working_dir.as_deref(),
        Configuration::Service(service) => service.working_dir.as_deref(),
        Configuration::Fleet(_) | Configuration::Volume(_) | Configuration::Gateway(_) => None,
    };
    if working_dir.is_some_and(|dir| !dir.starts_with(['/', '~'])) {
        return Err("working_dir must be absolute".to_owned());
    }
    match configuration.name() {
        // The official words for this are a regular expression.
        Some(name) if check_resource_name(name).is_err() => Err(format!(
            "`name` must be 2 to 41 lower-case letters, digits and `-`, starting with a letter, found `{name}`"
        )),
        _ => configuration.check_submission(),
    }
}

/// Reads a file of one type.
pub fn parse<T: DeserializeOwned>(text: &str, file_name: &str) -> Result<T, YamlError> {
    parse_checked(text, file_name, |_: &T| Ok(()))
}

/// An error about what stands at `path`, as in `ssh_config.hosts[1].user`, in a file that was read without any: for what
/// only the caller can check.
pub fn error_at(text: &str, file_name: &str, path: &str, message: String) -> YamlError {
    let text = without_mark(text);
    let at = reader::read_document(text).ok().and_then(|node| node.find(path));
    YamlError::new(&NodeError::custom_at(at.unwrap_or(Span::NOWHERE), message), text, file_name)
}

/// A byte order mark is no part of the text, and would shift the columns of the first line.
fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

fn parse_checked<T: DeserializeOwned>(
    text: &str,
    file_name: &str,
    check: impl Fn(&T) -> Result<(), String>,
) -> Result<T, YamlError> {
    let text = without_mark(text);
    let attempt = || -> Result<T, NodeError> {
        if MAX_LENGTH < text.len() {
            let limit = MAX_LENGTH / 1024;
            return Err(NodeError::whole_file(format!("the file is larger than {limit} KB")));
        }
        let node = reader::read_document(text)?;
        let value: T = read(&node)?;
        match check(&value) {
            Ok(()) => Ok(value),
            Err(reason) => Err(NodeError::official(&node, reason)),
        }
    };
    attempt().map_err(|error| YamlError::new(&error, text, file_name))
}

/// Why a file could not be read, and where. Its `Display` shows the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct YamlError {
    /// What is wrong.
    pub message: String,
    /// The file, as the caller named it.
    pub file: String,
    /// The line, from 1.
    pub line: u64,
    /// The column in characters, from 1.
    pub column: u64,
    /// How many characters are wrong, at least 1 and all on that line.
    pub width: u64,
    /// The text of the line.
    pub source_line: String,
    /// The key or value that was probably meant.
    pub suggestion: Option<String>,
}

impl YamlError {
    fn new(error: &NodeError, text: &str, file_name: &str) -> Self {
        let problem = error.problem();
        let Span { line, column, width } = problem.at.unwrap_or(Span::NOWHERE);
        let index = usize::try_from(line.saturating_sub(1)).unwrap_or(usize::MAX);
        let source_line = text.lines().nth(index).unwrap_or_default().to_owned();
        let rest = (source_line.chars().count() as u64 + 1).saturating_sub(column);
        YamlError {
            message: error.to_string(),
            file: file_name.to_owned(),
            line,
            column,
            width: width.clamp(1, rest.max(1)),
            source_line,
            suggestion: problem.suggestion.clone(),
        }
    }
}

impl fmt::Display for YamlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { message, file, line, column, suggestion, .. } = self;
        let margin = " ".repeat(line.to_string().len());
        let (shown, indent, carets) = self.excerpt();
        writeln!(f, "error: {message}")?;
        writeln!(f, "{margin}--> {file}:{line}:{column}")?;
        writeln!(f, "{margin} |")?;
        writeln!(f, "{line} | {shown}")?;
        write!(f, "{margin} | {indent}{carets}")?;
        if let Some(suggestion) = suggestion {
            write!(f, "\n{margin} = help: did you mean `{suggestion}`?")?;
        }
        Ok(())
    }
}

/// How much of a line is shown, and how much of that stands before the place, in characters.
const MAX_SHOWN: usize = 120;
const SHOWN_BEFORE: usize = 60;

impl YamlError {
    /// The part of the line to show, and the blanks and carets for the line below it.
    fn excerpt(&self) -> (String, String, String) {
        let before = usize::try_from(self.column.saturating_sub(1)).unwrap_or(usize::MAX);
        let is_long = MAX_SHOWN < self.source_line.chars().count();
        let skipped = if is_long { before.saturating_sub(SHOWN_BEFORE) } else { 0 };
        let shown: String = self.source_line.chars().skip(skipped).take(MAX_SHOWN).collect();
        // A tab stays a tab, so that the carets stand below what they mean.
        let indent: String =
            shown.chars().take(before - skipped).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        let room = MAX_SHOWN.saturating_sub(before - skipped).max(1);
        let width = usize::try_from(self.width).unwrap_or(1).min(room);
        (shown, indent, "^".repeat(width))
    }
}

impl std::error::Error for YamlError {}
