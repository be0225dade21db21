//! Secrets: values that are typed by name and shown to nobody.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::model::ids::{PoolId, SecretId};

/// Longest value, in bytes.
pub const MAX_VALUE: usize = 4096;
/// Most secrets of one daemon.
pub const MAX_SECRETS: usize = 1000;

/// A secret, without its value.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Secret {
    /// Id.
    pub id: SecretId,
    /// Never reused.
    pub uid: Uuid,
    /// For people.
    pub description: String,
    /// Into whose desktops it may be typed; empty: all.
    pub allowed_pools: Vec<PoolId>,
    /// Who may have it typed beside the admin; empty: everybody.
    pub allowed_callers: Vec<String>,
    /// When it was made, in whole microseconds.
    #[serde(with = "crate::model::agent::micros")]
    pub created: Timestamp,
    /// The request that made it.
    pub request: Option<Uuid>,
}

impl Secret {
    /// Whether a caller may have it typed into a desktop of this pool.
    #[must_use]
    pub fn allows(&self, caller: &str, admin: bool, pool: Option<&PoolId>) -> bool {
        let caller =
            admin || self.allowed_callers.is_empty() || self.allowed_callers.iter().any(|c| c == caller);
        let pool =
            self.allowed_pools.is_empty() || pool.is_some_and(|pool| self.allowed_pools.contains(pool));
        caller && pool
    }
}

/// A value. Wiped when the last copy is dropped, and shown by nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(Arc<Zeroizing<String>>);

impl SecretValue {
    /// Takes a value over.
    #[must_use]
    pub fn new(value: Zeroizing<String>) -> Self {
        Self(Arc::new(value))
    }

    /// The value, for whoever types or keeps it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue")
    }
}

/// Text to type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TypedText {
    /// As it is.
    Plain(String),
    /// That of a secret that has not been looked up: nobody can type it yet.
    Named(SecretId),
    /// That of a secret.
    Secret(SecretValue),
}

impl TypedText {
    /// What is typed; nothing where it is not known yet.
    #[must_use]
    pub fn expose(&self) -> Option<&str> {
        match self {
            Self::Plain(text) => Some(text),
            Self::Named(_) => None,
            Self::Secret(value) => Some(value.expose()),
        }
    }

    /// Whether nobody but the desktop may see it.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        !matches!(self, Self::Plain(_))
    }
}

impl From<&str> for TypedText {
    fn from(text: &str) -> Self {
        Self::Plain(text.to_owned())
    }
}

impl From<char> for TypedText {
    fn from(one: char) -> Self {
        Self::Plain(one.into())
    }
}

impl From<String> for TypedText {
    fn from(text: String) -> Self {
        Self::Plain(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(pools: &[&str], callers: &[&str]) -> Secret {
        Secret {
            id: SecretId::new("pw").expect("id"),
            uid: Uuid::nil(),
            description: String::new(),
            allowed_pools: pools.iter().map(|p| PoolId::new(*p).expect("id")).collect(),
            allowed_callers: callers.iter().map(|c| (*c).to_owned()).collect(),
            created: Timestamp::UNIX_EPOCH,
            request: None,
        }
    }

    #[test]
    fn pools_and_callers_are_both_asked() {
        let (web, mail) = (PoolId::new("web").expect("id"), PoolId::new("mail").expect("id"));
        assert!(secret(&[], &[]).allows("anybody", false, None));
        assert!(secret(&["web"], &[]).allows("anybody", false, Some(&web)));
        assert!(!secret(&["web"], &[]).allows("anybody", false, Some(&mail)));
        assert!(!secret(&["web"], &[]).allows("admin", true, None), "pools bind the admin too");
        assert!(secret(&[], &["ci"]).allows("ci", false, None));
        assert!(!secret(&[], &["ci"]).allows("other", false, None));
        assert!(secret(&[], &["ci"]).allows("admin", true, None));
    }

    #[test]
    fn a_value_is_shown_by_nothing() {
        let value = SecretValue::new(Zeroizing::new("hunter2".to_owned()));
        assert_eq!(value.expose(), "hunter2");
        assert_eq!(format!("{:?}", TypedText::Secret(value)), "Secret(SecretValue)");
    }
}
