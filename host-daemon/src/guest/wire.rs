//! Between the guest protocol and the host's types: every value a guest sent is checked or clamped here.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use hvkube_proto::guest::v1 as pb;
use tokio::time::Instant;

use super::error::{GuestError, clip};
use super::types::{
    Attached, FileInfo, Heartbeat, Identity, InputFailure, InputFailureReason, InputOutcome, Probe,
};
use crate::model::input::{Action, InputEvent, Met, MouseButton, PixelCondition, SettleOptions, Settled};
use crate::model::screen::{Point, Rect, Size};

const MAX_NAME: usize = 256;
const MAX_STAMP: usize = 64 << 10;
const MAX_LIST: usize = 16;
const MAX_CHANGED: usize = 64;

pub(super) fn identity(identity: &Identity) -> pb::Identity {
    pb::Identity {
        hostname: identity.hostname.clone(),
        machine_id: hex::encode(identity.machine_id),
        mac_address: identity.mac.map(|mac| mac.to_vec().into()).unwrap_or_default(),
    }
}

pub(super) fn duration(duration: Duration) -> prost_types::Duration {
    // Every duration in requests is bounded to minutes, so the seconds always fit.
    prost_types::Duration::try_from(duration).unwrap_or(prost_types::Duration { seconds: i64::MAX, nanos: 0 })
}

fn some_duration(value: Duration) -> Option<prost_types::Duration> {
    (!value.is_zero()).then(|| duration(value))
}

pub(super) fn attached(answer: pb::AttachResponse) -> Attached {
    let mut warnings: Vec<String> =
        answer.warnings.iter().take(MAX_LIST).map(|warning| clip(warning, MAX_NAME)).collect();
    let stamp = answer.image_stamp_json;
    let legal = stamp.is_empty()
        || stamp.len() <= MAX_STAMP && serde_json::from_str::<serde::de::IgnoredAny>(&stamp).is_ok();
    if !legal {
        warnings.truncate(MAX_LIST - 1);
        warnings.push("image stamp: too long or no json".to_owned());
    }
    Attached {
        agent_version: clip(&answer.agent_version, MAX_NAME),
        os: clip(&answer.os, MAX_NAME),
        image_stamp_json: if legal { stamp } else { String::new() },
        clock_skew_micros: answer.clock_skew_micros,
        boot_id: clip(&answer.boot_id, MAX_NAME),
        warnings,
        ip_addresses: addresses(&answer.ip_addresses),
        desktop_ready: answer.desktop_ready,
    }
}

fn addresses(texts: &[String]) -> Vec<IpAddr> {
    texts.iter().take(MAX_LIST).filter_map(|text| text.parse().ok()).collect()
}

pub(super) fn time(time: Option<prost_types::Timestamp>) -> Option<SystemTime> {
    time.and_then(|time| SystemTime::try_from(time).ok())
}

pub(super) fn heartbeat(beat: &pb::HeartbeatResponse) -> Heartbeat {
    Heartbeat {
        sequence: beat.sequence,
        received: Instant::now(),
        guest_time: time(beat.guest_time),
        load1: if beat.load1.is_finite() { beat.load1.max(0.0) } else { 0.0 },
        memory_total_bytes: beat.memory_total_bytes,
        memory_available_bytes: beat.memory_available_bytes.min(beat.memory_total_bytes),
        desktop_ready: beat.desktop_ready,
        ip_addresses: addresses(&beat.ip_addresses),
        uptime: beat.uptime.and_then(|uptime| uptime.try_into().ok()).unwrap_or_default(),
    }
}

pub(super) fn probe(answer: &pb::ProbeResponse) -> Result<Probe, GuestError> {
    Ok(Probe {
        size: size(answer.width, answer.height)?,
        input_round_trip: Duration::from_micros(answer.input_round_trip_micros.into()),
        pointer: Point { x: answer.pointer_x, y: answer.pointer_y },
    })
}

/// A size that a frame may have.
pub(super) fn size(width: u32, height: u32) -> Result<Size, GuestError> {
    let size = Size { width, height };
    if size.is_legal() {
        Ok(size)
    } else {
        Err(GuestError::Protocol(format!("a frame of {width}x{height} pixels")))
    }
}

pub(super) fn rect(rect: pb::Rect) -> Rect {
    Rect { x: rect.x, y: rect.y, width: rect.width, height: rect.height }
}

pub(super) fn file_info(info: pb::FileInfo) -> FileInfo {
    FileInfo { size: info.size, mode: info.mode & 0o7777, modified: time(info.modify_time) }
}

pub(super) fn settle(options: &SettleOptions) -> pb::SettleRequest {
    let rects = |rects: &[Rect]| {
        rects.iter().map(|r| pb::Rect { x: r.x, y: r.y, width: r.width, height: r.height }).collect()
    };
    // The daemon has seen to it that they lie in the frame.
    let at = |side: i32| u32::try_from(side).unwrap_or_default();
    let pixel = |wanted: &PixelCondition| {
        let [red, green, blue] = wanted.rgb;
        pb::Pixel {
            x: at(wanted.at.x),
            y: at(wanted.at.y),
            rgb: u32::from_be_bytes([0, red, green, blue]),
            tolerance: wanted.tolerance.into(),
        }
    };
    pb::SettleRequest {
        quiet: some_duration(options.quiet),
        timeout: Some(duration(options.timeout)),
        ignore: rects(&options.ignore),
        regions: rects(&options.regions),
        pixels: options.pixels.iter().map(pixel).collect(),
    }
}

/// `asked`: what was waited for; a guest can't have met anything else.
pub(super) fn settled(answer: &pb::SettleResponse, asked: &SettleOptions) -> Result<Settled, GuestError> {
    let index = usize::try_from(answer.met_index).unwrap_or(usize::MAX);
    let met = match answer.met() {
        pb::Condition::Unspecified => None,
        pb::Condition::Quiet => Some(Met::Quiet),
        pb::Condition::Region if index < asked.regions.len() => Some(Met::Region(index)),
        pb::Condition::Pixel if index < asked.pixels.len() => Some(Met::Pixel(index)),
        other => return Err(GuestError::Protocol(format!("a wait that met {other:?} {index}"))),
    };
    let time = |micros| Duration::from_micros(micros).min(SettleOptions::MAX_TIMEOUT);
    let largest = Size { width: Size::MAX_SIDE, height: Size::MAX_SIDE };
    Ok(Settled {
        timed_out: answer.timed_out,
        settled_after: time(answer.settled_after_micros),
        changed: answer
            .changed
            .iter()
            .take(MAX_CHANGED)
            .map(|r| rect(*r))
            .filter(|r| r.fits(largest))
            .collect(),
        sequence: answer.sequence,
        met,
        met_after: time(answer.met_after_micros),
    })
}

pub(super) fn outcome(
    answer: pb::InputResponse,
    sent: u32,
    settle: Option<&SettleOptions>,
) -> Result<InputOutcome, GuestError> {
    let failure = answer.failure.map(|failure| {
        use pb::InputFailureReason as R;
        let reason = match failure.reason() {
            R::UnknownKey => InputFailureReason::UnknownKey,
            R::OutOfBounds => InputFailureReason::OutOfFrame,
            R::Invalid => InputFailureReason::Invalid,
            R::Unspecified | R::Platform => InputFailureReason::Platform,
        };
        InputFailure { reason, message: clip(&failure.message, 512) }
    });
    if answer.completed > sent || (failure.is_none() && answer.completed < sent) {
        return Err(GuestError::Protocol(format!("{} of {sent} events done", answer.completed)));
    }
    Ok(InputOutcome {
        completed: answer.completed,
        failure,
        scrolled: Point { x: answer.scrolled_x, y: answer.scrolled_y },
        scrolled_pixels: Point { x: answer.scrolled_pixels_x, y: answer.scrolled_pixels_y },
        settled: answer.settle.as_ref().zip(settle).map(|(wait, asked)| settled(wait, asked)).transpose()?,
        replayed: answer.replayed,
    })
}

fn point(point: Point) -> pb::Point {
    pb::Point { x: point.x, y: point.y }
}

fn button(button: MouseButton) -> i32 {
    i32::from(match button {
        MouseButton::Left => pb::MouseButton::Left,
        MouseButton::Middle => pb::MouseButton::Middle,
        MouseButton::Right => pb::MouseButton::Right,
        MouseButton::Back => pb::MouseButton::Back,
        MouseButton::Forward => pb::MouseButton::Forward,
    })
}

fn action(action: Action) -> i32 {
    i32::from(match action {
        Action::Tap => pb::Action::Tap,
        Action::Press => pb::Action::Press,
        Action::Release => pb::Action::Release,
    })
}

pub(super) fn event(event: &InputEvent) -> pb::InputEvent {
    use pb::input_event::Event as E;
    let event = match event {
        InputEvent::Move { to, relative, duration, via } => E::Move(pb::Move {
            to: Some(point(*to)),
            relative: *relative,
            duration: some_duration(*duration),
            via: via.iter().copied().map(point).collect(),
        }),
        InputEvent::Button { button: b, action: a } => {
            E::Button(pb::Button { button: button(*b), action: action(*a) })
        }
        InputEvent::Click { at, button: b, count, modifiers } => E::Click(pb::Click {
            at: at.map(point),
            button: button(*b),
            count: *count,
            modifiers: modifiers.clone(),
        }),
        InputEvent::Drag { path, button: b, duration, modifiers } => E::Drag(pb::Drag {
            path: path.iter().copied().map(point).collect(),
            button: button(*b),
            duration: some_duration(*duration),
            modifiers: modifiers.clone(),
        }),
        InputEvent::Scroll { at, delta_x, delta_y, pixels } => E::Scroll(pb::Scroll {
            at: at.map(point),
            delta_x: *delta_x,
            delta_y: *delta_y,
            pixels_x: pixels.x,
            pixels_y: pixels.y,
        }),
        InputEvent::Key { key, action: a, hold } => {
            E::Key(pb::Key { key: key.clone(), action: action(*a), hold: some_duration(*hold) })
        }
        InputEvent::Chord { keys, hold } => {
            E::Chord(pb::Chord { keys: keys.clone(), hold: some_duration(*hold) })
        }
        InputEvent::Text { text, interval } => {
            let text = text.expose().unwrap_or_default().to_owned();
            E::Text(pb::Text { text, interval: some_duration(*interval) })
        }
        InputEvent::Pause(time) => E::Pause(duration(*time)),
        InputEvent::ReleaseAll => E::ReleaseAll(pb::ReleaseAll {}),
    };
    pb::InputEvent { event: Some(event) }
}
