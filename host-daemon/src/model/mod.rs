//! Domain types, legal state transitions and policies, as pure data and functions: no I/O, no proto, no SQL.

pub mod agent;
pub mod breaker;
pub mod error;
pub mod event;
pub mod ids;
pub mod input;
pub mod input_rules;
pub mod keys;
pub mod lease;
pub mod mask;
pub mod policy;
pub mod query;
pub mod queue;
pub mod record;
pub mod screen;
pub mod secret;
pub mod template;
pub mod vm;

/// Network address of a VM: locally administered, unicast, and the same for the life of its uid.
#[must_use]
pub fn mac_address(uid: uuid::Uuid) -> [u8; 6] {
    let b = uid.as_bytes();
    // The last bytes of a uid are its random ones.
    [0x52, 0x54, b[12], b[13], b[14], b[15]]
}
