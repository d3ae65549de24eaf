//! Tables in the official layout: no borders, one space on both sides of a column, as wide as their contents.
//!
//! On a terminal that is too narrow the widest columns wrap; elsewhere nothing is ever cut.

use anstyle::Style;

use crate::printer::STRONG;

/// A column never gets narrower than this on its own account.
const LEAST_WIDTH: usize = 8;

/// Where a column's text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Align {
    Left,
    Centre,
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
        let columns = titles.iter().map(|title| Column { title, align: Align::Left }).collect();
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

    fn widths(&self, limit: Option<usize>) -> Vec<usize> {
        let mut widths: Vec<usize> = self.columns.iter().map(|column| length(column.title)).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.lines().map(length).max().unwrap_or(0));
            }
        }
        let Some(limit) = limit else { return widths };
        let padding = 2 * widths.len();
        while limit < widths.iter().sum::<usize>() + padding {
            let Some(widest) = widths.iter_mut().max() else { break };
            if *widest <= LEAST_WIDTH {
                break;
            }
            *widest -= 1;
        }
        widths
    }

    fn render_row(&self, row: &[Cell], widths: &[usize], colour: bool, text: &mut String) {
        let wrapped: Vec<Vec<String>> =
            row.iter().zip(widths).map(|(cell, width)| wrap(&cell.text, *width)).collect();
        let height = wrapped.iter().map(Vec::len).max().unwrap_or(0).max(1);
        for line in 0..height {
            for (index, (cell, width)) in row.iter().zip(widths).enumerate() {
                let part = wrapped[index].get(line).map_or("", String::as_str);
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
