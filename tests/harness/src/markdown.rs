//! Generated parts of the documents. Each stands between the line `<!-- COMMAND -->`, with the
//! command that writes it, and the line `<!-- end -->`.

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Row, Table, presets};
use std::fs;
use std::path::Path;

/// Replaces the part of the document at `path` that `command` generates. It is an error if there is none.
pub fn update_section(path: &Path, command: &str, content: &str) -> Result<()> {
    const END: &str = "<!-- end -->";
    let begin = format!("<!-- {command} -->\n");
    let update = || -> Result<()> {
        let document = fs::read_to_string(path)?;
        let (before, rest) = document.split_once(&begin).with_context(|| format!("no {begin}"))?;
        let (_, after) = rest.split_once(END).with_context(|| format!("no {END} after {begin}"))?;
        fs::write(path, format!("{before}{begin}\n{}\n\n{END}{after}", content.trim()))?;
        Ok(())
    };
    update().with_context(|| format!("cannot update {}", path.display()))
}

/// Formats a table; columns of numbers are aligned to the right.
pub fn table(header: impl Into<Row>, rows: impl IntoIterator<Item = impl Into<Row>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(header).add_rows(rows);
    for column in 0..table.column_count() {
        let is_number = |row: &Row| {
            let text = row.cell_iter().nth(column).map(|cell| cell.content()).unwrap_or_default();
            text.chars().all(|it| it.is_ascii_digit() || " ,.()/×".contains(it))
        };
        if table.row_iter().all(is_number) {
            let column = table.column_mut(column).expect("the column was counted");
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}
