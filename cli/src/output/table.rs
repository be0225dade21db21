//! Tables and full views for people.

use anstyle::{AnsiColor, Style};
use comfy_table::{ContentArrangement, Table, presets};

use crate::output::human;
use crate::output::{Level, Resource, Tone};

const BOLD: Style = Style::new().bold();

fn style(tone: Tone) -> Style {
    match tone {
        Tone::Good => AnsiColor::Green.on_default(),
        Tone::Busy => AnsiColor::Yellow.on_default(),
        Tone::Bad => AnsiColor::Red.on_default(),
        Tone::Plain => Style::new(),
    }
}

/// A table without lines, one row each. Never broken to the terminal's width: rows stay greppable.
pub(super) fn render<T: Resource>(items: &[&T], level: Level, header: bool) -> String {
    let columns: Vec<_> = T::columns().iter().filter(|column| column.level <= level).collect();
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    // The header is always laid out, so that rows of a watch keep their columns.
    table.set_header(columns.iter().map(|column| column.head));
    for item in items {
        table.add_row(columns.iter().map(|column| dash(one_line(&(column.value)(item)))));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    let mut lines = text.lines().map(str::trim_end);
    let head = lines.next().unwrap_or_default();
    let state = head.find("STATE");
    let mut out = String::new();
    if header {
        out.push_str(&format!("{BOLD}{head}{BOLD:#}\n"));
    }
    for (line, item) in lines.zip(items) {
        out.push_str(&paint(line, state, style(item.tone())));
        out.push('\n');
    }
    out
}

/// Colors the word that starts at a column. The table is laid out in plain text, since escape sequences have no width;
/// `STATE` comes before any column that may hold more than ASCII, so its byte offset is its position in each row.
fn paint(line: &str, start: Option<usize>, style: Style) -> String {
    match start.filter(|start| line.is_char_boundary(*start) && style != Style::new()) {
        Some(start) => {
            let (before, rest) = line.split_at(start);
            let (word, after) = rest.split_at(rest.find(' ').unwrap_or(rest.len()));
            format!("{before}{style}{word}{style:#}{after}")
        }
        None => line.to_owned(),
    }
}

/// All facts that are known, one a line.
pub(super) fn details<T: Resource>(item: &T, level: Level) -> String {
    // Detail facts are what a full view is for; `wide` adds nothing to it but the empty ones.
    let rows: Vec<(&str, String)> = T::columns()
        .iter()
        .map(|column| (column.head, (column.value)(item)))
        .filter(|(_, value)| level == Level::Detail || !value.is_empty())
        .collect();
    let width = rows.iter().map(|(head, _)| head.len()).max().unwrap_or_default();
    let mut out = String::new();
    for (head, value) in rows {
        let value = match head {
            "STATE" => format!("{0}{value}{0:#}", style(item.tone())),
            _ => dash(human::printable(&value).replace('\n', &format!("\n{:width$}  ", ""))),
        };
        out.push_str(&format!("{BOLD}{head:width$}{BOLD:#}  {value}\n"));
    }
    out
}

fn dash(value: String) -> String {
    if value.is_empty() { "-".to_owned() } else { value }
}

/// Text of guests and people may hold anything: keep it in its cell.
fn one_line(value: &str) -> String {
    human::printable(value)
        .split('\n')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(", ")
}
