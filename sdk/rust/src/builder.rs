//! How a connection is made: endpoint, token, limits.

use std::env;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use tonic::transport::{Endpoint, Uri};

use crate::auth::{Bearer, TokenSource};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::local::{LocalDaemon, read_line};
use crate::retry::RetryPolicy;

/// Where a daemon listens unless it is told otherwise.
pub const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:7420";

/// Settings of a connection. What is not given is looked up when the connection is made:
///
/// | setting | looked up in |
/// | --- | --- |
/// | endpoint | `HVKUBE_ENDPOINT`, the file `endpoint` in the daemon's state directory, [`DEFAULT_ENDPOINT`] |
/// | token | `HVKUBE_TOKEN`, the file `admin.token` in the state directory (for loopback addresses only) |
/// | state directory | [`crate::state_dir`] |
#[derive(Clone, Debug, Default)]
pub struct ClientBuilder {
    endpoint: Option<String>,
    token: Option<Token>,
    state_dir: Option<PathBuf>,
    timeout: Option<Duration>,
    connect_timeout: Option<Duration>,
    retry: RetryPolicy,
}

#[derive(Clone)]
enum Token {
    Text(String),
    File(PathBuf),
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(..)"),
            Self::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

impl ClientBuilder {
    /// URL of the daemon, `http://HOST:PORT`; `HOST:PORT` means the same.
    #[must_use]
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoint = Some(url.into());
        self
    }

    /// The token itself.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(Token::Text(token.into()));
        self
    }

    /// A file that holds the token. Unlike one that is found, it must be there.
    #[must_use]
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.token = Some(Token::File(path.into()));
        self
    }

    /// State directory of the local daemon to look in, instead of [`crate::state_dir`].
    #[must_use]
    pub fn state_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(dir.into());
        self
    }

    /// Deadline of calls that answer at once; default 30 s. Calls that wait for something by their nature (moves of a
    /// VM, an acquire, a settling screen) get this on top of that wait.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long making the connection may take; default 5 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = Some(timeout);
        self
    }

    /// When calls are made again.
    #[must_use]
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Connects now.
    ///
    /// # Errors
    /// [`Error::Config`] for settings that make no sense, [`Error::Unreachable`] when nothing answers there.
    pub async fn connect(self) -> Result<Client> {
        let plan = self.plan()?;
        let channel = plan.endpoint.connect().await.map_err(|err| Error::Unreachable {
            endpoint: plan.url.clone(),
            source: innermost(&err).into(),
        })?;
        Ok(Client::assemble(channel, plan.bearer, plan.source, plan.url, plan.timeout, plan.retry))
    }

    /// Connects with the first call, and again whenever the connection is gone. Needs a Tokio runtime around it.
    ///
    /// # Errors
    /// [`Error::Config`] for settings that make no sense.
    pub fn connect_lazy(self) -> Result<Client> {
        let plan = self.plan()?;
        let channel = plan.endpoint.connect_lazy();
        Ok(Client::assemble(channel, plan.bearer, plan.source, plan.url, plan.timeout, plan.retry))
    }

    fn plan(self) -> Result<Plan> {
        let local = self.state_dir.as_deref().map_or_else(LocalDaemon::find, LocalDaemon::at);
        let url = self
            .endpoint
            .or_else(|| variable("HVKUBE_ENDPOINT"))
            .or_else(|| local.endpoint())
            .unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let uri = parse_endpoint(&url)?;
        let (token, source) = match self.token {
            Some(Token::Text(token)) => (token, TokenSource::Given),
            Some(Token::File(path)) => {
                let token = read_line(&path)
                    .map_err(|err| Error::io(format!("read the token file {}", path.display()), err))?;
                (token, TokenSource::File(path))
            }
            None => find_token(&local, &uri),
        };
        let url = uri.to_string().trim_end_matches('/').to_owned();
        let endpoint = Endpoint::from(uri)
            .connect_timeout(self.connect_timeout.unwrap_or(Duration::from_secs(5)))
            // A call that waits for minutes must notice a daemon that vanished without closing the connection.
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20))
            // The default 64 KiB costs a round trip per 64 KiB of screenshot.
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .user_agent(concat!("hvkube-sdk-rust/", env!("CARGO_PKG_VERSION")))
            .map_err(|err| Error::Config(err.to_string()))?;
        Ok(Plan {
            endpoint,
            bearer: Bearer::new(&token)?,
            source,
            url,
            timeout: self.timeout.unwrap_or(Duration::from_secs(30)),
            retry: self.retry,
        })
    }
}

struct Plan {
    endpoint: Endpoint,
    bearer: Bearer,
    source: TokenSource,
    url: String,
    timeout: Duration,
    retry: RetryPolicy,
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

fn find_token(local: &LocalDaemon, uri: &Uri) -> (String, TokenSource) {
    if let Some(token) = variable("HVKUBE_TOKEN") {
        return (token, TokenSource::Environment);
    }
    if !is_loopback(uri) {
        return (String::new(), TokenSource::NotForThisHost);
    }
    match local.token() {
        Ok(token) => (token, TokenSource::File(local.token_file.clone())),
        Err(err) => {
            let why = match err.kind() {
                std::io::ErrorKind::NotFound => "no such file".to_owned(),
                std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
                _ => err.to_string(),
            };
            (String::new(), TokenSource::Missing(local.token_file.clone(), why))
        }
    }
}

fn parse_endpoint(text: &str) -> Result<Uri> {
    let text = text.trim();
    let bad = |why: &str| Error::Config(format!("bad endpoint \"{text}\": {why}"));
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: Uri = full.parse().map_err(|_| bad("expected http://HOST:PORT"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => {
            return Err(bad("this version speaks http only; use a tunnel to reach another machine"));
        }
        _ => return Err(bad("expected http://HOST:PORT")),
    }
    if uri.host().is_none_or(str::is_empty) || uri.port_u16().is_none() {
        return Err(bad("expected http://HOST:PORT"));
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(bad("a path has no place here"));
    }
    Ok(uri)
}

fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The innermost text: what the operating system said.
fn innermost(err: &dyn std::error::Error) -> String {
    let mut err = err;
    while let Some(source) = err.source() {
        err = source;
    }
    err.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_urls_or_host_and_port() {
        for good in ["http://127.0.0.1:7420", "127.0.0.1:7420", "http://[::1]:7420/", " localhost:1 "] {
            assert!(parse_endpoint(good).is_ok_and(|uri| is_loopback(&uri)), "{good}");
        }
        for bad in ["", "http://", "https://h:1", "ftp://h:1", "h", "http://h:1/path", "http://h:99999"] {
            assert!(matches!(parse_endpoint(bad), Err(Error::Config(_))), "{bad}");
        }
        assert!(!is_loopback(&parse_endpoint("10.0.0.1:7420").expect("legal")));
    }

    #[test]
    fn found_token_goes_to_loopback_only() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let local = LocalDaemon::at(dir.path());
        std::fs::write(&local.token_file, "secret\n").expect("write");
        let near = find_token(&local, &parse_endpoint("127.0.0.1:1").expect("legal"));
        let far = find_token(&local, &parse_endpoint("10.0.0.1:1").expect("legal"));
        assert_eq!(near, ("secret".to_owned(), TokenSource::File(local.token_file.clone())));
        assert_eq!(far, (String::new(), TokenSource::NotForThisHost));
    }
}
