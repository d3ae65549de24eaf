//! How far a run or a fleet is: moving lines on a terminal, plain ones elsewhere. All of it goes to stderr.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

use crate::printer::Printer;

/// More lines than this are summed up.
const LINES: usize = 16;

/// How often the spinners move.
const TICK: Duration = Duration::from_millis(100);

/// How often the lines are drawn each second at most.
const DRAWN_PER_SECOND: u8 = 20;

/// Columns that a terminal takes to show Ctrl-C.
const INTERRUPT_WIDTH: u16 = 3;

/// What one node is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::commands) struct Step {
    /// Which node; empty where there is one only.
    pub node: String,
    /// The machine that it is, where the user has named it.
    pub host: String,
    /// What it does, in words that change only when it does something else.
    pub doing: String,
    /// How far it is with that.
    pub detail: String,
}

/// Shows steps.
#[derive(Debug, Default)]
pub(in crate::commands) struct Progress {
    bars: Option<(MultiProgress, Vec<ProgressBar>)>,
    told: BTreeMap<String, String>,
}

impl Progress {
    /// Shows that one thing is waited for, until this is dropped.
    pub(in crate::commands) fn of(printer: &mut Printer, doing: &str) -> io::Result<Progress> {
        let mut progress = Progress::default();
        let step = Step { doing: doing.to_owned(), ..Step::default() };
        progress.show(printer, &[step])?;
        Ok(progress)
    }

    /// Shows the steps as they are now.
    pub(in crate::commands) fn show(&mut self, printer: &mut Printer, steps: &[Step]) -> io::Result<()> {
        if printer.terminal.err {
            printer.flush()?;
            self.draw(steps);
            return Ok(());
        }
        for step in steps {
            if self.told.get(&step.node) != Some(&step.doing) {
                printer.note(&plain_line(step))?;
                self.told.insert(step.node.clone(), step.doing.clone());
            }
        }
        Ok(())
    }

    fn draw(&mut self, steps: &[Step]) {
        let lines = if LINES < steps.len() { summary(steps) } else { steps.iter().map(line).collect() };
        let (multi, bars) =
            self.bars.get_or_insert_with(|| (MultiProgress::with_draw_target(target()), Vec::new()));
        while lines.len() < bars.len() {
            if let Some(bar) = bars.pop() {
                bar.finish_and_clear();
            }
        }
        while bars.len() < lines.len() {
            let bar = multi.add(ProgressBar::new_spinner());
            bar.set_style(ProgressStyle::default_spinner());
            bar.enable_steady_tick(TICK);
            bars.push(bar);
        }
        for (bar, line) in bars.iter().zip(lines) {
            bar.set_message(line);
        }
    }

    /// Takes the moving lines off the screen.
    pub(in crate::commands) fn clear(&mut self) {
        if let Some((multi, bars)) = self.bars.take() {
            for bar in bars {
                bar.finish_and_clear();
            }
            // Nothing can be done about a terminal that cannot be cleared.
            let _ = multi.clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn target() -> ProgressDrawTarget {
    ProgressDrawTarget::term_like_with_hz(Box::new(Screen::default()), DRAWN_PER_SECOND)
}

/// The terminal of stderr, somewhat narrower than it is: moving lines fill theirs, and what a terminal shows for Ctrl-C
/// would begin another one, which nobody clears.
#[derive(Debug, Default)]
struct Screen {
    pending: Mutex<String>,
}

impl Screen {
    fn push(&self, text: &str) -> io::Result<()> {
        self.pending.lock().map_err(|_| io::Error::other("a thread that draws has ended"))?.push_str(text);
        Ok(())
    }

    fn move_cursor(&self, count: usize, direction: char) -> io::Result<()> {
        if count == 0 { Ok(()) } else { self.push(&format!("\x1b[{count}{direction}")) }
    }

    fn size() -> (u16, u16) {
        let size = terminal_size::terminal_size_of(io::stderr());
        size.map_or((80, 24), |(width, height)| (width.0, height.0))
    }
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        Screen::size().0.saturating_sub(INTERRUPT_WIDTH).max(1)
    }

    fn height(&self) -> u16 {
        Screen::size().1
    }

    fn move_cursor_up(&self, count: usize) -> io::Result<()> {
        self.move_cursor(count, 'A')
    }

    fn move_cursor_down(&self, count: usize) -> io::Result<()> {
        self.move_cursor(count, 'B')
    }

    fn move_cursor_right(&self, count: usize) -> io::Result<()> {
        self.move_cursor(count, 'C')
    }

    fn move_cursor_left(&self, count: usize) -> io::Result<()> {
        self.move_cursor(count, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.push(text)?;
        self.push("\n")
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.push(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.push("\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        let text = self.pending.lock().map(|mut pending| std::mem::take(&mut *pending)).unwrap_or_default();
        let mut stderr = io::stderr().lock();
        stderr.write_all(text.as_bytes())?;
        stderr.flush()
    }
}

/// A step without how far it is, which changes too often for lines that stay.
pub(in crate::commands) fn plain_line(step: &Step) -> String {
    let node = if step.node.is_empty() { String::new() } else { format!("[{}] ", step.node) };
    let host = if step.host.is_empty() { String::new() } else { format!("{}  ", step.host) };
    format!("{node}{host}{}", step.doing)
}

fn line(step: &Step) -> String {
    let detail = if step.detail.is_empty() { String::new() } else { format!(" {}", step.detail) };
    format!("{}{detail}", plain_line(step))
}

/// How many nodes do what, the most first.
fn summary(steps: &[Step]) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for step in steps {
        *counts.entry(&step.doing).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts.truncate(LINES);
    counts.into_iter().map(|(doing, count)| format!("{count} nodes: {doing}")).collect()
}
