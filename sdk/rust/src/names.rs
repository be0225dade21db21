//! Resource names: people write `browser-pool`, the API wants `pools/browser-pool`.

/// Puts an id under its collection; a name that already has a `/` stays as it is.
///
/// ```
/// assert_eq!(hvkube_sdk::qualify("pools", "browser"), "pools/browser");
/// assert_eq!(hvkube_sdk::qualify("vms", "leases/l-1"), "leases/l-1");
/// ```
#[must_use]
pub fn qualify(collection: &str, id: &str) -> String {
    if id.contains('/') { id.to_owned() } else { format!("{collection}/{id}") }
}
