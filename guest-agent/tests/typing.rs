//! Text arrives exactly as it was sent, in programs that people use.

mod desktop;
mod host;

use desktop::{Display, mixed_text};
use hvkube_proto::guest::v1 as pb;
use hvkube_proto::guest::v1::input_event::Event;

fn text(text: &str) -> Event {
    Event::Text(pb::Text { text: text.into(), interval: None })
}

fn chord(keys: &[&str]) -> Event {
    Event::Chord(pb::Chord { keys: keys.iter().map(ToString::to_string).collect(), hold: None })
}

/// Where two texts part, for a failure that can be read.
fn assert_same(got: &str, want: &str, what: &str) {
    if got == want {
        return;
    }
    let at = got.chars().zip(want.chars()).take_while(|(a, b)| a == b).count();
    let near = |s: &str| s.chars().skip(at.saturating_sub(5)).take(20).collect::<String>();
    panic!(
        "{what}: {} characters arrived of {}; they part at {at}: got {:?}, want {:?}",
        got.chars().count(),
        want.chars().count(),
        near(got),
        near(want)
    );
}

/// Opens mousepad on an empty file, types, saves, and reads the file.
async fn into_mousepad(layout: &[&str], wanted: &str) {
    let mut display = Display::start();
    if !layout.is_empty() {
        display.tool("x11-xkb-utils", &[&["setxkbmap"], layout].concat());
    }
    display.manage();
    let file = display.path("typed.txt");
    std::fs::write(&file, "").expect("file");
    display.run("mousepad", &["mousepad", "--disable-server", file.to_str().expect("utf-8")]);
    display.focused_window("mousepad");
    let host = display.session().await;

    let answer = host.input("text", vec![text(wanted)]).await.expect("typed");
    assert_eq!((answer.failure, answer.completed), (None, 1));
    let answer = host.input("save", vec![chord(&["Control_L", "s"])]).await.expect("saved");
    assert_eq!(answer.failure, None);
    let got = display.file(&file, |t| t.trim_end_matches('\n') == wanted.trim_end_matches('\n'));
    assert_same(got.trim_end_matches('\n'), wanted.trim_end_matches('\n'), "mousepad");
}

#[tokio::test]
async fn a_thousand_mixed_characters_arrive_in_mousepad() {
    into_mousepad(&[], &mixed_text(1)).await;
}

#[tokio::test]
async fn a_thousand_mixed_characters_arrive_on_a_german_layout() {
    into_mousepad(&["de"], &mixed_text(2)).await;
}

#[tokio::test]
async fn a_second_group_and_dead_keys_do_not_matter() {
    let wanted = format!("Ärger^`´~ ù é ñ Ж ж «» {}", mixed_text(3).chars().take(200).collect::<String>());
    into_mousepad(&["-layout", "fr,ru", "-option", "grp:alt_shift_toggle"], &wanted).await;
}

#[tokio::test]
async fn text_arrives_in_xterm_with_caps_lock_on() {
    let mut display = Display::start();
    display.manage();
    let file = display.path("typed.txt");
    // Line editing off, so that the terminal hands every byte on as it is and is not bound to lines of 4 KiB.
    let script = format!("stty raw -echo; touch ready; exec cat > {}", file.display());
    display.run("xterm", &["xterm", "-u8", "-e", "sh", "-c", &script]);
    display.focused_window("xterm");
    let ready = display.path("ready");
    display.wait("the shell in xterm", |_| ready.exists().then_some(()));
    let host = display.session().await;
    let answer =
        host.input("caps", vec![Event::Key(pb::Key { key: "Caps_Lock".into(), ..Default::default() })]).await;
    assert_eq!(answer.expect("pressed").failure, None);

    let wanted: String = mixed_text(4).replace('\n', " ");
    let answer = host.input("text", vec![text(&wanted)]).await.expect("typed");
    assert_eq!((answer.failure, answer.completed), (None, 1));
    let got = display.file(&file, |t| t == wanted);
    assert_same(&got, &wanted, "xterm");
}

#[tokio::test]
async fn the_keymap_is_put_back() {
    let mut display = Display::start();
    let before = display.tool("x11-xkb-utils", &["xkbcomp", "-xkb", &display.name, "-"]);
    display.manage();
    display.run("xterm", &["xterm"]);
    display.focused_window("xterm");
    let host = display.session().await;
    let answer = host.input("text", vec![text("日本語 ж 😀")]).await.expect("typed");
    assert_eq!(answer.failure, None);
    let symbols = |dump: &[u8]| {
        let text = String::from_utf8_lossy(dump).into_owned();
        let from = text.find("xkb_symbols").expect("symbols");
        text[from..].to_owned()
    };
    let during = display.tool("x11-xkb-utils", &["xkbcomp", "-xkb", &display.name, "-"]);
    assert_ne!(symbols(&during), symbols(&before), "characters were lent keycodes");
    display.wait("the keymap to be as before", |d| {
        let after = d.tool("x11-xkb-utils", &["xkbcomp", "-xkb", &d.name, "-"]);
        (symbols(&after) == symbols(&before)).then_some(())
    });
}
