//! Tables with aligned columns.
//!
//! Pure. Widths are display widths, and cells contain no line breaks. Lines have no trailing
//! spaces.

use console::{Alignment, measure_text_width, pad_str, style};

/// Separator between columns.
const GAP: &str = "  ";

/// Alignment of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// For text.
    Left,
    /// For numbers.
    Right,
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

    /// Formats the table, header included.
    pub(crate) fn lines(&self) -> Vec<String> {
        let widths: Vec<usize> = (0..self.alignments.len())
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
            match self.alignments.get(column) {
                Some(Align::Right) => line.push_str(&pad_str(cell, width, Alignment::Right, None)),
                _ => line.push_str(&pad_str(cell, width, Alignment::Left, None)),
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// Formats a table of items with 64-digit ids. The id is the first column if `width` allows;
/// otherwise it goes on a line of its own below the row.
///
/// Each row is its cells for `columns` and its id. `width` is the terminal's width in columns;
/// `None` means unlimited.
pub(crate) fn with_ids(
    columns: &[(&str, Align)],
    rows: impl IntoIterator<Item = (Vec<String>, String)>,
    width: Option<usize>,
) -> Vec<String> {
    let mut table = Table::new(columns);
    let mut ids = Vec::new();
    for (cells, id) in rows {
        table.row(cells);
        ids.push(id);
    }
    let lines = table.lines();
    let widest = lines
        .iter()
        .map(|line| measure_text_width(line))
        .max()
        .unwrap_or(0);
    let id_width = ids.iter().map(|id| measure_text_width(id)).max().unwrap_or(0);
    let fits = width.is_none_or(|width| id_width + GAP.len() + widest <= width);
    let mut output = Vec::with_capacity(2 * lines.len());
    for (i, line) in lines.into_iter().enumerate() {
        let id = i.checked_sub(1).map_or("ID", |i| &ids[i]);
        match (fits, i) {
            (true, _) => output.push(format!(
                "{}{GAP}{line}",
                pad_str(id, id_width, Alignment::Left, None)
            )),
            (false, 0) => output.push(line),
            (false, _) => output.extend([line, format!("{GAP}{}", style(id).dim())]),
        }
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_go_below_the_rows_of_a_narrow_terminal() {
        let rows = || [(vec!["a.bin".to_owned(), "1 B".to_owned()], "ab".repeat(32))];
        let columns = [("NAME", Align::Left), ("SIZE", Align::Right)];
        let wide = with_ids(&columns, rows(), None);
        assert_eq!(wide[1], format!("{}  a.bin   1 B", "ab".repeat(32)));
        let narrow = with_ids(&columns, rows(), Some(70));
        assert_eq!(narrow.len(), 3);
        assert!(narrow.iter().all(|line| measure_text_width(line) <= 70));
    }

    #[test]
    fn columns_line_up_by_display_width() {
        let mut table = Table::new(&[("NAME", Align::Left), ("SIZE", Align::Right), ("X", Align::Left)]);
        table.row(["名前".into(), "1 B".into(), "y".into()]);
        table.row(["a".into(), "100 MiB".into(), String::new()]);
        assert_eq!(
            table.lines(),
            ["NAME     SIZE  X", "名前      1 B  y", "a     100 MiB"]
        );
    }
}
