//! Keyboard and mouse.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use hvkube_sdk::v1::input_event::Event;
use hvkube_sdk::v1::{
    ChordEvent, ClickEvent, DragEvent, MouseButton, MoveEvent, Point, ScrollEvent, Size, TextEvent,
};
use hvkube_sdk::{Input, qualify};

use crate::commands::pool::proto;
use crate::commands::screen;
use crate::context::Context;
use crate::report::{Failure, Outcome};
use crate::units;

/// Longest text the API takes in one event.
const MAX_TEXT: u64 = 1 << 20;

/// What all input has.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Wait until the screen settles afterwards, 10 s at most
    #[arg(long)]
    wait: bool,
    /// Wait until the screen settles, and take a picture of it
    #[arg(long, value_name = "FILE")]
    screenshot: Option<PathBuf>,
    /// Size of the picture that positions were read from [default: the screen's own]
    #[arg(long, value_name = "WxH", value_parser = units::size)]
    frame_size: Option<Size>,
}

#[derive(Debug, Args)]
pub(crate) struct Type {
    /// VM (id or name) or leases/ID
    name: String,
    /// Joined by spaces; `-` alone is standard input
    #[arg(required_unless_present = "secret")]
    text: Vec<String>,
    /// Type the value of this secret, which the daemon keeps; see `hvkube secret`
    #[arg(long, value_name = "NAME", conflicts_with = "text")]
    secret: Option<String>,
    /// Press Return afterwards
    #[arg(long)]
    enter: bool,
    /// Pause between two characters
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    interval: Option<Duration>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(crate) struct Key {
    /// VM (id or name) or leases/ID
    name: String,
    #[command(flatten)]
    event: KeyArgs,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    /// Key names joined by `+`: ctrl+shift+t, rctrl+VK_LSHIFT+a, Return, VK_F5
    #[arg(required = true)]
    keys: Vec<String>,
    /// How long they are held [default: not at all]
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    hold: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Button {
    Left,
    Middle,
    Right,
    Back,
    Forward,
}

impl From<Button> for MouseButton {
    fn from(button: Button) -> Self {
        match button {
            Button::Left => Self::Left,
            Button::Middle => Self::Middle,
            Button::Right => Self::Right,
            Button::Back => Self::Back,
            Button::Forward => Self::Forward,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Click {
    /// VM (id or name) or leases/ID
    name: String,
    #[command(flatten)]
    event: ClickArgs,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(crate) struct ClickArgs {
    /// Pixels from the left
    #[arg(value_parser = units::coordinate, allow_negative_numbers = true)]
    x: i32,
    /// Pixels from the top
    #[arg(value_parser = units::coordinate, allow_negative_numbers = true)]
    y: i32,
    /// Which button
    #[arg(long, value_enum, default_value_t = Button::Left)]
    button: Button,
    /// How many times; 2 is a double click
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10))]
    count: u32,
    /// Keys held meanwhile, e.g. ctrl,shift
    #[arg(long, value_name = "KEY,..", value_delimiter = ',')]
    modifiers: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Move {
    /// VM (id or name) or leases/ID
    name: String,
    #[command(flatten)]
    event: MoveArgs,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(crate) struct MoveArgs {
    /// Pixels from the left; with --by to the right of where the pointer is
    #[arg(value_parser = units::offset, allow_negative_numbers = true)]
    x: i32,
    /// Pixels from the top; with --by down from where the pointer is
    #[arg(value_parser = units::offset, allow_negative_numbers = true)]
    y: i32,
    /// X and Y, and --via, count from where the pointer is
    #[arg(long)]
    by: bool,
    /// Passed on the way; may be given several times
    #[arg(long, value_name = "X,Y", value_parser = units::offsets, allow_hyphen_values = true)]
    via: Vec<Point>,
    /// Time to take [default: at once]
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    duration: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct Drag {
    /// VM (id or name) or leases/ID
    name: String,
    #[command(flatten)]
    event: DragArgs,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(crate) struct DragArgs {
    /// Where the button goes down, where it goes along, where it comes up
    #[arg(value_name = "X,Y", required = true, num_args = 2.., value_parser = units::point)]
    path: Vec<Point>,
    /// Which button
    #[arg(long, value_enum, default_value_t = Button::Left)]
    button: Button,
    /// Time for the whole path [default: as fast as programs can follow]
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    duration: Option<Duration>,
    /// Keys held meanwhile, e.g. ctrl,shift
    #[arg(long, value_name = "KEY,..", value_delimiter = ',')]
    modifiers: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Scroll {
    /// VM (id or name) or leases/ID
    name: String,
    #[command(flatten)]
    event: ScrollArgs,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(crate) struct ScrollArgs {
    /// Notches down; negative: up
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(-1000..=1000), required_unless_present_any = ["dx", "pixels_x", "pixels_y"])]
    dy: i32,
    /// Notches to the right; negative: left
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    dx: i32,
    /// Pixels down on top of the notches, rounded to notches where the guest can't; negative: up
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(-50_000..=50_000))]
    pixels_y: i32,
    /// Pixels to the right; negative: left
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(-50_000..=50_000))]
    pixels_x: i32,
    /// Where [default: where the pointer is]
    #[arg(long, value_name = "X,Y", value_parser = units::point)]
    at: Option<Point>,
}

pub(crate) async fn type_text(context: &Context, args: Type) -> Outcome {
    let text = match &args.text[..] {
        [only] if only == "-" => read_stdin()?,
        words => words.join(" "),
    };
    let secret = args.secret.map(|name| qualify("secrets", &name)).unwrap_or_default();
    let interval = args.interval.map(|time| proto(time, "--interval")).transpose()?;
    let mut input = Input::new().event(Event::Text(TextEvent { text, interval, secret }));
    if args.enter {
        input = input.key("Return");
    }
    send(context, &args.name, input, args.common).await
}

/// Waiting for standard input would block the program, but it has nothing else to do yet.
fn read_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(MAX_TEXT + 1).read_to_string(&mut text);
    read.map_err(|err| Failure::io("read standard input", &err))?;
    if text.len() as u64 > MAX_TEXT {
        return Err(Failure::Usage("standard input holds more than 1 MiB of text".to_owned()));
    }
    Ok(text)
}

impl KeyArgs {
    pub(super) fn onto(self, input: Input) -> Result<Input, Failure> {
        let hold = self.hold.map(|time| proto(time, "--hold")).transpose()?;
        let chord = |input: Input, keys| input.event(Event::Chord(ChordEvent { keys, hold }));
        Ok(self.keys.into_iter().fold(input, chord))
    }
}

impl ClickArgs {
    pub(super) fn onto(self, input: Input) -> Input {
        let at = Some(Point { x: self.x, y: self.y });
        let button = MouseButton::from(self.button).into();
        input.event(Event::Click(ClickEvent { at, button, count: self.count, modifiers: self.modifiers }))
    }
}

impl MoveArgs {
    pub(super) fn onto(self, input: Input) -> Result<Input, Failure> {
        let to = Point { x: self.x, y: self.y };
        let off = |point: &Point| point.x < 0 || point.y < 0;
        if !self.by && self.via.iter().chain([&to]).any(off) {
            return Err(Failure::Usage(
                "a position is 0 or more; with --by it counts from the pointer".to_owned(),
            ));
        }
        let duration = self.duration.map(|time| proto(time, "--duration")).transpose()?;
        let event = MoveEvent { to: Some(to), relative: self.by, duration, via: self.via };
        Ok(input.event(Event::Move(event)))
    }
}

impl DragArgs {
    pub(super) fn onto(self, input: Input) -> Result<Input, Failure> {
        let duration = self.duration.map(|time| proto(time, "--duration")).transpose()?;
        let button = MouseButton::from(self.button).into();
        let drag = DragEvent { path: self.path, button, duration, modifiers: self.modifiers };
        Ok(input.event(Event::Drag(drag)))
    }
}

impl ScrollArgs {
    pub(super) fn onto(self, input: Input) -> Input {
        let Self { dy, dx, pixels_y, pixels_x, at } = self;
        input.event(Event::Scroll(ScrollEvent { at, delta_x: dx, delta_y: dy, pixels_x, pixels_y }))
    }
}

pub(crate) async fn key(context: &Context, args: Key) -> Outcome {
    send(context, &args.name, args.event.onto(Input::new())?, args.common).await
}

pub(crate) async fn click(context: &Context, args: Click) -> Outcome {
    send(context, &args.name, args.event.onto(Input::new()), args.common).await
}

pub(crate) async fn move_to(context: &Context, args: Move) -> Outcome {
    send(context, &args.name, args.event.onto(Input::new())?, args.common).await
}

pub(crate) async fn drag(context: &Context, args: Drag) -> Outcome {
    send(context, &args.name, args.event.onto(Input::new())?, args.common).await
}

pub(crate) async fn scroll(context: &Context, args: Scroll) -> Outcome {
    send(context, &args.name, args.event.onto(Input::new()), args.common).await
}

async fn send(context: &Context, name: &str, mut input: Input, common: Common) -> Outcome {
    if let Some(size) = common.frame_size {
        input = input.frame_size(size.width, size.height);
    }
    let shot = common.screenshot.as_deref().map(screen::options_for).transpose()?;
    let target = context.client().await?.target(name);
    if !common.wait && shot.is_none() {
        target.input(input).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let progress = context.progress("waiting for a settled screen");
    let done = target.act(input).screenshot(shot.unwrap_or_default()).await;
    drop(progress);
    let done = done?;
    if let (Some(path), Some(shot)) = (&common.screenshot, &done.screenshot) {
        screen::store(context, shot, path)?;
    }
    if done.settle.is_some_and(|settle| settle.timed_out) {
        return Err(Failure::NotSettled);
    }
    Ok(ExitCode::SUCCESS)
}
