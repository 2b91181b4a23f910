//! Aligned columns of text.
//!
//! Pure. Widths are display widths; cells hold no line breaks. The last column is never padded, so that nothing trails.

use console::{Alignment, measure_text_width, pad_str};

/// Between columns.
const GAP: &str = "  ";

/// Which way a column leans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lean {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Rows under a head.
#[derive(Debug)]
pub(crate) struct Table {
    leans: Vec<Lean>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table whose columns have these titles.
    pub(crate) fn new(columns: &[(&str, Lean)]) -> Self {
        Self {
            leans: columns.iter().map(|&(_, lean)| lean).collect(),
            rows: vec![columns.iter().map(|&(title, _)| title.to_owned()).collect()],
        }
    }

    /// A table without a head.
    pub(crate) const fn bare(leans: Vec<Lean>) -> Self {
        Self { leans, rows: Vec::new() }
    }

    /// One more row; missing cells are empty.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The lines, the head among them.
    pub(crate) fn lines(&self) -> Vec<String> {
        let widths: Vec<usize> = (0..self.leans.len())
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(|cell| measure_text_width(cell)).max().unwrap_or(0)
            })
            .collect();
        self.rows.iter().map(|row| self.line(row, &widths)).collect()
    }

    fn line(&self, row: &[String], widths: &[usize]) -> String {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            if column > 0 {
                line.push_str(GAP);
            }
            let width = widths.get(column).copied().unwrap_or(0);
            match self.leans.get(column) {
                Some(Lean::Right) => line.push_str(&pad_str(cell, width, Alignment::Right, None)),
                _ => line.push_str(&pad_str(cell, width, Alignment::Left, None)),
            }
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
        let mut table = Table::new(&[("NAME", Lean::Left), ("SIZE", Lean::Right), ("X", Lean::Left)]);
        table.row(["名前".into(), "1 B".into(), "y".into()]);
        table.row(["a".into(), "100 MiB".into(), String::new()]);
        assert_eq!(table.lines(), ["NAME     SIZE  X", "名前      1 B  y", "a     100 MiB"]);
    }
}
