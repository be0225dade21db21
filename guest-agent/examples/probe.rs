//! Developer's tool: talks to an agent as its host and prints what it says and how long it took.
//!
//! ```text
//! cargo run -p hvkube-guest --example probe -- unix:run.agent           # a VM's virtio-serial socket
//! cargo run -p hvkube-guest --example probe -- listen:127.0.0.1:5555    # waits for a standalone agent
//!     ... info | bench | shot FILE.ppm | exec PROGRAM ARG... | root PROGRAM ARG... | put LOCAL GUEST
//!       | type FILE | key NAME... | click X Y | reconnect
//! ```

#[path = "../tests/host/mod.rs"]
mod host;

use std::error::Error;
use std::time::{Duration, Instant};

use host::Host;
use hvkube_proto::guest::v1 as pb;
use hvkube_proto::guest::v1::input_event::Event;
use tokio::net::{TcpListener, UnixStream};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

async fn open(place: &str, epoch: u64) -> Result<Host> {
    let host = if let Some(path) = place.strip_prefix("unix:") {
        Host::greet(UnixStream::connect(path).await?, epoch)
    } else if let Some(address) = place.strip_prefix("listen:") {
        let listener = TcpListener::bind(address).await?;
        let stream = listener.accept().await?.0;
        stream.set_nodelay(true)?;
        return Ok(tokio::time::timeout(Duration::from_secs(10), Host::greet(stream, epoch)).await??);
    } else {
        return Err("the first argument is unix:PATH or listen:HOST:PORT".into());
    };
    Ok(tokio::time::timeout(Duration::from_secs(10), host).await.map_err(|_| "no greeting within 10 s")??)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let place = args.first().ok_or("usage: probe PLACE COMMAND ...")?;
    let command = args.get(1).map_or("info", String::as_str);
    let rest = args.get(2..).unwrap_or_default();
    let start = Instant::now();
    let host = open(place, 1).await?;
    eprintln!("session after {:?}", start.elapsed());
    match command {
        "info" => info(&host, start).await,
        "bench" => bench(&host).await,
        "shot" => shot(&host, rest.first().ok_or("shot FILE.ppm")?).await,
        "exec" => exec(&host, rest, false).await,
        "root" => exec(&host, rest, true).await,
        "put" => put(&host, rest).await,
        "type" => {
            let text = std::fs::read_to_string(rest.first().ok_or("type FILE")?)?;
            input(&host, vec![Event::Text(pb::Text { text, interval: None })]).await
        }
        "key" => input(&host, vec![Event::Chord(pb::Chord { keys: rest.to_vec(), hold: None })]).await,
        "click" => {
            let [x, y] = rest else { return Err("click X Y".into()) };
            let at = Some(pb::Point { x: x.parse()?, y: y.parse()? });
            input(&host, vec![Event::Click(pb::Click { at, ..Default::default() })]).await
        }
        "reconnect" => {
            drop(host);
            reconnect(place).await
        }
        other => Err(format!("no command {other}").into()),
    }
}

async fn info(host: &Host, start: Instant) -> Result {
    let attach = pb::AttachRequest { epoch: 1, host_time: Some(host::now()), ..Default::default() };
    let answer = host.supervisor().attach(attach).await?.into_inner();
    eprintln!("attached after {:?}", start.elapsed());
    println!("{answer:#?}");
    let mut beats = host.supervisor().heartbeat(pb::HeartbeatRequest { interval: None }).await?.into_inner();
    println!("{:#?}", beats.message().await?);
    println!("{:#?}", host.display().probe(pb::ProbeRequest {}).await?.into_inner());
    Ok(())
}

struct Times(Vec<Duration>);

impl Times {
    fn print(mut self, name: &str) {
        self.0.sort();
        let at = |part: f64| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small index")]
            let i = (part * (self.0.len() - 1) as f64) as usize;
            self.0[i].as_secs_f64() * 1e3
        };
        println!("{name:<34} p50 {:8.2} ms   p95 {:8.2} ms   min {:8.2} ms", at(0.5), at(0.95), at(0.0));
    }
}

async fn bench(host: &Host) -> Result {
    let mut attach = Times(Vec::new());
    let mut probe = Times(Vec::new());
    let mut full = Times(Vec::new());
    let mut unchanged = Times(Vec::new());
    let mut moved = Times(Vec::new());
    let mut bytes = 0;
    for i in 0..30 {
        let request = pb::AttachRequest {
            epoch: 1,
            host_time: Some(host::now()),
            entropy: vec![7; 32].into(),
            ..Default::default()
        };
        let at = Instant::now();
        host.supervisor().attach(request).await?;
        attach.0.push(at.elapsed());
        let at = Instant::now();
        host.display().probe(pb::ProbeRequest {}).await?;
        probe.0.push(at.elapsed());
        let at = Instant::now();
        let frame = host
            .capture(pb::CaptureRequest { since_sequence: 0, wait: None, cursor: true, ..Default::default() })
            .await?;
        full.0.push(at.elapsed());
        bytes = frame.bytes;
        let at = Instant::now();
        let since_sequence = frame.header.sequence;
        host.capture(pb::CaptureRequest { since_sequence, wait: None, cursor: true, ..Default::default() })
            .await?;
        unchanged.0.push(at.elapsed());
        let at = Instant::now();
        let to = Some(pb::Point { x: 100 + i, y: 100 });
        host.input(&format!("m{i}"), vec![Event::Move(pb::Move { to, ..Default::default() })]).await?;
        moved.0.push(at.elapsed());
    }
    attach.print("attach (clock, entropy)");
    probe.print("probe (input path)");
    full.print("full frame");
    println!("{:<34} {bytes} bytes", "full frame, packed");
    unchanged.print("unchanged frame");
    moved.print("one mouse move");
    let at = Instant::now();
    let argv = ["head", "-c", "16777216", "/dev/zero"].map(String::from).into();
    let ran = host.exec(pb::ExecRequest { argv, ..Default::default() }).await?;
    let rate = ran.stdout.len() as f64 / 1e6 / at.elapsed().as_secs_f64();
    println!("{:<34} {rate:.0} MB/s", "program output");
    Ok(())
}

async fn reconnect(place: &str) -> Result {
    let mut times = Times(Vec::new());
    for epoch in 2..22 {
        let at = Instant::now();
        let host = open(place, epoch).await?;
        host.supervisor().attach(pb::AttachRequest { epoch, ..Default::default() }).await?;
        times.0.push(at.elapsed());
        drop(host);
        // QEMU takes one connection at a time and must see this one end first.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    times.print("open to first answer");
    Ok(())
}

async fn shot(host: &Host, file: &str) -> Result {
    let frame = host
        .capture(pb::CaptureRequest { since_sequence: 0, wait: None, cursor: true, ..Default::default() })
        .await?;
    let mut pixels = Vec::new();
    frame.paint(&mut pixels);
    let mut out = format!("P6 {} {} 255\n", frame.header.width, frame.header.height).into_bytes();
    out.extend(pixels.chunks_exact(4).flat_map(|p| [p[2], p[1], p[0]]));
    std::fs::write(file, out)?;
    Ok(())
}

async fn exec(host: &Host, argv: &[String], as_root: bool) -> Result {
    let ran = host.exec(pb::ExecRequest { argv: argv.to_vec(), as_root, ..Default::default() }).await?;
    print!("{}", String::from_utf8_lossy(&ran.stdout));
    eprint!("{}", String::from_utf8_lossy(&ran.stderr));
    eprintln!("{:?}", ran.exit);
    Ok(())
}

async fn put(host: &Host, rest: &[String]) -> Result {
    let [local, guest] = rest else { return Err("put LOCAL GUEST".into()) };
    let header = pb::WriteFileHeader { path: guest.clone(), make_parents: true, ..Default::default() };
    let pieces = std::fs::read(local)?.chunks(1 << 20).map(<[u8]>::to_vec).collect();
    println!("{} bytes", host.write_file(header, pieces).await?);
    Ok(())
}

async fn input(host: &Host, events: Vec<Event>) -> Result {
    let at = Instant::now();
    let id = format!("{}", host::now().nanos);
    let answer = host.input(&id, events).await?;
    println!("{answer:?} after {:?}", at.elapsed());
    Ok(())
}
