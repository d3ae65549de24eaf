//! The only way to print and to ask. It knows whether anyone can see colours, and how wide the terminal is.
//!
//! As the official CLI does, everything a command has to say goes to stdout, its errors included. What is ours, such
//! as progress and warnings, goes to stderr.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufRead, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::output::Table;

/// Output is collected up to this many bytes before it is written.
const BUFFER: usize = 256 * 1024;

/// For errors.
pub(crate) const ERROR: Style = AnsiColor::Red.on_default();
/// For what the user should look at.
pub(crate) const WARNING: Style = AnsiColor::Yellow.on_default();
/// For what went well.
pub(crate) const SUCCESS: Style = AnsiColor::Green.on_default();
/// For what matters less.
pub(crate) const SECONDARY: Style = AnsiColor::BrightBlack.on_default();
/// For titles, names and commands to type.
pub(crate) const STRONG: Style = Style::new().bold();

/// What the user sees and answers.
pub struct Printer {
    out: BufWriter<Box<dyn Write + Send>>,
    err: Box<dyn Write + Send>,
    input: Box<dyn BufRead + Send>,
    /// What is known of the terminal.
    pub terminal: Terminal,
}

/// What is known of the terminal.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terminal {
    /// stdout shows colours.
    pub colour: bool,
    /// stdout is a terminal.
    pub out: bool,
    /// stderr is a terminal, so that progress may move.
    pub err: bool,
    /// Columns of stdout, if it is a terminal.
    pub width: Option<usize>,
}

impl fmt::Debug for Printer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Printer").field("terminal", &self.terminal).finish_non_exhaustive()
    }
}

impl Printer {
    /// The printer of this process.
    pub fn of_process(variables: &BTreeMap<String, String>) -> Printer {
        // The standard library's own handle writes line by line.
        let out: Box<dyn Write + Send> = match io::stdout().as_fd().try_clone_to_owned() {
            Ok(fd) => Box::new(std::fs::File::from(fd)),
            Err(_) => Box::new(io::stdout()),
        };
        let is_terminal = io::stdout().is_terminal();
        let refused = variables.get("NO_COLOR").is_some_and(|value| !value.is_empty())
            || variables.get("TERM").is_some_and(|term| term == "dumb");
        let columns = variables.get("COLUMNS").and_then(|columns| columns.parse().ok());
        let terminal = Terminal {
            colour: is_terminal && !refused,
            out: is_terminal,
            err: io::stderr().is_terminal(),
            width: is_terminal.then(|| columns.or_else(columns_of_terminal)).flatten(),
        };
        Printer::new(out, Box::new(io::stderr()), Box::new(io::BufReader::new(io::stdin())), terminal)
    }

    /// A printer to any streams.
    pub fn new(
        out: Box<dyn Write + Send>,
        err: Box<dyn Write + Send>,
        input: Box<dyn BufRead + Send>,
        terminal: Terminal,
    ) -> Printer {
        Printer { out: BufWriter::with_capacity(BUFFER, out), err, input, terminal }
    }

    /// `text` in `style`, if colours are seen.
    pub(crate) fn styled(&self, text: &str, style: Style) -> String {
        if self.terminal.colour { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    /// Prints a line.
    pub(crate) fn line(&mut self, text: impl fmt::Display) -> io::Result<()> {
        writeln!(self.out, "{text}")
    }

    /// Prints an empty line.
    pub(crate) fn blank(&mut self) -> io::Result<()> {
        self.line("")
    }

    /// Prints a line in a colour.
    pub(crate) fn styled_line(&mut self, text: &str, style: Style) -> io::Result<()> {
        let text = self.styled(text, style);
        self.line(text)
    }

    /// Prints an error.
    pub(crate) fn error(&mut self, text: &str) -> io::Result<()> {
        self.styled_line(text, ERROR)
    }

    /// Prints a warning.
    pub(crate) fn warning(&mut self, text: &str) -> io::Result<()> {
        self.styled_line(text, WARNING)
    }

    /// Prints a table.
    pub(crate) fn table(&mut self, table: &Table) -> io::Result<()> {
        let text = table.render(self.terminal.width, self.terminal.colour);
        self.out.write_all(text.as_bytes())
    }

    /// Prints a value as JSON on one line.
    pub(crate) fn json<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, value)?;
        self.blank()
    }

    /// Prints a value as JSON laid out.
    pub(crate) fn json_laid_out<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut self.out, value)?;
        self.blank()
    }

    /// Writes bytes as they are.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// Writes what was collected.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Tells the user something that is no part of the output.
    pub(crate) fn note(&mut self, text: &str) -> io::Result<()> {
        self.flush()?;
        // Whoever closed stderr does not want to know.
        let _ = writeln!(self.err, "{text}");
        Ok(())
    }

    /// Everything that stdin has.
    pub(crate) fn read_input(&mut self) -> io::Result<String> {
        let mut text = String::new();
        self.input.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Asks without blocking what goes on meanwhile. None: `interrupt` came before the answer.
    pub(crate) async fn confirm_unless(
        &mut self,
        question: &str,
        interrupt: impl Future<Output = ()>,
    ) -> io::Result<Option<bool>> {
        write!(self.out, "{question} [y/n]: ")?;
        self.flush()?;
        let mut input = std::mem::replace(&mut self.input, Box::new(io::empty()));
        // Not a thread of the runtime, whose end would wait for it.
        let (sender, answer) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let mut answer = String::new();
            let read = input.read_line(&mut answer);
            // Nobody listens after an interrupt.
            let _ = sender.send((input, read.map(|_| answer)));
        });
        tokio::select! {
            answer = answer => {
                let (input, answer) = answer.map_err(io::Error::other)?;
                self.input = input;
                Ok(Some(answer?.trim().eq_ignore_ascii_case("y")))
            }
            // The thread keeps the input, which nobody asks for again.
            () = interrupt => Ok(None),
        }
    }

    /// Asks, until the answer is yes or no. No one to ask means no.
    pub(crate) fn confirm(&mut self, question: &str) -> io::Result<bool> {
        loop {
            write!(self.out, "{question} [y/n]: ")?;
            self.flush()?;
            let mut answer = String::new();
            if self.input.read_line(&mut answer)? == 0 {
                return Ok(false);
            }
            match answer.trim().to_ascii_lowercase().as_str() {
                "y" => return Ok(true),
                "n" => return Ok(false),
                _ => self.line("Please enter Y or N")?,
            }
        }
    }
}

fn columns_of_terminal() -> Option<usize> {
    let (terminal_size::Width(columns), _) = terminal_size::terminal_size()?;
    Some(usize::from(columns))
}
