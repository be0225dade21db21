//! A viewer of VNC made by hand, at the end of `hvkube vm console`.

use std::io;
use std::process::{ExitStatus, Stdio};

use hvkube_sdk::Target;
use image::{Rgb, RgbImage};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::{Daemon, LONG};

const RAW: i32 = 0;
/// Pseudo-encoding of another size of the screen.
const DESKTOP_SIZE: i32 = -223;
const RETURN: u32 = 0xff0d;
const SHIFT: u32 = 0xffe1;
/// What a keyboard types with Shift, besides capitals.
const SHIFTED: &str = "~!@#$%^&*()_+{}|:\"<>?";

/// A console that is open, and the program that serves it.
#[derive(Debug)]
pub struct Console {
    program: Child,
    /// Who looks.
    pub viewer: Viewer,
}

impl Console {
    /// Opens one with `hvkube vm console`, and looks at it.
    ///
    /// # Panics
    /// When it does not open.
    pub async fn open(daemon: &Daemon, target: &Target, arguments: &[&str]) -> Self {
        let mut command = Command::from(daemon.hvkube());
        command.args(["vm", "console", target.name(), "--no-viewer"]).args(arguments);
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn();
        let mut program = piped.expect("hvkube starts");
        let mut line = String::new();
        let told = BufReader::new(program.stdout.take().expect("piped")).read_line(&mut line).await;
        told.expect("readable");
        let stream = match TcpStream::connect(line.trim()).await {
            Ok(stream) => stream,
            Err(error) => panic!("hvkube says {line:?}: {error}\n{:?}", program.wait_with_output().await),
        };
        let viewer = Viewer::greet(stream).await.expect("RFB");
        Self { program, viewer }
    }

    /// Waits until it ends by itself: how, and what was said.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn ended(self) -> (ExitStatus, String) {
        let ended = tokio::time::timeout(LONG, self.program.wait_with_output()).await;
        let output = ended.expect("it ends").expect("a child");
        (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// A viewer that holds what it was shown.
#[derive(Debug)]
pub struct Viewer {
    stream: TcpStream,
    picture: RgbImage,
}

impl Viewer {
    /// RFC 6143, 7.1 to 7.3, without security; then says how it wants its pixels.
    async fn greet(mut stream: TcpStream) -> io::Result<Self> {
        let mut version = [0; 12];
        stream.read_exact(&mut version).await?;
        assert_eq!(&version, b"RFB 003.008\n");
        stream.write_all(&version).await?;
        let mut kinds = vec![0; stream.read_u8().await?.into()];
        stream.read_exact(&mut kinds).await?;
        assert!(kinds.contains(&1), "without security: {kinds:?}");
        stream.write_all(&[1]).await?;
        assert_eq!(stream.read_u32().await?, 0, "let in");
        stream.write_all(&[1]).await?;
        let (width, height) = (stream.read_u16().await?, stream.read_u16().await?);
        stream.read_exact(&mut [0; 16]).await?;
        let mut name = vec![0; stream.read_u32().await? as usize];
        stream.read_exact(&mut name).await?;
        // 32 bits of which 24 count, the low byte first, of 255: blue, green, red.
        stream.write_all(&[0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0]).await?;
        let mut encodings = vec![2, 0, 0, 2];
        encodings.extend([RAW, DESKTOP_SIZE].map(i32::to_be_bytes).concat());
        stream.write_all(&encodings).await?;
        Ok(Self { stream, picture: RgbImage::new(width.into(), height.into()) })
    }

    /// Asks for the whole screen, as it is after everything that was typed before.
    ///
    /// # Errors
    /// When the console is over.
    pub async fn look(&mut self) -> io::Result<RgbImage> {
        loop {
            let (width, height) = self.picture.dimensions();
            let mut request = vec![3, 0, 0, 0, 0, 0];
            for side in [width, height] {
                request.extend(u16::try_from(side).expect("sides are short").to_be_bytes());
            }
            self.stream.write_all(&request).await?;
            if self.update().await? {
                return Ok(self.picture.clone());
            }
        }
    }

    /// Takes in one update; whether it was the whole picture.
    async fn update(&mut self) -> io::Result<bool> {
        let kind = self.stream.read_u8().await?;
        assert_eq!(kind, 0, "an update");
        self.stream.read_u8().await?;
        let mut whole = false;
        for _ in 0..self.stream.read_u16().await? {
            let mut place = [0; 4];
            for at in &mut place {
                *at = u32::from(self.stream.read_u16().await?);
            }
            let [x, y, width, height] = place;
            match self.stream.read_i32().await? {
                RAW => {
                    let mut pixels = vec![0; (width * height * 4) as usize];
                    self.stream.read_exact(&mut pixels).await?;
                    for (index, pixel) in (0..).zip(pixels.as_chunks::<4>().0) {
                        let &[blue, green, red, _] = pixel;
                        let (x, y) = (x + index % width, y + index / width);
                        self.picture.put_pixel(x, y, Rgb([red, green, blue]));
                    }
                    whole |= (width, height) == self.picture.dimensions();
                }
                DESKTOP_SIZE => self.picture = RgbImage::new(width, height),
                other => panic!("an encoding that was not asked for: {other}"),
            }
        }
        Ok(whole)
    }

    /// Clicks with the left button.
    ///
    /// # Errors
    /// When the console is over.
    pub async fn click(&mut self, (x, y): (i32, i32)) -> io::Result<()> {
        let short = |at: i32| u16::try_from(at).expect("on the screen").to_be_bytes();
        for buttons in [0, 1, 0] {
            self.stream.write_all(&[&[5, buttons], &short(x)[..], &short(y)].concat()).await?;
        }
        Ok(())
    }

    /// Types text as a person's keyboard does.
    ///
    /// # Errors
    /// When the console is over.
    pub async fn type_text(&mut self, text: &str) -> io::Result<()> {
        for c in text.chars() {
            let shift = c.is_ascii_uppercase() || SHIFTED.contains(c);
            if shift {
                self.key(SHIFT, true).await?;
            }
            let key = if c == '\n' { RETURN } else { c.into() };
            self.key(key, true).await?;
            self.key(key, false).await?;
            if shift {
                self.key(SHIFT, false).await?;
            }
        }
        Ok(())
    }

    async fn key(&mut self, keysym: u32, down: bool) -> io::Result<()> {
        self.stream.write_all(&[&[4, u8::from(down), 0, 0], &keysym.to_be_bytes()[..]].concat()).await
    }
}
