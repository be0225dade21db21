//! JPEG in bands that are encoded side by side and read as one picture.
//!
//! A picture is cut into bands of whole rows of coding units, and each is encoded by itself. A JPEG file may have restart
//! markers, at which a decoder begins anew just as at the start of a picture; so the bands' data, joined by these markers
//! behind the first one's header, is the whole picture's.

use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

use crate::model::screen::Size;

/// Side of a coding unit: 2 x 2 blocks of 8 pixels, with the colours at half the resolution.
const UNIT: u32 = 16;
/// A band lower than this is not worth a processor.
const MIN_BAND: u32 = 128;

/// Rows of each band but the last, for a picture of this size and so many processors.
pub(super) fn band_rows(size: Size, parallel: usize) -> u32 {
    let wanted = u32::try_from(parallel).unwrap_or(1).min(size.height / MIN_BAND).max(1);
    let rows = size.height.div_ceil(wanted).next_multiple_of(UNIT);
    // The distance of restart markers is told in 16 bits.
    let most = u32::from(u16::MAX) / size.width.div_ceil(UNIT).max(1) * UNIT;
    rows.min(most).max(UNIT)
}

/// Encodes one band of `rows` rows, all of the picture's width.
pub(super) fn band(
    pixels: &[u8],
    size: Size,
    rows: u32,
    interval: u32,
    quality: u8,
) -> Result<Vec<u8>, String> {
    let side = |side: u32| u16::try_from(side).map_err(|_| "too large for jpeg".to_owned());
    let units = size.width.div_ceil(UNIT) * interval.div_ceil(UNIT);
    let mut out = Vec::with_capacity(pixels.len() / 12);
    let mut encoder = Encoder::new(&mut out, quality);
    encoder.set_sampling_factor(SamplingFactor::R_4_2_0);
    encoder.set_restart_interval(u16::try_from(units).unwrap_or(u16::MAX));
    encoder
        .encode(pixels, side(size.width)?, side(rows)?, ColorType::Bgra)
        .map_err(|error| error.to_string())?;
    Ok(out)
}

/// Joins the bands of a picture of this height.
pub(super) fn join(bands: Vec<Vec<u8>>, height: u32) -> Result<Vec<u8>, String> {
    let broken = || "the encoder's output has no jpeg structure".to_owned();
    let mut out = Vec::with_capacity(bands.iter().map(Vec::len).sum());
    let last = bands.len().saturating_sub(1);
    for (n, band) in bands.into_iter().enumerate() {
        let (frame, data) = parts(&band).ok_or_else(broken)?;
        let end = band.len().checked_sub(2).filter(|end| *end >= data).ok_or_else(broken)?;
        if n == 0 {
            out.extend_from_slice(&band[..end]);
            let height = u16::try_from(height).map_err(|_| broken())?;
            out.get_mut(frame + 5..frame + 7).ok_or_else(broken)?.copy_from_slice(&height.to_be_bytes());
        } else {
            out.extend_from_slice(&band[data..end]);
        }
        let marker = if n == last { 0xd9 } else { 0xd0 + u8::try_from(n % 8).unwrap_or(0) };
        out.extend_from_slice(&[0xff, marker]);
    }
    Ok(out)
}

/// Where the frame header begins, and where the data of the only scan does.
fn parts(jpeg: &[u8]) -> Option<(usize, usize)> {
    let (mut at, mut frame) = (2, None);
    loop {
        let [0xff, marker, high, low] = *jpeg.get(at..)?.first_chunk()? else { return None };
        let next = at + 2 + usize::from(u16::from_be_bytes([high, low]));
        match marker {
            0xc0 => frame = Some(at),
            0xda => return Some((frame?, next)),
            _ => {}
        }
        at = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(size: Size) -> Vec<u8> {
        let value = |n: u32| u8::try_from(n % 256).unwrap_or(0);
        (0..size.height)
            .flat_map(|y| (0..size.width).map(move |x| [value(x * 3), value(y * 2), value(x + y), 255]))
            .flatten()
            .collect()
    }

    fn banded(pixels: &[u8], size: Size, rows: u32) -> Vec<u8> {
        let stride = size.width as usize * 4;
        let bands = pixels.chunks(stride * rows as usize).map(|part| {
            let height = u32::try_from(part.len() / stride).expect("rows");
            band(part, size, height, rows, 80).expect("a band")
        });
        join(bands.collect(), size.height).expect("joined")
    }

    #[test]
    fn bands_decode_to_the_picture_that_one_piece_gives() {
        for (width, height) in [(321, 203), (64, 64), (100, 33)] {
            let size = Size { width, height };
            let pixels = picture(size);
            let whole = image::load_from_memory(&banded(&pixels, size, height.next_multiple_of(16)));
            let whole = whole.expect("decodes").to_rgb8();
            assert_eq!(whole.dimensions(), (width, height));
            for rows in [16, 32, 64] {
                let parts = image::load_from_memory(&banded(&pixels, size, rows)).expect("decodes").to_rgb8();
                assert_eq!(parts.dimensions(), (width, height));
                let off = |(a, b): (&u8, &u8)| a.abs_diff(*b) > 8;
                // Decoders smooth the colours over the edges of bands, so a few pixels there differ a little.
                let differ = parts.as_raw().iter().zip(whole.as_raw()).filter(|pair| off(*pair)).count();
                assert!(differ * 100 < parts.as_raw().len(), "{width}x{height}/{rows}: {differ}");
            }
        }
    }

    #[test]
    fn bands_are_whole_units_and_few_enough() {
        let rows = |width, height, parallel| band_rows(Size { width, height }, parallel);
        assert_eq!(rows(1920, 1080, 2), 544);
        assert_eq!(rows(1920, 1080, 1), 1088);
        assert_eq!(rows(1280, 800, 64), 144);
        assert_eq!(rows(100, 10, 8), 16);
        assert!(rows(16_384, 4096, 1) * 1024 / 16 <= 65_535);
    }
}
