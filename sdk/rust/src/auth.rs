//! The bearer token: how it rides on calls, and where it came from, so that a refusal can say where to look.

use std::fmt;
use std::path::PathBuf;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::error::{Error, Result};

/// Adds `authorization: Bearer …` to each call. Without a token it adds nothing.
#[derive(Clone, Default)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    /// Of a token; surrounding white space is dropped, an empty one means none.
    ///
    /// # Errors
    /// [`Error::Config`] when the token holds bytes that no header may have.
    pub fn new(token: &str) -> Result<Self> {
        let token = token.trim();
        if token.is_empty() {
            return Ok(Self(None));
        }
        let mut value = MetadataValue::try_from(format!("Bearer {token}"))
            .map_err(|_| Error::Config("the token holds characters that a header cannot carry".into()))?;
        // Keeps it out of the HTTP/2 header table and of debug output.
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Bearer(set)" } else { "Bearer(none)" })
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// Where a client's token came from. [`fmt::Display`] gives a phrase for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// Given to the builder.
    Given,
    /// The variable `HVKUBE_TOKEN`.
    Environment,
    /// This file.
    File(PathBuf),
    /// There is none: the file it was looked for in, and why that gave nothing.
    Missing(PathBuf, String),
    /// The local daemon's token is not sent to a host that is not this one.
    NotForThisHost,
}

impl fmt::Display for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given => f.write_str("the token that was given"),
            Self::Environment => f.write_str("the token in HVKUBE_TOKEN"),
            Self::File(path) => write!(f, "the token in {}", path.display()),
            Self::Missing(path, why) => write!(f, "no token ({}: {why})", path.display()),
            Self::NotForThisHost => {
                f.write_str("no token (a local token is only sent to loopback addresses)")
            }
        }
    }
}
