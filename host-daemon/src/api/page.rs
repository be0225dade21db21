//! Pages of lists, and the opaque tokens between them.
//!
//! A token says where the next page begins and which list and filter it belongs to, so that one from another list, or
//! from the same list with another filter, is refused instead of giving a page of something else.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use crate::model::error::{Error, Reason, Result};
use crate::orchestrator::request::Page;

const DEFAULT_SIZE: u32 = 100;
const MAX_SIZE: u32 = 1000;
const VERSION: u8 = 1;
/// More than any token that we give out.
const MAX_TOKEN: usize = 1024;

#[derive(serde::Serialize, serde::Deserialize)]
struct Token {
    #[serde(rename = "v")]
    version: u8,
    /// Names the list and its filter.
    #[serde(rename = "b")]
    binding: String,
    /// Last id of the page before.
    #[serde(rename = "a")]
    after: String,
}

/// A page that was asked for.
#[derive(Debug)]
pub(crate) struct Paging {
    binding: String,
    after: String,
    size: u32,
}

impl Paging {
    /// Checks `page_size` and `page_token`. `filter` is every argument that decides what is in the list.
    pub(crate) fn new(list: &str, filter: &[&str], page_size: i32, page_token: &str) -> Result<Self> {
        let size = match u32::try_from(page_size) {
            Err(_) => return Err(Error::field("page_size", format!("{page_size} is negative"))),
            Ok(0) => DEFAULT_SIZE,
            Ok(size) => size.min(MAX_SIZE),
        };
        let binding = binding(list, filter);
        let after = if page_token.is_empty() { String::new() } else { decode(page_token, &binding)? };
        Ok(Self { binding, after, size })
    }

    /// What to ask for: one row more than the page holds, which tells whether there is another page.
    pub(crate) fn page(&self) -> Page {
        Page { after: self.after.clone(), limit: self.size + 1 }
    }

    /// Cuts the rows to the page and makes the token of the next one; empty at the end.
    pub(crate) fn finish<T>(&self, mut rows: Vec<T>, id: impl Fn(&T) -> &str) -> (Vec<T>, String) {
        let size = self.size as usize;
        if rows.len() <= size {
            return (rows, String::new());
        }
        rows.truncate(size);
        let after = rows.last().map(id).unwrap_or_default().to_owned();
        let token = Token { version: VERSION, binding: self.binding.clone(), after };
        let json = serde_json::to_vec(&token).unwrap_or_default();
        (rows, URL_SAFE_NO_PAD.encode(json))
    }

    /// Cuts a page out of rows that are all there, sorted by id.
    pub(crate) fn of_all<T>(&self, rows: Vec<T>, id: impl Fn(&T) -> &str) -> (Vec<T>, String) {
        let limit = self.size as usize + 1;
        let rows = rows.into_iter().filter(|row| id(row) > self.after.as_str()).take(limit).collect();
        self.finish(rows, id)
    }
}

fn binding(list: &str, filter: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in std::iter::once(&list).chain(filter) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex::encode(&hash.finalize()[..6])
}

fn decode(token: &str, binding: &str) -> Result<String> {
    let refused = |why: &str| {
        Err(Error::new(Reason::InvalidPageToken, "")
            .violation("page_token", format!("{why}; list again without it")))
    };
    if token.len() > MAX_TOKEN {
        return refused("is none that was given out");
    }
    let decoded = URL_SAFE_NO_PAD.decode(token).ok();
    match decoded.and_then(|json| serde_json::from_slice::<Token>(&json).ok()) {
        Some(token) if token.version != VERSION => refused("is of another version of the daemon"),
        Some(token) if token.binding != binding => refused("belongs to another list or filter"),
        Some(token) => Ok(token.after),
        None => refused("is none that was given out"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next_of(list: &str, filter: &[&str]) -> String {
        let paging = Paging::new(list, filter, 2, "").expect("legal");
        assert_eq!(paging.page(), Page { after: String::new(), limit: 3 });
        let (rows, token) = paging.finish(vec!["a1", "b1", "c1"], |id| id);
        assert_eq!(rows, ["a1", "b1"]);
        token
    }

    #[test]
    fn a_token_goes_on_where_its_page_ended() {
        let token = next_of("ListVms", &["pool"]);
        let paging = Paging::new("ListVms", &["pool"], 5, &token).expect("legal");
        assert_eq!(paging.page(), Page { after: "b1".into(), limit: 6 });
        assert_eq!(paging.of_all(vec!["a1", "b1", "c1"], |id| id), (vec!["c1"], String::new()));
    }

    #[test]
    fn tokens_of_other_lists_and_filters_are_refused() {
        let token = next_of("ListVms", &["pool"]);
        for (list, filter, token) in [
            ("ListPools", &["pool"][..], token.as_str()),
            ("ListVms", &["other"], &token),
            ("ListVms", &[], &token),
            ("ListVms", &["pool"], "nonsense"),
            ("ListVms", &["pool"], "!"),
            ("ListVms", &["pool"], &token[1..]),
            ("ListVms", &["pool"], &"a".repeat(5000)),
        ] {
            let error = Paging::new(list, filter, 0, token).expect_err("refused");
            assert_eq!(error.reason, Reason::InvalidPageToken);
            assert_eq!(error.violations[0].field, "page_token");
        }
    }

    #[test]
    fn sizes_are_coerced_but_never_negative() {
        let limit = |size| Paging::new("L", &[], size, "").map(|p| p.page().limit);
        assert_eq!(limit(0).expect("legal"), 101);
        assert_eq!(limit(i32::MAX).expect("legal"), 1001);
        assert_eq!(limit(-1).expect_err("refused").to_string(), "page_size: -1 is negative");
    }
}
