//! What a batch of input must keep to, how it is scaled to another frame size, and how it is lowered to what the
//! hypervisor's own keyboard and mouse can do.

use std::time::Duration;

use crate::model::error::{Error, Reason};
use crate::model::input::{Action, InputEvent, MouseButton, RawInput, SettleOptions, WheelStep};
use crate::model::keys;
use crate::model::screen::{Point, Rect, Size};
use crate::model::secret::TypedText;

/// Most events of a batch.
pub const MAX_EVENTS: usize = 1024;
/// Most points of a drag, or of a move with what it passes.
pub const MAX_PATH: usize = 1024;
/// Most clicks of one event.
pub const MAX_CLICKS: u32 = 10;
/// Most notches of one scroll, either way.
pub const MAX_NOTCHES: i32 = 1000;
/// Most pixels of one scroll, either way: about as far as the notches.
pub const MAX_SCROLL_PIXELS: i32 = 50_000;
/// What a notch is in pixels where there are notches only: what Chromium scrolls by for one on X11.
pub const NOTCH_PIXELS: i32 = 53;
/// Most keys of a chord, or modifiers.
pub const MAX_KEYS: usize = 8;
/// Most bytes of text in a batch.
pub const MAX_TEXT: usize = 1 << 20;
/// Longest move, drag, hold or pause.
pub const MAX_TIME: Duration = Duration::from_secs(10);
/// Longest pause between two characters.
pub const MAX_INTERVAL: Duration = Duration::from_secs(1);

/// What is wrong with an event; nothing of the batch was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("events[{index}].{field}: {problem}")]
pub struct InputError {
    /// Which event, from 0.
    pub index: usize,
    /// Which field of it, e.g. `click.at`.
    pub field: &'static str,
    /// What is wrong.
    pub problem: InputProblem,
}

/// What can be wrong with an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InputProblem {
    /// No keyboard has it.
    #[error("no key is called {name:?}")]
    UnknownKey {
        /// What was given, cut to 64 characters.
        name: String,
    },
    /// Outside the frame.
    #[error("the point ({}, {}) lies outside the frame of {}x{}", point.x, point.y, size.width, size.height)]
    OutOfFrame {
        /// The point.
        point: Point,
        /// The frame it should be in.
        size: Size,
    },
    /// Over a limit, or without sense.
    #[error("{0}")]
    Illegal(String),
    /// Only an agent could do it.
    #[error("{0} needs the guest agent, which is not connected")]
    NeedsAgent(&'static str),
}

impl From<InputError> for Error {
    fn from(error: InputError) -> Self {
        let reason = match &error.problem {
            InputProblem::UnknownKey { .. } => Reason::UnknownKey,
            InputProblem::OutOfFrame { .. } => Reason::OutOfFrame,
            InputProblem::Illegal(_) => Reason::InvalidField,
            InputProblem::NeedsAgent(_) => Reason::AgentNotConnected,
        };
        let mut out =
            Self::new(reason, error.to_string()).with("index", error.index).with("field", error.field);
        match &error.problem {
            InputProblem::UnknownKey { name } => out = out.with("key", name),
            InputProblem::OutOfFrame { point, size } => {
                out = out
                    .with("x", point.x)
                    .with("y", point.y)
                    .with("frame_width", size.width)
                    .with("frame_height", size.height);
            }
            InputProblem::Illegal(_) => {}
            InputProblem::NeedsAgent(_) => return out,
        }
        out.violation(format!("events[{}].{}", error.index, error.field), error.problem.to_string())
    }
}

/// Checks a batch against the limits and the real frame, and puts the canonical names of keys in.
///
/// # Errors
/// The first event that is wrong.
pub fn check(events: &mut [InputEvent], size: Size) -> Result<(), InputError> {
    if events.is_empty() || events.len() > MAX_EVENTS {
        let problem = InputProblem::Illegal(format!("a batch has 1 to {MAX_EVENTS} events"));
        return Err(InputError { index: events.len().min(MAX_EVENTS), field: "event", problem });
    }
    let mut text = 0;
    for (index, event) in events.iter_mut().enumerate() {
        check_event(event, size, &mut text).map_err(|(field, problem)| InputError {
            index,
            field,
            problem,
        })?;
    }
    Ok(())
}

type Wrong = (&'static str, InputProblem);

fn illegal(field: &'static str, what: impl Into<String>) -> Wrong {
    (field, InputProblem::Illegal(what.into()))
}

fn inside(field: &'static str, point: Point, size: Size) -> Result<(), Wrong> {
    if size.contains(point) { Ok(()) } else { Err((field, InputProblem::OutOfFrame { point, size })) }
}

fn within(field: &'static str, time: Duration, most: Duration) -> Result<(), Wrong> {
    if time <= most { Ok(()) } else { Err(illegal(field, format!("must be at most {} s", most.as_secs()))) }
}

fn name(field: &'static str, key: &mut String) -> Result<(), Wrong> {
    match keys::canonical(key) {
        Some(canonical) => *key = canonical,
        None => {
            let name = key.chars().take(keys::MAX_NAME).collect();
            return Err((field, InputProblem::UnknownKey { name }));
        }
    }
    Ok(())
}

fn names(field: &'static str, keys: &mut [String]) -> Result<(), Wrong> {
    if keys.len() > MAX_KEYS {
        return Err(illegal(field, format!("must be at most {MAX_KEYS} keys")));
    }
    keys.iter_mut().try_for_each(|key| name(field, key))
}

fn check_event(event: &mut InputEvent, size: Size, text_bytes: &mut usize) -> Result<(), Wrong> {
    match event {
        InputEvent::Move { to, relative, duration, via } => {
            if via.len() >= MAX_PATH {
                return Err(illegal("move.via", format!("must have at most {} points", MAX_PATH - 1)));
            }
            if !*relative {
                via.iter().try_for_each(|point| inside("move.via", *point, size))?;
                inside("move.to", *to, size)?;
            }
            within("move.duration", *duration, MAX_TIME)
        }
        InputEvent::Button { .. } | InputEvent::ReleaseAll => Ok(()),
        InputEvent::Click { at, count, modifiers, .. } => {
            if let Some(at) = at {
                inside("click.at", *at, size)?;
            }
            if !(1..=MAX_CLICKS).contains(count) {
                return Err(illegal("click.count", format!("must be 1 to {MAX_CLICKS}")));
            }
            names("click.modifiers", modifiers)
        }
        InputEvent::Drag { path, duration, modifiers, .. } => {
            if !(2..=MAX_PATH).contains(&path.len()) {
                return Err(illegal("drag.path", format!("must have 2 to {MAX_PATH} points")));
            }
            path.iter().try_for_each(|point| inside("drag.path", *point, size))?;
            within("drag.duration", *duration, MAX_TIME)?;
            names("drag.modifiers", modifiers)
        }
        InputEvent::Scroll { at, delta_x, delta_y, pixels } => {
            if let Some(at) = at {
                inside("scroll.at", *at, size)?;
            }
            for (field, value, most) in [
                ("scroll.delta_x", *delta_x, MAX_NOTCHES),
                ("scroll.delta_y", *delta_y, MAX_NOTCHES),
                ("scroll.pixels_x", pixels.x, MAX_SCROLL_PIXELS),
                ("scroll.pixels_y", pixels.y, MAX_SCROLL_PIXELS),
            ] {
                if !(-most..=most).contains(&value) {
                    return Err(illegal(field, format!("must be -{most} to {most}")));
                }
            }
            Ok(())
        }
        InputEvent::Key { key, action, hold } => {
            if *action != Action::Tap && !hold.is_zero() {
                return Err(illegal("key.hold", "is legal with a tap only"));
            }
            within("key.hold", *hold, MAX_TIME)?;
            name("key.key", key)
        }
        InputEvent::Chord { keys, hold } => {
            if keys.is_empty() {
                return Err(illegal("chord.keys", "must name at least one key"));
            }
            names("chord.keys", keys)?;
            within("chord.hold", *hold, MAX_TIME)
        }
        InputEvent::Text { text, interval } => {
            let secret = text.is_secret();
            let Some(text) = text.expose() else {
                return Err(illegal("text.secret", "a secret can't be typed by this call"));
            };
            *text_bytes += text.len();
            if *text_bytes > MAX_TEXT {
                return Err(illegal("text.text", format!("a batch has at most {MAX_TEXT} bytes of text")));
            }
            if let Some(control) = text.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
                let what = if secret { "a".to_owned() } else { format!("the {control:?}") };
                return Err(illegal("text.text", format!("{what} control character can't be typed")));
            }
            within("text.interval", *interval, MAX_INTERVAL)
        }
        InputEvent::Pause(time) => within("pause", *time, MAX_TIME),
    }
}

/// Checks the limits of a wait.
///
/// # Errors
/// A violation of a field under `settle`.
pub fn check_settle(options: &SettleOptions) -> Result<(), Error> {
    let needs_quiet = !options.is_conditional();
    if (options.quiet.is_zero() && needs_quiet) || options.quiet > SettleOptions::MAX_QUIET {
        return Err(Error::field("settle.quiet", "must be more than 0 and at most 10 s"));
    }
    if options.timeout > SettleOptions::MAX_TIMEOUT {
        return Err(Error::field("settle.timeout", "must be at most 120 s"));
    }
    if options.ignore.len() > SettleOptions::MAX_IGNORE {
        return Err(Error::field("settle.ignore", "must be at most 64 rectangles"));
    }
    for (field, count) in [("settle.regions", options.regions.len()), ("settle.pixels", options.pixels.len())]
    {
        if count > SettleOptions::MAX_CONDITIONS {
            return Err(Error::field(field, "must be at most 16"));
        }
    }
    Ok(())
}

fn scale_side(value: i32, from: u32, to: u32) -> i32 {
    // The centre of the client's pixel, so that the last pixel of one frame is in the last of the other.
    let doubled = (2 * i64::from(value) + 1) * i64::from(to);
    i32::try_from(doubled.div_euclid(2 * i64::from(from.max(1)))).unwrap_or(i32::MAX)
}

fn scale_length(value: i32, from: u32, to: u32) -> i32 {
    let rounded =
        (2 * i64::from(value) * i64::from(to) + i64::from(from)).div_euclid(2 * i64::from(from.max(1)));
    i32::try_from(rounded).unwrap_or(i32::MAX)
}

/// A point of one frame in another.
#[must_use]
pub fn scale_point(point: Point, from: Size, to: Size) -> Point {
    Point { x: scale_side(point.x, from.width, to.width), y: scale_side(point.y, from.height, to.height) }
}

/// The smallest rectangle of another frame that covers all of this one.
#[must_use]
pub fn scale_rect(rect: Rect, from: Size, to: Size) -> Rect {
    let edge = |at: u32, from: u32, to: u32, up: bool| {
        let product = u64::from(at) * u64::from(to);
        let from = u64::from(from.max(1));
        let edge = if up { product.div_ceil(from) } else { product / from };
        u32::try_from(edge).unwrap_or(u32::MAX)
    };
    let (x, y) = (edge(rect.x, from.width, to.width, false), edge(rect.y, from.height, to.height, false));
    let right = edge(rect.x.saturating_add(rect.width), from.width, to.width, true);
    let bottom = edge(rect.y.saturating_add(rect.height), from.height, to.height, true);
    Rect { x, y, width: right - x, height: bottom - y }
}

/// Moves every position of a batch from the frame a client saw to the real one.
///
/// # Errors
/// The first position that lies outside the frame the client named.
pub fn scale(events: &mut [InputEvent], from: Size, to: Size) -> Result<(), InputError> {
    for (index, event) in events.iter_mut().enumerate() {
        let place = |field, point: &mut Point| {
            inside(field, *point, from).map_err(|(field, problem)| InputError { index, field, problem })?;
            *point = scale_point(*point, from, to);
            Ok(())
        };
        match event {
            InputEvent::Move { to: by, relative: true, via, .. } => {
                for by in via.iter_mut().chain([by]) {
                    *by = Point {
                        x: scale_length(by.x, from.width, to.width),
                        y: scale_length(by.y, from.height, to.height),
                    };
                }
            }
            InputEvent::Move { to, via, .. } => {
                via.iter_mut().try_for_each(|point| place("move.via", point))?;
                place("move.to", to)?;
            }
            InputEvent::Click { at: Some(at), .. } => place("click.at", at)?,
            InputEvent::Scroll { at: Some(at), .. } => place("scroll.at", at)?,
            InputEvent::Drag { path, .. } => {
                path.iter_mut().try_for_each(|point| place("drag.path", point))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// What is held down, and where the pointer is, on a keyboard and mouse that only this host drives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    pointer: Option<Point>,
    keys: Vec<String>,
    buttons: Vec<MouseButton>,
}

impl Held {
    /// Whether anything is held down.
    #[must_use]
    pub fn any(&self) -> bool {
        !self.keys.is_empty() || !self.buttons.is_empty()
    }

    /// Takes down a step that is done.
    pub fn note(&mut self, input: &RawInput) {
        match input {
            RawInput::Move(to) => self.pointer = Some(*to),
            RawInput::Button { button, down } => {
                self.buttons.retain(|held| held != button);
                if *down {
                    self.buttons.push(*button);
                }
            }
            RawInput::Key { key, down } => {
                self.keys.retain(|held| held != key);
                if *down {
                    self.keys.push(key.clone());
                }
            }
            RawInput::Wheel(_) => {}
        }
    }
}

/// A step of a lowered batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RawStep {
    /// Do this.
    Do(RawInput),
    /// Wait.
    Wait(Duration),
}

/// Between two steps of a smooth move: each is a call of the hypervisor's.
const GLIDE_STEP: Duration = Duration::from_millis(20);
/// Time between the presses of two clicks that are one double click to every toolkit.
const BETWEEN_CLICKS: Duration = Duration::from_millis(30);
/// Time for programs to see the pointer at one point of a drag before it goes on.
const DRAG_STEP: Duration = Duration::from_millis(15);

/// Whole notches for so many pixels, half a notch or more counting as one.
#[must_use]
pub fn notches(pixels: i32) -> i32 {
    (pixels.abs() + NOTCH_PIXELS / 2) / NOTCH_PIXELS * pixels.signum()
}

/// The point at a part of a way's length, 0 to 1.
#[expect(clippy::cast_possible_truncation, reason = "lies between points of a frame")]
fn on_the_way(way: &[Point], part: f64) -> Point {
    let length = |a: Point, b: Point| f64::from(b.x - a.x).hypot(f64::from(b.y - a.y));
    let mut left = way.windows(2).map(|leg| length(leg[0], leg[1])).sum::<f64>() * part;
    for leg in way.windows(2) {
        let (from, to) = (leg[0], leg[1]);
        let long = length(from, to);
        if left <= long && long > 0.0 {
            let mix = |a: i32, b: i32| (f64::from(a) + f64::from(b - a) * left / long).round() as i32;
            return Point { x: mix(from.x, to.x), y: mix(from.y, to.y) };
        }
        left -= long;
    }
    way.last().copied().unwrap_or_default()
}

/// Lowers one checked event to key and button steps; `index` is its place in the batch.
///
/// # Errors
/// [`InputProblem::NeedsAgent`] for text beyond a US keyboard, and for relative moves before any absolute one.
pub fn to_raw(
    event: &InputEvent,
    index: usize,
    size: Size,
    held: &mut Held,
) -> Result<Vec<RawStep>, InputError> {
    let mut steps = Lowering { held, steps: Vec::new() };
    let needs_agent = |field, what| InputError { index, field, problem: InputProblem::NeedsAgent(what) };
    match event {
        InputEvent::Move { to, relative, duration, via } => {
            let known = steps.held.pointer;
            let mut way: Vec<Point> = via.iter().chain([to]).copied().collect();
            if *relative {
                let from = known.ok_or_else(|| needs_agent("move.relative", "a relative move"))?;
                let clamp = |v: i32, side: u32| v.clamp(0, i32::try_from(side).unwrap_or(i32::MAX) - 1);
                for point in &mut way {
                    *point = Point {
                        x: clamp(from.x.saturating_add(point.x), size.width),
                        y: clamp(from.y.saturating_add(point.y), size.height),
                    };
                }
            }
            // Where the pointer is not known, the way begins at its first point.
            way.insert(0, known.unwrap_or(way[0]));
            steps.along(&way, *duration);
        }
        InputEvent::Button { button, action } => match action {
            Action::Tap => steps.click(*button),
            Action::Press => steps.button(*button, true),
            Action::Release => steps.button(*button, false),
        },
        InputEvent::Click { at, button, count, modifiers } => {
            at.iter().for_each(|at| steps.place(*at));
            steps.with_keys(modifiers, |steps| {
                for n in 0..*count {
                    if n > 0 {
                        steps.wait(BETWEEN_CLICKS);
                    }
                    steps.click(*button);
                }
            });
        }
        InputEvent::Drag { path, button, duration, modifiers } => {
            steps.with_keys(modifiers, |steps| {
                steps.place(path[0]);
                steps.button(*button, true);
                steps.wait(DRAG_STEP);
                if duration.is_zero() {
                    for point in &path[1..] {
                        steps.place(*point);
                        steps.wait(DRAG_STEP);
                    }
                } else {
                    steps.along(path, *duration);
                }
                steps.button(*button, false);
            });
        }
        InputEvent::Scroll { at, delta_x, delta_y, pixels } => {
            at.iter().for_each(|at| steps.place(*at));
            let ways = [
                (delta_x + notches(pixels.x), WheelStep::Right, WheelStep::Left),
                (delta_y + notches(pixels.y), WheelStep::Down, WheelStep::Up),
            ];
            for (delta, forward, back) in ways {
                let step = if delta > 0 { forward } else { back };
                (0..delta.unsigned_abs()).for_each(|_| steps.push(RawInput::Wheel(step)));
            }
        }
        InputEvent::Key { key, action, hold } => match action {
            Action::Tap => steps.tap(key, *hold),
            Action::Press => steps.key(key, true),
            Action::Release => steps.key(key, false),
        },
        InputEvent::Chord { keys, hold } => steps.with_keys(keys, |steps| steps.wait(*hold)),
        InputEvent::Text { text, interval } => {
            // The hypervisor's keyboard reports what it does to more places than we know of.
            let TypedText::Plain(text) = text else { return Err(needs_agent("text.secret", "a secret")) };
            for (n, char) in text.chars().enumerate() {
                let (key, shift) = keys::us_key(char)
                    .ok_or_else(|| needs_agent("text.text", "text beyond a US keyboard"))?;
                if n > 0 {
                    steps.wait(*interval);
                }
                let shift: &[String] = if shift { &["Shift_L".to_owned()] } else { &[] };
                steps.with_keys(shift, |steps| steps.tap(&key, Duration::ZERO));
            }
        }
        InputEvent::Pause(time) => steps.wait(*time),
        InputEvent::ReleaseAll => {
            while let Some(key) = steps.held.keys.last().cloned() {
                steps.key(&key, false);
            }
            while let Some(button) = steps.held.buttons.last().copied() {
                steps.button(button, false);
            }
        }
    }
    Ok(steps.steps)
}

struct Lowering<'a> {
    held: &'a mut Held,
    steps: Vec<RawStep>,
}

impl Lowering<'_> {
    fn push(&mut self, input: RawInput) {
        self.held.note(&input);
        self.steps.push(RawStep::Do(input));
    }

    fn wait(&mut self, time: Duration) {
        if !time.is_zero() {
            self.steps.push(RawStep::Wait(time));
        }
    }

    fn place(&mut self, point: Point) {
        self.push(RawInput::Move(point));
    }

    /// Goes along a way, from its first point, where the pointer is, to its last.
    fn along(&mut self, way: &[Point], duration: Duration) {
        let Some(last) = way.last() else { return };
        if duration.is_zero() {
            way[1..].iter().for_each(|point| self.place(*point));
            return;
        }
        let steps = u32::try_from(duration.as_millis() / GLIDE_STEP.as_millis()).unwrap_or(u32::MAX).max(1);
        for step in 1..=steps {
            self.wait(duration / steps);
            let point =
                if step == steps { *last } else { on_the_way(way, f64::from(step) / f64::from(steps)) };
            self.place(point);
        }
    }

    fn button(&mut self, button: MouseButton, down: bool) {
        self.push(RawInput::Button { button, down });
    }

    fn click(&mut self, button: MouseButton) {
        self.button(button, true);
        self.button(button, false);
    }

    fn key(&mut self, key: &str, down: bool) {
        self.push(RawInput::Key { key: key.to_owned(), down });
    }

    /// A character that needs Shift on a US keyboard gets it.
    fn tap(&mut self, key: &str, hold: Duration) {
        let mut chars = key.chars();
        let shifted = match (chars.next(), chars.next()) {
            (Some(only), None) => keys::us_key(only).filter(|(_, shift)| *shift),
            _ => None,
        };
        match shifted {
            Some((base, _)) => self.with_keys(&["Shift_L".to_owned()], |steps| steps.tap(&base, hold)),
            None => {
                self.key(key, true);
                self.wait(hold);
                self.key(key, false);
            }
        }
    }

    fn with_keys(&mut self, keys: &[String], inner: impl FnOnce(&mut Self)) {
        keys.iter().for_each(|key| self.key(key, true));
        inner(self);
        keys.iter().rev().for_each(|key| self.key(key, false));
    }
}

#[cfg(test)]
mod tests;
