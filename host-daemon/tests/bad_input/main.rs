//! Each field of each request of each method, wrong and extreme, is refused with its field named, by the real daemon.
//!
//! The API's own descriptors say what there is: the walk goes through every service, method and request field, and looks
//! each one up in [`table`]. A field that the table does not have fails the test, as does an entry that no field uses, so
//! whoever adds a field says here what is wrong with it.

mod table;
mod wire;

use std::collections::BTreeSet;
use std::time::Duration;

use hvkube_host::config::{Config, Dirs, HypervisorKind};
use hvkube_host::daemon::Daemon;
use hvkube_host::hypervisor::sim::Profile;
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor, Value as Reflected};
use serde_json::{Value, json};
use tonic::Code;

use table::{Entry, Wrong};
use wire::{Refusal, Wire};

#[tokio::test(flavor = "multi_thread")]
async fn each_field_of_each_request_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("dir");
    let mut config = Config::defaults(dir.path());
    config.listen = "127.0.0.1:0".parse().expect("an address");
    config.hypervisor = HypervisorKind::Sim;
    config.sim.profile = Profile::Instant;
    config.orchestrator.settle_quiet = Duration::from_millis(50);
    config.resolve(&Dirs { run_base: None, ..Dirs::system() });
    let daemon = Daemon::start(config).await.expect("started");
    let wire = Wire::to(&daemon).await;
    let stage = wire.stage().await;
    let before = wire.everything().await;

    let mut walk = Walk { wire: &wire, stage: &stage, used: BTreeSet::new(), wrong: Vec::new(), calls: 0 };
    let (mut methods, mut fields) = (0, 0);
    for method in wire.methods() {
        methods += 1;
        fields += walk.method(&method).await;
    }
    let Walk { used, mut wrong, calls, .. } = walk;
    let stale = table::ENTRIES.iter().filter(|entry| !used.contains(entry.key));
    wrong.extend(stale.map(|entry| format!("{} is in the table, and no request has it", entry.key)));
    println!("{methods} methods, {fields} fields, {calls} calls refused");
    assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(wire.everything().await, before, "nothing half-made, nothing lost");
    daemon.stop().await;
}

struct Walk<'a> {
    wire: &'a Wire,
    /// Base requests, with the names of what exists filled in.
    stage: &'a table::Stage,
    used: BTreeSet<&'static str>,
    wrong: Vec<String>,
    calls: usize,
}

/// A field on the way down into a request.
struct Place<'a> {
    method: &'a MethodDescriptor,
    /// As refusals name it, with indices.
    path: String,
    /// The request in which it is changed.
    base: Value,
    field: FieldDescriptor,
}

impl Walk<'_> {
    /// Walks through one method's request; gives the number of its fields.
    async fn method(&mut self, method: &MethodDescriptor) -> usize {
        let input = method.input();
        let base = self.stage.base(input.name());
        let mut open: Vec<(String, Value, MessageDescriptor)> = vec![(String::new(), base, input.clone())];
        let mut count = 0;
        while let Some((prefix, base, message)) = open.pop() {
            for field in message.fields() {
                let path = format!("{prefix}{}", field.name());
                let place = Place { method, path, base: base.clone(), field };
                if let Some(inner) = self.field(&place).await {
                    open.push(inner);
                }
                count += 1;
            }
        }
        for (request, changes, field) in table::together(input.name()) {
            let mut body = self.stage.base(request);
            for (path, value) in changes {
                put(&mut body, path, value);
            }
            self.refused(method, &body, |refusal| refusal.names(field), field).await;
        }
        count
    }

    /// Tries what is wrong for a field; gives the message inside it, if it has one.
    async fn field(&mut self, place: &Place<'_>) -> Option<(String, Value, MessageDescriptor)> {
        let Place { method, path, base, field } = place;
        let request = method.input();
        let named = format!("{}{path}", table::prefix(request.name()));
        let entry = table::find(request.name(), path, field);
        if let Some(entry) = entry {
            self.used.insert(entry.key);
            self.entry(place, entry).await;
        }
        // A field that the server alone writes is ignored in what a client sends.
        let behaviours = behaviours(field);
        if entry.is_none() && (behaviours.contains(&OUTPUT_ONLY) || behaviours.contains(&IDENTIFIER)) {
            return None;
        }
        if behaviours.contains(&REQUIRED) && !entry.is_some_and(|entry| entry.key.contains(':')) {
            let mut body = base.clone();
            remove(&mut body, path);
            self.refused(method, &body, |refusal| refusal.names(&named), &format!("{path} absent")).await;
        }
        match field.kind() {
            // Both values of a switch are legal.
            Kind::Bool => None,
            Kind::Message(inner) if !field.is_map() && !is_value(&inner) => {
                let element = if field.is_list() { format!("{path}[0]") } else { path.clone() };
                let mut base = base.clone();
                // What the request's base says of it is kept.
                if get(&base, &element).is_none() {
                    fill(&mut base, &element, self.stage.base(inner.name()), field);
                }
                Some((format!("{element}."), base, inner))
            }
            _ => {
                if entry.is_none() {
                    let what =
                        format!("{}: {path} ({}) is not in the table", request.name(), field.full_name());
                    self.wrong.push(what);
                }
                None
            }
        }
    }

    async fn entry(&mut self, place: &Place<'_>, entry: &Entry) {
        let Place { method, path, base, .. } = place;
        let named = format!("{}{path}", table::prefix(method.input().name()));
        for value in (entry.values)() {
            let mut body = base.clone();
            fill(&mut body, path, value.clone(), &place.field);
            let what = || format!("{path} = {}", short(&value));
            match entry.wrong {
                Wrong::Field => self.refused(method, &body, |refusal| refusal.names(&named), &what()).await,
                Wrong::Around => self.refused(method, &body, |refusal| refusal.around(&named), &what()).await,
                Wrong::Named(field) => {
                    self.refused(method, &body, |refusal| refusal.names(field), &what()).await;
                }
                Wrong::Stale => {
                    let stale =
                        |refusal: &Refusal| refusal.code == Code::Aborted && refusal.reason == "STALE_ETAG";
                    self.refused(method, &body, stale, &what()).await;
                }
                Wrong::Unknown(reason) => {
                    self.refused(method, &body, |refusal| refusal.reason == reason, &what()).await;
                }
                Wrong::Nothing => {
                    let answer = self.wire.call(method, &body).await;
                    let fine = !matches!(answer.code, Code::Internal | Code::Unknown | Code::InvalidArgument);
                    if !fine {
                        self.wrong.push(format!("{}: {} is legal: {answer:?}", method.full_name(), what()));
                    }
                }
            }
        }
    }

    async fn refused(
        &mut self,
        method: &MethodDescriptor,
        body: &Value,
        right: impl Fn(&Refusal) -> bool,
        what: &str,
    ) {
        let answer = self.wire.call(method, body).await;
        self.calls += 1;
        if !right(&answer) {
            self.wrong.push(format!("{}: {what}: {answer:?}", method.full_name()));
        }
    }
}

/// Values of `google.api.FieldBehavior`.
const REQUIRED: i32 = 2;
const OUTPUT_ONLY: i32 = 3;
const IDENTIFIER: i32 = 8;

fn behaviours(field: &FieldDescriptor) -> Vec<i32> {
    let options = field.options();
    let pool = field.parent_pool();
    let extension = pool.get_extension_by_name("google.api.field_behavior").expect("in the descriptors");
    let list = options.get_extension(&extension).into_owned();
    let list = list.as_list().map(<[Reflected]>::to_vec).unwrap_or_default();
    list.iter().filter_map(Reflected::as_enum_number).collect()
}

/// A message that stands for one value.
fn is_value(message: &MessageDescriptor) -> bool {
    matches!(message.full_name(), "google.protobuf.Duration" | "google.protobuf.Timestamp")
}

/// Puts a value at a path, where one variant of a oneof takes the place of the others.
fn fill(body: &mut Value, path: &str, value: Value, field: &FieldDescriptor) {
    let present = get(body, path).is_some();
    if let (Some(oneof), false) = (field.containing_oneof(), present) {
        let parent = path.rsplit_once('.').map(|(parent, _)| parent).unwrap_or_default();
        for other in oneof.fields() {
            let at = if parent.is_empty() {
                other.name().to_owned()
            } else {
                format!("{parent}.{}", other.name())
            };
            remove(body, &at);
        }
    }
    put(body, path, value);
}

/// `a.b[0]` as names and indices.
fn steps(path: &str) -> impl Iterator<Item = Value> + '_ {
    path.split(['.', '[']).filter(|step| !step.is_empty()).map(|step| match step.strip_suffix(']') {
        Some(index) => json!(index.parse::<usize>().expect("an index")),
        None => json!(step),
    })
}

fn get<'a>(body: &'a Value, path: &str) -> Option<&'a Value> {
    steps(path).try_fold(body, |at, step| match step {
        Value::Number(index) => at.get(usize::try_from(index.as_u64()?).ok()?),
        name => at.get(name.as_str()?),
    })
}

fn put(body: &mut Value, path: &str, value: Value) {
    let mut at = body;
    for step in steps(path) {
        at = match step {
            Value::Number(index) => {
                let index = usize::try_from(index.as_u64().expect("an index")).expect("small");
                if !at.is_array() {
                    *at = json!([]);
                }
                let list = at.as_array_mut().expect("a list");
                if list.len() <= index {
                    list.resize(index + 1, Value::Null);
                }
                &mut list[index]
            }
            name => {
                if !at.is_object() {
                    *at = json!({});
                }
                at.as_object_mut()
                    .expect("an object")
                    .entry(name.as_str().expect("a name"))
                    .or_insert(Value::Null)
            }
        };
    }
    *at = value;
}

fn remove(body: &mut Value, path: &str) {
    let (parent, last) = path.rsplit_once('.').map_or(("", path), |(parent, last)| (parent, last));
    if get(body, parent).is_some() || parent.is_empty() {
        let mut at = body;
        for step in steps(parent) {
            at = match step {
                Value::Number(index) => {
                    &mut at[usize::try_from(index.as_u64().expect("an index")).expect("small")]
                }
                name => &mut at[name.as_str().expect("a name")],
            };
        }
        if let Some(object) = at.as_object_mut() {
            object.remove(last);
        }
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    text.chars().take(60).collect()
}
