//! The public API, `hvkube.v1`, over gRPC.
//!
//! A call goes through the listener ([`serve`]), the token check (`auth`), the deadline (`deadline`), and then to one
//! service per file. A service checks the request's fields (`fields`, `page`), turns it into the domain's words
//! (`convert`), asks the orchestrator, and turns the answer back. It decides nothing itself. Errors of the domain become
//! statuses in `status` and nowhere else.

mod auth;
mod deadline;
mod fields;
mod page;
pub mod serve;
pub mod status;
pub mod tokens;
