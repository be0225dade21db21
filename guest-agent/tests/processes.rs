//! Programs, files and sessions as a host sees them.

mod desktop;
mod host;

use std::time::{Duration, Instant};

use bytes::Bytes;
use desktop::{Display, PATIENCE};
use hvkube_proto::guest::v1 as pb;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;

fn exec(argv: &[&str]) -> pb::ExecRequest {
    pb::ExecRequest { argv: argv.iter().map(ToString::to_string).collect(), ..Default::default() }
}

async fn gone(pid: u32) {
    let deadline = Instant::now() + PATIENCE;
    let running = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    };
    while running() {
        assert!(Instant::now() < deadline, "process {pid} still runs");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn programs_get_arguments_environment_and_input_and_give_output_and_exit() {
    let display = Display::start();
    let host = display.session().await;
    let mut request = exec(&["sh", "-c", "cat; echo \"$1 $VAR $PWD\"; echo err >&2; exit 3", "sh", "a b; c"]);
    request.env.insert("VAR".into(), "value".into());
    request.stdin = Bytes::from_static(b"in\n");
    let ran = host.exec(request).await.expect("ran");
    let home = display.home.path().display();
    assert_eq!(String::from_utf8_lossy(&ran.stdout), format!("in\na b; c value {home}\n"));
    assert_eq!(ran.stderr, b"err\n");
    assert_eq!(ran.exit, Some(pb::ExecExit { code: 3, signal: 0, timed_out: false }));
    assert!(ran.pid > 0);

    let ran = host.exec(exec(&["sh", "-c", "kill -TERM $$"])).await.expect("ran");
    assert_eq!(ran.exit, Some(pb::ExecExit { code: -1, signal: 15, timed_out: false }));

    let ran = host.exec(exec(&["head", "-c", "5000000", "/dev/zero"])).await.expect("ran");
    assert_eq!(ran.stdout.len(), 5_000_000);

    for (request, code, word) in [
        (exec(&["no-such-program"]), Code::NotFound, "no-such-program"),
        (exec(&[]), Code::InvalidArgument, "argv"),
        (exec(&["/etc/passwd"]), Code::PermissionDenied, "/etc/passwd"),
        (pb::ExecRequest { cwd: "/nowhere".into(), ..exec(&["true"]) }, Code::InvalidArgument, "cwd"),
        (pb::ExecRequest { as_root: true, ..exec(&["true"]) }, Code::FailedPrecondition, "as_root"),
        (exec(&["x"; 1025]), Code::InvalidArgument, "1024"),
    ] {
        let status = host.exec(request).await.expect_err("refused");
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(word), "{status:?} names {word}");
    }
}

#[tokio::test]
async fn a_programs_whole_group_ends_with_its_time_its_call_and_its_session() {
    use pb::exec_response::Event;
    let display = Display::start();
    let script = "sleep 1000 & echo $!; wait";
    let start = |mut client: hvkube_proto::guest::v1::process_service_client::ProcessServiceClient<
        host::Channel,
    >| async move {
        let mut stream = client.exec(exec(&["sh", "-c", script])).await.expect("started").into_inner();
        let mut pids = Vec::new();
        while pids.len() < 2 {
            match stream.message().await.expect("event").and_then(|m| m.event) {
                Some(Event::Started(pid)) => pids.push(pid),
                Some(Event::Stdout(text)) => {
                    pids.push(String::from_utf8_lossy(&text).trim().parse().expect("a process id"));
                }
                other => panic!("unexpected {other:?}"),
            }
        }
        (stream, pids)
    };

    let host = display.session().await;
    let mut request = exec(&["sh", "-c", script]);
    request.timeout = Duration::from_millis(300).try_into().ok();
    let ran = host.exec(request).await.expect("ran");
    assert_eq!(ran.exit, Some(pb::ExecExit { code: -1, signal: 9, timed_out: true }));
    gone(String::from_utf8_lossy(&ran.stdout).trim().parse().expect("a process id")).await;

    let (stream, pids) = start(host.processes()).await;
    drop(stream);
    for pid in pids {
        gone(pid).await;
    }

    let (stream, pids) = start(host.processes()).await;
    drop(host);
    for pid in pids {
        gone(pid).await;
    }
    drop(stream);

    // What a program leaves running when it ends by itself is meant to stay, and does not keep the call open.
    let host = display.session().await;
    let ran = host.exec(exec(&["sh", "-c", "sleep 30 & echo $!"])).await.expect("ran");
    assert_eq!(ran.exit.map(|e| e.code), Some(0));
    let pid: i32 = String::from_utf8_lossy(&ran.stdout).trim().parse().expect("a process id");
    let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("still there");
}

#[tokio::test]
async fn files_are_read_in_parts_and_written_whole() {
    let display = Display::start();
    let host = display.session().await;
    let header = |path: &str| pb::WriteFileHeader { path: path.into(), ..Default::default() };
    let body: Vec<u8> = (0..3_000_000u32).map(|i| i.to_le_bytes()[(i % 3) as usize]).collect();
    let pieces = body.chunks(1 << 20).map(<[u8]>::to_vec).collect();
    let deep = pb::WriteFileHeader { make_parents: true, mode: 0o640, ..header("a/b/file") };
    assert_eq!(host.write_file(deep, pieces).await.expect("written"), 3_000_000);
    let (info, back) = host
        .read_file(pb::ReadFileRequest { path: "a/b/file".into(), ..Default::default() })
        .await
        .expect("read");
    assert!(back == body);
    assert_eq!((info.size, info.mode), (3_000_000, 0o640));
    let part =
        pb::ReadFileRequest { path: "a/b/file".into(), offset: 70_000, limit: 70_000, ..Default::default() };
    assert!(host.read_file(part).await.expect("read").1 == body[70_000..140_000]);

    let append = pb::WriteFileHeader { append: true, ..header("log") };
    host.write_file(append.clone(), vec![b"one\n".to_vec()]).await.expect("created");
    host.write_file(append, vec![b"two\n".to_vec()]).await.expect("appended");
    assert_eq!(std::fs::read(display.path("log")).expect("there"), b"one\ntwo\n");

    let read = |path: &str| pb::ReadFileRequest { path: path.into(), ..Default::default() };
    assert_eq!(host.read_file(read("none")).await.expect_err("none").code(), Code::NotFound);
    assert_eq!(host.read_file(read("a")).await.expect_err("directory").code(), Code::InvalidArgument);
    assert_eq!(host.read_file(read("/dev/zero")).await.expect_err("device").code(), Code::InvalidArgument);
    assert_eq!(host.read_file(read("")).await.expect_err("no name").code(), Code::InvalidArgument);
    for (path, code) in
        [("none/file", Code::NotFound), ("a/b", Code::InvalidArgument), ("log/x", Code::InvalidArgument)]
    {
        assert_eq!(host.write_file(header(path), vec![]).await.expect_err("refused").code(), code, "{path}");
    }
    let large = host.write_file(header("large"), vec![vec![0; (1 << 20) + 1]]).await.expect_err("too large");
    assert_eq!(large.code(), Code::InvalidArgument);
    assert!(!display.path("large").exists());
    let names: Vec<_> =
        std::fs::read_dir(display.home.path()).expect("home").flatten().map(|e| e.file_name()).collect();
    assert!(
        !names.iter().any(|n| n.to_string_lossy().contains(".large")),
        "no temporary file is left: {names:?}"
    );
}

#[tokio::test]
async fn a_broken_upload_leaves_the_old_file() {
    use pb::write_file_request::Part;
    let display = Display::start();
    let host = display.session().await;
    std::fs::write(display.path("kept"), "old").expect("file");
    let header = pb::WriteFileHeader { path: "kept".into(), ..Default::default() };
    let (tx, rx) = tokio::sync::mpsc::channel(4);
    for part in [Part::Header(header), Part::Data(Bytes::from_static(b"half"))] {
        tx.send(pb::WriteFileRequest { part: Some(part) }).await.expect("room");
    }
    let mut client = host.processes();
    let upload =
        tokio::spawn(async move { client.write_file(tokio_stream::wrappers::ReceiverStream::new(rx)).await });
    let home = display.home.path().to_owned();
    let temporary = || {
        let entries = std::fs::read_dir(&home).expect("home").flatten();
        entries.filter(|e| e.file_name().to_string_lossy().starts_with(".kept.")).count()
    };
    let deadline = Instant::now() + PATIENCE;
    while temporary() == 0 {
        assert!(Instant::now() < deadline, "the upload never began");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(host);
    while temporary() > 0 {
        assert!(Instant::now() < deadline, "the temporary file is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(std::fs::read_to_string(display.path("kept")).expect("there"), "old");
    drop(tx);
    upload.await.expect("no panic").expect_err("broken");
}

#[tokio::test]
async fn a_session_is_found_behind_stale_bytes_and_a_knock_is_answered() {
    use hvkube_guest::session::{greet, serve};
    use hvkube_proto::preface::{VERSION, Welcome};
    let display = Display::start();
    let (mut guest, mut host) = tokio::io::duplex(1 << 20);
    let services = display.services();
    let served = tokio::spawn(async move {
        let epoch = greet(&mut guest, [9; 32]).await.expect("greeting");
        let _ended = serve(guest, services).await;
        epoch
    });
    // The rest of an older conversation, an answer to an older greeting, and a host that missed the first one.
    host.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("sent");
    host.write_all(&Welcome { version: VERSION, nonce: [1; 16], epoch: 4 }.encode()).await.expect("sent");
    let first = host::read_hello(&mut host).await.expect("greeting");
    assert_eq!(first.secret, [9; 32]);
    host.write_all(&Welcome::KNOCK.encode()).await.expect("knocked");
    let host = host::Host::greet(host, 5).await.expect("session");
    assert_ne!(host.hello.nonce, first.nonce);
    let answer = host.supervisor().attach(pb::AttachRequest::default()).await.expect("attached").into_inner();
    assert!(answer.desktop_ready);
    let mut beats = host
        .supervisor()
        .heartbeat(pb::HeartbeatRequest { interval: Duration::from_millis(100).try_into().ok() })
        .await
        .expect("beats")
        .into_inner();
    for sequence in 1..=3 {
        let beat = beats.message().await.expect("beat").expect("not over");
        assert_eq!(beat.sequence, sequence);
    }
    drop((beats, host));
    assert_eq!(served.await.expect("no panic"), 5);
}

#[tokio::test]
async fn a_host_of_another_version_is_refused_by_name() {
    use hvkube_guest::session::{HandshakeError, greet};
    use hvkube_proto::preface::Welcome;
    let (mut guest, mut host) = tokio::io::duplex(1024);
    let greeting = tokio::spawn(async move { greet(&mut guest, [0; 32]).await });
    let hello = host::read_hello(&mut host).await.expect("greeting");
    host.write_all(&Welcome { version: 9, nonce: hello.nonce, epoch: 1 }.encode()).await.expect("sent");
    let refused = greeting.await.expect("no panic").expect_err("refused");
    assert!(matches!(refused, HandshakeError::Version(9)), "{refused}");
    let mut rest = Vec::new();
    host.read_to_end(&mut rest).await.expect("closed");
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_knock_ends_the_session_of_a_host_that_nobody_saw_leave() {
    use hvkube_guest::session::{greet, serve};
    use hvkube_proto::preface::{VERSION, Welcome};
    let display = Display::start();
    let (mut guest, mut host) = tokio::io::duplex(1 << 20);
    let services = display.services();
    let served = tokio::spawn(async move {
        greet(&mut guest, [0; 32]).await.expect("greeting");
        let _ended = serve(guest, services).await;
    });
    let hello = host::read_hello(&mut host).await.expect("greeting");
    host.write_all(&Welcome { version: VERSION, nonce: hello.nonce, epoch: 1 }.encode()).await.expect("sent");
    // An HTTP/2 client that died in the middle of a large frame: 64 KiB were announced, four bytes came.
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let headers = [1, 0, 0, 1, 4, 0, 0, 0, 1];
    for part in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &settings, &headers, b"half"] {
        host.write_all(part).await.expect("sent");
    }
    // The server's own settings show that it has read what came.
    host.read_exact(&mut [0; 9]).await.expect("the session serves");
    tokio::time::sleep(Duration::from_millis(50)).await;
    host.write_all(&Welcome::KNOCK.encode()).await.expect("knocked");
    tokio::time::timeout(PATIENCE, served).await.expect("the session ends").expect("no panic");
}
