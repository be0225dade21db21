//! A VM's screen, keyboard and mouse from outside, without the guest's help.

use std::time::Duration;

use bytes::Bytes;

use super::keys::qcode;
use super::qmp::commands::{InputEvent, KeyValue};
use crate::hypervisor::{HvError, HvResult};
use crate::model::input::{MouseButton, RawInput, WheelStep};
use crate::model::screen::{Frame, Point, Size};

/// Both axes of QEMU's tablet run from 0 to this.
const AXIS: i64 = 0x7fff;

/// Between two reports. The devices have room for 64 events that the guest has not taken in yet, which is some twenty reports,
/// and drop silently what comes when there is none: so a guest that takes in nothing for some 400 ms loses nothing.
pub(crate) const PACE: Duration = Duration::from_millis(20);

/// Longest file that [`frame`] understands.
pub(crate) const MAX_FILE: u64 = Size::MAX_PIXELS * 3 + 64;

/// A screen as QEMU writes it: `P6`, width, height, 255, then three bytes a pixel.
pub(crate) fn frame(ppm: &[u8]) -> HvResult<Frame> {
    let bad = |why: &str| HvError::Process(format!("qemu's screenshot was not understood: {why}"));
    let mut rest = ppm.strip_prefix(b"P6").ok_or_else(|| bad("no PPM"))?;
    let mut numbers = [0u32; 3];
    for number in &mut numbers {
        let start = rest.iter().position(|b| !b.is_ascii_whitespace()).ok_or_else(|| bad("cut short"))?;
        rest = &rest[start..];
        let end = rest.iter().position(u8::is_ascii_whitespace).ok_or_else(|| bad("cut short"))?;
        let text = std::str::from_utf8(&rest[..end]).map_err(|_| bad("no number"))?;
        *number = text.parse().map_err(|_| bad("no number"))?;
        rest = &rest[end..];
    }
    let [width, height, depth] = numbers;
    let size = Size { width, height };
    if depth != 255 || !size.is_legal() {
        return Err(bad("strange size or depth"));
    }
    let pixels = rest.get(1..).unwrap_or_default();
    if pixels.len() != size.frame_bytes() / 4 * 3 {
        return Err(bad("cut short"));
    }
    let mut out = vec![0xff; size.frame_bytes()];
    for (to, &[red, green, blue]) in out.as_chunks_mut::<4>().0.iter_mut().zip(pixels.as_chunks::<3>().0) {
        *to = [blue, green, red, 0xff];
    }
    Ok(Frame { size, pixels: Bytes::from(out) })
}

/// Input as QEMU takes it, in reports: what goes to the guest at once. No two changes of keys or buttons are in one, since a
/// guest may look only at what is down after each. `size` is that of the frame that the points were seen in.
pub(crate) fn reports(size: Size, inputs: &[RawInput]) -> HvResult<Vec<Vec<InputEvent>>> {
    let mut all = Vec::with_capacity(inputs.len() + 1);
    for input in inputs {
        match input {
            RawInput::Move(point) => all.push(place(size, *point)?.into()),
            RawInput::Button { button, down } => {
                all.push(vec![InputEvent::Btn { button: button_name(*button), down: *down }]);
            }
            RawInput::Wheel(step) => {
                let button = wheel_name(*step);
                all.extend([true, false].map(|down| vec![InputEvent::Btn { button, down }]));
            }
            RawInput::Key { key, down } => {
                let code = qcode(key).ok_or_else(|| HvError::BadSetting {
                    field: "key",
                    why: format!("{key:?} is no key of the virtual keyboard"),
                })?;
                all.push(vec![InputEvent::Key { key: KeyValue::Qcode(code), down: *down }]);
            }
        }
    }
    Ok(all)
}

fn place(size: Size, point: Point) -> HvResult<[InputEvent; 2]> {
    if !size.contains(point) {
        return Err(HvError::BadSetting {
            field: "point",
            why: format!("{},{} is outside of the frame of {}x{}", point.x, point.y, size.width, size.height),
        });
    }
    let axis = |axis, at: i32, length: u32| InputEvent::Abs { axis, value: scale(at, length) };
    Ok([axis("x", point.x, size.width), axis("y", point.y, size.height)])
}

/// The middle of a pixel, so that rounding on the guest's side comes back to the same one.
fn scale(at: i32, length: u32) -> i64 {
    (i64::from(at) * 2 + 1) * (AXIS + 1) / (i64::from(length) * 2)
}

fn button_name(button: MouseButton) -> &'static str {
    match button {
        MouseButton::Left => "left",
        MouseButton::Middle => "middle",
        MouseButton::Right => "right",
        MouseButton::Back => "side",
        MouseButton::Forward => "extra",
    }
}

fn wheel_name(step: WheelStep) -> &'static str {
    match step {
        WheelStep::Up => "wheel-up",
        WheelStep::Down => "wheel-down",
        WheelStep::Left => "wheel-left",
        WheelStep::Right => "wheel-right",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screenshot_becomes_a_frame_and_a_cut_one_an_error() {
        let whole = b"P6\n2 1\n255\n\x01\x02\x03\x0a\x0b\x0c";
        let shot = frame(whole).expect("frame");
        assert_eq!(shot.size, Size { width: 2, height: 1 });
        assert_eq!(&shot.pixels[..], [3, 2, 1, 255, 12, 11, 10, 255]);
        for cut in 0..whole.len() {
            assert!(frame(&whole[..cut]).is_err(), "{cut}");
        }
        assert!(frame(b"P6\n99999 99999\n255\n").is_err());
    }

    #[test]
    fn every_pixel_comes_back_from_the_tablet() {
        for length in [1u32, 640, 1280, 1366, 1920, 7680] {
            for at in (0..length).step_by(7).chain([length - 1]) {
                let at = i32::try_from(at).expect("small");
                let value = scale(at, length);
                assert!((0..=AXIS).contains(&value), "{at} of {length}");
                assert_eq!(value * i64::from(length) / (AXIS + 1), i64::from(at), "{at} of {length}");
            }
        }
    }

    #[test]
    fn what_the_devices_do_not_have_is_named() {
        let size = Size { width: 10, height: 10 };
        let key = RawInput::Key { key: "Blub".to_owned(), down: true };
        assert!(reports(size, &[key]).expect_err("no key").to_string().contains("\"Blub\""));
        let point = RawInput::Move(Point { x: 10, y: 0 });
        assert!(reports(size, &[point]).expect_err("outside").to_string().contains("10,0"));
    }

    #[test]
    fn each_change_is_a_report_of_its_own() {
        let size = Size { width: 10, height: 10 };
        let button = |down| RawInput::Button { button: MouseButton::Left, down };
        let click = [RawInput::Move(Point { x: 1, y: 2 }), button(true), button(false)];
        let lengths = |inputs: &[RawInput]| {
            reports(size, inputs).expect("reports").iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&click), [2, 1, 1], "both axes at once");
        assert_eq!(lengths(&[RawInput::Wheel(WheelStep::Down)]), [1, 1]);
    }
}
