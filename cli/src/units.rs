//! What people write for durations, sizes and positions. Every parser's error says what is legal; clap names the argument.

use std::time::Duration;

use hvkube_sdk::v1::{NetworkMode, PixelCondition, Point, Rect, Size};
use jiff::SignedDuration;

/// `90`, `90s`, `1m30s`, `1.5h`, `500ms`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const LEGAL: &str = "expected a duration like 30s, 5m or 1h30m";
    let span = match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() => SignedDuration::try_from_secs_f64(seconds).ok(),
        Ok(_) => None,
        Err(_) => text.parse::<SignedDuration>().ok(),
    };
    let span = span.ok_or(LEGAL)?;
    Duration::try_from(span).map_err(|_| format!("a duration cannot be negative; {LEGAL}"))
}

/// Memory in MiB: `2G`, `512M`, `512MiB`, or a bare number of MiB.
pub(crate) fn memory_mib(text: &str) -> Result<u64, String> {
    const LEGAL: &str = "expected a size like 512M or 2G (a bare number is MiB)";
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| LEGAL)?;
    let factor = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "m" | "mb" | "mib" => 1,
        "g" | "gb" | "gib" => 1024,
        "t" | "tb" | "tib" => 1024 * 1024,
        _ => return Err(LEGAL.to_owned()),
    };
    number.checked_mul(factor).filter(|mib| *mib > 0).ok_or_else(|| LEGAL.to_owned())
}

/// `1280x800`.
pub(crate) fn size(text: &str) -> Result<Size, String> {
    const LEGAL: &str = "expected WIDTHxHEIGHT in pixels, like 1280x800";
    let (width, height) = text.split_once(['x', 'X']).ok_or(LEGAL)?;
    let side = |text: &str| text.parse::<u32>().ok().filter(|side| *side > 0).ok_or(LEGAL);
    Ok(Size { width: side(width)?, height: side(height)? })
}

/// `640,400`.
pub(crate) fn point(text: &str) -> Result<Point, String> {
    const LEGAL: &str = "expected X,Y in pixels, like 640,400";
    let (x, y) = text.split_once(',').ok_or(LEGAL)?;
    Ok(Point { x: coordinate(x).map_err(|_| LEGAL)?, y: coordinate(y).map_err(|_| LEGAL)? })
}

/// One coordinate: no screen reaches beyond the limit of X11 and Windows.
pub(crate) fn coordinate(text: &str) -> Result<i32, String> {
    match text.trim().parse() {
        Ok(value @ 0..=32767) => Ok(value),
        _ => Err("expected a whole number of pixels, 0 to 32767".to_owned()),
    }
}

/// A coordinate, or how far to go either way.
pub(crate) fn offset(text: &str) -> Result<i32, String> {
    match text.trim().parse() {
        Ok(value @ -32767..=32767) => Ok(value),
        _ => Err("expected a whole number of pixels, -32767 to 32767".to_owned()),
    }
}

/// `10,-20`.
pub(crate) fn offsets(text: &str) -> Result<Point, String> {
    const LEGAL: &str = "expected X,Y in pixels, like 640,400";
    let (x, y) = text.split_once(',').ok_or(LEGAL)?;
    Ok(Point { x: offset(x).map_err(|_| LEGAL)?, y: offset(y).map_err(|_| LEGAL)? })
}

/// `640,400=ff8000`, `640,400=#ff8000~10`: a place, a colour, and how far each of its parts may be from it.
pub(crate) fn pixel(text: &str) -> Result<PixelCondition, String> {
    const LEGAL: &str = "expected X,Y=RRGGBB or X,Y=RRGGBB~TOLERANCE, like 640,400=ff8000~10";
    let (at, colour) = text.split_once('=').ok_or(LEGAL)?;
    let (colour, tolerance) = colour.split_once('~').unwrap_or((colour, "0"));
    let digits = colour.trim_start_matches('#');
    if digits.len() != 6 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(LEGAL.to_owned());
    }
    let rgb = u32::from_str_radix(digits, 16).map_err(|_| LEGAL)?;
    let tolerance: u8 = tolerance.parse().map_err(|_| LEGAL)?;
    Ok(PixelCondition { at: Some(point(at).map_err(|_| LEGAL)?), rgb, tolerance: tolerance.into() })
}

/// `X,Y,WIDTHxHEIGHT` or `X,Y,WIDTH,HEIGHT`.
pub(crate) fn rect(text: &str) -> Result<Rect, String> {
    const LEGAL: &str = "expected X,Y,WIDTH,HEIGHT in pixels, like 0,0,640,400";
    let parts: Vec<&str> = text.split([',', 'x', 'X']).collect();
    let [x, y, width, height] = parts[..] else { return Err(LEGAL.to_owned()) };
    let side = |text: &str| text.trim().parse::<u32>().ok().filter(|side| *side > 0).ok_or(LEGAL);
    let corner = |text: &str| coordinate(text).map_err(|_| LEGAL);
    Ok(Rect { x: corner(x)?, y: corner(y)?, width: side(width)?, height: side(height)? })
}

/// More than 0 and at most 1; `50%` is 0.5.
pub(crate) fn scale(text: &str) -> Result<f64, String> {
    const LEGAL: &str = "expected a factor more than 0 and at most 1, like 0.5 or 50%";
    let factor = match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().map(|percent| percent / 100.0),
        None => text.parse(),
    };
    factor.ok().filter(|factor| *factor > 0.0 && *factor <= 1.0).ok_or_else(|| LEGAL.to_owned())
}

/// `NAME=VALUE`.
pub(crate) fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

/// A way to a network, with the bridge where there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) mode: NetworkMode,
    pub(crate) bridge: String,
}

/// `none`, `user` or `bridge:NAME`.
pub(crate) fn network(text: &str) -> Result<Network, String> {
    let (mode, bridge) = match text.split_once(':') {
        Some(("bridge", name)) if !name.is_empty() => (NetworkMode::Bridge, name),
        None if text == "none" => (NetworkMode::None, ""),
        None if text == "user" => (NetworkMode::User, ""),
        _ => return Err("expected none, user or bridge:NAME".to_owned()),
    };
    Ok(Network { mode, bridge: bridge.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("90", 90_000),
            ("30s", 30_000),
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("500ms", 500),
            ("1.5h", 5_400_000),
            ("0", 0),
            ("0.25", 250),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "x", "10 parsecs", "-5s", "-1", "nan", "inf", "1e300"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn memory() {
        for (text, mib) in [("512", 512), ("512M", 512), ("2G", 2048), ("2GiB", 2048), ("1t", 1 << 20)] {
            assert_eq!(memory_mib(text), Ok(mib), "{text}");
        }
        for bad in ["", "M", "0", "-1", "1.5G", "2 G", "2K", "99999999999999999999", "18446744073709551615G"]
        {
            assert!(memory_mib(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn positions_and_sizes() {
        assert_eq!(size("1280x800"), Ok(Size { width: 1280, height: 800 }));
        assert_eq!(point("640,400"), Ok(Point { x: 640, y: 400 }));
        assert_eq!(rect("1,2,30x40"), rect("1,2,30,40"));
        assert_eq!(rect("1,2,30,40"), Ok(Rect { x: 1, y: 2, width: 30, height: 40 }));
        for bad in ["", "1280", "0x1", "-1x5", "1x2x3", "ax3"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        for bad in ["", "1", "1,", "-1,2", "1;2", "99999,1"] {
            assert!(point(bad).is_err(), "{bad}");
        }
        for bad in ["1,2,3", "1,2,0,4", "1,2,3,4,5", "a,2,3,4"] {
            assert!(rect(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_rest() {
        assert_eq!(scale("50%"), Ok(0.5));
        assert!(scale("0").is_err() && scale("1.1").is_err() && scale("NaN").is_err());
        assert_eq!(variable("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert!(variable("A").is_err() && variable("=b").is_err());
        assert_eq!(
            network("bridge:br0").map(|net| (net.mode, net.bridge)),
            Ok((NetworkMode::Bridge, "br0".to_owned()))
        );
        assert!(network("bridge").is_err() && network("bridge:").is_err() && network("user:x").is_err());
    }
}
