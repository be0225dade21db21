//! Templates.

use std::path::{Path, PathBuf};

use hvkube_proto::v1;

use super::timestamp;
use crate::api::fields;
use crate::model::error::{Error, Result};
use crate::model::record::{Template, TemplateState};
use crate::model::screen::Size;
use crate::model::template::{Boot, CloneMethod, Network, NetworkMode, TemplateSpec};
use crate::orchestrator::request::{Caller, CreateTemplate};

const DEFAULT_MEMORY_MB: u64 = 512;
const DEFAULT_CPUS: u32 = 2;
const DEFAULT_DISPLAY: Size = Size { width: 1280, height: 800 };
/// Of a virtual machine on any host we know; the host's own limit comes later.
const MAX_MEMORY_MB: u64 = 16 << 20;
/// Linux's limit on a command line.
const MAX_CMDLINE: usize = 2048;
/// A bridge is a network interface (IFNAMSIZ).
const MAX_BRIDGE: usize = 15;
const MAX_SOFTWARE: usize = 256;

pub(crate) fn create(caller: &Caller, request: &v1::CreateTemplateRequest) -> Result<CreateTemplate> {
    let template = fields::required("template", request.template.as_ref())?;
    let id = fields::id("template_id", &request.template_id)?;
    let display_name = fields::text("template.display_name", &template.display_name, fields::DISPLAY_NAME)?;
    if template.installed_software.len() > MAX_SOFTWARE {
        let what =
            format!("has {} entries, at most {MAX_SOFTWARE} are allowed", template.installed_software.len());
        return Err(Error::field("template.installed_software", what));
    }
    for (i, entry) in template.installed_software.iter().enumerate() {
        fields::required_text(&format!("template.installed_software[{i}]"), entry, fields::DESCRIPTION)?;
    }
    let rdp_port = u16::try_from(template.rdp_port)
        .map_err(|_| Error::field("template.rdp_port", format!("{} is no port", template.rdp_port)))?;
    Ok(CreateTemplate {
        id,
        display_name: display_name.to_owned(),
        spec: spec(template)?,
        installed_software: template.installed_software.clone(),
        rdp_port,
        request: fields::request_id(caller, "CreateTemplate", request, |r| &mut r.request_id)?,
    })
}

fn spec(template: &v1::Template) -> Result<TemplateSpec> {
    let source = fields::required("template.source", template.source.as_ref())?;
    let disk_format = match source.disk_format.as_str() {
        "" => None,
        format @ ("qcow2" | "raw" | "vhdx") => Some(format.to_owned()),
        other => {
            let what = format!("{:?} is unknown; legal are qcow2, raw, vhdx, or empty", fields::cut(other));
            return Err(Error::field("template.source.disk_format", what));
        }
    };
    Ok(TemplateSpec {
        disk_path: path("template.source.disk_path", &source.disk_path)?
            .ok_or_else(|| Error::field("template.source.disk_path", "is required"))?,
        disk_format,
        boot: boot(source)?,
        memory_mb: match template.memory_mb {
            0 => DEFAULT_MEMORY_MB,
            memory => fields::range("template.memory_mb", memory, 64..=MAX_MEMORY_MB)?,
        },
        cpu_count: match template.cpu_count {
            0 => DEFAULT_CPUS,
            cpus => fields::range("template.cpu_count", cpus, 1..=64)?,
        },
        gpu: template.gpu_enabled,
        network: network(template)?,
        display: display(template.display)?,
    })
}

fn boot(source: &v1::TemplateSource) -> Result<Boot> {
    let firmware = fields::one_of("template.source.firmware", source.firmware, v1::Firmware::as_str_name)?;
    let initrd = path("template.source.initrd_path", &source.initrd_path)?;
    let cmdline = fields::text("template.source.kernel_cmdline", &source.kernel_cmdline, MAX_CMDLINE)?;
    if let Some(kernel) = path("template.source.kernel_path", &source.kernel_path)? {
        if firmware != v1::Firmware::Unspecified {
            return Err(Error::field(
                "template.source.firmware",
                "can't be given together with kernel_path, which boots without firmware",
            ));
        }
        return Ok(Boot::Kernel { kernel, initrd, cmdline: cmdline.to_owned() });
    }
    for (field, given) in [("initrd_path", initrd.is_some()), ("kernel_cmdline", !cmdline.is_empty())] {
        if given {
            return Err(Error::field(format!("template.source.{field}"), "needs kernel_path"));
        }
    }
    Ok(match firmware {
        v1::Firmware::Unspecified | v1::Firmware::Bios => Boot::Bios,
        v1::Firmware::Uefi => Boot::Uefi,
    })
}

fn path(field: &str, value: &str) -> Result<Option<PathBuf>> {
    if value.is_empty() {
        return Ok(None);
    }
    let path = Path::new(fields::text(field, value, fields::PATH)?);
    if !path.is_absolute() {
        let what = format!("{:?} must be absolute: it is a path on the daemon's host", fields::cut(value));
        return Err(Error::field(field, what));
    }
    Ok(Some(path.to_owned()))
}

fn network(template: &v1::Template) -> Result<Network> {
    let mode = fields::one_of("template.network", template.network, v1::NetworkMode::as_str_name)?;
    let bridge = fields::text("template.bridge", &template.bridge, MAX_BRIDGE)?;
    if mode == v1::NetworkMode::Bridge {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if bridge.is_empty() || !bridge.bytes().all(legal) {
            let what = "must name a bridge of the host (letters, digits, -, _ and .) for NETWORK_MODE_BRIDGE";
            return Err(Error::field("template.bridge", what));
        }
        return Ok(Network::Bridge(bridge.to_owned()));
    }
    if !bridge.is_empty() {
        return Err(Error::field("template.bridge", "needs network NETWORK_MODE_BRIDGE"));
    }
    Ok(if mode == v1::NetworkMode::None { Network::None } else { Network::User })
}

fn display(display: Option<v1::DisplaySize>) -> Result<Size> {
    let Some(display) = display else { return Ok(DEFAULT_DISPLAY) };
    Ok(Size {
        width: match display.width {
            0 => DEFAULT_DISPLAY.width,
            width => fields::range("template.display.width", width, 320..=7680)?,
        },
        height: match display.height {
            0 => DEFAULT_DISPLAY.height,
            height => fields::range("template.display.height", height, 200..=4320)?,
        },
    })
}

pub(crate) fn to_proto(template: &Template) -> v1::Template {
    let spec = &template.spec;
    let (kernel, initrd, cmdline, firmware) = match &spec.boot {
        Boot::Kernel { kernel, initrd, cmdline } => {
            (Some(kernel), initrd.as_ref(), cmdline.clone(), v1::Firmware::Unspecified)
        }
        Boot::Bios => (None, None, String::new(), v1::Firmware::Bios),
        Boot::Uefi => (None, None, String::new(), v1::Firmware::Uefi),
    };
    let path = |path: Option<&PathBuf>| path.map(|p| p.display().to_string()).unwrap_or_default();
    v1::Template {
        name: format!("templates/{}", template.id),
        uid: template.uid.to_string(),
        display_name: template.display_name.clone(),
        source: Some(v1::TemplateSource {
            disk_path: path(Some(&spec.disk_path)),
            disk_format: spec.disk_format.clone().unwrap_or_default(),
            kernel_path: path(kernel),
            initrd_path: path(initrd),
            kernel_cmdline: cmdline,
            firmware: firmware.into(),
        }),
        memory_mb: spec.memory_mb,
        cpu_count: spec.cpu_count,
        gpu_enabled: spec.gpu,
        installed_software: template.installed_software.clone(),
        network: network_mode(spec.network.mode()).into(),
        bridge: if let Network::Bridge(bridge) = &spec.network { bridge.clone() } else { String::new() },
        display: Some(v1::DisplaySize { width: spec.display.width, height: spec.display.height }),
        rdp_port: template.rdp_port.into(),
        state: match template.state {
            TemplateState::Preparing => v1::TemplateState::Preparing,
            TemplateState::Ready => v1::TemplateState::Ready,
            TemplateState::Deleting => v1::TemplateState::Deleting,
        }
        .into(),
        disk_sha256: template.disk_sha256.clone(),
        disk_size_bytes: template.disk_size_bytes,
        clone_method: template.clone_method.map_or(v1::CloneMethod::Unspecified, clone_method).into(),
        os: template.os.clone(),
        agent_version: template.agent_version.clone(),
        create_time: Some(timestamp(template.created)),
        update_time: Some(timestamp(template.updated)),
        etag: template.version.to_string(),
    }
}

pub(super) fn network_mode(mode: NetworkMode) -> v1::NetworkMode {
    match mode {
        NetworkMode::None => v1::NetworkMode::None,
        NetworkMode::User => v1::NetworkMode::User,
        NetworkMode::Bridge => v1::NetworkMode::Bridge,
    }
}

pub(super) fn clone_method(method: CloneMethod) -> v1::CloneMethod {
    match method {
        CloneMethod::Fork => v1::CloneMethod::Fork,
        CloneMethod::Restore => v1::CloneMethod::Restore,
        CloneMethod::Boot => v1::CloneMethod::Boot,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn legal() -> v1::CreateTemplateRequest {
        v1::CreateTemplateRequest {
            template_id: "debian".into(),
            template: Some(v1::Template {
                source: Some(v1::TemplateSource {
                    disk_path: "/images/d.qcow2".into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            request_id: String::new(),
        }
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let made = create(&Caller::admin(), &legal()).expect("legal");
        assert_eq!((made.spec.memory_mb, made.spec.cpu_count), (512, 2));
        assert_eq!(made.spec.display, Size { width: 1280, height: 800 });
        assert_eq!((made.spec.boot, made.spec.network), (Boot::Bios, Network::User));
    }

    #[test]
    fn refusals_name_their_field() {
        type Change = fn(&mut v1::CreateTemplateRequest, &mut v1::Template, &mut v1::TemplateSource);
        let cases: &[(&str, Change)] = &[
            ("template_id", |r, _, _| r.template_id = "Debian".into()),
            ("request_id", |r, _, _| r.request_id = "1".into()),
            ("template.display_name", |_, t, _| t.display_name = "x".repeat(129)),
            ("template.memory_mb", |_, t, _| t.memory_mb = 63),
            ("template.cpu_count", |_, t, _| t.cpu_count = 65),
            ("template.installed_software", |_, t, _| t.installed_software = vec!["a".into(); 257]),
            ("template.installed_software[1]", |_, t, _| {
                t.installed_software = vec!["a".into(), String::new()];
            }),
            ("template.network", |_, t, _| t.network = 9),
            ("template.bridge", |_, t, _| t.bridge = "br0".into()),
            ("template.bridge", |_, t, _| t.network = v1::NetworkMode::Bridge.into()),
            ("template.display.width", |_, t, _| t.display = Some(v1::DisplaySize { width: 100, height: 0 })),
            ("template.display.height", |_, t, _| {
                t.display = Some(v1::DisplaySize { width: 0, height: 5000 });
            }),
            ("template.rdp_port", |_, t, _| t.rdp_port = 65_536),
            ("template.source.disk_path", |_, _, s| s.disk_path.clear()),
            ("template.source.disk_path", |_, _, s| s.disk_path = "d.qcow2".into()),
            ("template.source.disk_format", |_, _, s| s.disk_format = "vmdk".into()),
            ("template.source.initrd_path", |_, _, s| s.initrd_path = "/initrd".into()),
            ("template.source.kernel_cmdline", |_, _, s| s.kernel_cmdline = "quiet".into()),
            ("template.source.firmware", |_, _, s| s.firmware = -1),
            ("template.source.firmware", |_, _, s| {
                s.kernel_path = "/vmlinuz".into();
                s.firmware = v1::Firmware::Uefi.into();
            }),
        ];
        for (field, change) in cases {
            let mut request = legal();
            let mut template = request.template.take().expect("there");
            let mut source = template.source.take().expect("there");
            change(&mut request, &mut template, &mut source);
            request.template = Some(v1::Template { source: Some(source), ..template });
            let error = create(&Caller::admin(), &request).expect_err(field);
            assert_eq!(error.violations[0].field, *field, "{error}");
        }
        let none = v1::CreateTemplateRequest::default();
        assert_eq!(create(&Caller::admin(), &none).expect_err("refused").violations[0].field, "template");
    }
}
