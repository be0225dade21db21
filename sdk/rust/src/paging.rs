//! Lists as streams: the next page is asked for when the one before is used up.

use std::collections::VecDeque;
use std::future::Future;

use futures_util::stream::{self, Stream};

use crate::error::{Error, Result};

/// Streams the items of all pages. `fetch` gets a page token, empty at first, and gives items and the next token.
pub(crate) fn pages<T, F, Fut>(fetch: F) -> impl Stream<Item = Result<T>>
where
    F: Fn(String) -> Fut,
    Fut: Future<Output = Result<(Vec<T>, String)>>,
{
    struct State<T, F> {
        fetch: F,
        ready: VecDeque<T>,
        // The next page's token; `None` behind the last page.
        next: Option<String>,
    }
    let state = State { fetch, ready: VecDeque::new(), next: Some(String::new()) };
    stream::try_unfold(state, |mut state| async move {
        loop {
            if let Some(item) = state.ready.pop_front() {
                return Ok(Some((item, state)));
            }
            let Some(token) = state.next.take() else { return Ok(None) };
            let (items, next) = (state.fetch)(token.clone()).await?;
            // Else a broken daemon keeps its client going round for ever.
            if !next.is_empty() && next == token {
                return Err(Error::Protocol("a page follows itself"));
            }
            state.ready = items.into();
            state.next = Some(next).filter(|token| !token.is_empty());
        }
    })
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt as _;

    use super::*;

    #[tokio::test]
    async fn walks_all_pages_empty_ones_included() {
        let fetch = |token: String| async move {
            Ok(match token.as_str() {
                "" => (vec![1, 2], "a".to_owned()),
                "a" => (vec![], "b".to_owned()),
                "b" => (vec![3], String::new()),
                other => panic!("asked for page {other}"),
            })
        };
        let all: Vec<i32> = pages(fetch).try_collect().await.expect("three pages");
        assert_eq!(all, [1, 2, 3]);
    }

    #[tokio::test]
    async fn a_page_that_follows_itself_is_refused() {
        let endless = pages(|_| async { Ok((vec![1], "same".to_owned())) });
        let result: Result<Vec<i32>> = endless.try_collect().await;
        assert!(matches!(result, Err(Error::Protocol(_))));
    }
}
