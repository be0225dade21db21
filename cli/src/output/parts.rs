//! A list that is too long to be held, written in parts as it comes. It looks as one that is written at once.

use std::io;

use super::{Level, Resource, json, names, table, write};
use crate::args::Format;

/// Rows in one part; the columns of a table are as wide as a part needs.
const PART: usize = 500;

/// The list. What was not written yet is by [`Parts::finish`].
pub(crate) struct Parts<T> {
    format: Format,
    held: Vec<T>,
    begun: bool,
}

impl<T: Resource> Parts<T> {
    pub(crate) fn new(format: Format) -> Self {
        Self { format, held: Vec::new(), begun: false }
    }

    /// Nothing was added so far.
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty() && !self.begun
    }

    pub(crate) fn push(&mut self, item: T) -> io::Result<()> {
        self.held.push(item);
        if self.held.len() < PART {
            return Ok(());
        }
        write(&self.part()?)
    }

    /// Writes what is left, and the list's end.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let whole = !self.begun;
        let mut text = String::new();
        if whole || !self.held.is_empty() {
            text.push_str(&self.part()?);
        }
        if self.format == Format::Json {
            text.push_str(if text == json_head::<T>() { "]\n}\n" } else { JSON_END });
        }
        write(&text)
    }

    /// What is held, as a part of the list.
    fn part(&mut self) -> io::Result<String> {
        let first = !std::mem::replace(&mut self.begun, true);
        let items: Vec<&T> = self.held.iter().collect();
        let text = match self.format {
            Format::Table => table::render(&items, Level::Table, first),
            Format::Wide => table::render(&items, Level::Wide, first),
            Format::Name => names(&items),
            Format::Yaml => {
                let text = json::list(&items, false)?;
                let rest = text.strip_prefix(&format!("{}:\n", T::PLURAL)).map(str::to_owned);
                if first { text } else { rest.unwrap_or(text) }
            }
            Format::Json if items.is_empty() => json_head::<T>(),
            Format::Json => {
                let text = json::list(&items, true)?;
                let text = text.strip_prefix(&json_head::<T>()).and_then(|text| text.strip_suffix(JSON_END));
                let rows = text.ok_or_else(|| io::Error::other("a list in JSON looks strange"))?;
                if first { format!("{}{rows}", json_head::<T>()) } else { format!(",{rows}") }
            }
        };
        self.held.clear();
        Ok(text)
    }
}

fn json_head<T: Resource>() -> String {
    format!("{{\n  \"{}\": [", T::PLURAL)
}

const JSON_END: &str = "\n  ]\n}\n";

#[cfg(test)]
mod tests {
    use hvkube_sdk::v1::Event;

    use super::*;

    #[test]
    fn parts_make_the_list_that_is_written_at_once() {
        let events: Vec<Event> =
            (0..3).map(|n| Event { revision: format!("r{n}"), ..Event::default() }).collect();
        let all: Vec<&Event> = events.iter().collect();
        for (format, whole) in [
            (Format::Json, json::list(&all, true).expect("text")),
            (Format::Yaml, json::list(&all, false).expect("text")),
            (Format::Table, table::render(&all, Level::Table, true)),
            (Format::Name, "r0\nr1\nr2\n".to_owned()),
        ] {
            let mut parts = Parts::new(format);
            let mut text = String::new();
            for event in events.clone() {
                parts.held.push(event);
                text.push_str(&parts.part().expect("text"));
            }
            text.push_str(if format == Format::Json { JSON_END } else { "" });
            assert_eq!(text, whole, "{format:?}");
        }
    }
}
