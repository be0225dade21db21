//! What is on the screen while it is measured: plain windows, text, a photo, and text that scrolls with a time stamp.
//!
//! Everything is drawn by this process over its own connection to the X server, so that it is known when it was drawn: a
//! call returns after the server has done it.

use std::os::unix::net::UnixStream;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use x11rb::connection::Connection as _;
use x11rb::protocol::xproto::{
    ChangeGCAux, ConnectionExt as _, CreateGCAux, CreateWindowAux, Gcontext, ImageFormat, Rectangle, Window,
    WindowClass,
};
use x11rb::rust_connection::{DefaultStream, RustConnection};
use x11rb::wrapper::ConnectionExt as _;

use super::peers::OnDisplay;

/// Side of a cell of the stamp: a coding unit of JPEG, so that black stays black.
const CELL: u16 = 16;
/// Cells of the stamp: milliseconds, and as many bits turned around as a check.
const BITS: u16 = 24;
/// Height of the strip that the stamp is in.
const STRIP: u16 = CELL;
/// Fonts, the best one first; the server has the last one built in.
const FONTS: &[(&str, u16)] = &[("10x20", 20), ("fixed", 13)];

/// What to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Plain,
    Text,
    Photo,
}

impl Content {
    pub(super) const ALL: [Self; 3] = [Self::Plain, Self::Text, Self::Photo];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Text => "text",
            Self::Photo => "photo",
        }
    }
}

/// A window over the whole screen.
pub(super) struct Painter {
    conn: RustConnection,
    window: Window,
    gc: Gcontext,
    width: u16,
    height: u16,
    line_height: u16,
    pub(super) font: &'static str,
    random: u32,
    photos: Vec<Vec<u8>>,
    next_photo: usize,
}

impl Painter {
    pub(super) fn new(on: &OnDisplay) -> anyhow::Result<Self> {
        let conn = connect(on).context("connect to the X server")?;
        let root = conn.setup().roots.first().context("the X server has no screen")?;
        let (width, height, depth) = (root.width_in_pixels, root.height_in_pixels, root.root_depth);
        let (parent, window, gc) = (root.root, conn.generate_id()?, conn.generate_id()?);
        let attributes = CreateWindowAux::new().override_redirect(1).background_pixel(0x0050_7878);
        let class = WindowClass::INPUT_OUTPUT;
        conn.create_window(depth, window, parent, 0, 0, width, height, 0, class, 0, &attributes)?;
        conn.map_window(window)?;
        conn.create_gc(gc, window, &CreateGCAux::new().graphics_exposures(0))?;
        let mut found = None;
        for (name, line_height) in FONTS {
            let font = conn.generate_id()?;
            if conn.open_font(font, name.as_bytes())?.check().is_ok() {
                conn.change_gc(gc, &ChangeGCAux::new().font(font))?;
                found = Some((*name, *line_height));
                break;
            }
        }
        let (font, line_height) = found.context("the X server has no font")?;
        let photos = (1..=3).map(|seed| photo(width, height, seed)).collect();
        let painter =
            Self { conn, window, gc, width, height, line_height, font, random: 1, photos, next_photo: 0 };
        painter.done()?;
        Ok(painter)
    }

    /// Shows another picture of this kind; all of the screen changes.
    pub(super) fn show(&mut self, content: Content) -> anyhow::Result<()> {
        match content {
            Content::Plain => self.plain()?,
            Content::Text => {
                self.fill(0x00ff_ffff, 0, 0, self.width, self.height)?;
                for row in 0..self.height / self.line_height {
                    self.line(row * self.line_height)?;
                }
            }
            Content::Photo => {
                let photo = &self.photos[self.next_photo % self.photos.len()];
                let stride = usize::from(self.width) * 4;
                // Within the largest request that every server takes.
                let rows = u16::try_from(200_000 / stride).unwrap_or(1).max(1);
                for top in (0..self.height).step_by(rows.into()) {
                    let height = rows.min(self.height - top);
                    let from = usize::from(top) * stride;
                    let data = &photo[from..from + usize::from(height) * stride];
                    let (format, y) = (ImageFormat::Z_PIXMAP, i16::try_from(top)?);
                    let width = self.width;
                    self.conn.put_image(format, self.window, self.gc, width, height, 0, y, 0, 24, data)?;
                }
                self.next_photo += 1;
            }
        }
        self.done()
    }

    /// Scrolls the text by a line, adds one, and stamps it with the time since `epoch`.
    pub(super) fn scroll(&mut self, epoch: Instant) -> anyhow::Result<()> {
        let step = self.line_height;
        let rest = self.height - STRIP - step;
        let (from, to) = (i16::try_from(STRIP + step)?, i16::try_from(STRIP)?);
        self.conn.copy_area(self.window, self.window, self.gc, 0, from, 0, to, self.width, rest)?;
        let last = self.height - step;
        self.fill(0x00ff_ffff, 0, last, self.width, step)?;
        self.line(last)?;
        let now = u32::try_from(epoch.elapsed().as_millis())?;
        ensure!(now >> BITS == 0, "the run took too long for the stamp");
        self.fill(0x00ff_ffff, 0, 0, self.width, STRIP)?;
        let cells = (0..BITS * 2).filter(|cell| {
            let bit = now >> (cell % BITS) & 1 == 1;
            bit == (*cell < BITS)
        });
        let black: Vec<Rectangle> = cells
            .map(|cell| {
                let x = i16::try_from(cell * CELL).unwrap_or(i16::MAX);
                Rectangle { x, y: 0, width: CELL, height: CELL }
            })
            .collect();
        self.conn.change_gc(self.gc, &ChangeGCAux::new().foreground(0))?;
        self.conn.poly_fill_rectangle(self.window, self.gc, &black)?;
        self.done()
    }

    fn plain(&mut self) -> anyhow::Result<()> {
        let (width, height) = (self.width, self.height);
        let colour = self.next() & 0x003f_3f3f;
        self.fill(colour | 0x0040_4040, 0, 0, width, height)?;
        self.fill(0x0030_3030, 0, 0, width, 28)?;
        for (x, y) in [(width / 12, height / 8), (width / 2, height / 3)] {
            let shade = self.next() & 0x000f_0f0f;
            self.fill(0x0030_60a0 + shade, x, y, width / 3, 24)?;
            self.fill(0x00f0_f0f0 + shade, x, y + 24, width / 3, height / 2)?;
        }
        Ok(())
    }

    /// One line of words, as long as lines of a log are.
    fn line(&mut self, top: u16) -> anyhow::Result<()> {
        let mut text = Vec::new();
        let length = 20 + usize::try_from(self.next() % 80)?;
        while text.len() < length {
            for _ in 0..2 + self.next() % 8 {
                text.push(b'a' + u8::try_from(self.next() % 26)?);
            }
            text.push(b' ');
        }
        let colours = ChangeGCAux::new().foreground(0x0020_2020).background(0x00ff_ffff);
        self.conn.change_gc(self.gc, &colours)?;
        let baseline = i16::try_from(top + self.line_height * 3 / 4)?;
        self.conn.image_text8(self.window, self.gc, 4, baseline, &text)?;
        Ok(())
    }

    fn fill(&self, colour: u32, x: u16, y: u16, width: u16, height: u16) -> anyhow::Result<()> {
        self.conn.change_gc(self.gc, &ChangeGCAux::new().foreground(colour))?;
        let rectangle = Rectangle { x: i16::try_from(x)?, y: i16::try_from(y)?, width, height };
        self.conn.poly_fill_rectangle(self.window, self.gc, &[rectangle])?;
        Ok(())
    }

    fn next(&mut self) -> u32 {
        random(&mut self.random)
    }

    fn done(&self) -> anyhow::Result<()> {
        self.conn.sync().context("the X server went away")
    }
}

/// Connects with the cookie of the desktop's server, which this process's own environment does not have.
pub(super) fn connect(on: &OnDisplay) -> anyhow::Result<RustConnection> {
    if on.authority.is_empty() {
        return Ok(x11rb::connect(Some(&on.display))?.0);
    }
    let socket = format!("/tmp/.X11-unix/X{}", on.display.trim_start_matches(':'));
    let stream = UnixStream::connect(&socket).with_context(|| format!("connect to {socket}"))?;
    let (stream, _) = DefaultStream::from_unix_stream(stream)?;
    let file = std::fs::read(&on.authority).context("read the cookie")?;
    let (name, cookie) = cookie(&file).context("a file without a cookie")?;
    Ok(RustConnection::connect_to_stream_with_auth_info(stream, 0, name.to_vec(), cookie.to_vec())?)
}

/// Name and data of the first entry: after its family come four fields with their lengths.
pub(super) fn cookie(file: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut rest = file.get(2..)?;
    let mut fields = [&b""[..]; 4];
    for field in &mut fields {
        let length = usize::from(u16::from_be_bytes(*rest.first_chunk()?));
        *field = rest.get(2..2 + length)?;
        rest = &rest[2 + length..];
    }
    Some((fields[2], fields[3]))
}

/// Reads the stamp of a decoded picture, whose pixels are RGB.
pub(super) fn stamp(picture: &image::RgbImage) -> Option<u32> {
    let dark = |cell: u16| {
        let x = u32::from(cell * CELL + CELL / 2);
        picture.get_pixel_checked(x, u32::from(CELL / 2)).map(|pixel| pixel.0[1] < 128)
    };
    let mut time = 0;
    for bit in 0..BITS {
        let (set, check) = (dark(bit)?, dark(bit + BITS)?);
        if set == check {
            return None;
        }
        time |= u32::from(set) << bit;
    }
    Some(time)
}

fn random(state: &mut u32) -> u32 {
    *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    *state >> 8
}

/// Like a photo to an encoder: soft shapes of several sizes in many colours, and the grain of a sensor.
fn photo(width: u16, height: u16, seed: u32) -> Vec<u8> {
    const LATTICE: usize = 128;
    let mut state = seed;
    let lattice: Vec<f32> = (0..LATTICE * LATTICE)
        .map(|_| f32::from(u16::try_from(random(&mut state) % 1000).unwrap_or(0)) / 1000.0 - 0.5)
        .collect();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "coordinates of a screen"
    )]
    let noise = |x: f32, y: f32| {
        let (left, top) = (x as usize, y as usize);
        let (fx, fy) = (x - left as f32, y - top as f32);
        let at = |x: usize, y: usize| lattice[y % LATTICE * LATTICE + x % LATTICE];
        let above = at(left, top) * (1.0 - fx) + at(left + 1, top) * fx;
        let below = at(left, top + 1) * (1.0 - fx) + at(left + 1, top + 1) * fx;
        above * (1.0 - fy) + below * fy
    };
    let mut pixels = Vec::with_capacity(usize::from(width) * usize::from(height) * 4);
    for y in 0..height {
        for x in 0..width {
            let (x, y) = (f32::from(x), f32::from(y));
            let detail = noise(x / 48.0, y / 48.0) * 60.0
                + noise(x / 12.0, y / 12.0) * 30.0
                + noise(x / 3.0, y / 3.0) * 16.0;
            for shift in [0.0, 37.0, 71.0] {
                let grain = f32::from(u8::try_from(random(&mut state) % 7).unwrap_or(0)) - 3.0;
                let value = 128.0 + noise(x / 200.0 + shift, y / 200.0) * 180.0 + detail + grain;
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "clamped to a byte"
                )]
                pixels.push(value.clamp(0.0, 255.0) as u8);
            }
            pixels.push(0);
        }
    }
    pixels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cookie_is_found() {
        let file = [0xff, 0xff, 0, 0, 0, 0, 0, 2, b'M', b'I', 0, 3, 1, 2, 3];
        assert_eq!(cookie(&file), Some((&b"MI"[..], &[1, 2, 3][..])));
        assert_eq!(cookie(&file[..12]), None);
    }

    #[test]
    fn a_stamp_needs_its_check() {
        let mut picture = image::RgbImage::from_pixel(1000, 20, image::Rgb([255; 3]));
        assert_eq!(stamp(&picture), None);
        for bit in 0..u32::from(BITS) {
            let cell = if 0x0005_a0f1 >> bit & 1 == 1 { bit } else { bit + u32::from(BITS) };
            for (x, y) in (0..16).flat_map(|x| (0..16).map(move |y| (x, y))) {
                picture.put_pixel(cell * 16 + x, y, image::Rgb([0; 3]));
            }
        }
        assert_eq!(stamp(&picture), Some(0x0005_a0f1));
    }
}
