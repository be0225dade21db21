//! Who asked for what is being done, for the events that come of it.
//!
//! The name goes along with the task that serves a call, and from there with each command into a VM's actor, so that the
//! many ways between the two need not hand it on. What nobody asked for was done by the daemon: no name.

use std::sync::Arc;

tokio::task_local! {
    static ASKER: Arc<str>;
}

/// Does something in the name of a caller.
pub async fn asked_by<F: Future>(name: &str, work: F) -> F::Output {
    ASKER.scope(name.into(), work).await
}

/// In whose name this task works; empty: the daemon's.
pub(super) fn asker() -> Arc<str> {
    ASKER.try_with(Arc::clone).unwrap_or_default()
}
