//! Client of hyperv-kube: connect to a daemon, acquire a clean desktop, see it and drive it.
//!
//! Three layers, each usable without the one above it:
//!
//! ```text
//! Desktop   a lease that is renewed in the background and given back at the end
//!   Target  one desktop by name (`leases/x` or `vms/x`): screen, input, programs, files
//!     Client  a connection: typed calls of every service, paging, operations, errors
//! ```
//!
//! The generated clients under [`Client`] are reachable too ([`Client::vms`] and its siblings); they carry the token and
//! the message limits, but neither deadlines nor retries.
//!
//! ```no_run
//! use std::time::Duration;
//! use hvkube_sdk::{Client, Input, ReleasePolicy};
//!
//! # async fn example() -> Result<(), hvkube_sdk::Error> {
//! // Endpoint and token of the local daemon are found by themselves.
//! let client = Client::connect().await?;
//! let desktop = client.acquire("browser-pool").ttl(Duration::from_secs(600)).wait(Duration::from_secs(30)).await?;
//!
//! let done = desktop.act(Input::new().click(640, 400).text("hello").key("Return")).await?;
//! let picture = done.screenshot.map(|shot| shot.image);
//! println!("{} bytes of PNG", picture.map_or(0, |image| image.len()));
//!
//! let listing = desktop.exec(["ls", "-l"]).await?;
//! println!("{}", listing.stdout_lossy());
//! desktop.release(ReleasePolicy::Reset).await?;
//! # Ok(())
//! # }
//! ```
//!
//! **Retries.** A call that can be repeated without a second effect (reads, and whatever carries a request id) is
//! retried while the daemon cannot be reached. Input and programs are only retried when the connection was never made,
//! so no event is ever done twice. An error that the daemon itself answered is never retried. See [`RetryPolicy`].
//!
//! **Cancelling.** Dropping the future of a call cancels it at the daemon: an acquire gives its place in the queue back,
//! a program is killed, a file that was being written does not appear.

mod agents;
mod auth;
mod builder;
mod client;
pub mod desktop;
mod error;
mod hosts;
mod leases;
mod local;
mod names;
mod operations;
mod paging;
mod pools;
mod retry;
mod secrets;
mod templates;
mod vms;
mod watch;
mod worker;

pub use agents::agent_ended;
pub use auth::{Bearer, TokenSource};
pub use builder::{ClientBuilder, DEFAULT_ENDPOINT};
pub use client::{Client, Transport};
pub use desktop::{Acquire, Clipboard, Desktop, ExecOutput, Input, InputSink, LeaseLost, Target};
pub use error::{ApiError, Error, Result};
pub use local::{LocalDaemon, state_dir};
pub use names::qualify;
pub use operations::template_progress;
pub use retry::RetryPolicy;
pub use watch::Change;
pub use worker::{Done, Job, JobError, Worker};

pub use hvkube_proto::v1;
pub use hvkube_proto::v1::ReleasePolicy;
/// Exact decimal seconds and points in time as the API has them.
pub use prost_types::{Duration as ProtoDuration, Timestamp};
/// Status codes of gRPC, as [`Error::code`] gives them.
pub use tonic::Code;
