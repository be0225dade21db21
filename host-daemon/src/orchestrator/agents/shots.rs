//! The pictures that agents leave: files in the state directory, one folder per agent, named by number.
//!
//! A file is whole on the disk before a row names it; what no row names is deleted at the next start.

use std::io::{self, Cursor, Write as _};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use image::{ImageFormat as Format, ImageReader};
use jiff::Timestamp;
use tokio::time::Instant;

use super::request::Upload;
use crate::display::{ImageFormat, ScreenshotOptions};
use crate::model::agent::{Agent, Shot};
use crate::model::error::{Error, Reason, Result};
use crate::model::ids::AgentId;
use crate::orchestrator::{Orchestrator, Shared};

/// Pictures that an agent keeps.
pub(super) const MAX_SHOTS: usize = 20;
/// Size of one, in bytes: what a client takes in one answer.
const MAX_BYTES: usize = 3_500_000;
/// Pixels a side: the limit of X11 and of WEBP.
const MAX_SIDE: u32 = 16_384;
/// A picture of the VM's own screen.
const PICTURE: Duration = Duration::from_secs(10);

/// A picture that may be kept.
pub(super) struct Picture {
    bytes: Bytes,
    format: Format,
    width: u32,
    height: u32,
    label: String,
}

impl Picture {
    /// Looks whether an upload is a picture. Only its header is read.
    pub(super) fn check(upload: Upload) -> Result<Self> {
        let Upload { field, image, label } = upload;
        let wrong = |what: String| Err(Error::field(field.clone(), what));
        if image.is_empty() {
            return wrong("is required".into());
        }
        if image.len() > MAX_BYTES {
            return wrong(format!("has {} bytes, at most {MAX_BYTES} are allowed", image.len()));
        }
        const LEGAL: &str = "is no PNG, JPEG or WEBP picture";
        let Ok(reader) = ImageReader::new(Cursor::new(&image)).with_guessed_format() else {
            return wrong(LEGAL.into());
        };
        let format = reader.format();
        let Some(format @ (Format::Png | Format::Jpeg | Format::WebP)) = format else {
            return wrong(LEGAL.into());
        };
        let Ok((width, height)) = reader.into_dimensions() else { return wrong(LEGAL.into()) };
        if width == 0 || height == 0 || width > MAX_SIDE || height > MAX_SIDE {
            return wrong(format!("is {width}x{height}, at most {MAX_SIDE} pixels a side are allowed"));
        }
        Ok(Self { bytes: image, format, width, height, label })
    }

    /// The screen of the VM that an agent runs on.
    pub(super) async fn of_vm(o: &Orchestrator, agent: &Agent, label: &str) -> Result<Self> {
        let vm = agent.vm.as_ref().ok_or_else(|| Error::new(Reason::VmNotRunning, "there is no vm"))?;
        let hub = o.0.registry.get(vm)?.hub.clone();
        let options = ScreenshotOptions { format: ImageFormat::Png, ..ScreenshotOptions::default() };
        let picture = hub.screenshot(&options, Instant::now() + PICTURE).await.map_err(Error::from)?;
        Ok(Self {
            bytes: picture.bytes,
            format: Format::Png,
            width: picture.size.width,
            height: picture.size.height,
            label: label.to_owned(),
        })
    }

    fn ending(&self) -> &'static str {
        match self.format {
            Format::Jpeg => "jpg",
            Format::WebP => "webp",
            _ => "png",
        }
    }
}

/// Refuses more pictures than an agent may keep.
pub(super) fn room(agent: &Agent, more: usize) -> Result<()> {
    if agent.shots.len() + more <= MAX_SHOTS {
        return Ok(());
    }
    let have = agent.shots.len();
    Err(Error::new(
        Reason::TooManyScreenshots,
        format!("agent {} has {have} screenshots, at most {MAX_SHOTS} are kept", agent.id),
    )
    .with("agent", &agent.id)
    .with("have", have)
    .with("limit", MAX_SHOTS))
}

/// Writes pictures into the agent's folder and gives what its row is to say of them.
pub(super) async fn keep(shared: &Shared, agent: &Agent, pictures: Vec<Picture>) -> Result<Vec<Shot>> {
    let dir = shared.settings.agents.dir.join(agent.id.as_str());
    let now = Timestamp::now();
    let (mut shots, mut files) = (Vec::new(), Vec::new());
    for (number, picture) in (agent.shots_taken + 1..).zip(pictures) {
        shots.push(Shot {
            id: number.to_string(),
            content_type: picture.format.to_mime_type().to_owned(),
            width: picture.width,
            height: picture.height,
            bytes: picture.bytes.len() as u64,
            label: picture.label.clone(),
            created: now,
        });
        files.push((format!("{number}.{}", picture.ending()), picture.bytes));
    }
    let failed =
        |error: io::Error| Error::internal(Reason::Internal, "the screenshot was not written", error);
    let written = tokio::task::spawn_blocking(move || write(&dir, &files)).await;
    written
        .map_err(|error| Error::internal(Reason::Internal, "the screenshot was not written", error))?
        .map_err(failed)?;
    Ok(shots)
}

fn write(dir: &Path, files: &[(String, Bytes)]) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    for (name, bytes) in files {
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(dir.join(name)).map_err(|error| error.error)?;
    }
    std::fs::File::open(dir)?.sync_all()
}

fn file_name(shot: &Shot) -> String {
    let ending = match shot.content_type.as_str() {
        "image/jpeg" => "jpg",
        "image/webp" => "webp",
        _ => "png",
    };
    format!("{}.{ending}", shot.id)
}

/// The bytes of a picture; none when its file is gone.
pub(super) async fn load(shared: &Shared, agent: &AgentId, shot: &Shot) -> Result<Option<Bytes>> {
    let path = shared.settings.agents.dir.join(agent.as_str()).join(file_name(shot));
    match tokio::fs::read(&path).await {
        Ok(bytes) => Ok(Some(bytes.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::internal(Reason::Internal, "the screenshot can't be read", error)),
    }
}

/// Deletes the file of a picture.
pub(super) async fn delete(shared: &Shared, agent: &AgentId, shot: &Shot) {
    gone(
        tokio::fs::remove_file(shared.settings.agents.dir.join(agent.as_str()).join(file_name(shot))).await,
        agent,
    );
}

/// Deletes all pictures of an agent.
pub(super) async fn delete_all(shared: &Shared, agent: &AgentId) {
    gone(tokio::fs::remove_dir_all(shared.settings.agents.dir.join(agent.as_str())).await, agent);
}

fn gone(result: io::Result<()>, agent: &AgentId) {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%agent, %error, "screenshots not deleted");
        }
        _ => {}
    }
}

/// Deletes the folders of agents that no longer exist, and files that no row names.
pub(super) async fn collect(shared: &Shared) -> Result<()> {
    let failed =
        |error: io::Error| Error::internal(Reason::Internal, "the screenshots can't be listed", error);
    let mut dirs = match tokio::fs::read_dir(&shared.settings.agents.dir).await {
        Ok(dirs) => dirs,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    while let Some(dir) = dirs.next_entry().await.map_err(failed)? {
        let Some(id) = dir.file_name().to_str().and_then(|name| AgentId::new(name).ok()) else { continue };
        let Some(agent) = shared.store.agent(&id).await? else {
            delete_all(shared, &id).await;
            continue;
        };
        let known: Vec<String> = agent.shots.iter().map(file_name).collect();
        let mut files = tokio::fs::read_dir(dir.path()).await.map_err(failed)?;
        while let Some(file) = files.next_entry().await.map_err(failed)? {
            if !file.file_name().to_str().is_some_and(|name| known.iter().any(|known| known == name)) {
                gone(tokio::fs::remove_file(file.path()).await, &id);
            }
        }
    }
    Ok(())
}
