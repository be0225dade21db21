//! A batch of input events: checked as a whole, then done in order.

use std::time::{Duration, Instant};

use hvkube_proto::guest::v1 as pb;
use hvkube_proto::guest::v1::input_event::Event;
use hvkube_proto::guest::v1::{Action, InputFailureReason, MouseButton};

use super::{Cancel, Input, InputError, Press};

const MAX_EVENTS: usize = 1024;
const MAX_TIME: Duration = Duration::from_secs(10);
const MAX_INTERVAL: Duration = Duration::from_secs(1);
const MAX_CLICKS: u32 = 10;
const MAX_PATH: usize = 1024;
const MAX_CHORD: usize = 8;
const MAX_NOTCHES: u32 = 1000;
const MAX_SCROLL: u32 = 50_000;
const MAX_TEXT: usize = 1 << 20;
const MAX_MESSAGE: usize = 512;
/// Between two steps of a smooth move: about a frame, which is what a hand gives.
const STEP: Duration = Duration::from_millis(8);
/// A drag without a duration still gives programs motion to follow: this many steps per leg, this far apart.
const DRAG_STEPS: u32 = 6;
const DRAG_STEP: Duration = Duration::from_millis(3);

type Outcome = Result<(), InputError>;

/// Checks all events, then does them until one fails.
pub(super) fn run(input: &mut dyn Input, events: &[pb::InputEvent], cancel: &Cancel) -> pb::InputResponse {
    let mut response = pb::InputResponse::default();
    if events.is_empty() || events.len() > MAX_EVENTS {
        let error =
            InputError::Invalid(format!("events: {} events; 1 to {MAX_EVENTS} are allowed", events.len()));
        response.failure = Some(failure(&error, None));
        return response;
    }
    let checked = input.size().and_then(|size| {
        events.iter().enumerate().try_for_each(|(i, event)| check(input, event, size).map_err(|e| at(i, &e)))
    });
    if let Err(error) = checked {
        response.failure = Some(failure(&error, None));
        return response;
    }
    for event in events {
        let result = cancel.check().and_then(|()| perform(input, event, cancel, &mut response));
        if let Err(error) = result {
            response.failure = Some(failure(&error, Some(response.completed)));
            break;
        }
        response.completed += 1;
    }
    response
}

/// Names the event in the message, and keeps the kind.
fn at(index: usize, error: &InputError) -> InputError {
    let message = format!("events[{index}]: {error}");
    match error {
        InputError::UnknownKey(name) => InputError::UnknownKey(name.clone()),
        InputError::OutOfBounds(_) => InputError::OutOfBounds(message),
        InputError::Invalid(_) => InputError::Invalid(message),
        InputError::Platform(_) | InputError::Cancelled => InputError::Platform(message),
    }
}

fn failure(error: &InputError, index: Option<u32>) -> pb::InputFailure {
    let reason = match error {
        InputError::UnknownKey(_) => InputFailureReason::UnknownKey,
        InputError::OutOfBounds(_) => InputFailureReason::OutOfBounds,
        InputError::Invalid(_) => InputFailureReason::Invalid,
        InputError::Platform(_) | InputError::Cancelled => InputFailureReason::Platform,
    };
    let mut message = index.map_or_else(|| error.to_string(), |i| format!("events[{i}]: {error}"));
    message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    pb::InputFailure { reason: reason.into(), message }
}

fn invalid(message: impl Into<String>) -> InputError {
    InputError::Invalid(message.into())
}

fn time(field: &str, value: Option<&prost_types::Duration>, max: Duration) -> Result<Duration, InputError> {
    let Some(value) = value else { return Ok(Duration::ZERO) };
    match Duration::try_from(*value) {
        Ok(time) if time <= max => Ok(time),
        _ => Err(invalid(format!("{field}: must be between 0 s and {} s", max.as_secs()))),
    }
}

fn inside(point: Option<&pb::Point>, (width, height): (u32, u32)) -> Outcome {
    let Some(pb::Point { x, y }) = point else { return Ok(()) };
    let within = |v: i32, limit: u32| u32::try_from(v).is_ok_and(|v| v < limit);
    if within(*x, width) && within(*y, height) {
        return Ok(());
    }
    Err(InputError::OutOfBounds(format!(
        "point ({x}, {y}) lies outside the screen of {width} x {height} pixels"
    )))
}

fn known<T: TryFrom<i32>>(field: &str, value: i32) -> Result<T, InputError> {
    T::try_from(value).map_err(|_| invalid(format!("{field}: {value} is not defined")))
}

fn check(input: &mut dyn Input, event: &pb::InputEvent, size: (u32, u32)) -> Outcome {
    let Some(event) = &event.event else { return Err(invalid("is empty")) };
    match event {
        Event::Move(e) => {
            let to = e.to.as_ref().ok_or_else(|| invalid("move.to: is required"))?;
            time("move.duration", e.duration.as_ref(), MAX_TIME)?;
            if e.via.len() >= MAX_PATH {
                let most = MAX_PATH - 1;
                return Err(invalid(format!("move.via: {} points; {most} at most", e.via.len())));
            }
            if e.relative {
                return Ok(());
            }
            e.via.iter().chain([to]).try_for_each(|point| inside(Some(point), size))
        }
        Event::Button(e) => {
            known::<Action>("button.action", e.action)?;
            known::<MouseButton>("button.button", e.button).map(drop)
        }
        Event::Click(e) => {
            known::<MouseButton>("click.button", e.button)?;
            if e.count > MAX_CLICKS {
                return Err(invalid(format!("click.count: {} clicks; {MAX_CLICKS} at most", e.count)));
            }
            check_keys(input, "click.modifiers", &e.modifiers)?;
            inside(e.at.as_ref(), size)
        }
        Event::Drag(e) => {
            known::<MouseButton>("drag.button", e.button)?;
            if !(2..=MAX_PATH).contains(&e.path.len()) {
                return Err(invalid(format!(
                    "drag.path: {} points; 2 to {MAX_PATH} are allowed",
                    e.path.len()
                )));
            }
            time("drag.duration", e.duration.as_ref(), MAX_TIME)?;
            check_keys(input, "drag.modifiers", &e.modifiers)?;
            e.path.iter().try_for_each(|p| inside(Some(p), size))
        }
        Event::Scroll(e) => {
            if e.delta_x.unsigned_abs() > MAX_NOTCHES || e.delta_y.unsigned_abs() > MAX_NOTCHES {
                return Err(invalid(format!("scroll: more than {MAX_NOTCHES} notches")));
            }
            if e.pixels_x.unsigned_abs() > MAX_SCROLL || e.pixels_y.unsigned_abs() > MAX_SCROLL {
                return Err(invalid(format!("scroll: more than {MAX_SCROLL} pixels")));
            }
            inside(e.at.as_ref(), size)
        }
        Event::Key(e) => {
            let action = known::<Action>("key.action", e.action)?;
            let hold = time("key.hold", e.hold.as_ref(), MAX_TIME)?;
            if !hold.is_zero() && matches!(action, Action::Press | Action::Release) {
                return Err(invalid("key.hold: is legal with a tap only"));
            }
            input.check_key(&e.key)
        }
        Event::Chord(e) => {
            if e.keys.is_empty() {
                return Err(invalid("chord.keys: must name a key"));
            }
            time("chord.hold", e.hold.as_ref(), MAX_TIME)?;
            check_keys(input, "chord.keys", &e.keys)
        }
        Event::Text(e) => {
            if e.text.len() > MAX_TEXT {
                return Err(invalid(format!("text.text: {} bytes; {MAX_TEXT} at most", e.text.len())));
            }
            time("text.interval", e.interval.as_ref(), MAX_INTERVAL)?;
            input.check_text(&e.text)
        }
        Event::Pause(e) => time("pause", Some(e), MAX_TIME).map(drop),
        Event::ReleaseAll(_) => Ok(()),
    }
}

fn check_keys(input: &mut dyn Input, field: &str, keys: &[String]) -> Outcome {
    if keys.len() > MAX_CHORD {
        return Err(invalid(format!("{field}: {} keys; {MAX_CHORD} at most", keys.len())));
    }
    keys.iter().try_for_each(|key| input.check_key(key))
}

fn perform(
    input: &mut dyn Input,
    event: &pb::InputEvent,
    cancel: &Cancel,
    response: &mut pb::InputResponse,
) -> Outcome {
    let Some(event) = &event.event else { return Err(invalid("is empty")) };
    match event {
        Event::Move(e) => {
            let to = e.to.unwrap_or_default();
            let over = time("move.duration", e.duration.as_ref(), MAX_TIME)?;
            let mut way: Vec<(i32, i32)> = e.via.iter().chain([&to]).map(|p| (p.x, p.y)).collect();
            if e.relative {
                let (x, y) = input.pointer()?;
                let (width, height) = input.size()?;
                for point in &mut way {
                    *point =
                        (clamp(x.saturating_add(point.0), width), clamp(y.saturating_add(point.1), height));
                }
            }
            glide(input, &way, over, cancel)
        }
        Event::Button(e) => {
            let button = known("button.button", e.button)?;
            let action = known("button.action", e.action)?;
            press_or_tap(action, Duration::ZERO, cancel, |press| input.button(button, press))
        }
        Event::Click(e) => {
            let button = known("click.button", e.button)?;
            move_there(input, e.at.as_ref())?;
            holding(input, &e.modifiers, |input| {
                (0..e.count.max(1)).try_for_each(|_| {
                    input.button(button, Press::Down)?;
                    input.button(button, Press::Up)
                })
            })
        }
        Event::Drag(e) => {
            let over = time("drag.duration", e.duration.as_ref(), MAX_TIME)?;
            let button = known("drag.button", e.button)?;
            move_there(input, e.path.first())?;
            holding(input, &e.modifiers, |input| {
                input.button(button, Press::Down)?;
                let moved = drag_along(input, &e.path[1..], over, cancel);
                // The button comes up again whatever happened.
                input.button(button, Press::Up).and(moved)
            })
        }
        Event::Scroll(e) => {
            move_there(input, e.at.as_ref())?;
            if (e.delta_x, e.delta_y) != (0, 0) {
                input.scroll(e.delta_x, e.delta_y)?;
            }
            response.scrolled_x += e.delta_x;
            response.scrolled_y += e.delta_y;
            if (e.pixels_x, e.pixels_y) != (0, 0) {
                let done = input.scroll_pixels(e.pixels_x, e.pixels_y)?;
                response.scrolled_x += done.notches.0;
                response.scrolled_y += done.notches.1;
                response.scrolled_pixels_x += done.pixels.0;
                response.scrolled_pixels_y += done.pixels.1;
            }
            Ok(())
        }
        Event::Key(e) => {
            let hold = time("key.hold", e.hold.as_ref(), MAX_TIME)?;
            let action = known("key.action", e.action)?;
            press_or_tap(action, hold, cancel, |press| input.key(&e.key, press, false))
        }
        Event::Chord(e) => {
            let hold = time("chord.hold", e.hold.as_ref(), MAX_TIME)?;
            holding(input, &e.keys, |_| cancel.sleep(hold))
        }
        Event::Text(e) => {
            let interval = time("text.interval", e.interval.as_ref(), MAX_INTERVAL)?;
            input.text(&e.text, interval, cancel)
        }
        Event::Pause(e) => cancel.sleep(time("pause", Some(e), MAX_TIME)?),
        Event::ReleaseAll(_) => input.release_all(),
    }
}

fn clamp(v: i32, limit: u32) -> i32 {
    v.clamp(0, i32::try_from(limit).unwrap_or(i32::MAX).saturating_sub(1).max(0))
}

fn move_there(input: &mut dyn Input, at: Option<&pb::Point>) -> Outcome {
    at.map_or(Ok(()), |p| input.move_to(p.x, p.y))
}

fn press_or_tap(
    action: Action,
    hold: Duration,
    cancel: &Cancel,
    mut press: impl FnMut(Press) -> Outcome,
) -> Outcome {
    match action {
        Action::Press => press(Press::Down),
        Action::Release => press(Press::Up),
        Action::Unspecified | Action::Tap => {
            press(Press::Down)?;
            let held = if hold.is_zero() { Ok(()) } else { cancel.sleep(hold) };
            // It comes up again whatever happened.
            press(Press::Up).and(held)
        }
    }
}

/// Holds `keys` down around `work`, and lets go of those it got down whatever happens.
fn holding(input: &mut dyn Input, keys: &[String], work: impl FnOnce(&mut dyn Input) -> Outcome) -> Outcome {
    let mut down = 0;
    let mut result = keys.iter().try_for_each(|key| {
        input.key(key, Press::Down, true)?;
        down += 1;
        Ok(())
    });
    if result.is_ok() {
        result = work(input);
    }
    for key in keys[..down].iter().rev() {
        result = result.and(input.key(key, Press::Up, true));
    }
    result
}

/// Moves along a way from where the pointer is, in small steps of one speed; at once where there is no time for it.
fn glide(input: &mut dyn Input, way: &[(i32, i32)], over: Duration, cancel: &Cancel) -> Outcome {
    if over.is_zero() {
        return way.iter().try_for_each(|to| input.move_to(to.0, to.1));
    }
    let way: Vec<_> = std::iter::once(input.pointer()?).chain(way.iter().copied()).collect();
    let start = Instant::now();
    loop {
        let done = start.elapsed().as_secs_f64() / over.as_secs_f64();
        let (x, y) = along(&way, done.min(1.0));
        input.move_to(x, y)?;
        if done >= 1.0 {
            return Ok(());
        }
        cancel.sleep(STEP.min(over.saturating_sub(start.elapsed())))?;
    }
}

/// The point at a part of a way's length.
fn along(way: &[(i32, i32)], part: f64) -> (i32, i32) {
    let length = |a: (i32, i32), b: (i32, i32)| {
        (f64::from(b.0) - f64::from(a.0)).hypot(f64::from(b.1) - f64::from(a.1))
    };
    let all: f64 = way.windows(2).map(|leg| length(leg[0], leg[1])).sum();
    let mut left = all * part;
    // Exactly the last one at the end, whatever rounding has left.
    for leg in way.windows(2).filter(|_| part < 1.0) {
        let long = length(leg[0], leg[1]);
        if left <= long && long > 0.0 {
            return between(leg[0], leg[1], left / long);
        }
        left -= long;
    }
    way.last().copied().unwrap_or_default()
}

#[expect(clippy::cast_possible_truncation, reason = "lies between two i32")]
fn between(from: (i32, i32), to: (i32, i32), done: f64) -> (i32, i32) {
    let mix = |a: i32, b: i32| (f64::from(a) + (f64::from(b) - f64::from(a)) * done).round() as i32;
    (mix(from.0, to.0), mix(from.1, to.1))
}

fn drag_along(input: &mut dyn Input, path: &[pb::Point], over: Duration, cancel: &Cancel) -> Outcome {
    if !over.is_zero() {
        let way: Vec<_> = path.iter().map(|p| (p.x, p.y)).collect();
        return glide(input, &way, over, cancel);
    }
    for point in path {
        let (from, to) = (input.pointer()?, (point.x, point.y));
        for step in 1..=DRAG_STEPS {
            let (x, y) = between(from, to, f64::from(step) / f64::from(DRAG_STEPS));
            cancel.sleep(DRAG_STEP)?;
            input.move_to(x, y)?;
        }
    }
    Ok(())
}
