//! Checks of single request fields. Every refusal names the field by its path in the request and says what is legal.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use prost::Message;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::model::error::{Error, Reason, Result};
use crate::model::ids::{CLEAN, CheckpointId, InvalidId, LeaseId, VmId};
use crate::orchestrator::request::{Caller, RequestId, Target};

/// Longest of "for people" texts, in bytes.
pub(crate) const DISPLAY_NAME: usize = 128;
/// Longest description or purpose, in bytes.
pub(crate) const DESCRIPTION: usize = 256;
/// Longest path, in bytes (Linux's PATH_MAX).
pub(crate) const PATH: usize = 4096;

/// A message field that must be there.
pub(crate) fn required<T>(field: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Error::field(field, "is required"))
}

/// An id that a client may choose; empty: none.
pub(crate) fn id<I: FromStr<Err = InvalidId>>(field: &str, value: &str) -> Result<Option<I>> {
    if value.is_empty() {
        return Ok(None);
    }
    value.parse().map(Some).map_err(|error: InvalidId| Error::field(field, error.to_string()))
}

/// `{collection}/{id}`.
pub(crate) fn name<I: FromStr<Err = InvalidId>>(field: &str, collection: &str, value: &str) -> Result<I> {
    let form = || format!("{collection}/{{{}}}", collection.trim_end_matches('s'));
    if value.is_empty() {
        return Err(Error::field(field, format!("is required, in the form {}", form())));
    }
    let Some(id) = value.strip_prefix(collection).and_then(|rest| rest.strip_prefix('/')) else {
        return Err(Error::field(field, format!("{:?} is not of the form {}", cut(value), form())));
    };
    id.parse().map_err(|error: InvalidId| Error::field(field, format!("in {}: {error}", form())))
}

/// As [`name`]; empty: none.
pub(crate) fn optional_name<I: FromStr<Err = InvalidId>>(
    field: &str,
    collection: &str,
    value: &str,
) -> Result<Option<I>> {
    if value.is_empty() { Ok(None) } else { name(field, collection, value).map(Some) }
}

/// `vms/{vm}/checkpoints/{checkpoint}`, `clean` included.
pub(crate) fn checkpoint_name(field: &str, value: &str) -> Result<(VmId, String)> {
    const FORM: &str = "vms/{vm}/checkpoints/{checkpoint}";
    if value.is_empty() {
        return Err(Error::field(field, format!("is required, in the form {FORM}")));
    }
    let Some((vm, checkpoint)) = value.split_once("/checkpoints/") else {
        return Err(Error::field(field, format!("{:?} is not of the form {FORM}", cut(value))));
    };
    let vm = name(field, "vms", vm)?;
    if checkpoint != CLEAN {
        CheckpointId::new(checkpoint).map_err(|error| Error::field(field, format!("in {FORM}: {error}")))?;
    }
    Ok((vm, checkpoint.to_owned()))
}

/// `leases/{lease}` or `vms/{vm}`.
pub(crate) fn target(field: &str, value: &str) -> Result<Target> {
    if value.starts_with("leases/") {
        return name::<LeaseId>(field, "leases", value).map(Target::Lease);
    }
    if value.starts_with("vms/") {
        return name::<VmId>(field, "vms", value).map(Target::Vm);
    }
    let what = if value.is_empty() { "is required".into() } else { format!("{:?} is wrong", cut(value)) };
    Err(Error::field(field, format!("{what}; give leases/{{lease}} or vms/{{vm}}")))
}

/// A duration inside a range; absent: none.
pub(crate) fn duration(
    field: &str,
    value: Option<prost_types::Duration>,
    range: RangeInclusive<Duration>,
) -> Result<Option<Duration>> {
    let Some(value) = value else { return Ok(None) };
    let legal = || format!("from {} to {}", people(*range.start()), people(*range.end()));
    // Signs of both parts must agree, and the nanoseconds stay under a second.
    let (Ok(seconds), Ok(nanos @ 0..=999_999_999)) =
        (u64::try_from(value.seconds), u32::try_from(value.nanos))
    else {
        let what = if value.seconds < 0 || value.nanos < 0 { "negative" } else { "malformed" };
        return Err(Error::field(field, format!("a {what} duration; legal is {}", legal())));
    };
    let duration = Duration::new(seconds, nanos);
    if !range.contains(&duration) {
        return Err(Error::field(
            field,
            format!("{} is out of range; legal is {}", people(duration), legal()),
        ));
    }
    Ok(Some(duration))
}

/// A duration as people write it: `90 s`, `300 ms`, `24 h`.
fn people(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        _ if duration.is_zero() => "0 s".into(),
        _ if !duration.as_nanos().is_multiple_of(1_000_000) => format!("{} ns", duration.as_nanos()),
        _ if !millis.is_multiple_of(1000) => format!("{millis} ms"),
        _ if millis.is_multiple_of(3_600_000) => format!("{} h", millis / 3_600_000),
        _ => format!("{} s", millis / 1000),
    }
}

/// A UUID; empty: none.
pub(crate) fn uuid(field: &str, value: &str) -> Result<Option<Uuid>> {
    if value.is_empty() {
        return Ok(None);
    }
    let parsed = (value.len() == 36).then(|| Uuid::try_parse(value).ok()).flatten();
    parsed.map(Some).ok_or_else(|| {
        Error::field(field, format!("{:?} is no UUID; write 8-4-4-4-12 hexadecimal digits", cut(value)))
    })
}

/// What makes a repeat of this call safe: the client's `request_id`, bound to the caller, the method and the arguments.
pub(crate) fn request_id<M: Message + Clone>(
    caller: &Caller,
    method: &str,
    request: &M,
    id: impl Fn(&mut M) -> &mut String,
) -> Result<Option<RequestId>> {
    let mut bare = request.clone();
    let given = std::mem::take(id(&mut bare));
    let Some(uuid) = uuid("request_id", &given)? else { return Ok(None) };
    let mut hash = Sha256::new();
    for part in [caller.name.as_bytes(), method.as_bytes(), &bare.encode_to_vec()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    Ok(Some(RequestId { id: uuid, fingerprint: hex::encode(hash.finalize()) }))
}

/// Text with a limit on its bytes.
pub(crate) fn text<'a>(field: &str, value: &'a str, max: usize) -> Result<&'a str> {
    if value.len() > max {
        return Err(Error::field(field, format!("has {} bytes, at most {max} are allowed", value.len())));
    }
    if value.contains('\0') {
        return Err(Error::field(field, "must not contain the character U+0000"));
    }
    Ok(value)
}

/// As [`text`], and not empty.
pub(crate) fn required_text<'a>(field: &str, value: &'a str, max: usize) -> Result<&'a str> {
    if value.is_empty() {
        return Err(Error::field(field, "is required"));
    }
    text(field, value, max)
}

/// A number inside a range.
pub(crate) fn range<T: PartialOrd + Display + Copy>(
    field: &str,
    value: T,
    legal: RangeInclusive<T>,
) -> Result<T> {
    if legal.contains(&value) {
        return Ok(value);
    }
    Err(Error::field(
        field,
        format!("{value} is out of range; legal is {} to {}", legal.start(), legal.end()),
    ))
}

/// An enum value that this version knows. `name` gives a value's name in the proto.
pub(crate) fn one_of<E: TryFrom<i32>>(field: &str, value: i32, name: fn(&E) -> &'static str) -> Result<E> {
    // The proto numbers its values without gaps from 0, which means unspecified.
    let legal = || {
        let names: Vec<_> = (1..).map_while(|n| E::try_from(n).ok()).map(|e| name(&e)).collect();
        names.join(", ")
    };
    E::try_from(value)
        .map_err(|_| Error::field(field, format!("{value} is no value of this enum; legal are {}", legal())))
}

/// The version that an etag stands for; empty: any.
pub(crate) fn etag(value: &str) -> Result<Option<u64>> {
    if value.is_empty() {
        return Ok(None);
    }
    value.parse().map(Some).map_err(|_| {
        Error::new(Reason::StaleEtag, format!("etag {:?} is not the present one", cut(value)))
            .with("etag", cut(value))
    })
}

/// Outside text, short enough for a message.
pub(crate) fn cut(value: &str) -> String {
    value.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hvkube_proto::v1;

    fn refusal<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.expect_err("refused").to_string()
    }

    #[test]
    fn names_are_refused_with_their_form() {
        assert_eq!(name::<VmId>("name", "vms", "vms/a1").expect("legal").as_str(), "a1");
        assert_eq!(refusal(name::<VmId>("name", "vms", "")), "name: is required, in the form vms/{vm}");
        assert_eq!(
            refusal(name::<VmId>("name", "vms", "pools/a1")),
            r#"name: "pools/a1" is not of the form vms/{vm}"#
        );
        for bad in ["vms", "vms/", "vms/A", "vms/a1/b1", "vmsa1", "/vms/a1", "vms/../a1"] {
            assert!(name::<VmId>("name", "vms", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn checkpoints_may_be_clean() {
        let (vm, id) = checkpoint_name("name", "vms/a1/checkpoints/clean").expect("legal");
        assert_eq!((vm.as_str(), id.as_str()), ("a1", "clean"));
        for bad in ["", "vms/a1", "vms/a1/checkpoints/", "vms/a1/checkpoints/X", "a1/checkpoints/c1"] {
            assert!(refusal(checkpoint_name("name", bad)).starts_with("name: "), "{bad}");
        }
    }

    #[test]
    fn targets_are_leases_or_vms() {
        assert!(matches!(target("target", "vms/a1"), Ok(Target::Vm(_))));
        assert!(matches!(target("target", "leases/a1"), Ok(Target::Lease(_))));
        assert_eq!(
            refusal(target("target", "pools/a1")),
            r#"target: "pools/a1" is wrong; give leases/{lease} or vms/{vm}"#
        );
    }

    #[test]
    fn durations_have_a_sign_a_shape_and_a_range() {
        let legal = Duration::from_secs(10)..=Duration::from_secs(86_400);
        let of =
            |seconds, nanos| duration("ttl", Some(prost_types::Duration { seconds, nanos }), legal.clone());
        assert_eq!(of(10, 0).expect("legal"), Some(Duration::from_secs(10)));
        assert_eq!(refusal(of(-1, 0)), "ttl: a negative duration; legal is from 10 s to 24 h");
        assert_eq!(refusal(of(10, -1)), "ttl: a negative duration; legal is from 10 s to 24 h");
        assert_eq!(refusal(of(10, 1_000_000_000)), "ttl: a malformed duration; legal is from 10 s to 24 h");
        assert_eq!(refusal(of(9, 500_000_000)), "ttl: 9500 ms is out of range; legal is from 10 s to 24 h");
        assert!(of(i64::MAX, 999_999_999).is_err());
    }

    #[test]
    fn a_request_id_is_bound_to_caller_and_arguments() {
        let request = v1::ForkVmRequest {
            name: "vms/a1".into(),
            vm_id: String::new(),
            request_id: "7d444840-9dc0-11d1-b245-5ffdce74fad2".into(),
        };
        let of = |caller: &str, request: &v1::ForkVmRequest| {
            let caller = Caller { name: caller.into(), admin: false };
            request_id(&caller, "ForkVm", request, |r| &mut r.request_id).expect("legal").expect("given")
        };
        let first = of("a", &request);
        assert_eq!(first, of("a", &request));
        assert_ne!(first.fingerprint, of("b", &request).fingerprint);
        let other = v1::ForkVmRequest { vm_id: "b1".into(), ..request.clone() };
        assert_ne!(first.fingerprint, of("a", &other).fingerprint);
        assert!(refusal(uuid("request_id", "x")).starts_with("request_id: \"x\" is no UUID"));
        assert!(uuid("request_id", "{7d444840-9dc0-11d1-b245-5ffdce74fad2}").is_err());
    }

    #[test]
    fn unknown_enum_values_are_told_the_known_ones() {
        let text = refusal(one_of("mode", 9, v1::StopMode::as_str_name));
        assert_eq!(text, "mode: 9 is no value of this enum; legal are STOP_MODE_GRACEFUL, STOP_MODE_HARD");
        assert!(one_of("mode", 0, v1::StopMode::as_str_name).is_ok());
    }

    #[test]
    fn an_etag_we_never_gave_is_stale() {
        assert_eq!(etag("").expect("none"), None);
        assert_eq!(etag("7").expect("legal"), Some(7));
        assert_eq!(etag("x").expect_err("refused").reason, Reason::StaleEtag);
    }
}
