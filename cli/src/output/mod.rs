//! Resources on standard output.
//!
//! Each resource is described once, as a list of columns: lists show the first ones, `wide` more, and a single resource
//! all of them, one a line. JSON and YAML are the API's own JSON form.

mod agent;
pub(crate) mod human;
mod json;
mod parts;
mod resources;
mod table;

use std::io::{self, Write as _};

use prost::Message;

use crate::args::{Color, Format};

/// Where a column appears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// In each table.
    Table,
    /// In wide ones.
    Wide,
    /// Only where one resource is shown in full.
    Detail,
}

/// One fact about a resource.
pub(crate) struct Column<T> {
    pub(crate) head: &'static str,
    pub(crate) level: Level,
    pub(crate) value: fn(&T) -> String,
}

/// What the color of a resource's state says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Busy,
    Bad,
    Plain,
}

/// Something the API has by name.
pub(crate) trait Resource: Message + 'static {
    /// Full name of the message.
    const MESSAGE: &'static str;
    /// Name of a list of them, in JSON and for people.
    const PLURAL: &'static str;

    fn name(&self) -> &str;
    /// What a command takes it by.
    fn handle(&self) -> String {
        self.name().to_owned()
    }
    fn columns() -> &'static [Column<Self>]
    where
        Self: Sized;
    /// Tone of the column `STATE`.
    fn tone(&self) -> Tone {
        Tone::Plain
    }
}

/// Makes `--color` count for everything printed from now on.
pub(crate) fn choose_color(color: Color) {
    match color {
        // anstream looks at NO_COLOR, CLICOLOR and the terminal by itself.
        Color::Auto => {}
        Color::Always => anstream::ColorChoice::Always.write_global(),
        Color::Never => anstream::ColorChoice::Never.write_global(),
    }
}

/// Whether a format is read by people, who want notes, and not by programs.
pub(crate) fn is_for_people(format: Format) -> bool {
    matches!(format, Format::Table | Format::Wide)
}

/// Prints resources.
pub(crate) fn list<T: Resource>(items: &[T], format: Format) -> io::Result<()> {
    list_of(&items.iter().collect::<Vec<_>>(), format)
}

/// The same with items that are somebody else's.
pub(crate) fn list_of<T: Resource>(items: &[&T], format: Format) -> io::Result<()> {
    let text = match format {
        Format::Table => table::render(items, Level::Table, true),
        Format::Wide => table::render(items, Level::Wide, true),
        Format::Json => json::list(items, true)?,
        Format::Yaml => json::list(items, false)?,
        Format::Name => names(items),
    };
    write(&text)
}

/// Prints those that changed since the time before: rows, one JSON object a line, YAML documents.
pub(crate) fn changes<T: Resource>(items: &[&T], format: Format, header: bool) -> io::Result<()> {
    if items.is_empty() {
        return Ok(());
    }
    let text = match format {
        Format::Table => table::render(items, Level::Table, header),
        Format::Wide => table::render(items, Level::Wide, header),
        Format::Json => json::lines(items)?,
        Format::Yaml => json::documents(items)?,
        Format::Name => names(items),
    };
    write(&text)
}

/// Prints one resource in full.
pub(crate) fn one<T: Resource>(item: &T, format: Format) -> io::Result<()> {
    let text = match format {
        Format::Table => table::details(item, Level::Wide),
        Format::Wide => table::details(item, Level::Detail),
        Format::Json => json::one(item, true)?,
        Format::Yaml => json::one(item, false)?,
        Format::Name => names(&[item]),
    };
    write(&text)
}

/// Prints what a command made or moved: a row for people, else as [`one`].
pub(crate) fn result<T: Resource>(item: &T, format: Format) -> io::Result<()> {
    match format {
        Format::Table => write(&table::render(&[item], Level::Table, true)),
        Format::Wide => write(&table::render(&[item], Level::Wide, true)),
        _ => one(item, format),
    }
}

/// Prints text as it is.
pub(crate) fn write(text: &str) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn names<T: Resource>(items: &[&T]) -> String {
    items.iter().map(|item| format!("{}\n", item.handle())).collect()
}

pub(crate) use parts::Parts;
pub(crate) use resources::backup;

/// JSON of several resources under names of their own, for answers that hold more than one.
pub(crate) use json::{Named, together};
