//! The cursor as the protocol tells it.

use hvkube_proto::guest::v1 as pb;
use x11rb::protocol::xfixes::GetCursorImageReply;

/// Largest side that is told; larger pictures are no cursors but somebody's joke.
const MAX_SIDE: u16 = 256;

/// The cursor's picture and the place of its hot spot.
#[derive(Debug)]
pub(super) struct Cursor {
    /// Changes with the picture.
    shape: u32,
    place: (i16, i16),
    size: (u16, u16),
    hot: (u16, u16),
    /// Rows of ARGB, colours already multiplied by alpha.
    pixels: Vec<u32>,
}

impl Cursor {
    /// What makes it another one to who looks at it.
    pub(super) fn state(&self) -> (u32, (i16, i16)) {
        (self.shape, self.place)
    }

    /// The protocol's form, for a host that has the picture of `known`.
    pub(super) fn tell(&self, known: u32) -> pb::Cursor {
        if self.shape == known {
            return pb::Cursor { shape: self.shape, ..Default::default() };
        }
        pb::Cursor {
            shape: self.shape,
            width: self.size.0.into(),
            height: self.size.1.into(),
            hot_x: self.hot.0.into(),
            hot_y: self.hot.1.into(),
            // A little-endian ARGB word is blue, green, red, alpha.
            pixels: self.pixels.iter().flat_map(|argb| argb.to_le_bytes()).collect::<Vec<u8>>().into(),
        }
    }
}

impl From<GetCursorImageReply> for Cursor {
    fn from(image: GetCursorImageReply) -> Self {
        let legal = image.width <= MAX_SIDE
            && image.height <= MAX_SIDE
            && image.cursor_image.len() == usize::from(image.width) * usize::from(image.height);
        let size = if legal { (image.width, image.height) } else { (0, 0) };
        Self {
            // The server counts from 1; 0 would mean none to the host.
            shape: image.cursor_serial.max(1),
            place: (image.x, image.y),
            size,
            hot: (image.xhot, image.yhot),
            pixels: if legal { image.cursor_image } else { Vec::new() },
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn reply(width: u16, height: u16, pixels: Vec<u32>) -> GetCursorImageReply {
        GetCursorImageReply {
            sequence: 0,
            length: 0,
            x: 20,
            y: 30,
            width,
            height,
            xhot: 1,
            yhot: 0,
            cursor_serial: 7,
            cursor_image: pixels,
        }
    }

    #[test]
    fn a_shape_is_told_once() {
        let cursor = Cursor::from(reply(2, 1, vec![0x8040_2010, 0xff01_0203]));
        let told = cursor.tell(0);
        assert_eq!((told.shape, told.width, told.height, told.hot_x, told.hot_y), (7, 2, 1, 1, 0));
        assert_eq!(told.pixels.as_ref(), [0x10, 0x20, 0x40, 0x80, 3, 2, 1, 0xff]);
        let again = cursor.tell(7);
        assert_eq!((again.shape, again.width, again.pixels), (7, 0, Bytes::new()));
        assert_eq!(cursor.state(), (7, (20, 30)));
    }

    #[test]
    fn a_picture_that_is_too_large_is_left_out() {
        let told = Cursor::from(reply(300, 300, vec![0; 90_000])).tell(0);
        assert_eq!((told.shape, told.width, told.pixels.len()), (7, 0, 0));
    }
}
