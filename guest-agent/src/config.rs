//! The agent's configuration file, `/etc/hvkube/guest.toml`. Every key has a default, so a missing file is a valid one.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Where the supervisor looks when it is told nothing else.
pub const DEFAULT_PATH: &str = "/etc/hvkube/guest.toml";

/// What the agent can be told.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The user whose desktop this is; the worker runs as this user.
    pub desktop_user: String,
    /// X display of the desktop.
    pub display: String,
    /// File that the desktop session makes when its windows are up. With it a desktop is not shown to the host half
    /// drawn; unset: a display that answers is a desktop.
    pub ready_file: Option<PathBuf>,
    /// Which byte stream leads to the host.
    pub transport: TransportKind,
    /// Name of the virtio-serial port, as below `/dev/virtio-ports`.
    pub port_name: String,
    /// Port on the host (CID 2) for vsock.
    pub vsock_port: u32,
    /// Address of the host for TCP, `127.0.0.1:5555`.
    pub tcp_address: Option<String>,
    /// File with the secret for TCP: 64 hexadecimal digits.
    pub secret_file: Option<PathBuf>,
    /// Stamp of the golden image, told to the host as it is.
    pub image_stamp: PathBuf,
    /// Pid file of a DHCP client that renews its lease on `SIGUSR1`, as busybox's does. Unset: systemd-networkd is
    /// restarted when the network address has changed.
    pub dhcp_pid_file: Option<PathBuf>,
}

/// Choice of transport.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum TransportKind {
    /// The first that is there: virtio-serial, vsock, TCP.
    #[default]
    Auto,
    /// virtio-serial port.
    Virtio,
    /// `AF_VSOCK` to the host.
    Vsock,
    /// TCP with a secret.
    Tcp,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            desktop_user: "user".into(),
            display: ":0".into(),
            ready_file: None,
            transport: TransportKind::Auto,
            port_name: "dev.hvkube.agent".into(),
            vsock_port: 5005,
            tcp_address: None,
            secret_file: None,
            image_stamp: "/etc/hvkube/image.json".into(),
            dhcp_pid_file: None,
        }
    }
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is there but can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file isn't valid.
    #[error("{} is not a valid configuration", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<toml::de::Error>,
    },
    /// The secret isn't 32 bytes in hexadecimal.
    #[error("{} does not hold a secret of 64 hexadecimal digits", .0.display())]
    Secret(PathBuf),
}

impl Config {
    /// Reads `path`; a file that isn't there means the defaults.
    ///
    /// # Errors
    /// When the file can't be read or isn't valid.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text)
                .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
        }
    }
}

/// Reads a secret: 64 hexadecimal digits, white space around them ignored.
///
/// # Errors
/// When the file can't be read or holds something else.
pub fn read_secret(path: &Path) -> Result<[u8; 32], ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse_secret(text.trim()).ok_or_else(|| ConfigError::Secret(path.to_owned()))
}

fn parse_secret(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut out = [0; 32];
    for (byte, digits) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_means_the_defaults_and_unknown_keys_are_refused() {
        assert_eq!(Config::load(Path::new("/nonexistent/guest.toml")).expect("defaults"), Config::default());
        let config: Config = toml::from_str("desktop_user = \"tester\"\ntransport = \"tcp\"").expect("valid");
        assert_eq!((config.desktop_user.as_str(), config.transport), ("tester", TransportKind::Tcp));
        assert!(toml::from_str::<Config>("desktop_usr = \"x\"").is_err());
    }

    #[test]
    fn secrets_are_exactly_64_hex_digits() {
        assert_eq!(parse_secret(&"0f".repeat(32)), Some([0x0f; 32]));
        for bad in ["", "0f", &"0g".repeat(32), &"é".repeat(32)] {
            assert_eq!(parse_secret(bad), None, "{bad}");
        }
    }
}
