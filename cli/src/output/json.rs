//! The API's JSON form, from the descriptors that the daemon's reflection serves too: camelCase, enums by name, 64-bit
//! numbers as strings, fields in the order of the proto, unset ones left out.

use std::io;
use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, DynamicMessage};
use serde::ser::{Serialize, SerializeMap as _, Serializer};

use crate::output::Resource;

static POOL: LazyLock<Option<DescriptorPool>> =
    LazyLock::new(|| DescriptorPool::decode(hvkube_proto::FILE_DESCRIPTOR_SET).ok());

/// A message that knows its descriptor.
fn dynamic<T: Resource>(item: &T) -> io::Result<DynamicMessage> {
    let pool = POOL.as_ref().ok_or_else(|| io::Error::other("the API's descriptors are broken"))?;
    let descriptor = pool
        .get_message_by_name(T::MESSAGE)
        .ok_or_else(|| io::Error::other(format!("no message {} in the API's descriptors", T::MESSAGE)))?;
    DynamicMessage::decode(descriptor, item.encode_to_vec().as_slice()).map_err(io::Error::other)
}

/// `{"vms": [..]}`; an empty list is there too.
struct Listing<'a> {
    key: &'a str,
    items: &'a [DynamicMessage],
}

impl Serialize for Listing<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(self.key, self.items)?;
        map.end()
    }
}

fn text(value: &impl Serialize, json: bool) -> io::Result<String> {
    if json {
        let mut text = serde_json::to_string_pretty(value)?;
        text.push('\n');
        Ok(text)
    } else {
        serde_yaml_ng::to_string(value).map_err(io::Error::other)
    }
}

pub(super) fn one<T: Resource>(item: &T, json: bool) -> io::Result<String> {
    text(&dynamic(item)?, json)
}

pub(super) fn list<T: Resource>(items: &[&T], json: bool) -> io::Result<String> {
    let items = items.iter().map(|item| dynamic(*item)).collect::<io::Result<Vec<_>>>()?;
    text(&Listing { key: T::PLURAL, items: &items }, json)
}

/// One object a line.
pub(super) fn lines<T: Resource>(items: &[&T]) -> io::Result<String> {
    items.iter().map(|item| Ok(format!("{}\n", serde_json::to_string(&dynamic(*item)?)?))).collect()
}

/// One document each.
pub(super) fn documents<T: Resource>(items: &[&T]) -> io::Result<String> {
    items.iter().map(|item| Ok(format!("---\n{}", one(*item, false)?))).collect()
}

/// A resource under a key.
pub(crate) struct Named(&'static str, DynamicMessage);

impl Named {
    pub(crate) fn new<T: Resource>(key: &'static str, item: &T) -> io::Result<Self> {
        Ok(Self(key, dynamic(item)?))
    }
}

impl Serialize for Named {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.1.serialize(serializer)
    }
}

struct Together<'a>(&'a [Named]);

impl Serialize for Together<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|named| (named.0, named)))
    }
}

/// One object with all of them.
pub(crate) fn together(items: &[Named], json: bool) -> io::Result<String> {
    text(&Together(items), json)
}
