//! Tables in the official layout: no borders, one space on both sides of a column, as wide as their contents.
//!
//! On a terminal that is too narrow, columns that say nothing go, long texts wrap between words, and names end in an
//! ellipsis at last. Elsewhere nothing is ever cut.

use anstyle::Style;

use crate::printer::STRONG;

/// A column never gets narrower than this.
const LEAST_WIDTH: usize = 4;

/// What stands for what was cut.
const ELLIPSIS: char = '…';

/// What must not wrap is cut to less than this only when nothing else gives way any more.
const NAME_WIDTH: usize = 14;

/// Where a column's text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Align {
    Left,
    Centre,
}

/// How a column gives way where there is too little room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Yielding {
    /// It wraps before all others.
    First,
    /// It wraps.
    Wrapping,
    /// It stays on one line, and is cut when nothing else gives way any more.
    Cut,
}

impl Yielding {
    fn of(title: &str) -> Yielding {
        match title {
            "RESOURCES" | "ERROR" => Yielding::First,
            "NAME" | "INSTANCE TYPE" | "SUBMITTED" => Yielding::Cut,
            _ => Yielding::Wrapping,
        }
    }
}

/// A piece of text in one style.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A cell in a style.
    pub(crate) fn styled(text: impl Into<String>, style: Style) -> Cell {
        Cell { text: text.into(), style }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Cell {
        Cell { text, style: Style::new() }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Cell {
        text.to_owned().into()
    }
}

#[derive(Debug, Clone)]
struct Column {
    title: &'static str,
    align: Align,
    yielding: Yielding,
}

/// Rows of cells under titles.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
    has_titles: bool,
}

impl Table {
    /// A table with these titles.
    pub(crate) fn new(titles: &[&'static str]) -> Table {
        let columns = titles.iter();
        let columns = columns.map(|title| Column { title, align: Align::Left, yielding: Yielding::of(title) });
        let columns = columns.collect();
        Table { columns, rows: Vec::new(), has_titles: true }
    }

    /// A table of keys and values, without titles.
    pub(crate) fn properties() -> Table {
        Table { has_titles: false, ..Table::new(&["", ""]) }
    }

    /// Centres the column of this title.
    pub(crate) fn centre(mut self, title: &str) -> Table {
        for column in self.columns.iter_mut().filter(|column| column.title == title) {
            column.align = Align::Centre;
        }
        self
    }

    /// Adds a row; cells that are left out are empty.
    pub(crate) fn row(&mut self, mut cells: Vec<Cell>) {
        cells.resize(self.columns.len(), Cell::default());
        self.rows.push(cells);
    }

    /// Adds a key and its value.
    pub(crate) fn property(&mut self, key: &str, value: impl Into<Cell>) {
        self.row(vec![Cell::styled(key, STRONG), value.into()]);
    }

    /// The table as text, no wider than `width` if that can be done.
    pub(crate) fn render(&self, width: Option<usize>, colour: bool) -> String {
        let widths = self.widths(width);
        let mut text = String::new();
        if self.has_titles {
            let titles: Vec<Cell> = self.columns.iter().map(|column| Cell::styled(column.title, STRONG)).collect();
            self.render_row(&titles, &widths, colour, &mut text);
        }
        for row in &self.rows {
            self.render_row(row, &widths, colour, &mut text);
        }
        text
    }

    /// The width of each column; none for those that are left out.
    fn widths(&self, limit: Option<usize>) -> Vec<Option<usize>> {
        let mut widths: Vec<Option<usize>> =
            (0..self.columns.len()).map(|index| Some(self.longest(index))).collect();
        let Some(limit) = limit else { return widths };
        if limit < total(&widths) && !self.rows.is_empty() {
            for (index, width) in widths.iter_mut().enumerate() {
                *width = width.filter(|_| self.rows.iter().any(|row| !row[index].text.is_empty()));
            }
        }
        let words: Vec<usize> = (0..widths.len()).map(|index| self.longest_word(index)).collect();
        let titles: Vec<usize> = self.columns.iter().map(|column| longest_word(column.title)).collect();
        let yields = |index: usize, yielding: Yielding| self.columns[index].yielding == yielding;
        let first = |index: usize| yields(index, Yielding::First).then_some(words[index]);
        let wrapping = |index: usize| yields(index, Yielding::Wrapping).then_some(words[index]);
        let cut = |index: usize| yields(index, Yielding::Cut).then_some(titles[index].max(NAME_WIDTH));
        shrink(&mut widths, limit, first);
        shrink(&mut widths, limit, wrapping);
        shrink(&mut widths, limit, cut);
        // From here on words break, and then titles, and names are the last to go.
        let is_cut = |index: usize| yields(index, Yielding::Cut);
        shrink(&mut widths, limit, |index| Some(titles[index].max(LEAST_WIDTH)).filter(|_| !is_cut(index)));
        shrink(&mut widths, limit, |index| Some(LEAST_WIDTH).filter(|_| !is_cut(index)));
        shrink(&mut widths, limit, |_| Some(LEAST_WIDTH));
        widths
    }

    /// The length of the longest line in a column.
    fn longest(&self, index: usize) -> usize {
        let cells = self.rows.iter().flat_map(|row| row[index].text.lines()).map(length);
        cells.max().unwrap_or(0).max(length(self.columns[index].title))
    }

    /// The length of the longest word in a column.
    fn longest_word(&self, index: usize) -> usize {
        let cells = self.rows.iter().map(|row| longest_word(&row[index].text));
        cells.max().unwrap_or(0).max(longest_word(self.columns[index].title))
    }

    fn render_row(&self, row: &[Cell], widths: &[Option<usize>], colour: bool, text: &mut String) {
        let fit = |(column, (cell, width)): (&Column, (&Cell, &Option<usize>))| match (width, column.yielding) {
            (None, _) => Vec::new(),
            (Some(width), Yielding::Cut) if cell.text != column.title => {
                cell.text.lines().map(|line| cut(line, *width)).collect()
            }
            (Some(width), _) => wrap(&cell.text, *width),
        };
        let fitted: Vec<Vec<String>> = self.columns.iter().zip(row.iter().zip(widths)).map(fit).collect();
        let height = fitted.iter().map(Vec::len).max().unwrap_or(0).max(1);
        for line in 0..height {
            for (index, (cell, width)) in row.iter().zip(widths).enumerate() {
                let Some(width) = width else { continue };
                let part = fitted[index].get(line).map_or("", String::as_str);
                let space = width.saturating_sub(length(part));
                let before = match self.columns[index].align {
                    Align::Left => 0,
                    Align::Centre => space / 2,
                };
                text.push(' ');
                text.extend(std::iter::repeat_n(' ', before));
                if colour && !part.is_empty() {
                    text.extend([
                        cell.style.render().to_string().as_str(),
                        part,
                        &cell.style.render_reset().to_string(),
                    ]);
                } else {
                    text.push_str(part);
                }
                text.extend(std::iter::repeat_n(' ', space - before + 1));
            }
            text.push('\n');
        }
    }
}

fn length(text: &str) -> usize {
    text.chars().count()
}

fn longest_word(text: &str) -> usize {
    text.split_whitespace().map(length).max().unwrap_or(0)
}

/// The width of a table with such columns; each has a space on both sides.
fn total(widths: &[Option<usize>]) -> usize {
    widths.iter().flatten().map(|width| width + 2).sum()
}

/// Makes the widest columns narrower until the table fits, none narrower than `least` says; none says that a column
/// is not to change.
fn shrink(widths: &mut [Option<usize>], limit: usize, least: impl Fn(usize) -> Option<usize>) {
    while limit < total(widths) {
        let yields = |index: &usize| widths[*index].zip(least(*index)).is_some_and(|(width, least)| least < width);
        let widest = (0..widths.len()).filter(yields).max_by_key(|index| widths[*index]);
        let Some(width) = widest.and_then(|index| widths[index].as_mut()) else { return };
        *width -= 1;
    }
}

/// A line of at most `width` characters.
fn cut(line: &str, width: usize) -> String {
    if length(line) <= width {
        return line.to_owned();
    }
    line.chars().take(width.saturating_sub(1)).chain([ELLIPSIS]).collect()
}

/// Breaks text into lines of at most `width` characters, at spaces where there are any.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        if length(paragraph) <= width {
            lines.push(paragraph.to_owned());
            continue;
        }
        let mut line = String::new();
        for word in paragraph.split(' ') {
            let needed = length(&line) + usize::from(!line.is_empty()) + length(word);
            if width < needed && !line.is_empty() {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            for character in word.chars() {
                if width <= length(&line) {
                    lines.push(std::mem::take(&mut line));
                }
                line.push(character);
            }
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_contents() {
        let mut table = Table::new(&["NAME", "VALUE"]);
        table.row(vec!["hf_token".into(), "******".into()]);
        assert_eq!(table.render(None, false), " NAME      VALUE  \n hf_token  ****** \n");
    }

    #[test]
    fn a_column_can_be_centred() {
        let mut table = Table::new(&["USER", "DEFAULT"]).centre("DEFAULT");
        table.row(vec!["admin".into(), "✓".into()]);
        assert_eq!(table.render(None, false), " USER   DEFAULT \n admin     ✓    \n");
    }

    #[test]
    fn a_narrow_terminal_wraps_the_widest_column_and_loses_nothing() {
        let mut table = Table::new(&["NAME", "ERROR"]);
        table.row(vec!["run".into(), "the machine did not answer for ten minutes".into()]);
        let text = table.render(Some(30), false);
        assert!(text.lines().all(|line| length(line) <= 30), "{text}");
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(words.join(" "), "NAME ERROR run the machine did not answer for ten minutes");
    }

    /// A listing of runs as people see it where the terminal is this wide.
    fn listing(width: usize) -> String {
        let titles = ["NAME", "BACKEND", "RESOURCES", "INSTANCE TYPE", "PRICE", "STATUS", "PROBES", "SUBMITTED"];
        let mut table = Table::new(&titles);
        let resources = "cpu=x86:192 mem=2048GB disk=100GB gpu=H100:80GB:8";
        table.row(
            [
                "llama-3-70b-finetune",
                "aws (us-east-1)",
                resources,
                "p5.48xlarge",
                "$55.04",
                "running",
                "",
                "2 hours ago",
            ]
            .map(Cell::from)
            .to_vec(),
        );
        table.render(Some(width), false)
    }

    #[test]
    fn words_and_titles_break_last() {
        for width in [120, 110] {
            let text = listing(width);
            assert!(text.lines().all(|line| length(line) <= width), "{text}");
            for word in ["llama-3-70b-finetune", "p5.48xlarge", "2 hours ago", "gpu=H100:80GB:8", "(us-east-1)"] {
                assert!(text.contains(word), "no `{word}` at {width}:\n{text}");
            }
            assert!(!text.contains("PROBES"), "{text}");
        }
        let text = listing(80);
        assert!(text.lines().all(|line| length(line) <= 80), "{text}");
        assert!(text.contains("…") && text.contains("RESOURCES") && text.contains("SUBMITTED"), "{text}");
    }

    #[test]
    fn columns_that_say_nothing_stay_where_there_is_room() {
        assert!(listing(200).contains("PROBES"));
        let empty = Table::new(&["NAME", "BACKEND", "STATUS"]).render(Some(12), false);
        assert!(["NAME", "BACK", "STAT"].iter().all(|title| empty.contains(title)), "{empty}");
    }

    #[test]
    fn names_stay_readable_where_nothing_else_does() {
        assert!(listing(70).contains(" llama-3-70b-f… "), "{}", listing(70));
    }

    #[test]
    fn colours_do_not_change_the_layout() {
        let mut table = Table::properties();
        table.property("Project", "main");
        let plain = table.render(None, false);
        let coloured = table.render(None, true);
        assert_eq!(anstream::adapter::strip_str(&coloured).to_string(), plain);
        assert_ne!(coloured, plain);
    }
}
