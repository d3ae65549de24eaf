//! How far a run or a fleet is: moving lines on a terminal, plain ones elsewhere. All of it goes to stderr.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::printer::Printer;

/// More lines than this are summed up.
const LINES: usize = 16;

/// How often the spinners move.
const TICK: Duration = Duration::from_millis(100);

/// What one node is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// Which node; empty where there is one only.
    pub node: String,
    /// What it does, in words that change only when it does something else.
    pub doing: String,
    /// How far it is with that.
    pub detail: String,
}

/// Shows steps.
#[derive(Debug, Default)]
pub(super) struct Progress {
    bars: Option<(MultiProgress, Vec<ProgressBar>)>,
    told: BTreeMap<String, String>,
}

impl Progress {
    /// Shows the steps as they are now.
    pub(super) fn show(&mut self, printer: &mut Printer, steps: &[Step]) -> io::Result<()> {
        if printer.terminal.err {
            printer.flush()?;
            self.draw(steps);
            return Ok(());
        }
        for step in steps {
            if self.told.get(&step.node) != Some(&step.doing) {
                let node = if step.node.is_empty() { String::new() } else { format!("[{}] ", step.node) };
                printer.note(&format!("{node}{}", step.doing))?;
                self.told.insert(step.node.clone(), step.doing.clone());
            }
        }
        Ok(())
    }

    fn draw(&mut self, steps: &[Step]) {
        let lines = if LINES < steps.len() { summary(steps) } else { steps.iter().map(line).collect() };
        let (multi, bars) = self
            .bars
            .get_or_insert_with(|| (MultiProgress::with_draw_target(ProgressDrawTarget::stderr()), Vec::new()));
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
    pub(super) fn clear(&mut self) {
        if let Some((multi, bars)) = self.bars.take() {
            for bar in bars {
                bar.finish_and_clear();
            }
            // Nothing can be done about a terminal that cannot be cleared.
            let _ = multi.clear();
        }
    }
}

fn line(step: &Step) -> String {
    let node = if step.node.is_empty() { String::new() } else { format!("[{}] ", step.node) };
    let detail = if step.detail.is_empty() { String::new() } else { format!(" {}", step.detail) };
    format!("{node}{}{detail}", step.doing)
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
