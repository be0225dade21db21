//! What is wrong with which field.
//!
//! A key is the end of a path (`ttl`, `options.quality`), a message's field (`Pool.surge`), or one place in one request
//! (`ListVmsRequest:pool`); the last wins over the others, and the longer end of a path over the shorter.

use prost_reflect::{FieldDescriptor, Kind};
use serde_json::{Value, json};

/// How a wrong value is refused.
pub(crate) enum Wrong {
    /// By the field's name.
    Field,
    /// By the name of what it is part of.
    Around,
    /// By the name of another field.
    Named(&'static str),
    /// Etags are opaque: one that was never given out is one that is not the present one.
    Stale,
    /// So are tickets: this is the reason of the refusal.
    Unknown(&'static str),
    /// It isn't: every value is legal, and the extremes break nothing.
    Nothing,
}

pub(crate) struct Entry {
    pub(crate) key: &'static str,
    pub(crate) wrong: Wrong,
    pub(crate) values: fn() -> Vec<Value>,
}

macro_rules! entries {
    ($($key:literal $wrong:ident $(($named:literal))? [$($value:expr),* $(,)?];)*) => {
        &[$(Entry {
            key: $key,
            wrong: Wrong::$wrong $(($named))?,
            values: || vec![$(json!($value)),*],
        }),*]
    };
}

pub(crate) const ENTRIES: &[Entry] = entries! {
    // What many requests have.
    "name" Field ["", "x", "vms", "vms/", "VMS/a1", "hosts/../a1", long(5000), "vms/a1\0"];
    "parent" Field ["", "x", "vms/", "agents/UPPER", long(5000)];
    "pool" Field ["desk", "pools/", "pools/Not An Id", "vms/a1", long(5000)];
    "target" Field ["", "desk", "pools/desk", "leases/", "vms/Not An Id", long(5000)];
    "request_id" Field ["1", "{7d444840-9dc0-11d1-b245-5ffdce74fad2}", long(5000)];
    "batch_id" Field ["1", long(5000)];
    "page_size" Field [-1, i32::MIN];
    "page_token" Field ["nonsense", long(5000)];
    "revision" Field ["old", "1", "-1.1", long(5000)];
    "etag" Stale ["x", "-1", long(5000)];
    "template_id" Field ["a", "-a", "Not An Id", long(64), "../x"];
    "pool_id" Field ["a", "a_b", long(64), "clean/x"];
    "vm_id" Field ["a", "1a", long(64)];
    "agent_id" Field ["a", "a-", long(64)];
    "checkpoint_id" Field ["a", "a/b", long(64)];

    // Templates.
    "Template.display_name" Field [long(129), "a\0b"];
    "Template.memory_mb" Field [1, 63, u64::MAX];
    "Template.cpu_count" Field [65, u32::MAX];
    "Template.installed_software" Field [vec![""], vec![long(257)], vec!["x"; 257]];
    "Template.network" Field [-1, 4, i32::MAX];
    "Template.bridge" Field ["br0", long(16)];
    "Template.rdp_port" Field [65_536, u32::MAX];
    "TemplateSource.disk_path" Field ["", "relative", "/a\0b", format!("/{}", long(4096))];
    "TemplateSource.disk_format" Field ["vmdk", "QCOW2"];
    "TemplateSource.kernel_path" Field ["relative", format!("/{}", long(4096))];
    "TemplateSource.initrd_path" Field ["relative", "/without/a/kernel"];
    "TemplateSource.kernel_cmdline" Field ["quiet", long(2049)];
    "TemplateSource.firmware" Field [-1, 3];
    "DisplaySize.width" Field [1, 319, 7681, u32::MAX];
    "DisplaySize.height" Field [1, 199, 4321, u32::MAX];

    // Pools.
    "Pool.template" Field ["", "tiny", "pools/tiny", "templates/"];
    "UpdatePoolRequest:pool.template" Field ["tiny", "pools/tiny", "templates/"];
    "UpdatePoolRequest:pool.name" Field ["", "desk", "vms/desk", "pools/"];
    "UpdatePoolRequest:pool.etag" Stale ["x", "-1"];
    "Pool.display_name" Field [long(129), "a\0b"];
    "Pool.desired_count" Field [10_001, u32::MAX];
    "Pool.warm_count" Field [10_001, u32::MAX];
    "Pool.max_per_host" Field [10_001, u32::MAX];
    "Pool.hot_count" Field [10_001, u32::MAX];
    "Pool.idle_floor" Field [10_001, u32::MAX];
    "Pool.idle_ceiling" Field [10_001, u32::MAX];
    "Pool.surge" Field [10_001, u32::MAX];
    "Pool.max_unavailable" Field [10_001, u32::MAX];
    "Pool.max_leases_per_caller" Field [10_001, u32::MAX];
    "Pool.max_uses" Nothing [u32::MAX];
    "Pool.default_lease_ttl" Field [seconds(0), seconds(-1), seconds(9), seconds(86_401), nanos(1_000_000_000)];
    "Pool.max_lease_ttl" Field [seconds(0), seconds(9), seconds(86_401), nanos(-1)];
    "Pool.max_age" Field [seconds(0), seconds(59), seconds(i64::MAX), seconds(-1)];
    "Pool.release_policy" Field [-1, 4];
    "Pool.labels" Field [
        json!({"": "v"}), json!({"k": ""}), json!({"k": long(64)}), json!({long(64): "v"}), labels(17),
    ];
    "FieldMask.paths" Field [vec!["size"], vec!["uid"], vec!["desired_count", "*"], vec![""]];

    // VMs.
    "RestoreCheckpointRequest:name" Field ["", "vms/a1", "vms/a1/checkpoints/", "vms/a1/checkpoints/X"];
    "DeleteCheckpointRequest:name" Field ["", "vms/a1", "vms/a1/checkpoints/", "a1/checkpoints/c1"];
    "ListVmsRequest:states" Field [vec![0], vec![3, 99], vec![-1]];
    "WatchVmsRequest:states" Field [vec![0], vec![3, 99], vec![-1]];
    "WatchVmsRequest:vms" Field [vec!["a1"], vec!["vms/"], vec!["vms/a1"; 101]];
    "StopVmRequest:mode" Field [-1, 3];
    "StopVmRequest:timeout" Field [seconds(-1), seconds(601), nanos(1_000_000_000)];
    "Checkpoint.description" Field [long(257), "a\0b"];
    "ConnectConsoleRequest:ticket" Unknown("CONSOLE_TICKET_UNKNOWN") ["", "x", long(5000)];
    "ConnectConsoleRequest:data" Named("ticket") ["", "RFB 003.008\n"];

    // Leases.
    "AcquireVmRequest.ttl" Field [seconds(0), seconds(-1), seconds(9), seconds(86_401), nanos(-1)];
    "AcquireVmRequest.wait" Field [seconds(-1), seconds(3601), seconds(i64::MAX), nanos(1_000_000_000)];
    "AcquireVmRequest.purpose" Field [long(257), "a\0b"];
    "AcquireVmRequest.priority" Field [-101, 101, i32::MIN, i32::MAX];
    "AcquireVmRequest:pool" Field ["", "desk", "pools/", "vms/a1", long(5000)];
    "WatchAcquireRequest:acquire.pool" Field ["", "desk", "pools/", "vms/a1"];
    "AcquireRequirements.template" Field ["tiny", "templates/", "pools/a1"];
    "AcquireRequirements.labels" Field [json!({"": "v"}), json!({"k": ""}), json!({"k": long(64)}), labels(17)];
    "RenewLeaseRequest:ttl" Field [seconds(0), seconds(-1), seconds(9), seconds(86_401)];
    "ReleaseVmRequest:policy" Field [-1, 4];

    // Pictures, input and settling.
    "ScreenshotOptions.format" Field [-1, 5, i32::MAX];
    "ScreenshotOptions.quality" Field [101, u32::MAX];
    "ScreenshotOptions.scale" Field [-0.5, 1.01, 1e300, "NaN"];
    "ScreenshotOptions.max_bytes" Nothing [u32::MAX];
    "max_size.width" Nothing [u32::MAX];
    "max_size.height" Nothing [u32::MAX];
    "frame_size.width" Field [0, 16_385, u32::MAX];
    "frame_size.height" Field [0, 16_385, u32::MAX];
    "Rect.x" Field [-1, i32::MIN];
    "Rect.y" Field [-1, i32::MIN];
    "Rect.width" Field [0, 16_385, u32::MAX];
    "Rect.height" Field [0, 16_385, u32::MAX];
    "StreamScreenshotsRequest:max_fps" Field [-1.0, 1e9, "NaN"];
    "StreamScreenshotsRequest:keyframe_interval" Field [seconds(0), seconds(-1), seconds(3601), seconds(1)];
    "SendInputRequest:events" Field [json!([]), events(1025), json!([{}])];
    "StreamInputRequest:events" Field [events(1025), json!([{}])];
    "ActRequest:events" Field [json!([]), events(1025), json!([{}])];
    "Point.x" Around [-1, 640, i32::MIN, i32::MAX];
    "Point.y" Around [-1, 400, i32::MIN, i32::MAX];
    "MoveEvent.duration" Field [seconds(-1), seconds(11)];
    "MoveEvent.via" Field [points(1024)];
    "ButtonEvent.button" Field [-1, 6];
    "ButtonEvent.action" Field [-1, 4];
    "ClickEvent.button" Field [-1, 6];
    "ClickEvent.count" Field [11, u32::MAX];
    "ClickEvent.modifiers" Field [vec![""], vec!["NoSuchKey"], vec![long(65)], vec!["ctrl"; 9]];
    "DragEvent.path" Field [json!([]), json!([{"x": 1, "y": 1}]), points(1025)];
    "DragEvent.button" Field [-1, 6];
    "DragEvent.duration" Field [seconds(-1), seconds(11)];
    "DragEvent.modifiers" Field [vec![""], vec!["NoSuchKey"], vec!["ctrl"; 9]];
    "ScrollEvent.delta_x" Field [-1001, 1001, i32::MIN, i32::MAX];
    "ScrollEvent.delta_y" Field [-1001, 1001, i32::MIN, i32::MAX];
    "ScrollEvent.pixels_x" Field [i32::MIN, i32::MAX];
    "ScrollEvent.pixels_y" Field [i32::MIN, i32::MAX];
    "KeyEvent.hold" Field [seconds(-1), seconds(11)];
    "KeyEvent.key" Field ["", "NoSuchKey", long(65)];
    "KeyEvent.action" Field [-1, 4];
    "ChordEvent.keys" Field ["", "ctrl+", "+", "NoSuchKey", "a+b+c+d+e+f+g+h+i", long(5000)];
    "ChordEvent.hold" Field [seconds(-1), seconds(11)];
    "TextEvent.text" Field ["", "bell\u{7}", "a\0b", long((1 << 20) + 1)];
    // A text is there already.
    "TextEvent.secret" Field ["pw", "secrets/a1", long(5000)];
    "TextEvent.interval" Field [seconds(-1), seconds(2)];
    "InputEvent.pause" Field [seconds(-1), seconds(11), nanos(1_000_000_000)];
    "SettleOptions.quiet" Field [seconds(-1), seconds(0), seconds(11)];
    "SettleOptions.timeout" Field [seconds(-1), seconds(121)];
    "SettleOptions.ignore" Field [rectangles(65)];
    "SettleOptions.regions" Field [rectangles(17)];
    "SettleOptions.pixels" Field [pixels(17)];
    "PixelCondition.rgb" Field [0x0100_0000, u32::MAX];
    "PixelCondition.tolerance" Field [256, u32::MAX];

    // The clipboard, windows, masks and secrets.
    "selection" Field [-1, 3, i32::MAX];
    "GetClipboardRequest:format" Field [-1, 3];
    "GetClipboardRequest:max_bytes" Field [(16 << 20) + 1, u32::MAX];
    "ClipboardContent.text" Field [long((16 << 20) + 1)];
    "ClipboardContent.png" Field ["", "no picture", "\u{89}PNG"];
    "FocusWindowRequest:window_id" Field [0];
    "FocusWindowRequest:timeout" Field [seconds(-1), nanos(50_000_000), seconds(31)];
    "SetMasksRequest:masks" Field [rectangles(65)];
    "secret_id" Field ["a", "-a", "Not An Id", long(64), "../x"];
    "CreateSecretRequest:value" Field ["", "bell\u{7}", "a\0b", long(4097)];
    "CreateSecretRequest:secret.name" Field ["secrets/a1"];
    "Secret.description" Field [long(257), "a\0b"];
    "Secret.allowed_pools" Field [vec!["desk"], vec!["pools/"], vec!["pools/a1"; 65]];
    "Secret.allowed_callers" Field [vec![""], vec![long(64)], vec!["x"; 65]];

    // Programs and files.
    "ExecRequest:argv" Field [json!([]), vec![""], vec!["a\0b"], vec!["x"; 1025], vec![long((256 << 10) + 1)]];
    "ExecRequest:env" Field [json!({"": "v"}), json!({"a=b": "v"}), json!({"a": "\0"}), json!({"a": long(256 << 10)})];
    "ExecRequest:cwd" Field ["a\0b", long(4097)];
    "ExecRequest:stdin" Field [long((1 << 20) + 1)];
    "ExecRequest:timeout" Field [seconds(0), seconds(-1), seconds(86_401)];
    "ReadFileRequest:path" Field ["", "a\0b", long(4097)];
    "ReadFileRequest:offset" Nothing [u64::MAX];
    "ReadFileRequest:limit" Nothing [u64::MAX];
    "WriteFileHeader.target" Field ["", "desk", "pools/desk", "leases/", "vms/Not An Id"];
    "WriteFileHeader.path" Field ["", "a\0b", long(4097)];
    "WriteFileHeader.mode" Field [0o10_000, u32::MAX];
    "WriteFileRequest:data" Named("header") ["without a header"];
    "PutFileRequest:data" Field [long((1 << 20) + 1)];

    // Agents.
    "Agent.display_name" Field [long(129), "a\0b"];
    "Agent.pool" Field ["", "desk", "pools/", "vms/a1"];
    "Agent.priority" Field [-101, 101, i32::MIN, i32::MAX];
    "Agent.queue_timeout" Field [seconds(0), seconds(-1), seconds(7 * 86_400 + 1)];
    "workflow" Field ["UPPER", "-a", "a b", long(64)];
    "AgentTask.workflow" Field ["", "UPPER", "../x", long(64)];
    "ClaimAgentRequest:workflow" Field ["", "UPPER", "a/b", long(64)];
    "AgentTask.input_json" Field ["{", "{}{}", "nothing", format!("\"{}\"", long(256 << 10))];
    "AgentTask.timeout" Field [seconds(0), seconds(-1), seconds(86_401)];
    "AgentRetryPolicy.max_attempts" Field [21, u32::MAX];
    "AgentRetryPolicy.initial_backoff" Field [seconds(-1), seconds(3601)];
    "AgentRetryPolicy.max_backoff" Field [seconds(-1), seconds(86_401)];
    "ListAgentsRequest:statuses" Field [vec![0], vec![1, 7], vec![-1]];
    "WatchAgentsRequest:statuses" Field [vec![0], vec![1, 7], vec![-1]];
    "WatchAgentsRequest:agents" Field [vec!["a1"], vec!["agents/"], vec!["agents/a1"; 101]];
    "CancelAgentRequest:reason" Field [long(257), "a\0b"];
    "ClaimAgentRequest:worker" Field [long(129), "a\0b"];
    "ClaimAgentRequest:claim_ttl" Field [seconds(0), seconds(-1), seconds(3601)];
    "ClaimAgentRequest:wait" Field [seconds(-1), seconds(301)];
    "epoch" Field [0];
    "ReportAgentRequest:progress_percent" Field [101, u32::MAX];
    "ReportAgentRequest:progress_message" Field [long(257), "a\0b"];
    "ReportAgentRequest:log" Field [vec!["x"; 101], vec![long(4097)], vec!["a\0b"]];
    "CompleteAgentRequest:output_json" Field ["{", "yes", format!("\"{}\"", long(1 << 20))];
    "CompleteAgentRequest:error" Field [long(4097), "a\0b"];
    "AgentScreenshotUpload.image" Field ["", "no picture", "\u{89}PNG"];
    "AgentScreenshotUpload.label" Field [long(129), "a\0b"];
    "GetAgentScreenshotRequest:name" Field ["", "agents/a1", "agents/a1/screenshots/x", "agents/A/screenshots/1"];
    "ListAgentLogsRequest:after_sequence" Nothing [u64::MAX];

    // Hosts and operations.
    "WatchEventsRequest:parent" Field ["x", "vms/a1", "hosts/"];
    "WatchEventsRequest:vm" Field ["a1", "vms/", "pools/a1"];
    "WatchEventsRequest:agent" Field ["a1", "agents/", "vms/a1"];
    "WatchEventsRequest:kinds" Field [vec![0], vec![1, 999], vec![-1]];
    "WatchEventsRequest:start_time" Field [seconds(i64::MAX), nanos(-1), nanos(1_000_000_000)];
    "BackupStoreRequest:path" Field ["", "relative", "/folder/", "/a\0b", format!("/{}", long(4096))];
    "ListOperationsRequest:name" Field ["x", "vms/a1"];
    "ListOperationsRequest:filter" Field ["done", long(5000)];
    "WaitOperationRequest:timeout" Field [seconds(-1), seconds(86_401)];
};

/// The entry of a field.
pub(crate) fn find(request: &str, path: &str, field: &FieldDescriptor) -> Option<&'static Entry> {
    let plain: String =
        path.split('[').map(|part| part.split_once(']').map_or(part, |(_, rest)| rest)).collect();
    let by = |key: &str| ENTRIES.iter().find(|entry| entry.key == key);
    let message = field.parent_message().name().to_owned();
    let by_end = || {
        let ends =
            std::iter::successors(Some(plain.as_str()), |end| end.split_once('.').map(|(_, rest)| rest));
        // A bare name means the same in all requests, and something else in what they are about.
        let bare = message.ends_with("Request") && !matches!(field.kind(), Kind::Message(_));
        ends.filter(|end| bare || end.contains('.')).find_map(by)
    };
    by(&format!("{request}:{plain}")).or_else(|| by(&format!("{message}.{}", field.name()))).or_else(by_end)
}

/// What refusals put before the fields of a request: those of a stream say which message it is.
pub(crate) fn prefix(request: &str) -> &'static str {
    if request == "StreamInputRequest" { "messages[0]." } else { "" }
}

/// The request, what is set in it, and the field that is named.
type Together = (&'static str, Vec<(&'static str, Value)>, &'static str);

/// What is legal by itself and not together.
pub(crate) fn together(request: &str) -> Vec<Together> {
    let all: Vec<Together> = vec![
        (
            "CreatePoolRequest",
            vec![("pool.default_lease_ttl", seconds(60)), ("pool.max_lease_ttl", seconds(30))],
            "pool.default_lease_ttl",
        ),
        (
            "UpdatePoolRequest",
            vec![("pool.default_lease_ttl", seconds(60)), ("pool.max_lease_ttl", seconds(30))],
            "pool.default_lease_ttl",
        ),
        ("StopVmRequest", vec![("mode", json!(2)), ("timeout", seconds(1))], "timeout"),
        (
            "CreateTemplateRequest",
            vec![("template.source.kernel_path", json!("/vmlinuz")), ("template.source.firmware", json!(1))],
            "template.source.firmware",
        ),
        ("CreateTemplateRequest", vec![("template.network", json!(3))], "template.bridge"),
        (
            "CreateTemplateRequest",
            vec![("template.network", json!(3)), ("template.bridge", json!("br 0"))],
            "template.bridge",
        ),
        (
            "TakeScreenshotRequest",
            vec![("options.scale", json!(0.5)), ("options.max_size.width", json!(10))],
            "options.max_size",
        ),
        ("TakeScreenshotRequest", vec![("options.format", json!(4))], "options.max_bytes"),
        ("CompleteAgentRequest", vec![("success", json!(true)), ("error", json!("bad luck"))], "error"),
        ("CompleteAgentRequest", vec![("success", json!(true)), ("retry", json!(true))], "retry"),
        (
            "CompleteAgentRequest",
            vec![("success", json!(false)), ("output_json", json!("not json"))],
            "output_json",
        ),
    ];
    all.into_iter().filter(|(of, ..)| *of == request).collect()
}

/// What the calls are about.
pub(crate) struct Stage {
    pub(crate) lease: String,
    pub(crate) agent: String,
    pub(crate) epoch: u64,
}

impl Stage {
    /// A message in which nothing is wrong. What would be made is made of things that do not exist, so that a value that
    /// is let through makes nothing.
    pub(crate) fn base(&self, message: &str) -> Value {
        let (lease, agent) = (&self.lease, &self.agent);
        match message {
            "CreateTemplateRequest" => json!({"template": {"source": {"disk_path": "/no/such/disk"}}}),
            "GetTemplateRequest" | "DeleteTemplateRequest" => json!({"name": "templates/none"}),
            "Pool" => json!({"template": "templates/none"}),
            "CreatePoolRequest" => json!({"pool": {"template": "templates/none"}}),
            "UpdatePoolRequest" => json!({"pool": {"name": "pools/none"}}),
            "GetPoolRequest" | "DeletePoolRequest" | "PausePoolRequest" | "ResumePoolRequest" => {
                json!({"name": "pools/none"})
            }
            "GetVmRequest" | "StartVmRequest" | "ResumeVmRequest" | "SaveVmRequest" | "PauseVmRequest"
            | "StopVmRequest" | "ResetVmRequest" | "DeleteVmRequest" | "ForkVmRequest" => {
                json!({"name": "vms/none"})
            }
            "CreateCheckpointRequest" | "ListCheckpointsRequest" => json!({"parent": "vms/none"}),
            "RestoreCheckpointRequest" | "DeleteCheckpointRequest" => {
                json!({"name": "vms/none/checkpoints/clean"})
            }
            "OpenConsoleRequest" => json!({"target": lease}),
            "ConnectConsoleRequest" => json!({"ticket": "none"}),
            "AcquireVmRequest" => json!({"pool": "pools/none"}),
            "WatchAcquireRequest" => json!({"acquire": {"pool": "pools/none"}}),
            "RenewLeaseRequest" | "ReleaseVmRequest" | "GetLeaseRequest" => json!({"name": "leases/none"}),
            "TakeScreenshotRequest"
            | "StreamScreenshotsRequest"
            | "RequestKeyframeRequest"
            | "WaitForSettleRequest"
            | "GetClipboardRequest"
            | "SetClipboardRequest"
            | "ListWindowsRequest"
            | "SetMasksRequest"
            | "ListMasksRequest" => json!({"target": lease}),
            "FocusWindowRequest" => json!({"target": lease, "window_id": 1}),
            "GetSecretRequest" | "DeleteSecretRequest" => json!({"name": "secrets/none"}),
            "CreateSecretRequest" => json!({"value": "x"}),
            "SendInputRequest" | "StreamInputRequest" | "ActRequest" => {
                json!({"target": lease, "events": [{"release_all": {}}]})
            }
            "ExecRequest" => json!({"target": lease, "argv": ["true"]}),
            "ReadFileRequest" => json!({"target": lease, "path": "/none"}),
            "WriteFileRequest" | "PutFileRequest" => {
                json!({"header": {"target": "leases/none", "path": "/none"}})
            }
            "SubmitAgentRequest" => json!({"agent": {"pool": "pools/none", "task": {"workflow": "errand"}}}),
            "GetAgentRequest" | "CancelAgentRequest" => json!({"name": "agents/none"}),
            "ClaimAgentRequest" => json!({"workflow": "nobody", "wait": {"nanos": 1}}),
            "ReportAgentRequest" | "CompleteAgentRequest" => json!({"name": agent, "epoch": self.epoch}),
            "GetAgentScreenshotRequest" => json!({"name": "agents/none/screenshots/1"}),
            "ListAgentLogsRequest" => json!({"parent": agent}),
            "GetHostRequest" => json!({"name": "hosts/-"}),
            "BackupStoreRequest" => json!({"name": "hosts/-", "path": "/no/such/folder/file"}),
            "GetOperationRequest"
            | "DeleteOperationRequest"
            | "CancelOperationRequest"
            | "WaitOperationRequest" => json!({"name": "operations/none"}),

            "Size" => json!({"width": 640, "height": 400}),
            "Rect" => json!({"width": 10, "height": 10}),
            "MoveEvent" => json!({"to": {"x": 1, "y": 1}}),
            "DragEvent" => json!({"path": [{"x": 1, "y": 1}, {"x": 2, "y": 2}]}),
            "PixelCondition" => json!({"at": {"x": 1, "y": 1}}),
            "KeyEvent" => json!({"key": "a"}),
            "ChordEvent" => json!({"keys": "ctrl+a"}),
            "TextEvent" => json!({"text": "a"}),
            "ClipboardContent" => json!({"text": "a"}),
            "AgentScreenshotUpload" => json!({"image": PICTURE}),
            _ => json!({}),
        }
    }
}

/// A picture of one pixel, in a format whose header is text as far as anybody looks.
const PICTURE: &str = "RIFF\u{16}\0\0\0WEBPVP8L";

fn long(bytes: usize) -> String {
    "x".repeat(bytes)
}

fn seconds(seconds: i64) -> Value {
    json!({"seconds": seconds})
}

fn nanos(nanos: i32) -> Value {
    json!({"nanos": nanos})
}

fn labels(count: usize) -> Value {
    (0..count).map(|n| (format!("k{n}"), json!("v"))).collect::<serde_json::Map<_, _>>().into()
}

fn events(count: usize) -> Value {
    vec![json!({"release_all": {}}); count].into()
}

fn points(count: usize) -> Value {
    vec![json!({"x": 1, "y": 1}); count].into()
}

fn pixels(count: usize) -> Value {
    vec![json!({"at": {"x": 1, "y": 1}}); count].into()
}

fn rectangles(count: usize) -> Value {
    vec![json!({"width": 1, "height": 1}); count].into()
}
