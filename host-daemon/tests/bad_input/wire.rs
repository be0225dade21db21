//! Calls of any method with any body, as the descriptors describe them; and the little world that the calls are about.

use bytes::{Buf as _, BufMut as _, Bytes};
use http::uri::PathAndQuery;
use hvkube_host::daemon::Daemon;
use hvkube_proto::FILE_DESCRIPTOR_SET;
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, MethodDescriptor,
    Value as Reflected,
};
use serde_json::{Value, json};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::table::Stage;

/// What a call was answered.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    pub(crate) reason: String,
    fields: Vec<String>,
    #[expect(dead_code, reason = "for those who read of a finding")]
    message: String,
}

impl Refusal {
    /// Names this field, or an element of it.
    pub(crate) fn names(&self, path: &str) -> bool {
        self.code == Code::InvalidArgument
            && self.fields.iter().any(|field| {
                field.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('['))
            })
    }

    /// Names this field or the one it is part of: a point, not its x.
    pub(crate) fn around(&self, path: &str) -> bool {
        self.code == Code::InvalidArgument
            && self.fields.iter().any(|field| {
                path.strip_prefix(field.as_str())
                    .is_some_and(|rest| rest.starts_with(['.', '[']) || rest.is_empty())
            })
    }
}

/// A connection to a daemon as its admin.
pub(crate) struct Wire {
    channel: Channel,
    token: String,
    descriptors: DescriptorPool,
}

impl Wire {
    pub(crate) async fn to(daemon: &Daemon) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{}", daemon.address())).expect("an address");
        let token = std::fs::read_to_string(daemon.config().state_dir.join("admin.token")).expect("written");
        Self {
            channel: endpoint.connect().await.expect("listening"),
            token: token.trim().to_owned(),
            descriptors: DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("descriptors"),
        }
    }

    /// Every method of the API.
    pub(crate) fn methods(&self) -> Vec<MethodDescriptor> {
        let services = self.descriptors.services().filter(|service| {
            let name = service.full_name();
            name.starts_with("hvkube.v1.") || name == "google.longrunning.Operations"
        });
        services.flat_map(|service| service.methods().collect::<Vec<_>>()).collect()
    }

    /// Calls a method; of a stream that begins, its first message is the answer.
    pub(crate) async fn call(&self, method: &MethodDescriptor, body: &Value) -> Refusal {
        let status = self.answer(method, body).await.err().unwrap_or_else(|| Status::ok("accepted"));
        let violations = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
        Refusal {
            code: status.code(),
            reason: status.get_details_error_info().map(|info| info.reason).unwrap_or_default(),
            fields: violations.into_iter().map(|violation| violation.field).collect(),
            message: status.message().to_owned(),
        }
    }

    async fn answer(&self, method: &MethodDescriptor, body: &Value) -> Result<DynamicMessage, Status> {
        let message = to_message(&method.input(), body).encode_to_vec();
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let path = PathAndQuery::try_from(path).expect("legal");
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut request = Request::new(tokio_stream::once(Bytes::from(message)));
        let header = format!("Bearer {}", self.token).parse().expect("legal");
        request.metadata_mut().insert("authorization", header);
        let mut answers = grpc.streaming(request, path, Raw).await?.into_inner();
        let answer = answers.message().await?.unwrap_or_default();
        let answer = DynamicMessage::decode(method.output(), answer).expect("of its type");
        if !method.is_server_streaming() {
            // The status of a unary call comes behind its message.
            answers.message().await?;
        }
        Ok(answer)
    }

    async fn made(&self, service: &str, method: &str, body: Value) -> DynamicMessage {
        let service = self.descriptors.get_service_by_name(service).expect("a service");
        let method = service.methods().find(|known| known.name() == method).expect("a method");
        self.answer(&method, &body)
            .await
            .unwrap_or_else(|status| panic!("{}: {status:?}", method.full_name()))
    }

    /// A template, a pool, a lease, and an agent that a worker has.
    pub(crate) async fn stage(&self) -> Stage {
        let template =
            json!({"source": {"disk_path": "/no/such/disk"}, "display": {"width": 640, "height": 400}});
        let create = json!({"template_id": "tiny", "template": template});
        let operation = self.made("hvkube.v1.TemplateService", "CreateTemplate", create).await;
        let wait = json!({"name": text(&operation, "name"), "timeout": {"seconds": 60}});
        let done = self.made("google.longrunning.Operations", "WaitOperation", wait).await;
        assert_eq!(done.get_field_by_name("done").and_then(|done| done.as_bool()), Some(true), "{done}");
        let pool = json!({"template": "templates/tiny", "desired_count": 2});
        self.made("hvkube.v1.PoolService", "CreatePool", json!({"pool_id": "desk", "pool": pool})).await;
        let acquire = json!({"pool": "pools/desk", "wait": {"seconds": 60}});
        let acquired = self.made("hvkube.v1.LeaseService", "AcquireVm", acquire).await;
        let lease = acquired.get_field_by_name("lease").expect("a lease").into_owned();
        let task = json!({"pool": "pools/desk", "task": {"workflow": "errand"}});
        let submit = json!({"agent_id": "errand", "agent": task});
        self.made("hvkube.v1.AgentService", "SubmitAgent", submit).await;
        let claim = json!({"workflow": "errand", "wait": {"seconds": 60}, "claim_ttl": {"seconds": 3600}});
        let claimed = self.made("hvkube.v1.AgentService", "ClaimAgent", claim).await;
        let epoch = claimed.get_field_by_name("epoch").and_then(|epoch| epoch.as_u64());
        Stage {
            lease: text(lease.as_message().expect("a message"), "name"),
            agent: "agents/errand".into(),
            epoch: epoch.filter(|epoch| *epoch > 0).expect("an epoch"),
        }
    }

    /// Names of all there is.
    pub(crate) async fn everything(&self) -> Vec<String> {
        let mut names = Vec::new();
        for (service, method, list) in [
            ("TemplateService", "ListTemplates", "templates"),
            ("PoolService", "ListPools", "pools"),
            ("VmService", "ListVms", "vms"),
            ("LeaseService", "ListLeases", "leases"),
            ("AgentService", "ListAgents", "agents"),
        ] {
            let answer = self.made(&format!("hvkube.v1.{service}"), method, json!({})).await;
            let rows = answer.get_field_by_name(list).expect("a list").into_owned();
            let rows = rows.as_list().expect("a list").iter();
            names.extend(rows.map(|row| text(row.as_message().expect("a message"), "name")));
        }
        names
    }
}

fn text(message: &DynamicMessage, field: &str) -> String {
    let value = message.get_field_by_name(field).expect("a field");
    value.as_str().expect("text").to_owned()
}

/// Numbers go in as they are, so that what a well-behaved client could not even write is tried too.
fn to_message(descriptor: &MessageDescriptor, body: &Value) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    for (name, value) in body.as_object().into_iter().flatten() {
        let field = descriptor.get_field_by_name(name);
        let field = field.unwrap_or_else(|| panic!("{} has no {name}", descriptor.name()));
        message.set_field(&field, to_field(&field, value));
    }
    message
}

fn to_field(field: &FieldDescriptor, value: &Value) -> Reflected {
    if field.is_map() {
        let entries = value.as_object().expect("an object").iter();
        let text = |value: &Value| Reflected::String(value.as_str().expect("text").to_owned());
        return Reflected::Map(entries.map(|(k, v)| (MapKey::String(k.clone()), text(v))).collect());
    }
    if field.is_list() {
        let elements = value.as_array().expect("a list").iter();
        return Reflected::List(elements.map(|element| to_value(&field.kind(), element)).collect());
    }
    to_value(&field.kind(), value)
}

fn to_value(kind: &Kind, value: &Value) -> Reflected {
    let signed = || value.as_i64().unwrap_or_else(|| panic!("{value} is no number"));
    let unsigned = || value.as_u64().unwrap_or_else(|| panic!("{value} is no number"));
    match kind {
        Kind::Message(inner) => Reflected::Message(to_message(inner, value)),
        Kind::String => Reflected::String(value.as_str().expect("text").to_owned()),
        Kind::Bytes => Reflected::Bytes(value.as_str().expect("text").to_owned().into()),
        Kind::Bool => Reflected::Bool(value.as_bool().expect("true or false")),
        Kind::Int32 => Reflected::I32(i32::try_from(signed()).expect("32 bits")),
        Kind::Int64 => Reflected::I64(signed()),
        Kind::Uint32 => Reflected::U32(u32::try_from(unsigned()).expect("32 bits")),
        Kind::Uint64 => Reflected::U64(unsigned()),
        Kind::Enum(_) => Reflected::EnumNumber(i32::try_from(signed()).expect("32 bits")),
        Kind::Double if value.as_str() == Some("NaN") => Reflected::F64(f64::NAN),
        Kind::Double => Reflected::F64(value.as_f64().expect("a number")),
        other => panic!("no request had a field of kind {other:?} before"),
    }
}

/// Messages as the bytes they are.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
