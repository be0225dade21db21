//! Input below the level of clicks and text: what every keyboard and mouse can do.

use crate::model::screen::Point;

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

/// A mouse button.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MouseButton {
    /// Left.
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
