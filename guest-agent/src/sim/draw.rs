//! Draws the desktop: large areas in one colour, and small pictures of text.
//!
//! The drawing is a list of layers, each opaque, the later over the earlier. A frame for the host is that list cut to what
//! it asks for, so that nothing of the size of a screen is ever held. Together the layers cover less than twice the
//! screen, which is what a host accepts in one frame.

use bytes::Bytes;
use embedded_graphics::Pixel;
use embedded_graphics::mono_font::iso_8859_1::FONT_6X13;
use embedded_graphics::mono_font::{MonoTextStyle, MonoTextStyleBuilder};
use embedded_graphics::pixelcolor::{BinaryColor, Rgb888, RgbColor};
use embedded_graphics::prelude::{DrawTarget, Drawable, OriginDimensions, Point, Size};
use embedded_graphics::text::{Baseline, Text};
use hvkube_proto::guest::v1 as pb;

use super::Memory;
use super::desktop::{BAR, Layout};
use crate::display::Rect;

const DESK: Rgb888 = Rgb888::new(0x2e, 0x5a, 0x6b);
const PANEL: Rgb888 = Rgb888::new(0x22, 0x28, 0x2c);
const TITLE: Rgb888 = Rgb888::new(0x3f, 0x51, 0x5e);
const WINDOW: Rgb888 = Rgb888::new(0xe6, 0xe8, 0xea);
const PAPER: Rgb888 = Rgb888::WHITE;
const MARKED: Rgb888 = Rgb888::new(0xb4, 0xd5, 0xff);
const BUTTON: Rgb888 = Rgb888::new(0xc3, 0xcc, 0xd4);
const INK: Rgb888 = Rgb888::new(0x10, 0x14, 0x18);
const PALE: Rgb888 = Rgb888::new(0xf2, 0xf4, 0xf6);

const CELL: (u32, u32) = (6, 13);
const PADDING: u32 = 4;
/// Unpacked bytes of one rectangle, as the protocol bounds it.
const MAX_BAND: u32 = 1 << 20;
/// The cursor is an arrow in a square of this size.
const CURSOR: u32 = 12;
/// Names its picture.
const ARROW: u32 = 1;

enum Layer {
    Solid(Rect, Rgb888),
    Text { area: Rect, lines: Vec<String>, ink: Rgb888, paper: Rgb888 },
}

impl Layer {
    fn area(&self) -> Rect {
        match self {
            Self::Solid(area, _) | Self::Text { area, .. } => *area,
        }
    }
}

/// The cursor, to a host that has the picture `known`: there is but one.
pub(super) fn cursor(known: u32) -> pb::Cursor {
    if known == ARROW {
        return pb::Cursor { shape: ARROW, ..pb::Cursor::default() };
    }
    let mut pixels = vec![0; (CURSOR * CURSOR * 4) as usize];
    for row in 0..CURSOR {
        for column in 0..=row {
            let offset = ((row * CURSOR + column) * 4) as usize;
            let edge = column == 0 || column == row || row + 1 == CURSOR;
            let [blue, green, red, _] = bgrx(if edge { INK } else { PALE });
            pixels[offset..offset + 4].copy_from_slice(&[blue, green, red, 0xff]);
        }
    }
    pb::Cursor { shape: ARROW, width: CURSOR, height: CURSOR, hot_x: 0, hot_y: 0, pixels: pixels.into() }
}

fn layers(layout: &Layout, memory: &Memory) -> Vec<Layer> {
    let (width, height) = layout.screen;
    let mut out = vec![
        Layer::Solid(Rect { x: 0, y: 0, width, height }, DESK),
        Layer::Solid(layout.panel, PANEL),
        Layer::Solid(layout.notes, WINDOW),
        Layer::Solid(title(layout.notes), TITLE),
        Layer::Solid(layout.counter, WINDOW),
        Layer::Solid(title(layout.counter), TITLE),
        Layer::Solid(layout.button, BUTTON),
    ];
    let field = if memory.selected { MARKED } else { PAPER };
    out.push(Layer::Solid(layout.field, field));
    let mut write = |area: Rect, lines: Vec<String>, ink, paper| {
        if let Some(area) = text_area(area, &lines) {
            out.push(Layer::Text { area, lines, ink, paper });
        }
    };
    write(layout.panel, vec![memory.hostname.clone()], PALE, PANEL);
    write(title(layout.notes), vec!["Notes".into()], PALE, TITLE);
    write(title(layout.counter), vec!["Counter".into()], PALE, TITLE);
    write(layout.count, vec![format!("{} clicks", memory.count)], INK, WINDOW);
    write(layout.button, vec!["Click me".into()], INK, BUTTON);
    write(layout.field, visible(layout.field, memory), INK, field);
    out
}

fn title(window: Rect) -> Rect {
    Rect { height: BAR.min(window.height), ..window }
}

/// Where text of so many cells goes within a rectangle; none where there is no room for any.
fn text_area(within: Rect, lines: &[String]) -> Option<Rect> {
    let columns = lines.iter().map(|line| line.chars().count()).max()?;
    let cells = |count: usize, size: u32| u32::try_from(count).unwrap_or(u32::MAX).saturating_mul(size);
    let room = |length: u32| length.checked_sub(2 * PADDING).filter(|room| *room > 0);
    let width = cells(columns, CELL.0).min(room(within.width)?);
    let height = cells(lines.len(), CELL.1).min(room(within.height)?);
    (width > 0).then_some(Rect { x: within.x + PADDING, y: within.y + PADDING, width, height })
}

/// The last lines of the text that fit into the field, with the caret.
fn visible(field: Rect, memory: &Memory) -> Vec<String> {
    let fit = |length: u32, cell: u32| (length.saturating_sub(2 * PADDING) / cell).max(1) as usize;
    let (columns, rows) = (fit(field.width, CELL.0), fit(field.height, CELL.1));
    let mut lines = vec![String::new()];
    let caret = memory.focused.then_some('_');
    let mut column = 0;
    for c in memory.text.chars().chain(caret) {
        if c == '\n' || column == columns {
            lines.push(String::new());
            column = 0;
        }
        if c != '\n' {
            let shown = if c.is_control() { ' ' } else { c };
            lines.last_mut().expect("never empty").push(shown);
            column += 1;
        }
    }
    lines.split_off(lines.len().saturating_sub(rows))
}

/// Text as pixels, rows of 4 bytes each.
struct Canvas {
    area: Rect,
    ink: Rgb888,
    pixels: Vec<u8>,
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(self.area.width, self.area.height)
    }
}

impl DrawTarget for Canvas {
    type Color = BinaryColor;
    type Error = std::convert::Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<BinaryColor>>>(
        &mut self,
        pixels: I,
    ) -> Result<(), Self::Error> {
        for Pixel(at, color) in pixels {
            let inside = |at: i32, limit: u32| u32::try_from(at).ok().filter(|at| *at < limit);
            if let (Some(x), Some(y), BinaryColor::On) =
                (inside(at.x, self.area.width), inside(at.y, self.area.height), color)
            {
                let offset = (y as usize * self.area.width as usize + x as usize) * 4;
                self.pixels[offset..offset + 4].copy_from_slice(&bgrx(self.ink));
            }
        }
        Ok(())
    }
}

fn bgrx(color: Rgb888) -> [u8; 4] {
    [color.b(), color.g(), color.r(), 0]
}

fn solid(area: Rect, color: Rgb888) -> Vec<u8> {
    bgrx(color).repeat(area.width as usize * area.height as usize)
}

/// The whole of a text layer.
fn text(area: Rect, lines: &[String], ink: Rgb888, paper: Rgb888) -> Vec<u8> {
    let mut canvas = Canvas { area, ink, pixels: solid(area, paper) };
    let style: MonoTextStyle<'_, BinaryColor> =
        MonoTextStyleBuilder::new().font(&FONT_6X13).text_color(BinaryColor::On).build();
    let mut top = Point::zero();
    for line in lines {
        let Ok(_) = Text::with_baseline(line, top, style, Baseline::Top).draw(&mut canvas);
        top.y += i32::try_from(CELL.1).unwrap_or_default();
    }
    canvas.pixels
}

/// Copies the part that both rectangles cover.
fn copy(from: Rect, source: &[u8], to: Rect, target: &mut [u8]) {
    let Some(part) = from.intersect(&to) else { return };
    let offset =
        |rect: Rect, y: u32| ((y - rect.y) as usize * rect.width as usize + (part.x - rect.x) as usize) * 4;
    let length = part.width as usize * 4;
    for y in part.y..part.y + part.height {
        let (at, of) = (offset(to, y), offset(from, y));
        target[at..at + length].copy_from_slice(&source[of..of + length]);
    }
}

/// The pixels of one rectangle.
fn pixels(layers: &[Layer], area: Rect) -> Vec<u8> {
    let mut out = Vec::new();
    for layer in layers {
        let Some(part) = layer.area().intersect(&area) else { continue };
        match layer {
            // The desk is under everything.
            Layer::Solid(whole, color) if whole.contains(&area) => out = solid(area, *color),
            Layer::Solid(_, color) => copy(part, &solid(part, *color), area, &mut out),
            Layer::Text { area: whole, lines, ink, paper } => {
                copy(*whole, &text(*whole, lines, *ink, *paper), area, &mut out);
            }
        }
    }
    out
}

/// All pixels of the screen.
pub(super) fn picture(layout: &Layout, memory: &Memory) -> Vec<u8> {
    let (width, height) = layout.screen;
    pixels(&layers(layout, memory), Rect { x: 0, y: 0, width, height })
}

/// The pixels of some parts of the screen.
pub(super) fn areas(layout: &Layout, memory: &Memory, areas: &[Option<Rect>]) -> Vec<Vec<u8>> {
    let layers = layers(layout, memory);
    areas.iter().map(|area| area.map_or_else(Vec::new, |area| pixels(&layers, area))).collect()
}

/// What a host needs to bring these parts of its frame up to date.
pub(super) fn parts(layout: &Layout, memory: &Memory, areas: &[Rect]) -> Vec<pb::FrameRect> {
    let layers = layers(layout, memory);
    let mut out = Vec::new();
    for area in areas {
        // What another one hides wholly need not be sent.
        let hides = |layer: &Layer| matches!(layer, Layer::Solid(over, _) if over.contains(area));
        let lowest = layers.iter().rposition(hides).unwrap_or(0);
        for layer in &layers[lowest..] {
            let Some(part) = layer.area().intersect(area) else { continue };
            match layer {
                Layer::Solid(_, color) => out.push(pb::FrameRect {
                    area: Some(part.into()),
                    packing: pb::Packing::Solid.into(),
                    data: Bytes::copy_from_slice(&bgrx(*color)),
                    from: None,
                }),
                // No tiles: text is little, and remembering what a host shows would cost more.
                Layer::Text { .. } => {
                    out.extend(bands(part).map(|band| packed(band, &pixels(&layers, band))));
                }
            }
        }
    }
    out
}

/// What the protocol takes as one rectangle.
fn bands(area: Rect) -> impl Iterator<Item = Rect> {
    let rows = (MAX_BAND / (area.width * 4)).max(1);
    (0..area.height).step_by(rows as usize).map(move |top| Rect {
        y: area.y + top,
        height: rows.min(area.height - top),
        ..area
    })
}

fn packed(area: Rect, pixels: &[u8]) -> pb::FrameRect {
    let data = lz4_flex::block::compress(pixels);
    let (packing, data) = if data.len() < pixels.len() {
        (pb::Packing::Lz4, data)
    } else {
        (pb::Packing::Raw, pixels.to_vec())
    };
    pb::FrameRect { area: Some(area.into()), packing: packing.into(), data: data.into(), from: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack(parts: &[pb::FrameRect], screen: (u32, u32)) -> (Vec<u8>, u64) {
        let whole = Rect { x: 0, y: 0, width: screen.0, height: screen.1 };
        let mut frame = vec![0xAA; screen.0 as usize * screen.1 as usize * 4];
        let mut area = 0;
        for part in parts {
            let a = part.area.expect("area");
            let rect = Rect { x: a.x, y: a.y, width: a.width, height: a.height };
            assert!(whole.contains(&rect), "{rect:?}");
            let size = a.width as usize * a.height as usize * 4;
            let data = match part.packing() {
                pb::Packing::Solid => part.data.repeat(size / 4),
                pb::Packing::Lz4 => lz4_flex::block::decompress(&part.data, size).expect("valid"),
                _ => part.data.to_vec(),
            };
            copy(rect, &data, whole, &mut frame);
            area += rect.area();
        }
        (frame, area)
    }

    #[test]
    fn a_frame_in_parts_is_the_picture_and_small() {
        for screen in [(8, 8), (33, 50), (320, 200), (1280, 800), (7680, 4320)] {
            let layout = Layout::new(screen);
            let memory = Memory { text: "Hällo, World!\n".repeat(30), count: 7, ..Memory::default() };
            let whole = Rect { x: 0, y: 0, width: screen.0, height: screen.1 };
            let parts = parts(&layout, &memory, &[whole]);
            let (frame, area) = unpack(&parts, screen);
            assert!(frame == picture(&layout, &memory), "{screen:?}");
            assert!(area <= 2 * whole.area(), "{screen:?}: {area}");
            let bytes: usize = parts.iter().map(|part| part.data.len()).sum();
            assert!(bytes < 32 << 10, "{screen:?}: {bytes}");
        }
    }

    #[test]
    fn what_is_typed_and_counted_is_seen_where_it_should_be() {
        let layout = Layout::new((800, 600));
        let (before, mut memory) = (Memory::default(), Memory::default());
        memory.text = "hello".into();
        memory.count = 1;
        let (old, new) = (picture(&layout, &before), picture(&layout, &memory));
        let differ: Vec<_> =
            (0..old.len() / 4).filter(|i| old[i * 4..i * 4 + 4] != new[i * 4..i * 4 + 4]).collect();
        assert!(!differ.is_empty());
        for i in differ {
            let (x, y) = (u32::try_from(i % 800).expect("x"), u32::try_from(i / 800).expect("y"));
            let point = Rect { x, y, width: 1, height: 1 };
            assert!(layout.field.contains(&point) || layout.count.contains(&point), "{point:?}");
        }
        memory.text.push('!');
        assert!(picture(&layout, &memory) != new, "each character shows");
    }
}
