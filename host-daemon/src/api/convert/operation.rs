//! Operations, as `google.longrunning` wants them.

use hvkube_proto::google::longrunning::{Operation as Proto, operation::Result as ProtoResult};
use hvkube_proto::google::rpc;
use hvkube_proto::v1;
use prost::Message as _;
use tonic::Code;

use super::{any, template, timestamp};
use crate::api::{fields, status};
use crate::model::error::{Error, Reason, Result};
use crate::model::record::{Operation, Outcome, Template, Work};

/// `operations/{operation}`; the ids are the server's, so only their characters are checked.
pub(crate) fn id(name: &str) -> Result<&str> {
    const FORM: &str = "operations/{operation}";
    if name.is_empty() {
        return Err(Error::field("name", format!("is required, in the form {FORM}")));
    }
    name.strip_prefix("operations/")
        .filter(|id| (1..=100).contains(&id.len()))
        .filter(|id| id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'))
        .ok_or_else(|| Error::field("name", format!("{:?} is not of the form {FORM}", fields::cut(name))))
}

/// `template` is the one that the operation made, where it is done and the template still exists.
pub(crate) fn to_proto(operation: &Operation, made: Option<&Template>) -> Proto {
    let metadata = match &operation.work {
        Work::CreateTemplate(template) => any(
            "hvkube.v1.CreateTemplateMetadata",
            &v1::CreateTemplateMetadata {
                template: format!("templates/{template}"),
                phase: operation.phase.as_str().into(),
                progress_percent: operation.phase.percent(),
                create_time: Some(timestamp(operation.created)),
            },
        ),
        Work::BackupStore(backup) => any(
            "hvkube.v1.BackupStoreMetadata",
            &v1::BackupStoreMetadata {
                path: backup.path.clone(),
                phase: operation.phase.as_str().into(),
                create_time: Some(timestamp(operation.created)),
            },
        ),
    };
    Proto {
        name: format!("operations/{}", operation.id),
        metadata: Some(metadata),
        done: operation.outcome.is_some(),
        result: operation.outcome.as_ref().map(|outcome| result(operation, outcome, made)),
    }
}

fn result(operation: &Operation, outcome: &Outcome, made: Option<&Template>) -> ProtoResult {
    match (outcome, &operation.work, made) {
        (Outcome::Ready, Work::CreateTemplate(_), Some(made)) => {
            ProtoResult::Response(any("hvkube.v1.Template", &template::to_proto(made)))
        }
        (Outcome::Ready, Work::CreateTemplate(id), None) => {
            let message = format!("template {id} was made and deleted since");
            failed(&Error::new(Reason::NotFound, message).with("kind", "template").with("id", id))
        }
        (Outcome::Ready, Work::BackupStore(backup), _) => {
            let done = v1::BackupStoreResponse { path: backup.path.clone(), size_bytes: backup.size_bytes };
            ProtoResult::Response(any("hvkube.v1.BackupStoreResponse", &done))
        }
        (Outcome::Failed { reason, message }, work, _) => {
            let known = Reason::ALL.iter().find(|known| known.as_str() == reason);
            let reason = known.copied().unwrap_or(Reason::Internal);
            let error = Error::new(reason, message);
            // Logged when it happened, so not again.
            failed(&match work {
                Work::CreateTemplate(id) => error.with("template", id),
                Work::BackupStore(backup) => error.with("path", &backup.path),
            })
        }
        (Outcome::Cancelled, work, _) => ProtoResult::Error(rpc::Status {
            code: Code::Cancelled.into(),
            message: format!("{work} was cancelled"),
            details: Vec::new(),
        }),
    }
}

fn failed(error: &Error) -> ProtoResult {
    let status = status::quiet(error);
    // The details hold an encoded `google.rpc.Status`, as they go into the trailer.
    let full = rpc::Status::decode(status.details()).unwrap_or_default();
    ProtoResult::Error(rpc::Status {
        code: status.code().into(),
        message: status.message().into(),
        details: full.details,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::record::Phase;
    use jiff::Timestamp;

    fn operation(outcome: Option<Outcome>) -> Operation {
        Operation {
            id: "create-template-1".into(),
            work: Work::CreateTemplate("debian".parse().expect("an id")),
            phase: Phase::Booting,
            outcome,
            created: Timestamp::UNIX_EPOCH,
            updated: Timestamp::UNIX_EPOCH,
        }
    }

    fn error(proto: &Proto) -> &rpc::Status {
        match proto.result.as_ref().expect("done") {
            ProtoResult::Error(error) => error,
            ProtoResult::Response(_) => panic!("no error"),
        }
    }

    #[test]
    fn progress_is_in_the_metadata() {
        let proto = to_proto(&operation(None), None);
        assert!(!proto.done && proto.result.is_none());
        let metadata = proto.metadata.expect("metadata");
        assert_eq!(metadata.type_url, "type.googleapis.com/hvkube.v1.CreateTemplateMetadata");
        let metadata = v1::CreateTemplateMetadata::decode(&*metadata.value).expect("decodes");
        assert_eq!((metadata.phase.as_str(), metadata.progress_percent), ("BOOTING", 5));
    }

    #[test]
    fn a_failure_keeps_its_code_and_reason() {
        let outcome = Outcome::Failed { reason: "DISK_NOT_AN_IMAGE".into(), message: "no image".into() };
        let proto = to_proto(&operation(Some(outcome)), None);
        let failed = error(&proto);
        assert_eq!((failed.code, failed.message.as_str()), (i32::from(Code::InvalidArgument), "no image"));
        assert!(failed.details.iter().any(|any| any.type_url.ends_with("google.rpc.ErrorInfo")));
        let cancelled = to_proto(&operation(Some(Outcome::Cancelled)), None);
        assert_eq!(error(&cancelled).code, i32::from(Code::Cancelled));
    }

    #[test]
    fn names_have_a_form() {
        assert_eq!(id("operations/a-1").expect("legal"), "a-1");
        for bad in ["", "a-1", "operations/", "operations/../x", "operations/A"] {
            assert_eq!(id(bad).expect_err("refused").violations[0].field, "name", "{bad}");
        }
    }
}
