//! What the end-to-end tests share: the real daemon on a state directory of its own, the golden image, a deadline for
//! everything that is waited for.
//!
//! A test gets one [`Rig`]: a daemon with a template that was prepared once, since a boot under emulation takes most of
//! a minute. Its scenarios run one after the other, each on a pool of its own, and are named in the output. When one
//! fails the daemon's log is printed; whatever happens, no process of that daemon is left.

mod daemon;
mod image;
mod programs;
mod rig;
mod viewer;

use std::time::Duration;

pub use daemon::Daemon;
pub use image::GoldenImage;
pub use programs::{grpcurl, program};
pub use rig::{Rig, make_template, timed};
pub use viewer::{Console, Viewer};

/// Nothing takes so long unless it is stuck; generous, since two cores may be shared with compilers.
pub const LONG: Duration = Duration::from_secs(120);

/// Looks until there is something; says what was missing when it is not there in time.
///
/// # Panics
/// After [`LONG`].
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    match tokio::time::timeout(LONG, looking).await {
        Ok(found) => found,
        Err(_) => panic!("not in time: {what}"),
    }
}

/// Asserts an error's reason, code and, if named, its field.
///
/// # Panics
/// When it is another one, or none.
pub fn refused<T: std::fmt::Debug>(
    result: hvkube_sdk::Result<T>,
    code: hvkube_sdk::Code,
    reason: &str,
    field: Option<&str>,
) -> hvkube_sdk::Error {
    let error = result.expect_err(reason);
    assert_eq!((error.code(), error.reason()), (code, Some(reason)), "{error}");
    if let Some(field) = field {
        let violations = error.api().map(hvkube_sdk::ApiError::field_violations).unwrap_or_default();
        assert!(violations.iter().any(|one| one.field == field), "{field} is not in {violations:?}");
    }
    error
}
