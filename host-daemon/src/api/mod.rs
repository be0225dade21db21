//! The public API, `hvkube.v1`, over gRPC.
//!
//! A call goes through the listener ([`serve`]), the token check (`auth`), the deadline (`deadline`), and then to one
//! service per file. A service checks the request's fields (`fields`, `page`), turns it into the domain's words
//! (`convert`), asks the orchestrator, and turns the answer back. It decides nothing itself. Errors of the domain become
//! statuses in `status` and nowhere else.

mod acquire;
mod agent;
mod auth;
mod console;
mod convert;
mod deadline;
mod desktop;
mod fields;
mod guard;
mod health;
mod host;
mod input_stream;
mod lease;
mod operations;
mod page;
mod pictures;
mod pool;
mod router;
mod secret;
pub mod serve;
pub mod status;
mod template;
pub mod tokens;
mod vm;

#[cfg(test)]
mod tests;

pub(crate) use deadline::Stopping;
pub(crate) use router::{Api, Health};
