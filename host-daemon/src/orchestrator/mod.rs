//! Placeholder doc.

pub mod request;
pub mod view;
