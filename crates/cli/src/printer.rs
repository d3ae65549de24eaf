//! The only way to print and to ask. It knows whether anyone can see colours, and how wide the terminal is.
//!
//! As the official CLI does, everything a command has to say goes to stdout, its errors included. What is ours, such
//! as progress and warnings, goes to stderr.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufRead, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;

use anstyle::{AnsiColor, Style};
use anyhow::Context;
use clap::builder::StyledStr;
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
    is_asking: bool,
    /// The terminal is a real one, which may have another size later.
    is_real: bool,
    /// The width that the user wants, whatever the terminal has.
    wanted_width: Option<usize>,
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
    /// Rows of stdout, if it is a terminal.
    pub height: Option<usize>,
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
        let columns: Option<usize> = variables.get("COLUMNS").and_then(|columns| columns.parse().ok());
        let terminal = Terminal {
            colour: is_terminal && !refused,
            out: is_terminal,
            err: io::stderr().is_terminal(),
            width: columns.filter(|_| is_terminal),
            height: None,
        };
        let input = Box::new(io::BufReader::new(io::stdin()));
        let mut printer = Printer::new(out, Box::new(io::stderr()), input, terminal);
        printer.is_real = is_terminal;
        printer.wanted_width = columns;
        printer.measure();
        printer
    }

    /// A printer to any streams.
    pub fn new(
        out: Box<dyn Write + Send>,
        err: Box<dyn Write + Send>,
        input: Box<dyn BufRead + Send>,
        terminal: Terminal,
    ) -> Printer {
        let out = BufWriter::with_capacity(BUFFER, out);
        Printer { out, err, input, is_asking: false, is_real: false, wanted_width: None, terminal }
    }

    /// `text` in `style`, if colours are seen.
    pub(crate) fn styled(&self, text: &str, style: Style) -> String {
        if self.terminal.colour { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    /// Help or an error of the parser, in its colours if they are seen.
    pub(crate) fn rendered(&self, text: &StyledStr) -> String {
        if self.terminal.colour { text.ansi().to_string() } else { text.to_string() }
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
    pub(crate) async fn read_input(&mut self) -> io::Result<String> {
        self.read(|input| {
            let mut text = String::new();
            input.read_to_string(&mut text).map(|_| text)
        })
        .await
    }

    /// Asks, until the answer is yes or no, and blocks nothing meanwhile. None: there is no one to ask any more. Whoever
    /// drops the question takes the input with it; nothing can be asked after that.
    pub(crate) async fn ask(&mut self, question: &str) -> io::Result<Option<bool>> {
        self.is_asking = true;
        let answer = self.ask_again(question).await;
        self.is_asking = false;
        answer
    }

    async fn ask_again(&mut self, question: &str) -> io::Result<Option<bool>> {
        loop {
            write!(self.out, "{question} [y/n]: ")?;
            self.flush()?;
            let answer = self.read_line().await?;
            match answer.trim().to_ascii_lowercase().as_str() {
                "y" => return Ok(Some(true)),
                "n" => return Ok(Some(false)),
                // A line has its newline, so only the end of the input is empty.
                _ if answer.is_empty() => {
                    self.blank()?;
                    return Ok(None);
                }
                _ => self.line("Please enter Y or N")?,
            }
        }
    }

    async fn read_line(&mut self) -> io::Result<String> {
        self.read(|input| {
            let mut line = String::new();
            input.read_line(&mut line).map(|_| line)
        })
        .await
    }

    /// Reads on a thread of its own, so that Ctrl-C is heard meanwhile.
    async fn read(
        &mut self,
        read: impl FnOnce(&mut dyn BufRead) -> io::Result<String> + Send + 'static,
    ) -> io::Result<String> {
        let mut input = std::mem::replace(&mut self.input, Box::new(io::empty()));
        let (sender, answer) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let text = read(&mut *input);
            // Nobody listens after an interrupt.
            let _ = sender.send((input, text));
        });
        let (input, text) = answer.await.map_err(io::Error::other)?;
        self.input = input;
        text
    }

    /// Whether a question was dropped without an answer.
    pub(crate) fn is_asking(&self) -> bool {
        self.is_asking
    }

    /// Asks, and takes no silence for an answer.
    pub(crate) async fn confirm(&mut self, question: &str) -> anyhow::Result<bool> {
        self.ask(question).await?.context("no answer: standard input is at its end; pass -y")
    }

    /// Looks how large the terminal is now.
    pub(crate) fn measure(&mut self) {
        if !self.is_real {
            return;
        }
        if let Some((terminal_size::Width(columns), terminal_size::Height(rows))) = terminal_size::terminal_size()
        {
            self.terminal.width = self.wanted_width.or(Some(usize::from(columns)));
            self.terminal.height = Some(usize::from(rows));
        }
    }
}
