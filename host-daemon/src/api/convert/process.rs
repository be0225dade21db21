//! Programs and files in guests.

use std::time::Duration;

use hvkube_proto::v1;

use super::screen::system_time;
use crate::api::fields;
use crate::guest::{ExecEvent, ExecParams, FileInfo, ReadParams, WriteParams};
use crate::model::error::{Error, Result};

const MAX_ARGS: usize = 1024;
/// Of all arguments, and of the environment.
const MAX_ARG_BYTES: usize = 256 << 10;
/// Of standard input, a file in one call, and a part of one.
pub(crate) const MAX_DATA: usize = 1 << 20;
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Permissions with set-user-id, set-group-id and sticky bit.
const MAX_MODE: u32 = 0o7777;

pub(crate) fn exec(request: v1::ExecRequest) -> Result<ExecParams> {
    if request.argv.is_empty() || request.argv.len() > MAX_ARGS {
        let what = format!("has {} entries; legal is 1 to {MAX_ARGS}", request.argv.len());
        return Err(Error::field("argv", what));
    }
    fields::required_text("argv[0]", &request.argv[0], MAX_ARG_BYTES)?;
    for (i, argument) in request.argv.iter().enumerate() {
        fields::text(&format!("argv[{i}]"), argument, MAX_ARG_BYTES)?;
    }
    within("argv", request.argv.iter().map(|arg| arg.len() + 1).sum(), MAX_ARG_BYTES)?;
    for (name, value) in &request.env {
        let field = || format!("env[{:?}]", fields::cut(name));
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(Error::field(
                field(),
                "the name of a variable must not be empty or contain = or U+0000",
            ));
        }
        fields::text(&field(), value, MAX_ARG_BYTES)?;
    }
    let bytes = request.env.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
    within("env", bytes, MAX_ARG_BYTES)?;
    fields::text("cwd", &request.cwd, fields::PATH)?;
    within("stdin", request.stdin.len(), MAX_DATA)?;
    let timeout = fields::duration("timeout", request.timeout, Duration::from_millis(1)..=MAX_TIMEOUT)?;
    Ok(ExecParams {
        argv: request.argv,
        env: request.env.into_iter().collect(),
        cwd: request.cwd,
        stdin: request.stdin,
        timeout,
        as_root: request.as_root,
    })
}

fn within(field: &str, bytes: usize, max: usize) -> Result<()> {
    if bytes > max {
        return Err(Error::field(field, format!("has {bytes} bytes in all, at most {max} are allowed")));
    }
    Ok(())
}

pub(crate) fn exec_event(event: ExecEvent) -> v1::ExecResponse {
    use v1::exec_response::Event;
    let event = match event {
        ExecEvent::Started { pid } => Event::Started(v1::ExecStarted { pid }),
        ExecEvent::Stdout(data) => Event::Stdout(data),
        ExecEvent::Stderr(data) => Event::Stderr(data),
        ExecEvent::Exited { code, signal, timed_out } => {
            Event::Exit(v1::ExecExit { code, signal, timed_out })
        }
    };
    v1::ExecResponse { event: Some(event) }
}

pub(crate) fn read(request: v1::ReadFileRequest) -> Result<ReadParams> {
    fields::required_text("path", &request.path, fields::PATH)?;
    let v1::ReadFileRequest { path, offset, limit, as_root, .. } = request;
    Ok(ReadParams { path, offset, limit, as_root })
}

pub(crate) fn file_info(info: &FileInfo) -> v1::FileInfo {
    v1::FileInfo { size: info.size, mode: info.mode, modify_time: info.modified.and_then(system_time) }
}

pub(crate) fn write(header: &v1::WriteFileHeader) -> Result<WriteParams> {
    let path = fields::required_text("header.path", &header.path, fields::PATH)?.to_owned();
    if header.mode > MAX_MODE {
        return Err(Error::field("header.mode", format!("{:#o} is more than {MAX_MODE:#o}", header.mode)));
    }
    Ok(WriteParams {
        path,
        mode: header.mode,
        append: header.append,
        make_parents: header.make_parents,
        as_root: header.as_root,
    })
}

/// Checks the size of a piece of a file.
pub(crate) fn data(data: &[u8]) -> Result<()> {
    within("data", data.len(), MAX_DATA)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.expect_err("refused").violations.remove(0).field
    }

    #[test]
    fn refusals_name_their_field() {
        let legal = || v1::ExecRequest { argv: vec!["true".into()], ..Default::default() };
        type Change = fn(&mut v1::ExecRequest);
        let cases: &[(&str, Change)] = &[
            ("argv", |r| r.argv.clear()),
            ("argv", |r| r.argv = vec!["x".into(); 1025]),
            ("argv", |r| r.argv = vec!["x".repeat(1000); 300]),
            ("argv[0]", |r| r.argv = vec![String::new()]),
            ("argv[1]", |r| r.argv = vec!["a".into(), "\0".into()]),
            ("env[\"a=b\"]", |r| drop(r.env.insert("a=b".into(), String::new()))),
            ("env", |r| {
                r.env.insert("a".into(), "x".repeat(200_000));
                r.env.insert("b".into(), "x".repeat(200_000));
            }),
            ("cwd", |r| r.cwd = "x".repeat(5000)),
            ("stdin", |r| r.stdin = vec![0; MAX_DATA + 1].into()),
            ("timeout", |r| r.timeout = Some(prost_types::Duration { seconds: 0, nanos: 0 })),
        ];
        for (expected, change) in cases {
            let mut request = legal();
            change(&mut request);
            assert_eq!(field(exec(request)), *expected);
        }
        assert_eq!(field(read(v1::ReadFileRequest::default())), "path");
        assert_eq!(field(write(&v1::WriteFileHeader::default())), "header.path");
        let mode = v1::WriteFileHeader { path: "a".into(), mode: 0o10000, ..Default::default() };
        assert_eq!(field(write(&mode)), "header.mode");
        assert_eq!(field(data(&vec![0; MAX_DATA + 1])), "data");
    }
}
