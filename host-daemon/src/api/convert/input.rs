//! Batches of input events.
//!
//! What can be checked without a screen is checked here, before anything is done; points are checked against the frame
//! by whoever knows it.

use std::time::Duration;

use hvkube_proto::v1;
use hvkube_proto::v1::input_event::Event;

use super::screen;
use crate::api::fields;
use crate::model::error::{Error, Result};
use crate::model::input::{Action, InputEvent, MouseButton};
use crate::model::screen::Point;
use crate::model::secret::TypedText;

const MAX_EVENTS: usize = 1024;
const MAX_POINTS: usize = 1024;
const MAX_CLICKS: u32 = 10;
const MAX_KEYS: usize = 8;
const MAX_NOTCHES: i32 = 1000;
const MAX_SCROLL_PIXELS: i32 = 50_000;
const MAX_TEXT: usize = 1 << 20;
/// Longest name of a key is `XF86MonBrightnessCycle` or so.
const MAX_KEY: usize = 64;
const MAX_TIME: Duration = Duration::from_secs(10);
const MAX_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) fn events(events: &[v1::InputEvent]) -> Result<Vec<InputEvent>> {
    if events.is_empty() || events.len() > MAX_EVENTS {
        return Err(Error::field(
            "events",
            format!("has {} entries; legal is 1 to {MAX_EVENTS}", events.len()),
        ));
    }
    events.iter().enumerate().map(|(i, wrapped)| event(&format!("events[{i}]"), wrapped)).collect()
}

fn event(at: &str, wrapped: &v1::InputEvent) -> Result<InputEvent> {
    let Some(event) = &wrapped.event else { return Err(Error::field(at, "is empty; set one event")) };
    Ok(match event {
        Event::Move(e) => InputEvent::Move {
            to: screen::point(&fields::required(&format!("{at}.move.to"), e.to)?),
            relative: e.relative,
            duration: time(&format!("{at}.move.duration"), e.duration, MAX_TIME)?,
            via: via(&format!("{at}.move.via"), &e.via)?,
        },
        Event::Button(e) => InputEvent::Button {
            button: button(&format!("{at}.button.button"), e.button)?,
            action: action(&format!("{at}.button.action"), e.action)?,
        },
        Event::Click(e) => InputEvent::Click {
            at: e.at.as_ref().map(screen::point),
            button: button(&format!("{at}.click.button"), e.button)?,
            count: fields::range(&format!("{at}.click.count"), e.count, 0..=MAX_CLICKS)?.max(1),
            modifiers: keys(&format!("{at}.click.modifiers"), &e.modifiers)?,
        },
        Event::Drag(e) => InputEvent::Drag {
            path: path(&format!("{at}.drag.path"), &e.path)?,
            button: button(&format!("{at}.drag.button"), e.button)?,
            duration: time(&format!("{at}.drag.duration"), e.duration, MAX_TIME)?,
            modifiers: keys(&format!("{at}.drag.modifiers"), &e.modifiers)?,
        },
        Event::Scroll(e) => InputEvent::Scroll {
            at: e.at.as_ref().map(screen::point),
            delta_x: notches(&format!("{at}.scroll.delta_x"), e.delta_x)?,
            delta_y: notches(&format!("{at}.scroll.delta_y"), e.delta_y)?,
            pixels: Point {
                x: pixels(&format!("{at}.scroll.pixels_x"), e.pixels_x)?,
                y: pixels(&format!("{at}.scroll.pixels_y"), e.pixels_y)?,
            },
        },
        Event::Key(e) => InputEvent::Key {
            key: key(&format!("{at}.key.key"), &e.key)?,
            action: action(&format!("{at}.key.action"), e.action)?,
            hold: hold(&format!("{at}.key.hold"), e)?,
        },
        Event::Chord(e) => InputEvent::Chord {
            keys: chord(&format!("{at}.chord.keys"), &e.keys)?,
            hold: time(&format!("{at}.chord.hold"), e.hold, MAX_TIME)?,
        },
        Event::Text(e) => InputEvent::Text {
            text: text(at, e)?,
            interval: time(&format!("{at}.text.interval"), e.interval, MAX_INTERVAL)?,
        },
        Event::Pause(pause) => InputEvent::Pause(time(&format!("{at}.pause"), Some(*pause), MAX_TIME)?),
        Event::ReleaseAll(_) => InputEvent::ReleaseAll,
    })
}

/// Either text or the name of a secret.
fn text(at: &str, event: &v1::TextEvent) -> Result<TypedText> {
    let field = format!("{at}.text.secret");
    match (event.text.is_empty(), event.secret.is_empty()) {
        (_, true) => {
            let text = fields::required_text(&format!("{at}.text.text"), &event.text, MAX_TEXT)?;
            Ok(TypedText::Plain(text.to_owned()))
        }
        (true, false) => fields::name(&field, "secrets", &event.secret).map(TypedText::Named),
        (false, false) => Err(Error::field(field, "can't be given together with text")),
    }
}

fn time(field: &str, value: Option<prost_types::Duration>, max: Duration) -> Result<Duration> {
    Ok(fields::duration(field, value, Duration::ZERO..=max)?.unwrap_or_default())
}

fn notches(field: &str, value: i32) -> Result<i32> {
    fields::range(field, value, -MAX_NOTCHES..=MAX_NOTCHES)
}

fn pixels(field: &str, value: i32) -> Result<i32> {
    fields::range(field, value, -MAX_SCROLL_PIXELS..=MAX_SCROLL_PIXELS)
}

fn hold(field: &str, event: &v1::KeyEvent) -> Result<Duration> {
    let hold = time(field, event.hold, MAX_TIME)?;
    if !hold.is_zero() && matches!(event.action(), v1::InputAction::Press | v1::InputAction::Release) {
        return Err(Error::field(field, "is legal with a tap only"));
    }
    Ok(hold)
}

fn via(field: &str, points: &[v1::Point]) -> Result<Vec<Point>> {
    if points.len() >= MAX_POINTS {
        let what = format!("has {} points, at most {} are allowed", points.len(), MAX_POINTS - 1);
        return Err(Error::field(field, what));
    }
    Ok(points.iter().map(screen::point).collect())
}

fn path(field: &str, points: &[v1::Point]) -> Result<Vec<Point>> {
    if !(2..=MAX_POINTS).contains(&points.len()) {
        return Err(Error::field(field, format!("has {} points; legal is 2 to {MAX_POINTS}", points.len())));
    }
    Ok(points.iter().map(screen::point).collect())
}

fn key(field: &str, name: &str) -> Result<String> {
    Ok(fields::required_text(field, name, MAX_KEY)?.to_owned())
}

fn keys(field: &str, names: &[String]) -> Result<Vec<String>> {
    if names.len() > MAX_KEYS {
        return Err(Error::field(field, format!("has {} keys, at most {MAX_KEYS} are allowed", names.len())));
    }
    names.iter().enumerate().map(|(i, name)| key(&format!("{field}[{i}]"), name)).collect()
}

/// Splits `ctrl+shift+t`.
fn chord(field: &str, joined: &str) -> Result<Vec<String>> {
    fields::required_text(field, joined, MAX_KEYS * (MAX_KEY + 1))?;
    let names: Vec<_> = joined.split('+').map(|name| name.trim().to_owned()).collect();
    if names.iter().any(String::is_empty) {
        let what = format!("{:?} has an empty key name; the key + is called plus", fields::cut(joined));
        return Err(Error::field(field, what));
    }
    if names.len() > MAX_KEYS {
        return Err(Error::field(field, format!("has {} keys, at most {MAX_KEYS} are allowed", names.len())));
    }
    Ok(names)
}

fn button(field: &str, value: i32) -> Result<MouseButton> {
    Ok(match fields::one_of(field, value, v1::MouseButton::as_str_name)? {
        v1::MouseButton::Unspecified | v1::MouseButton::Left => MouseButton::Left,
        v1::MouseButton::Middle => MouseButton::Middle,
        v1::MouseButton::Right => MouseButton::Right,
        v1::MouseButton::Back => MouseButton::Back,
        v1::MouseButton::Forward => MouseButton::Forward,
    })
}

fn action(field: &str, value: i32) -> Result<Action> {
    Ok(match fields::one_of(field, value, v1::InputAction::as_str_name)? {
        v1::InputAction::Unspecified | v1::InputAction::Tap => Action::Tap,
        v1::InputAction::Press => Action::Press,
        v1::InputAction::Release => Action::Release,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(event: Event) -> String {
        let good = v1::InputEvent { event: Some(Event::ReleaseAll(v1::ReleaseAllEvent {})) };
        let bad = v1::InputEvent { event: Some(event) };
        events(&[good, bad]).expect_err("refused").violations.remove(0).field
    }

    fn text(text: &str, secret: &str, interval: Option<prost_types::Duration>) -> Event {
        Event::Text(v1::TextEvent { text: text.into(), secret: secret.into(), interval })
    }

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    #[test]
    fn refusals_name_the_event_and_the_field() {
        let point = v1::Point { x: 1, y: 1 };
        let to = Some(point);
        let cases: Vec<(&str, Event)> = vec![
            ("move.to", Event::Move(v1::MoveEvent::default())),
            ("move.duration", Event::Move(v1::MoveEvent { to, duration: seconds(11), ..Default::default() })),
            ("button.button", Event::Button(v1::ButtonEvent { button: 6, action: 0 })),
            ("button.action", Event::Button(v1::ButtonEvent { button: 0, action: 4 })),
            ("click.count", Event::Click(v1::ClickEvent { count: 11, ..Default::default() })),
            ("click.button", Event::Click(v1::ClickEvent { button: -1, ..Default::default() })),
            (
                "click.modifiers",
                Event::Click(v1::ClickEvent { modifiers: vec!["a".into(); 9], ..Default::default() }),
            ),
            (
                "click.modifiers[0]",
                Event::Click(v1::ClickEvent { modifiers: vec![String::new()], ..Default::default() }),
            ),
            (
                "drag.path",
                Event::Drag(v1::DragEvent { path: vec![v1::Point::default()], ..Default::default() }),
            ),
            ("scroll.delta_x", Event::Scroll(v1::ScrollEvent { delta_x: 1001, ..Default::default() })),
            ("scroll.delta_y", Event::Scroll(v1::ScrollEvent { delta_y: i32::MIN, ..Default::default() })),
            ("key.key", Event::Key(v1::KeyEvent::default())),
            ("key.key", Event::Key(v1::KeyEvent { key: "x".repeat(65), ..Default::default() })),
            ("key.hold", Event::Key(v1::KeyEvent { key: "x".into(), action: 1, hold: seconds(1) })),
            ("key.hold", Event::Key(v1::KeyEvent { key: "x".into(), action: 0, hold: seconds(11) })),
            ("move.via", Event::Move(v1::MoveEvent { to, via: vec![point; 1024], ..Default::default() })),
            ("scroll.pixels_x", Event::Scroll(v1::ScrollEvent { pixels_x: 50_001, ..Default::default() })),
            ("scroll.pixels_y", Event::Scroll(v1::ScrollEvent { pixels_y: i32::MIN, ..Default::default() })),
            ("chord.keys", Event::Chord(v1::ChordEvent { keys: "ctrl++".into(), hold: None })),
            ("chord.keys", Event::Chord(v1::ChordEvent { keys: "a+b+c+d+e+f+g+h+i".into(), hold: None })),
            ("chord.hold", Event::Chord(v1::ChordEvent { keys: "a".into(), hold: seconds(-1) })),
            ("text.text", Event::Text(v1::TextEvent::default())),
            ("text.text", text(&"x".repeat(MAX_TEXT + 1), "", None)),
            ("text.interval", text("x", "", seconds(2))),
            ("text.secret", text("x", "secrets/pw", None)),
            ("text.secret", text("", "pw", None)),
            ("pause", Event::Pause(prost_types::Duration { seconds: 60, nanos: 0 })),
        ];
        for (field, event) in cases {
            assert_eq!(refused(event), format!("events[1].{field}"));
        }
        assert_eq!(events(&[]).expect_err("refused").violations[0].field, "events");
        let none = [v1::InputEvent { event: None }];
        assert_eq!(events(&none).expect_err("refused").violations[0].field, "events[0]");
        let many = vec![v1::InputEvent { event: Some(Event::ReleaseAll(v1::ReleaseAllEvent {})) }; 1025];
        assert_eq!(events(&many).expect_err("refused").violations[0].field, "events");
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let click = v1::InputEvent { event: Some(Event::Click(v1::ClickEvent::default())) };
        let expected =
            InputEvent::Click { at: None, button: MouseButton::Left, count: 1, modifiers: Vec::new() };
        assert_eq!(events(&[click]).expect("legal"), [expected]);
        let keys = Event::Chord(v1::ChordEvent { keys: "ctrl+shift+t".into(), hold: None });
        let chord = events(&[v1::InputEvent { event: Some(keys) }]).expect("legal");
        assert_eq!(
            chord,
            [InputEvent::Chord {
                keys: ["ctrl", "shift", "t"].map(String::from).into(),
                hold: Duration::ZERO
            }]
        );
    }
}
