//! Keyboard and mouse: what clients ask for, and what every virtual keyboard and mouse can do.
//!
//! [`InputEvent`] is the level of clicks, chords and text, which the agent in a guest carries out. [`RawInput`] is the
//! level below, for the hypervisor's own keyboard and mouse when there is no agent. Checks, scaling and the way from one
//! level to the other are in [`crate::model::input_rules`].

use std::time::Duration;

use crate::model::screen::{Point, Rect};
use crate::model::secret::TypedText;

/// One step of a virtual keyboard or mouse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RawInput {
    /// Put the pointer somewhere.
    Move(Point),
    /// Press or release a button.
    Button {
        /// Which.
        button: MouseButton,
        /// Down or up.
        down: bool,
    },
    /// Turn the wheel by one notch.
    Wheel(WheelStep),
    /// Press or release a key.
    Key {
        /// X11 keysym name or a single character.
        key: String,
        /// Down or up.
        down: bool,
    },
}

impl RawInput {
    /// Whether something goes down and stays there.
    #[must_use]
    pub fn is_press(&self) -> bool {
        matches!(self, Self::Button { down: true, .. } | Self::Key { down: true, .. })
    }
}

/// A mouse button.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MouseButton {
    /// Left.
    #[default]
    Left,
    /// Middle (wheel).
    Middle,
    /// Right.
    Right,
    /// Back.
    Back,
    /// Forward.
    Forward,
}

/// One notch of the wheel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WheelStep {
    /// Away from the user.
    Up,
    /// Towards the user.
    Down,
    /// To the left.
    Left,
    /// To the right.
    Right,
}

/// What to do with a key or button.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Action {
    /// Press, then release.
    #[default]
    Tap,
    /// Press and keep down.
    Press,
    /// Release.
    Release,
}

/// One input event. Positions are pixels of the frame; times are zero where nothing was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputEvent {
    /// Move the pointer.
    Move {
        /// Where to; a displacement when `relative`.
        to: Point,
        /// `to` counts from the present position.
        relative: bool,
        /// Time to take; zero: at once.
        duration: Duration,
        /// Points to pass on the way.
        via: Vec<Point>,
    },
    /// Press or release a button where the pointer is.
    Button {
        /// Which.
        button: MouseButton,
        /// What to do.
        action: Action,
    },
    /// Click one or more times.
    Click {
        /// Where; absent: where the pointer is.
        at: Option<Point>,
        /// Which.
        button: MouseButton,
        /// 1 single, 2 double, up to 10.
        count: u32,
        /// Keys held during the clicks.
        modifiers: Vec<String>,
    },
    /// Press at the first point, move along the others, release at the last.
    Drag {
        /// 2 to 1024 points.
        path: Vec<Point>,
        /// Which button.
        button: MouseButton,
        /// Time for the whole path; zero: as fast as programs can follow.
        duration: Duration,
        /// Keys held during the drag.
        modifiers: Vec<String>,
    },
    /// Turn the wheel.
    Scroll {
        /// Where; absent: where the pointer is.
        at: Option<Point>,
        /// Notches to the right; negative: to the left.
        delta_x: i32,
        /// Notches down; negative: up.
        delta_y: i32,
        /// Pixels right and down on top of the notches.
        pixels: Point,
    },
    /// Press, release or tap one key.
    Key {
        /// Its name.
        key: String,
        /// What to do.
        action: Action,
        /// How long a tap holds it.
        hold: Duration,
    },
    /// Hold keys together, in this order, then release them in reverse.
    Chord {
        /// Their names, 1 to 8.
        keys: Vec<String>,
        /// How long they are held.
        hold: Duration,
    },
    /// Type text, whatever the keyboard layout.
    Text {
        /// Any Unicode; newline and tab are the Return and Tab keys.
        text: TypedText,
        /// Pause between two characters.
        interval: Duration,
    },
    /// Do nothing for a while.
    Pause(Duration),
    /// Release every key and button that is held down.
    ReleaseAll,
}

impl InputEvent {
    /// The first absolute position it names.
    #[must_use]
    pub fn place(&self) -> Option<Point> {
        match self {
            Self::Move { to, relative: false, via, .. } => Some(*via.first().unwrap_or(to)),
            Self::Click { at, .. } | Self::Scroll { at, .. } => *at,
            Self::Drag { path, .. } => path.first().copied(),
            _ => None,
        }
    }

    /// Whether it types something that nobody but the desktop may see.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        matches!(self, Self::Text { text, .. } if text.is_secret())
    }

    /// The names of keys in it, each with its field.
    pub fn keys(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let (field, keys) = match self {
            Self::Key { key, .. } => ("key.key", std::slice::from_ref(key)),
            Self::Chord { keys, .. } => ("chord.keys", keys.as_slice()),
            Self::Click { modifiers, .. } => ("click.modifiers", modifiers.as_slice()),
            Self::Drag { modifiers, .. } => ("drag.modifiers", modifiers.as_slice()),
            _ => ("event", Default::default()),
        };
        keys.iter().map(move |key| (field, key.as_str()))
    }
}

/// What to wait for: one of the conditions, where there are any, and then a quiet screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettleOptions {
    /// How long nothing may change; at most [`SettleOptions::MAX_QUIET`]. Zero, which is legal with conditions only: it
    /// may go on changing.
    pub quiet: Duration,
    /// When to give up; at most [`SettleOptions::MAX_TIMEOUT`].
    pub timeout: Duration,
    /// Changes inside these do not count; at most [`SettleOptions::MAX_IGNORE`].
    pub ignore: Vec<Rect>,
    /// Until a pixel in one of these is another than before; at most [`SettleOptions::MAX_CONDITIONS`].
    pub regions: Vec<Rect>,
    /// Until one of these has its colour; at most [`SettleOptions::MAX_CONDITIONS`].
    pub pixels: Vec<PixelCondition>,
}

/// A pixel of a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelCondition {
    /// Where.
    pub at: Point,
    /// Red, green, blue.
    pub rgb: [u8; 3],
    /// How far each of them may be from it.
    pub tolerance: u8,
}

impl PixelCondition {
    /// Whether a pixel of a frame (blue, green, red) has the colour.
    #[must_use]
    pub fn is(&self, bgr: [u8; 3]) -> bool {
        let [blue, green, red] = bgr;
        [red, green, blue].iter().zip(self.rgb).all(|(seen, wanted)| seen.abs_diff(wanted) <= self.tolerance)
    }
}

/// What a wait was met by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Met {
    /// The screen was quiet.
    Quiet,
    /// This one of the regions changed.
    Region(usize),
    /// This one of the pixels had its colour.
    Pixel(usize),
}

impl SettleOptions {
    /// Quiet time where none is asked for.
    pub const DEFAULT_QUIET: Duration = Duration::from_millis(300);
    /// Longest quiet time.
    pub const MAX_QUIET: Duration = Duration::from_secs(10);
    /// Longest wait.
    pub const MAX_TIMEOUT: Duration = Duration::from_secs(120);
    /// Most rectangles to ignore.
    pub const MAX_IGNORE: usize = 64;
    /// Most regions, and most pixels.
    pub const MAX_CONDITIONS: usize = 16;

    /// Whether there are conditions, which are then what is waited for.
    #[must_use]
    pub fn is_conditional(&self) -> bool {
        !self.regions.is_empty() || !self.pixels.is_empty()
    }
}

impl Default for SettleOptions {
    fn default() -> Self {
        Self {
            quiet: Self::DEFAULT_QUIET,
            timeout: Duration::from_secs(10),
            ignore: Vec::new(),
            regions: Vec::new(),
            pixels: Vec::new(),
        }
    }
}

/// How a wait ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settled {
    /// The time was over before what was waited for.
    pub timed_out: bool,
    /// From the start to the last change that counted; zero when nothing changed.
    pub settled_after: Duration,
    /// What changed meanwhile, merged; 64 at most.
    pub changed: Vec<Rect>,
    /// Number of the screen's state at the end.
    pub sequence: u64,
    /// What was met: the first condition, also when the screen was not quiet after it in time.
    pub met: Option<Met>,
    /// From the start until a condition was met.
    pub met_after: Duration,
}
