//! Files in chunks. A replaced file appears whole by a rename within its folder; readers never see half of one.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use bytes::BytesMut;
use hvkube_proto::guest::v1 as pb;
use hvkube_proto::guest::v1::read_file_response::Part;
use hvkube_proto::guest::v1::write_file_request::Part as WritePart;
use tokio::fs::{self, File, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio_stream::StreamExt;
use tonic::{Status, Streaming};

use super::{Home, Reply};

const CHUNK: usize = 64 << 10;
const MAX_PATH: usize = 4096;
const MAX_PIECE: usize = 1 << 20;
const DEFAULT_MODE: u32 = 0o644;

/// Whether a path makes sense at all.
pub(crate) fn check_path(path: &str) -> Result<(), Status> {
    if path.is_empty() || path.len() > MAX_PATH || path.contains('\0') {
        return Err(Status::invalid_argument(format!(
            "path: must have 1 to {MAX_PATH} bytes, none of them zero"
        )));
    }
    Ok(())
}

fn resolve(home: &Home, path: &str) -> Result<PathBuf, Status> {
    check_path(path)?;
    Ok(home.resolve(path))
}

fn status(path: &Path, error: &io::Error) -> Status {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => Status::not_found(format!("{path} does not exist")),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Status::permission_denied(format!("{path}: {error}"))
        }
        io::ErrorKind::IsADirectory => Status::invalid_argument(format!("path: {path} is a directory")),
        io::ErrorKind::NotADirectory => {
            Status::invalid_argument(format!("path: {path}: a parent is not a directory"))
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Status::resource_exhausted(format!("{path}: {error}"))
        }
        _ => Status::internal(format!("{path}: {error}")),
    }
}

pub(super) async fn read(
    home: &Home,
    request: &pb::ReadFileRequest,
) -> Result<Reply<pb::ReadFileResponse>, Status> {
    let path = resolve(home, &request.path)?;
    // A pipe or a device would block in open; a regular file takes no notice of the flag.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut file =
        OpenOptions::new().read(true).custom_flags(flags).open(&path).await.map_err(|e| status(&path, &e))?;
    let meta = file.metadata().await.map_err(|e| status(&path, &e))?;
    if !meta.is_file() {
        let kind = if meta.is_dir() { "a directory" } else { "not a regular file" };
        return Err(Status::invalid_argument(format!("path: {} is {kind}", path.display())));
    }
    let info = pb::FileInfo {
        size: meta.len(),
        mode: meta.permissions().mode() & 0o7777,
        modify_time: Some(prost_types::Timestamp {
            seconds: meta.mtime(),
            nanos: i32::try_from(meta.mtime_nsec()).unwrap_or(0),
        }),
    };
    if request.offset > 0 {
        file.seek(io::SeekFrom::Start(request.offset)).await.map_err(|e| status(&path, &e))?;
    }
    let limit = if request.limit == 0 { u64::MAX } else { request.limit };
    let head = tokio_stream::once(Ok(Part::Info(info)));
    let data = futures_util::stream::try_unfold((file.take(limit), path), |(mut file, path)| async move {
        let mut piece = BytesMut::with_capacity(CHUNK);
        // `/proc` and network file systems give short reads, so the end is only where a read gives nothing.
        while piece.len() < CHUNK {
            let room = (CHUNK - piece.len()) as u64;
            let n = (&mut file).take(room).read_buf(&mut piece).await.map_err(|e| status(&path, &e))?;
            if n == 0 {
                break;
            }
        }
        Ok((!piece.is_empty()).then(|| (Part::Data(piece.freeze()), (file, path))))
    });
    Ok(Box::pin(head.chain(data).map(|part| part.map(|part| pb::ReadFileResponse { part: Some(part) }))))
}

/// Removes an unfinished temporary file, also when the call is dropped in the middle.
struct Unfinished(Option<PathBuf>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _gone = std::fs::remove_file(path);
        }
    }
}

pub(super) async fn write(
    home: &Home,
    header: &pb::WriteFileHeader,
    data: Streaming<pb::WriteFileRequest>,
) -> Result<pb::WriteFileResponse, Status> {
    let path = resolve(home, &header.path)?;
    let mode = if header.mode == 0 { DEFAULT_MODE } else { header.mode };
    if mode > 0o7777 {
        return Err(Status::invalid_argument(format!("mode: {mode:o} has more than permission bits")));
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Status::invalid_argument(format!("path: {} names no file", path.display())));
    };
    if fs::metadata(&path).await.is_ok_and(|m| m.is_dir()) {
        return Err(Status::invalid_argument(format!("path: {} is a directory", path.display())));
    }
    if header.make_parents {
        fs::create_dir_all(parent).await.map_err(|e| status(parent, &e))?;
    }
    if header.append {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(mode);
        let file = options.open(&path).await.map_err(|e| status(&path, &e))?;
        let bytes_written = copy(file, &path, data).await?;
        return Ok(pb::WriteFileResponse { bytes_written });
    }

    let mut tag = [0; 8];
    getrandom::fill(&mut tag).map_err(|e| Status::internal(format!("no random name: {e}")))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{:016x}", u64::from_ne_bytes(tag)));
    // A name at the file system's limit would not fit with the tag.
    let temporary = if temporary.len() > 255 {
        format!(".hvkube.{:016x}", u64::from_ne_bytes(tag)).into()
    } else {
        temporary
    };
    let temporary = parent.join(temporary);
    let (file, mut unfinished) = create(temporary.clone(), mode).await.map_err(|e| status(&path, &e))?;
    let bytes_written = copy(file, &path, data).await?;
    fs::rename(&temporary, &path).await.map_err(|e| status(&path, &e))?;
    unfinished.0 = None;
    Ok(pb::WriteFileResponse { bytes_written })
}

/// Makes a temporary file that goes with its guard. Both are made in one piece: a call that is dropped while it waits for
/// this drops them when they come.
async fn create(path: PathBuf, mode: u32) -> io::Result<(File, Unfinished)> {
    let made = tokio::task::spawn_blocking(move || {
        use std::os::unix::fs::OpenOptionsExt as _;
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
        let guard = Unfinished(Some(path));
        // The mode at creation is cut by the umask.
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        Ok::<_, io::Error>((file, guard))
    });
    let (file, guard) = made.await.map_err(io::Error::other)??;
    Ok((File::from_std(file), guard))
}

async fn copy(mut file: File, path: &Path, mut data: Streaming<pb::WriteFileRequest>) -> Result<u64, Status> {
    let mut written = 0;
    while let Some(message) = data.message().await? {
        let Some(WritePart::Data(piece)) = message.part else {
            return Err(Status::invalid_argument("only the first message may be a header"));
        };
        if piece.len() > MAX_PIECE {
            return Err(Status::invalid_argument(format!(
                "data: more than {MAX_PIECE} bytes in one message"
            )));
        }
        file.write_all(&piece).await.map_err(|e| status(path, &e))?;
        written += piece.len() as u64;
    }
    // To tonic a host that breaks off has merely finished; at the next step hyper drops this call, and the file with it.
    tokio::task::yield_now().await;
    file.flush().await.map_err(|e| status(path, &e))?;
    Ok(written)
}
