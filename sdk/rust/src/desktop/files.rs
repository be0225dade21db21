//! Files in and out of the guest. Paths there are absolute, or relative to the desktop user's home.

use std::path::Path;

use bytes::{Bytes, BytesMut};
use tokio::fs;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::client::call;
use crate::desktop::Target;
use crate::error::{Error, Result};
use crate::v1::{
    FileInfo, PutFileRequest, ReadFileRequest, ReadFileResponse, WriteFileHeader, WriteFileRequest,
    read_file_response, write_file_request,
};

/// Size of the pieces a file is sent in; well under the API's limit of 1 MiB, large enough to be cheap.
const CHUNK: usize = 256 << 10;
/// Largest file that goes in one call.
const SMALL: usize = 1 << 20;

/// How a file is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Permission bits; 0 means 0644.
    pub mode: u32,
    /// Add to the end instead of replacing.
    pub append: bool,
    /// Make missing parent directories.
    pub make_parents: bool,
    /// Write as root (LocalSystem) instead of the desktop user.
    pub as_root: bool,
}

/// A file that comes out of the guest.
#[derive(Debug)]
pub struct FileStream {
    /// What it is.
    pub info: FileInfo,
    stream: Streaming<ReadFileResponse>,
    target: Target,
}

impl FileStream {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// When reading fails or the way to the guest breaks.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let answer = self.stream.message().await.map_err(|status| self.target.client().error(status))?;
            match answer.map(|answer| answer.part) {
                None => return Ok(None),
                Some(Some(read_file_response::Part::Data(data))) => return Ok(Some(data)),
                // The header is out already, and what a newer daemon adds is not for us.
                Some(_) => {}
            }
        }
    }
}

impl Target {
    /// Opens a file in the guest for reading.
    ///
    /// # Errors
    /// `NOT_FOUND` (`GUEST_FILE_NOT_FOUND`); `PERMISSION_DENIED` (`GUEST_PERMISSION_DENIED`).
    pub async fn open_file(&self, path: &str, as_root: bool) -> Result<FileStream> {
        let request = ReadFileRequest {
            target: self.name().to_owned(),
            path: path.to_owned(),
            as_root,
            ..Default::default()
        };
        let wrap = |status| self.client().error(status);
        let mut stream = self.client().desktops().read_file(request).await.map_err(wrap)?.into_inner();
        let first = stream.message().await.map_err(wrap)?.and_then(|answer| answer.part);
        let Some(read_file_response::Part::Info(info)) = first else {
            return Err(Error::Protocol("a file that does not begin with what it is"));
        };
        Ok(FileStream { info, stream, target: self.clone() })
    }

    /// Reads a whole file of at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Target::open_file`]; [`Error::TooLarge`].
    pub async fn read_file(&self, path: &str, limit: usize) -> Result<Vec<u8>> {
        let mut file = self.open_file(path, false).await?;
        let mut data = Vec::new();
        while let Some(piece) = file.next().await? {
            if data.len() + piece.len() > limit {
                return Err(Error::TooLarge { what: "the file", limit: limit as u64 });
            }
            data.extend_from_slice(&piece);
        }
        Ok(data)
    }

    /// Writes a whole file; it appears at once or not at all.
    ///
    /// # Errors
    /// As [`Target::open_file`].
    pub async fn write_file(&self, path: &str, data: impl Into<Bytes>, options: WriteOptions) -> Result<u64> {
        let data = data.into();
        if data.len() > SMALL {
            return self.send(path, &data[..], options, |_| {}).await;
        }
        let request = PutFileRequest { header: Some(self.header(path, options)), data };
        // A replacement can be repeated, an appended piece would be there twice.
        let client = self.client();
        let answer = if options.append {
            call!(client, Once, client.quick(), desktops.put_file(request))
        } else {
            call!(client, Repeatable, client.quick(), desktops.put_file(request))
        };
        Ok(answer?.bytes_written)
    }

    /// Streams what `reader` gives into a file in the guest; it appears whole at the end, or not at all when the reader
    /// fails or this future is dropped. `progress` gets the number of bytes sent so far.
    ///
    /// # Errors
    /// As [`Target::open_file`]; [`Error::Io`] of the reader.
    pub async fn send(
        &self,
        path: &str,
        mut reader: impl AsyncRead + Unpin,
        options: WriteOptions,
        mut progress: impl FnMut(u64),
    ) -> Result<u64> {
        // Two chunks on the way keep the connection busy while the next one is read; more only cost memory.
        let (tx, rx) = mpsc::channel(2);
        let mut open = HoldOpen(Some(tx.clone()));
        let header = write_file_request::Part::Header(self.header(path, options));
        let feed = async move {
            let mut sent = 0u64;
            let mut part = header;
            while tx.send(WriteFileRequest { part: Some(part) }).await.is_ok() {
                progress(sent);
                let mut chunk = BytesMut::with_capacity(CHUNK);
                while chunk.len() < CHUNK && reader.read_buf(&mut chunk).await? > 0 {}
                if chunk.is_empty() {
                    break;
                }
                sent += chunk.len() as u64;
                part = write_file_request::Part::Data(chunk.freeze());
            }
            Ok::<(), std::io::Error>(())
        };
        let mut client = self.client().desktops();
        let call = client.write_file(ReceiverStream::new(rx));
        tokio::pin!(feed, call);
        let mut fed = false;
        let answer = loop {
            tokio::select! {
                result = &mut feed, if !fed => match result {
                    Ok(()) => {
                        fed = true;
                        open.finish();
                    }
                    Err(err) => return Err(Error::io("read the local file", err)),
                },
                answer = &mut call => break answer,
            }
        };
        Ok(answer.map_err(|status| self.client().error(status))?.into_inner().bytes_written)
    }

    /// Copies a local file into the guest, with its permission bits unless `options.mode` is set. Gives its size in bytes.
    ///
    /// # Errors
    /// As [`Target::send`].
    pub async fn copy_in(&self, local: &Path, path: &str, mut options: WriteOptions) -> Result<u64> {
        let fail = |err| Error::io(format!("read {}", local.display()), err);
        let file = fs::File::open(local).await.map_err(fail)?;
        if options.mode == 0 {
            options.mode = mode_of(&file.metadata().await.map_err(fail)?);
        }
        self.send(path, file, options, |_| {}).await
    }

    /// Copies a file out of the guest; the local one appears when it is whole. Gives its size in bytes.
    ///
    /// # Errors
    /// As [`Target::open_file`]; [`Error::Io`] of the local file.
    pub async fn copy_out(&self, path: &str, local: &Path) -> Result<u64> {
        let mut file = self.open_file(path, false).await?;
        receive_file(&mut file, local, |_| {}).await
    }
}

/// Writes the rest of a guest's file to a local one, which appears when it is whole. `progress` gets the bytes so far.
///
/// # Errors
/// As [`FileStream::next`]; [`Error::Io`] of the local file.
pub(crate) async fn receive_file(
    file: &mut FileStream,
    local: &Path,
    progress: impl FnMut(u64),
) -> Result<u64> {
    let fail = |err| Error::io(format!("write {}", local.display()), err);
    let mut name = local.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = Unfinished(Some(local.with_file_name(name)));
    let path = part.0.as_deref().unwrap_or(local);
    let mut out = fs::File::create(path).await.map_err(fail)?;
    let size = file.copy_to(&mut out, progress).await?;
    fs::rename(path, local).await.map_err(fail)?;
    let mut part = part;
    part.0 = None;
    Ok(size)
}

/// Removes a file that did not get finished, also when the future is dropped.
struct Unfinished(Option<std::path::PathBuf>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // Nobody is left to be told, and the name says what it is.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl FileStream {
    /// Writes the rest to `writer`; `progress` gets the number of bytes so far. Gives that number at the end.
    ///
    /// # Errors
    /// As [`FileStream::next`]; [`Error::Io`] of the writer.
    pub async fn copy_to(
        &mut self,
        writer: &mut (impl AsyncWrite + Unpin),
        mut progress: impl FnMut(u64),
    ) -> Result<u64> {
        let mut done = 0;
        while let Some(piece) = self.next().await? {
            writer.write_all(&piece).await.map_err(|err| Error::io("write the local file", err))?;
            done += piece.len() as u64;
            progress(done);
        }
        // Tokio's files and standard output hand a write to a thread and answer at once: what is not flushed may be lost.
        writer.flush().await.map_err(|err| Error::io("write the local file", err))?;
        Ok(done)
    }

    /// Writes the rest to a local file, which appears when it is whole. `progress` gets the number of bytes so far.
    ///
    /// # Errors
    /// As [`FileStream::next`]; [`Error::Io`] of the local file.
    pub async fn save(&mut self, local: &Path, progress: impl FnMut(u64)) -> Result<u64> {
        receive_file(self, local, progress).await
    }
}

/// Keeps a request stream open until it may end. The daemon takes the stream's end for "complete", and whatever happens
/// to the feeder or to the call's future, half a file must not pass for a whole one.
struct HoldOpen(Option<mpsc::Sender<WriteFileRequest>>);

impl HoldOpen {
    fn finish(&mut self) {
        self.0 = None;
    }
}

impl Drop for HoldOpen {
    fn drop(&mut self) {
        let Some(sender) = self.0.take() else { return };
        // The call is gone by now, but the task that sends its body learns that later: outlive it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { sender.closed().await });
        }
    }
}

impl Target {
    fn header(&self, path: &str, options: WriteOptions) -> WriteFileHeader {
        WriteFileHeader {
            target: self.name().to_owned(),
            path: path.to_owned(),
            mode: options.mode,
            append: options.append,
            make_parents: options.make_parents,
            as_root: options.as_root,
        }
    }
}

/// Permission bits of a local file; 0 where the system has none.
#[cfg(unix)]
pub(crate) fn mode_of(meta: &std::fs::Metadata) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    meta.permissions().mode() & 0o777
}

/// Permission bits of a local file; 0 where the system has none.
#[cfg(not(unix))]
pub(crate) fn mode_of(_meta: &std::fs::Metadata) -> u32 {
    0
}
