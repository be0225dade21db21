//! Domain types, legal state transitions and policies, as pure data and functions: no I/O, no proto, no SQL.

pub mod error;
pub mod ids;
pub mod input;
pub mod input_rules;
pub mod keys;
pub mod lease;
pub mod record;
pub mod screen;
pub mod template;
pub mod vm;
