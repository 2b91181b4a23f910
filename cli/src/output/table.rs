//! Tables with aligned columns that fit the terminal.
//!
//! Pure. Widths are display widths, and cells contain no line breaks. Lines have no trailing
//! spaces.

use console::{Alignment, measure_text_width, pad_str};

use crate::output::text;

/// Separator between columns.
const GAP: &str = "  ";

/// Minimum width to which an elastic column shrinks: enough to recognise a name.
const MIN_ELASTIC: usize = 12;

/// Alignment of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// For text.
    Left,
    /// For numbers.
    Right,
    /// For names and paths, which are plain text: left-aligned, and shortened in the middle if the
    /// table is too wide.
    Elastic,
}

/// A table: rows, and an optional header.
#[derive(Debug)]
pub(crate) struct Table {
    alignments: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a header row.
    pub(crate) fn new(columns: &[(&str, Align)]) -> Self {
        Self {
            alignments: columns.iter().map(|&(_, alignment)| alignment).collect(),
            rows: vec![columns.iter().map(|&(title, _)| title.to_owned()).collect()],
        }
    }

    /// A table without a header.
    pub(crate) const fn without_header(alignments: Vec<Align>) -> Self {
        Self {
            alignments,
            rows: Vec::new(),
        }
    }

    /// Appends a row; missing cells are empty.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Removes the columns that are empty in all rows but the header.
    pub(crate) fn drop_empty_columns(&mut self) {
        for column in (0..self.alignments.len()).rev() {
            let mut cells = self.rows.iter().skip(1).filter_map(|row| row.get(column));
            if cells.all(String::is_empty) {
                self.alignments.remove(column);
                for row in &mut self.rows {
                    if column < row.len() {
                        row.remove(column);
                    }
                }
            }
        }
    }

    /// Formats the table, header included, for a terminal of `width` columns; `None` means
    /// unlimited. A table whose other columns are too wide already is not shortened.
    pub(crate) fn lines(&self, width: Option<usize>) -> Vec<String> {
        let mut widths: Vec<usize> = (0..self.alignments.len())
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(|cell| measure_text_width(cell)).max().unwrap_or(0)
            })
            .collect();
        if let Some(width) = width {
            self.shrink(&mut widths, width);
        }
        self.rows.iter().map(|row| self.line(row, &widths)).collect()
    }

    /// Narrows the elastic columns, the widest first, until the table fits.
    fn shrink(&self, widths: &mut [usize], width: usize) {
        let gaps = GAP.len() * widths.len().saturating_sub(1);
        let mut excess = (widths.iter().sum::<usize>() + gaps).saturating_sub(width);
        let elastic = |column: &usize| self.alignments[*column] == Align::Elastic;
        let columns: Vec<usize> = (0..widths.len()).filter(elastic).collect();
        let spare = |widths: &[usize], column: usize| widths[column].saturating_sub(MIN_ELASTIC);
        let all_spare: usize = columns.iter().map(|&column| spare(widths, column)).sum();
        if excess > all_spare {
            return;
        }
        while excess > 0 {
            let Some(&widest) = columns.iter().max_by_key(|&&column| widths[column]) else {
                return;
            };
            widths[widest] -= 1;
            excess -= 1;
        }
    }

    fn line(&self, row: &[String], widths: &[usize]) -> String {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            if column > 0 {
                line.push_str(GAP);
            }
            let width = widths.get(column).copied().unwrap_or(0);
            let cell = match self.alignments.get(column) {
                Some(Align::Right) => pad_str(cell, width, Alignment::Right, None),
                Some(Align::Elastic) => {
                    let short = text::shorten_middle(cell, width);
                    pad_str(&short, width, Alignment::Left, None).into_owned().into()
                }
                _ => pad_str(cell, width, Alignment::Left, None),
            };
            line.push_str(&cell);
        }
        line.truncate(line.trim_end().len());
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_by_display_width() {
        let mut table =
            Table::new(&[("NAME", Align::Left), ("SIZE", Align::Right), ("X", Align::Left)]);
        table.row(["名前".into(), "1 B".into(), "y".into()]);
        table.row(["a".into(), "100 MiB".into(), String::new()]);
        assert_eq!(
            table.lines(None),
            ["NAME     SIZE  X", "名前      1 B  y", "a     100 MiB"]
        );
    }

    #[test]
    fn empty_columns_can_be_dropped() {
        let mut table = Table::new(&[("A", Align::Left), ("B", Align::Left), ("C", Align::Left)]);
        table.row(["1".into(), String::new(), "3".into()]);
        table.row(["4".into(), String::new()]);
        table.drop_empty_columns();
        assert_eq!(table.lines(None), ["A  C", "1  3", "4"]);
    }

    #[test]
    fn a_table_is_narrowed_until_it_fits() {
        let mut table = Table::new(&[
            ("ID", Align::Left),
            ("NAME", Align::Elastic),
            ("PATH", Align::Elastic),
        ]);
        let name = "a-rather-long-name-of-a-file.tar.gz";
        let path = format!("/somewhere/{name}");
        table.row(["3f9a1234".into(), name.into(), path.clone()]);
        table.row(["00000000".into(), "名前".repeat(30), "b".into()]);
        let full = table.lines(None);
        assert!(full[1].contains(name) && full[1].ends_with(&path));
        for width in 36..160 {
            for line in table.lines(Some(width)) {
                assert!(measure_text_width(&line) <= width, "{width}: {line}");
            }
        }
        assert_eq!(table.lines(Some(36))[1], "3f9a1234  a-rat…tar.gz  /some…tar.gz");
        assert_eq!(table.lines(Some(20)), full, "it cannot fit");
    }
}
