use std::time::Duration;

use super::*;
use crate::model::input::PixelCondition;

const FRAME: Size = Size { width: 1280, height: 800 };

fn at(x: i32, y: i32) -> Point {
    Point { x, y }
}

fn click(at: Point) -> InputEvent {
    InputEvent::Click { at: Some(at), button: MouseButton::Left, count: 1, modifiers: vec![] }
}

fn text(text: &str) -> InputEvent {
    InputEvent::Text { text: text.into(), interval: Duration::ZERO }
}

fn key(key: &str) -> InputEvent {
    InputEvent::Key { key: key.into(), action: Action::Tap, hold: Duration::ZERO }
}

#[test]
fn whatever_is_wrong_is_named_with_its_place() {
    let long = Duration::from_secs(11);
    let drag = |path: Vec<Point>| InputEvent::Drag {
        path,
        button: MouseButton::Left,
        duration: Duration::ZERO,
        modifiers: vec![],
    };
    let cases = [
        (click(at(1280, 0)), "click.at"),
        (click(at(-1, 0)), "click.at"),
        (click(at(0, 800)), "click.at"),
        (
            InputEvent::Click { at: None, button: MouseButton::Left, count: 0, modifiers: vec![] },
            "click.count",
        ),
        (
            InputEvent::Click { at: None, button: MouseButton::Left, count: 11, modifiers: vec![] },
            "click.count",
        ),
        (
            InputEvent::Click {
                at: None,
                button: MouseButton::Left,
                count: 1,
                modifiers: vec!["no key".into()],
            },
            "click.modifiers",
        ),
        (
            InputEvent::Move { to: at(1280, 1), relative: false, duration: Duration::ZERO, via: Vec::new() },
            "move.to",
        ),
        (
            InputEvent::Move { to: at(1, 1), relative: false, duration: long, via: Vec::new() },
            "move.duration",
        ),
        (drag(vec![at(0, 0)]), "drag.path"),
        (drag(vec![at(0, 0); 1025]), "drag.path"),
        (drag(vec![at(0, 0), at(0, 800)]), "drag.path"),
        (
            InputEvent::Move {
                to: at(1, 1),
                relative: false,
                duration: Duration::ZERO,
                via: vec![at(1280, 1)],
            },
            "move.via",
        ),
        (InputEvent::Key { key: "a".into(), action: Action::Press, hold: MAX_TIME }, "key.hold"),
        (
            InputEvent::Scroll { at: None, delta_x: 0, delta_y: 0, pixels: Point { x: 50_001, y: 0 } },
            "scroll.pixels_x",
        ),
        (
            InputEvent::Scroll { at: None, delta_x: 1001, delta_y: 0, pixels: Point::default() },
            "scroll.delta_x",
        ),
        (
            InputEvent::Scroll { at: None, delta_x: 0, delta_y: i32::MIN, pixels: Point::default() },
            "scroll.delta_y",
        ),
        (key(""), "key.key"),
        (key("VK_NOPE"), "key.key"),
        (InputEvent::Chord { keys: vec![], hold: Duration::ZERO }, "chord.keys"),
        (InputEvent::Chord { keys: vec!["a".into(); 9], hold: Duration::ZERO }, "chord.keys"),
        (InputEvent::Chord { keys: vec!["a".into()], hold: long }, "chord.hold"),
        (text("bell\u{7}"), "text.text"),
        (text(&"x".repeat(MAX_TEXT + 1)), "text.text"),
        (InputEvent::Text { text: "x".into(), interval: Duration::from_secs(2) }, "text.interval"),
        (InputEvent::Pause(long), "pause"),
    ];
    for (event, field) in cases {
        let mut batch = vec![InputEvent::ReleaseAll, event.clone()];
        let error = check(&mut batch, FRAME).expect_err("refused");
        assert_eq!((error.index, error.field), (1, field), "{event:?}");
    }
}

#[test]
fn a_batch_has_its_bounds_and_its_text_is_counted_together() {
    assert!(check(&mut [], FRAME).is_err());
    assert!(check(&mut vec![InputEvent::ReleaseAll; MAX_EVENTS], FRAME).is_ok());
    assert!(check(&mut vec![InputEvent::ReleaseAll; MAX_EVENTS + 1], FRAME).is_err());
    let half = text(&"x".repeat(MAX_TEXT / 2));
    assert!(check(&mut [half.clone(), half.clone()], FRAME).is_ok());
    assert_eq!(check(&mut [half.clone(), half, text("x")], FRAME).expect_err("too much").index, 2);
}

#[test]
fn legal_events_pass_and_their_keys_get_their_one_name() {
    let mut batch = vec![
        click(at(1279, 799)),
        InputEvent::Move { to: at(-50, 9000), relative: true, duration: MAX_TIME, via: Vec::new() },
        InputEvent::Chord { keys: vec!["CTRL".into(), "vk_f5".into()], hold: Duration::ZERO },
        text("Grüße, мир 🎉\n\tx"),
    ];
    check(&mut batch, FRAME).expect("legal");
    assert!(matches!(&batch[2], InputEvent::Chord { keys, .. } if *keys == ["Control_L", "F5"]));
}

#[test]
fn errors_reach_clients_with_reason_and_place() {
    let error: Error = check(&mut [click(at(5000, 1))], FRAME).expect_err("outside").into();
    assert_eq!(error.reason, Reason::OutOfFrame);
    assert_eq!(error.violations[0].field, "events[0].click.at");
    assert!(error.metadata.contains(&("x", "5000".to_owned())));
    let error: Error = check(&mut [key("no key")], FRAME).expect_err("unknown").into();
    assert_eq!(error.reason, Reason::UnknownKey);
}

#[test]
fn points_scale_to_the_real_frame_and_stay_in_it() {
    let small = Size { width: 640, height: 400 };
    assert_eq!(scale_point(at(0, 0), small, FRAME), at(1, 1), "the middle of the client's pixel");
    assert_eq!(scale_point(at(639, 399), small, FRAME), at(1279, 799));
    assert_eq!(scale_point(at(1279, 799), FRAME, small), at(639, 399));
    for from in [Size { width: 1, height: 1 }, Size { width: 333, height: 777 }, FRAME] {
        for to in [Size { width: 1, height: 1 }, Size { width: 1920, height: 1080 }] {
            let last = at(from.width as i32 - 1, from.height as i32 - 1);
            assert!(to.contains(scale_point(last, from, to)), "{from:?} {to:?}");
            assert!(to.contains(scale_point(at(0, 0), from, to)), "{from:?} {to:?}");
        }
    }
    let rect = Rect { x: 1, y: 1, width: 1, height: 1 };
    assert_eq!(scale_rect(rect, small, FRAME), Rect { x: 2, y: 2, width: 2, height: 2 });
    let mut batch = vec![
        click(at(320, 200)),
        InputEvent::Move { to: at(10, -10), relative: true, duration: Duration::ZERO, via: Vec::new() },
    ];
    scale(&mut batch, small, FRAME).expect("inside");
    assert_eq!(batch[0].place(), Some(at(641, 401)));
    assert!(matches!(batch[1], InputEvent::Move { to, .. } if to == at(20, -20)));
    assert_eq!(scale(&mut [click(at(640, 0))], small, FRAME).expect_err("outside their own frame").index, 0);
}

fn lower(event: &InputEvent, held: &mut Held) -> Vec<RawInput> {
    let steps = to_raw(event, 0, FRAME, held).expect("can be lowered");
    steps
        .into_iter()
        .filter_map(|step| match step {
            RawStep::Do(input) => Some(input),
            RawStep::Wait(_) => None,
        })
        .collect()
}

fn down(key: &str) -> RawInput {
    RawInput::Key { key: key.into(), down: true }
}

fn up(key: &str) -> RawInput {
    RawInput::Key { key: key.into(), down: false }
}

#[test]
fn events_are_lowered_to_keys_and_buttons() {
    let mut held = Held::default();
    let left = |down| RawInput::Button { button: MouseButton::Left, down };
    assert_eq!(lower(&click(at(5, 6)), &mut held), [RawInput::Move(at(5, 6)), left(true), left(false)]);
    assert_eq!(
        lower(
            &InputEvent::Move { to: at(-50, 1), relative: true, duration: Duration::ZERO, via: Vec::new() },
            &mut held
        ),
        [RawInput::Move(at(0, 7))],
        "relative to where it is, and never outside"
    );
    assert_eq!(
        lower(&text("aB"), &mut held),
        [down("a"), up("a"), down("Shift_L"), down("b"), up("b"), up("Shift_L")]
    );
    let chord = InputEvent::Chord { keys: vec!["Control_L".into(), "c".into()], hold: Duration::ZERO };
    assert_eq!(lower(&chord, &mut held), [down("Control_L"), down("c"), up("c"), up("Control_L")]);
    let scroll = InputEvent::Scroll { at: None, delta_x: -1, delta_y: 2, pixels: Point::default() };
    let wheel = |step| RawInput::Wheel(step);
    assert_eq!(
        lower(&scroll, &mut held),
        [wheel(WheelStep::Left), wheel(WheelStep::Down), wheel(WheelStep::Down)]
    );
    let press = InputEvent::Key { key: "Shift_L".into(), action: Action::Press, hold: Duration::ZERO };
    lower(&press, &mut held);
    lower(&InputEvent::Button { button: MouseButton::Right, action: Action::Press }, &mut held);
    assert_eq!(
        lower(&InputEvent::ReleaseAll, &mut held),
        [up("Shift_L"), RawInput::Button { button: MouseButton::Right, down: false }]
    );
    assert_eq!(lower(&InputEvent::ReleaseAll, &mut held), []);
}

#[test]
fn what_only_an_agent_can_do_says_so() {
    for event in [
        text("мир"),
        InputEvent::Move { to: at(1, 1), relative: true, duration: Duration::ZERO, via: Vec::new() },
    ] {
        let error = to_raw(&event, 3, FRAME, &mut Held::default()).expect_err("needs the agent");
        assert_eq!(error.index, 3);
        assert!(matches!(error.problem, InputProblem::NeedsAgent(_)));
        assert_eq!(Error::from(error).reason, Reason::AgentNotConnected);
    }
}

#[test]
fn waits_have_limits() {
    let check = |quiet, timeout, rects| {
        let ignore = vec![Rect { x: 0, y: 0, width: 1, height: 1 }; rects];
        check_settle(&SettleOptions {
            quiet: Duration::from_secs(quiet),
            timeout: Duration::from_secs(timeout),
            ignore,
            ..SettleOptions::default()
        })
        .map_err(|error| error.violations[0].field.clone())
    };
    assert_eq!(check(1, 10, 64), Ok(()));
    assert_eq!(check(0, 10, 0), Err("settle.quiet".into()));
    assert_eq!(check(11, 10, 0), Err("settle.quiet".into()));
    assert_eq!(check(1, 121, 0), Err("settle.timeout".into()));
    assert_eq!(check(1, 10, 65), Err("settle.ignore".into()));
    let wanted = PixelCondition { at: at(1, 1), rgb: [0; 3], tolerance: 0 };
    let pixels = |count| SettleOptions {
        quiet: Duration::ZERO,
        pixels: vec![wanted; count],
        ..SettleOptions::default()
    };
    assert!(check_settle(&pixels(16)).is_ok(), "a condition needs no quiet screen");
    assert_eq!(check_settle(&pixels(17)).expect_err("many").violations[0].field, "settle.pixels");
}

#[test]
fn a_colour_is_met_within_its_tolerance_in_each_part() {
    let wanted = PixelCondition { at: at(0, 0), rgb: [100, 50, 0], tolerance: 10 };
    assert!(wanted.is([10, 40, 110]));
    for off in [[11, 50, 100], [0, 61, 100], [0, 50, 89]] {
        assert!(!wanted.is(off), "{off:?}");
    }
}

#[test]
fn a_smooth_move_passes_its_points_at_one_speed() {
    let mut held = Held::default();
    lower(&click(at(0, 0)), &mut held);
    let duration = Duration::from_millis(200);
    let event = InputEvent::Move { to: at(100, 100), relative: false, duration, via: vec![at(100, 0)] };
    let steps = to_raw(&event, 0, FRAME, &mut held).expect("can be lowered");
    let waited: Duration =
        steps.iter().map(|s| if let RawStep::Wait(time) = s { *time } else { Duration::ZERO }).sum();
    assert_eq!(waited, duration);
    let places: Vec<Point> = steps
        .iter()
        .filter_map(|s| if let RawStep::Do(RawInput::Move(to)) = s { Some(*to) } else { None })
        .collect();
    assert_eq!((places.len(), places[4], places[9]), (10, at(100, 0), at(100, 100)));
    assert_eq!((places[1], places[6]), (at(40, 0), at(100, 40)));
}

#[test]
fn pixels_become_whole_notches() {
    for (pixels, expected) in
        [(0, 0), (26, 0), (27, 1), (53, 1), (-53, -1), (-79, -1), (-80, -2), (50_000, 943)]
    {
        assert_eq!(notches(pixels), expected, "{pixels}");
    }
}
