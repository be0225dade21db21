//! Batches of input, and acting on what they cause.

use std::future::IntoFuture;
use std::pin::Pin;
use std::time::Duration;

use crate::client::{call, fresh_id};
use crate::desktop::Target;
use crate::error::Result;
use crate::names::qualify;
use crate::v1::input_event::Event;
use crate::v1::{
    ActRequest, ActResponse, ChordEvent, ClickEvent, DragEvent, InputAction, InputEvent, KeyEvent,
    MouseButton, MoveEvent, Point, ReleaseAllEvent, ScreenshotOptions, ScrollEvent, SendInputRequest,
    SendInputResponse, SettleOptions, Size, StreamInputRequest, TextEvent,
};

/// What the daemon waits for a settled screen when it is not told.
pub(crate) const DEFAULT_SETTLE: Duration = Duration::from_secs(10);

/// Longest value of a secret, in bytes.
const MAX_SECRET: usize = 4096;

/// A batch of input events, done in order and at most once. 1 to 1024 events; positions in pixels from the top left of
/// the frame, or of [`Input::frame_size`].
///
/// ```
/// use hvkube_sdk::Input;
/// let search = Input::new().click(640, 64).chord("ctrl+a").text("weather\n");
/// assert_eq!(search.events().len(), 3);
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "does nothing until it is sent"]
pub struct Input {
    events: Vec<InputEvent>,
    frame: Option<Size>,
}

impl Input {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// As a message of a stream.
    pub(crate) fn into_message(self, target: String) -> StreamInputRequest {
        StreamInputRequest { target, batch_id: fresh_id(), events: self.events, frame_size: self.frame }
    }

    /// The events so far.
    #[must_use]
    pub fn events(&self) -> &[InputEvent] {
        &self.events
    }

    /// Any event, for what has no method of its own.
    pub fn event(mut self, event: Event) -> Self {
        self.events.push(InputEvent { event: Some(event) });
        self
    }

    /// Positions refer to a picture of this size (pixels), not to the real frame; the daemon scales them.
    pub fn frame_size(mut self, width: u32, height: u32) -> Self {
        self.frame = Some(Size { width, height });
        self
    }

    /// Moves the pointer.
    pub fn move_to(self, x: i32, y: i32) -> Self {
        self.event(Event::Move(MoveEvent { to: Some(Point { x, y }), ..Default::default() }))
    }

    /// Moves the pointer from where it is; a way off the screen ends at its edge.
    pub fn move_by(self, x: i32, y: i32) -> Self {
        self.event(Event::Move(MoveEvent { to: Some(Point { x, y }), relative: true, ..Default::default() }))
    }

    /// Moves the pointer along points (1 to 1024) at one speed, in `time` (10 s at most) altogether.
    pub fn glide(self, path: impl IntoIterator<Item = (i32, i32)>, time: Duration) -> Self {
        let mut via: Vec<_> = path.into_iter().map(|(x, y)| Point { x, y }).collect();
        let to = via.pop();
        self.event(Event::Move(MoveEvent { to, relative: false, duration: Some(long(time)), via }))
    }

    /// Clicks the left button.
    pub fn click(self, x: i32, y: i32) -> Self {
        self.click_with(x, y, MouseButton::Left, 1)
    }

    /// Clicks the left button twice.
    pub fn double_click(self, x: i32, y: i32) -> Self {
        self.click_with(x, y, MouseButton::Left, 2)
    }

    /// Clicks any button, `count` times (1 to 10).
    pub fn click_with(self, x: i32, y: i32, button: MouseButton, count: u32) -> Self {
        let click =
            ClickEvent { at: Some(Point { x, y }), button: button.into(), count, ..Default::default() };
        self.event(Event::Click(click))
    }

    /// Presses the left button at the first point, moves along the others (2 to 1024 in all), releases at the last.
    pub fn drag(self, path: impl IntoIterator<Item = (i32, i32)>) -> Self {
        let path = path.into_iter().map(|(x, y)| Point { x, y }).collect();
        self.event(Event::Drag(DragEvent { path, button: MouseButton::Left.into(), ..Default::default() }))
    }

    /// Turns the wheel where the pointer is: notches to the right and down, negative to the left and up.
    pub fn scroll(self, right: i32, down: i32) -> Self {
        self.event(Event::Scroll(ScrollEvent { delta_x: right, delta_y: down, ..Default::default() }))
    }

    /// Scrolls by pixels where the guest can, else by whole notches; the answer says what was delivered.
    pub fn scroll_pixels(self, right: i32, down: i32) -> Self {
        self.event(Event::Scroll(ScrollEvent { pixels_x: right, pixels_y: down, ..Default::default() }))
    }

    /// Turns the wheel at a position.
    pub fn scroll_at(self, x: i32, y: i32, right: i32, down: i32) -> Self {
        let at = Some(Point { x, y });
        self.event(Event::Scroll(ScrollEvent { at, delta_x: right, delta_y: down, ..Default::default() }))
    }

    /// Taps one key: `Return`, `VK_RETURN` or one character.
    pub fn key(self, key: impl Into<String>) -> Self {
        self.key_with(key, InputAction::Tap)
    }

    /// Presses a key and keeps it down, until [`Input::key_up`] or [`Input::release_all`].
    pub fn key_down(self, key: impl Into<String>) -> Self {
        self.key_with(key, InputAction::Press)
    }

    /// Releases a key.
    pub fn key_up(self, key: impl Into<String>) -> Self {
        self.key_with(key, InputAction::Release)
    }

    fn key_with(self, key: impl Into<String>, action: InputAction) -> Self {
        self.event(Event::Key(KeyEvent { key: key.into(), action: action.into(), hold: None }))
    }

    /// Holds keys together for a while (10 s at most), then releases them.
    pub fn hold(self, keys: impl Into<String>, time: Duration) -> Self {
        self.event(Event::Chord(ChordEvent { keys: keys.into(), hold: Some(long(time)) }))
    }

    /// Holds keys together, then releases them: `ctrl+shift+t`.
    pub fn chord(self, keys: impl Into<String>) -> Self {
        self.event(Event::Chord(ChordEvent { keys: keys.into(), hold: None }))
    }

    /// Types text, whatever the guest's keyboard layout. Newline and tab are those keys. 1 MiB at most.
    pub fn text(self, text: impl Into<String>) -> Self {
        self.event(Event::Text(TextEvent { text: text.into(), ..Default::default() }))
    }

    /// Types the value of a secret that the daemon keeps, by id or name.
    pub fn secret(self, name: &str) -> Self {
        let secret = qualify("secrets", name);
        self.event(Event::Text(TextEvent { secret, ..Default::default() }))
    }

    /// Does nothing for a while; 10 s at most.
    pub fn pause(self, time: Duration) -> Self {
        self.event(Event::Pause(long(time)))
    }

    /// Releases every key and button that is held down.
    pub fn release_all(self) -> Self {
        self.event(Event::ReleaseAll(ReleaseAllEvent {}))
    }

    /// Longest time the events ask for themselves.
    fn duration(&self) -> Duration {
        let length = |time: Option<prost_types::Duration>| {
            time.and_then(|time| Duration::try_from(time).ok()).unwrap_or_default()
        };
        let own = |event: &InputEvent| match &event.event {
            Some(Event::Pause(time)) => length(Some(*time)),
            Some(Event::Move(event)) => length(event.duration),
            Some(Event::Drag(event)) => length(event.duration),
            Some(Event::Chord(event)) => length(event.hold),
            Some(Event::Key(event)) => length(event.hold),
            Some(Event::Text(event)) => {
                // 5 ms a character where no pace is asked for: a slow guest under emulation types like that.
                let bytes = if event.secret.is_empty() { event.text.len() } else { MAX_SECRET };
                let chars = u32::try_from(bytes).unwrap_or(u32::MAX);
                length(event.interval).max(Duration::from_millis(5)).saturating_mul(chars)
            }
            _ => Duration::ZERO,
        };
        self.events
            .iter()
            .map(own)
            .fold(Duration::ZERO, Duration::saturating_add)
            .min(Duration::from_secs(24 * 3600))
    }
}

/// A time that the API can say. What is longer is beyond what the daemon takes as well: let it refuse the largest.
pub(crate) fn long(time: Duration) -> prost_types::Duration {
    time.try_into().unwrap_or(prost_types::Duration { seconds: i64::MAX, nanos: 0 })
}

impl Target {
    /// Sends a batch. It is only sent again when the connection was never made, so nothing is done twice.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` (`UNKNOWN_KEY`, `OUT_OF_FRAME`) before anything was done; `ABORTED`
    /// (`INPUT_OUTCOME_UNKNOWN`) when the guest agent was lost in the middle.
    pub async fn input(&self, input: Input) -> Result<SendInputResponse> {
        let wait = self.client().after(input.duration());
        let request = SendInputRequest {
            target: self.name().to_owned(),
            batch_id: fresh_id(),
            events: input.events,
            frame_size: input.frame,
        };
        call!(self.client(), Once, wait, desktops.send_input(request))
    }

    /// Sends a batch, waits until the screen settles, takes a picture. Await the result, or refine it first.
    pub fn act(&self, input: Input) -> Act {
        let wait = input.duration();
        let request = ActRequest {
            target: self.name().to_owned(),
            batch_id: fresh_id(),
            events: input.events,
            frame_size: input.frame,
            settle: None,
            options: None,
        };
        Act { target: self.clone(), request, wait }
    }

    /// Clicks the left button. Errors as [`Target::input`], here and in the others.
    ///
    /// # Errors
    /// As [`Target::input`].
    pub async fn click(&self, x: i32, y: i32) -> Result<SendInputResponse> {
        self.input(Input::new().click(x, y)).await
    }

    /// Clicks the left button twice.
    ///
    /// # Errors
    /// As [`Target::input`].
    pub async fn double_click(&self, x: i32, y: i32) -> Result<SendInputResponse> {
        self.input(Input::new().double_click(x, y)).await
    }

    /// Drags with the left button along a path of 2 to 1024 points.
    ///
    /// # Errors
    /// As [`Target::input`].
    pub async fn drag(&self, path: impl IntoIterator<Item = (i32, i32)>) -> Result<SendInputResponse> {
        self.input(Input::new().drag(path)).await
    }

    /// Turns the wheel where the pointer is: notches to the right and down.
    ///
    /// # Errors
    /// As [`Target::input`].
    pub async fn scroll(&self, right: i32, down: i32) -> Result<SendInputResponse> {
        self.input(Input::new().scroll(right, down)).await
    }

    /// Taps one key.
    ///
    /// # Errors
    /// As [`Target::input`].
    pub async fn key(&self, key: &str) -> Result<SendInputResponse> {
        self.input(Input::new().key(key)).await
    }

    /// Presses keys together: `ctrl+shift+t`.
    ///
    /// # Errors
    /// As [`Target::input`].
    pub async fn chord(&self, keys: &str) -> Result<SendInputResponse> {
        self.input(Input::new().chord(keys)).await
    }

    /// Types text.
    ///
    /// # Errors
    /// As [`Target::input`].
    pub async fn type_text(&self, text: &str) -> Result<SendInputResponse> {
        self.input(Input::new().text(text)).await
    }
}

/// Input whose effect is waited for; await it.
#[derive(Clone, Debug)]
#[must_use = "does nothing until it is awaited"]
pub struct Act {
    target: Target,
    request: ActRequest,
    wait: Duration,
}

impl Act {
    /// When the screen counts as settled; default: 300 ms without a change, 10 s at most.
    pub fn settle(mut self, options: SettleOptions) -> Self {
        self.request.settle = Some(options);
        self
    }

    /// What the picture shall be like; default: PNG of the whole frame.
    pub fn screenshot(mut self, options: ScreenshotOptions) -> Self {
        self.request.options = Some(options);
        self
    }
}

impl IntoFuture for Act {
    type Output = Result<ActResponse>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let settle = settle_wait(self.request.settle.as_ref());
            let client = self.target.client();
            call!(client, Once, client.after(self.wait.saturating_add(settle)), desktops.act(self.request))
        })
    }
}

/// How long a wait for a settled screen may take.
pub(crate) fn settle_wait(options: Option<&SettleOptions>) -> Duration {
    options
        .and_then(|options| options.timeout)
        .and_then(|time| Duration::try_from(time).ok())
        .unwrap_or(DEFAULT_SETTLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_keeps_its_order_and_knows_its_length() {
        let input = Input::new()
            .move_to(1, 2)
            .double_click(3, 4)
            .drag([(0, 0), (9, 9)])
            .scroll(0, 3)
            .chord("ctrl+c")
            .pause(Duration::from_secs(2))
            .text("ab")
            .release_all();
        let kinds: Vec<_> = input.events().iter().map(|event| event.event.clone().expect("set")).collect();
        assert!(
            matches!(&kinds[1], Event::Click(click) if click.count == 2 && click.at == Some(Point { x: 3, y: 4 }))
        );
        assert!(matches!(&kinds[2], Event::Drag(drag) if drag.path.len() == 2));
        assert!(matches!(&kinds[3], Event::Scroll(scroll) if scroll.delta_y == 3 && scroll.at.is_none()));
        assert_eq!(input.duration(), Duration::from_millis(2010));
        assert_eq!(Input::new().pause(Duration::MAX).events().len(), 1);
    }
}
