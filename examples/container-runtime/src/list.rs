//! `state` and `list`: telling about containers.

use std::io::Write as _;

use anyhow::{Context as _, Result};

use crate::cli::{Format, List};
use crate::id::ContainerId;
use crate::state::Shown;
use crate::store::Store;
use crate::warn;

/// Prints the state of one container.
pub(crate) fn state(store: &Store, id: &ContainerId) -> Result<()> {
    let entry = store.open(id)?;
    let shown = entry.state()?.shown(&entry)?;
    let text = serde_json::to_string_pretty(&shown).context("cannot write the state as JSON")?;
    print(&text)
}

/// Prints all containers.
pub(crate) fn list(store: &Store, options: &List) -> Result<()> {
    let ids = store.list()?;
    if options.quiet {
        let names: Vec<&str> = ids.iter().map(ContainerId::as_str).collect();
        return if names.is_empty() {
            Ok(())
        } else {
            print(&names.join("\n"))
        };
    }
    let mut all = Vec::new();
    for id in &ids {
        // One may be removed meanwhile, and one that cannot be read must not hide the others.
        let Some(entry) = store.find(id) else {
            continue;
        };
        match entry.state().and_then(|state| state.shown(&entry)) {
            Ok(shown) => all.push(shown),
            Err(_) if store.find(id).is_none() => {}
            Err(error) => warn(&crate::one_line(&error)),
        }
    }
    match options.format {
        Format::Json => {
            let text = serde_json::to_string(&all).context("cannot write the list as JSON")?;
            print(&text)
        }
        Format::Table => print(&table(&all)),
    }
}

fn table(all: &[Shown]) -> String {
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    rows.extend(all.iter().map(|shown| {
        [
            shown.id.clone(),
            shown.pid.to_string(),
            shown.status.to_string(),
            shown.bundle.display().to_string(),
            shown.created.clone(),
            shown.owner.clone(),
        ]
    }));
    columns(&rows)
}

/// Rows with their columns under each other.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let cells: Vec<String> = row
                .iter()
                .zip(widths)
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            cells.join("   ").trim_end().to_owned()
        })
        .collect();
    lines.join("\n")
}

/// Prints a text; whoever reads may have enough before the end.
pub(crate) fn print(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot print"),
    }
}
