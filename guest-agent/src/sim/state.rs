//! What a guest remembers, in a form that can be kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// All of it. Copies share nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Gone after a power cycle.
    pub memory: Memory,
    /// Stays.
    #[serde(skip_serializing_if = "Disk::is_empty")]
    pub disk: Disk,
}

/// What is on the screen and in the minds of programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// In the text field.
    pub text: String,
    /// How often the button was pressed.
    pub count: u32,
    /// The text field has the focus.
    pub focused: bool,
    /// All of the text is selected: the next character replaces it.
    pub selected: bool,
    /// Where the pointer is.
    pub pointer: (i32, i32),
    /// Name of the machine.
    pub hostname: String,
    /// As in `/etc/machine-id`.
    pub machine_id: String,
    /// What was copied last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clipboard: Option<Clip>,
}

/// What the clipboard holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clip {
    /// Text.
    Text(String),
    /// A picture as PNG, in hexadecimal where it is kept.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    Png(Vec<u8>),
}

impl Default for Memory {
    /// As it is after a boot.
    fn default() -> Self {
        Self {
            text: String::new(),
            count: 0,
            focused: true,
            selected: false,
            pointer: (0, 0),
            hostname: "sim".into(),
            machine_id: String::new(),
            clipboard: None,
        }
    }
}

/// Files by absolute path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Disk {
    /// The files.
    pub files: BTreeMap<String, File>,
}

impl Disk {
    /// Whether there is no file.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Bytes in all files, names included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.files.iter().map(|(path, file)| path.len() + file.data.len()).sum()
    }
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Permission bits.
    pub mode: u32,
    /// Seconds since 1970 when it was last changed.
    pub modified: i64,
    /// Its bytes, in hexadecimal where they are kept.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub data: Vec<u8>,
}

fn to_hex<S: Serializer>(data: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(data))
}

fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    hex::decode(text).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_reads_back() {
        let mut state = State::default();
        state.memory.text = "a\nü".into();
        state.memory.clipboard = Some(Clip::Png(vec![1, 0xfe]));
        let file = File { mode: 0o600, modified: 7, data: vec![0, 255, b'"'] };
        state.disk.files.insert("/home/user/x".into(), file);
        let kept = serde_json::to_string(&state).expect("json");
        assert_eq!(serde_json::from_str::<State>(&kept).expect("read"), state);
        assert_eq!(serde_json::from_str::<State>("{}").expect("read"), State::default());
    }
}
