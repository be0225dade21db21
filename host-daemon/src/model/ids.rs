//! Identifiers of the things users name.
//!
//! An id is what stands behind the collection in a resource name (`vms/{vm}`): chosen by a client or made here, and
//! always `[a-z][a-z0-9-]{0,61}[a-z0-9]`. That shape is safe as a file name and as a hostname, which both are relied on.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Why a string is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{value:?} must be 2 to 63 characters of a-z, 0-9 and -, begin with a letter and end with a letter or digit"
)]
pub struct InvalidId {
    /// What was given, cut to 80 characters.
    pub value: String,
}

fn check(value: &str) -> Result<(), InvalidId> {
    let bytes = value.as_bytes();
    let legal = (2..=63).contains(&bytes.len())
        && bytes[0].is_ascii_lowercase()
        && bytes.last().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
    if legal { Ok(()) } else { Err(InvalidId { value: value.chars().take(80).collect() }) }
}

macro_rules! id {
    ($name:ident, $what:literal) => {
        #[doc = concat!("Id of a ", $what, ".")]
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        // Ids go into many maps, rows and messages: a clone is a count, no allocation.
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the shape.
            ///
            /// # Errors
            /// [`InvalidId`] for any other shape.
            pub fn new(value: impl Into<String>) -> Result<Self, InvalidId> {
                let value = value.into();
                check(&value)?;
                Ok(Self(value.into()))
            }

            /// The bare id.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(value: &str) -> Result<Self, InvalidId> {
                Self::new(value)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(value: String) -> Result<Self, InvalidId> {
                Self::new(value)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.as_ref().to_owned()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

id!(TemplateId, "template");
id!(PoolId, "pool");
id!(VmId, "VM");
id!(LeaseId, "lease");
id!(CheckpointId, "checkpoint");
id!(AgentId, "agent");
id!(SecretId, "secret");

/// The checkpoint every VM has: its template's settled desktop.
pub const CLEAN: &str = "clean";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_documented_shape_is_an_id() {
        for good in ["ab", "browser-pool-12", "a1", &format!("a{}", "b".repeat(62))] {
            assert!(VmId::new(good).is_ok(), "{good}");
        }
        for bad in
            ["", "a", "1a", "-a", "a-", "aB", "a_b", "a/b", "../x", "ä1", &"a".repeat(64), "a b", "a\n"]
        {
            assert!(VmId::new(bad).is_err(), "{bad:?}");
        }
    }
}
