//! Two keyboards, the agent's and the hypervisor's: who is given a batch, and that nothing is left behind at the other.

use std::sync::atomic::Ordering;

use super::*;
use crate::model::mask::Masks;

const SCREEN: Size = Size { width: 200, height: 100 };

fn text(text: &str) -> Vec<InputEvent> {
    vec![InputEvent::Text { text: text.into(), interval: Duration::ZERO }]
}

fn press(key: &str) -> Vec<InputEvent> {
    vec![InputEvent::Key { key: key.into(), action: Action::Press, hold: Duration::ZERO }]
}

fn up(key: &str) -> RawInput {
    RawInput::Key { key: key.into(), down: false }
}

/// Waits until the agent has been given so many batches.
async fn given(fake: &Fake, batches: usize) {
    let deadline = soon();
    while fake.state().inputs.len() < batches {
        assert!(Instant::now() < deadline, "{} of {batches} came", fake.state().inputs.len());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_agent_that_is_busy_with_a_batch_is_not_passed_by() {
    let (hub, stub) = hub(true, SCREEN);
    let fake = Fake::new(SCREEN.width, SCREEN.height);
    attach(&hub, &fake, 3).await;
    let slow = fake.state().slow.clone();
    let working = slow.lock().await;
    let one = hub.clone();
    let one = tokio::spawn(async move { one.send_input("a", text("long"), None, soon()).await });
    given(&fake, 1).await;
    // Its caller has no time; that says nothing of the agent.
    let brief = Instant::now() + Duration::from_millis(500);
    let lost = hub.send_input("b", text("no"), None, brief).await;
    assert!(matches!(lost, Err(DisplayError::OutcomeUnknown { .. })), "{lost:?}");
    let two = hub.clone();
    let two = tokio::spawn(async move { two.send_input("c", text("next"), None, soon()).await });
    given(&fake, 3).await;
    assert!(!one.is_finished() && !two.is_finished());
    drop(working);
    for call in [one, two] {
        let done = call.await.expect("no panic").expect("done");
        assert_eq!(done.source, Source::Agent);
    }
    assert!(stub.done.lock().expect("no panic").is_empty(), "nothing in the middle of the batch");
}

#[tokio::test]
async fn an_agent_without_a_desktop_is_passed_by_until_there_is_one() {
    let (hub, stub) = hub(true, SCREEN);
    let fake = Fake::new(SCREEN.width, SCREEN.height);
    fake.state().boots = true;
    attach(&hub, &fake, 3).await;
    // Each of them asks the agent, which answers; that is no reason to give the next one to it.
    for id in ["a", "b"] {
        let shot = hub.screenshot(&ScreenshotOptions::default(), soon()).await.expect("a picture");
        assert_eq!(shot.source, Source::Hypervisor);
        let done = hub.send_input(id, text("x"), None, soon()).await.expect("done");
        assert_eq!(done.source, Source::Hypervisor, "{id}");
    }
    assert_eq!(stub.done.lock().expect("no panic").len(), 4);
    fake.state().boots = false;
    let done = hub.send_input("c", text("x"), None, soon()).await.expect("done");
    assert_eq!(done.source, Source::Agent);
}

#[tokio::test]
async fn another_machine_has_done_no_batch_and_holds_nothing() {
    let (hub, stub) = hub(true, SCREEN);
    hub.send_input("a", press("ctrl"), None, soon()).await.expect("done");
    assert!(hub.send_input("a", press("ctrl"), None, soon()).await.expect("done").replayed);
    // One that is still under way when the machine goes away ends with it.
    let late = hub.clone();
    let chord = InputEvent::Chord { keys: vec!["shift".into()], hold: Duration::from_secs(10) };
    let late = tokio::spawn(async move { late.send_input("late", vec![chord], None, soon()).await });
    while stub.done.lock().expect("no panic").len() < 2 {
        tokio::task::yield_now().await;
    }
    hub.forget_input();
    let late = tokio::time::timeout(Duration::from_secs(5), late).await.expect("ends").expect("no panic");
    assert!(matches!(late, Err(DisplayError::OutcomeUnknown { completed: 0, .. })), "{late:?}");
    stub.done.lock().expect("no panic").clear();
    hub.release_input(soon()).await.expect("nothing to do");
    assert!(stub.done.lock().expect("no panic").is_empty());
    for id in ["a", "late"] {
        let done = hub.send_input(id, text("x"), None, soon()).await.expect("done");
        assert!(!done.replayed, "{id}");
    }
    assert_eq!(stub.done.lock().expect("no panic").len(), 4);
}

#[tokio::test]
async fn the_agents_keys_come_up_also_when_the_hypervisors_do_not() {
    let (hub, stub) = hub(true, SCREEN);
    hub.send_input("a", press("ctrl"), None, soon()).await.expect("done");
    let fake = Fake::new(SCREEN.width, SCREEN.height);
    attach(&hub, &fake, 3).await;
    stub.broken.store(true, Ordering::Relaxed);
    let failed = hub.release_input(soon()).await;
    assert!(matches!(failed, Err(DisplayError::Hypervisor(_))), "{failed:?}");
    let events = fake.state().inputs.pop().expect("an input").events;
    assert!(matches!(events[0].event, Some(pb::input_event::Event::ReleaseAll(_))), "{events:?}");
    stub.broken.store(false, Ordering::Relaxed);
    stub.done.lock().expect("no panic").clear();
    hub.release_input(soon()).await.expect("released");
    assert_eq!(*stub.done.lock().expect("no panic"), [up("Control_L")], "not forgotten");
}

#[tokio::test]
async fn the_hypervisors_keys_come_up_before_the_agent_goes_on() {
    let (hub, stub) = hub(true, SCREEN);
    hub.send_input("a", press("ctrl"), None, soon()).await.expect("done");
    let fake = Fake::new(SCREEN.width, SCREEN.height);
    attach(&hub, &fake, 3).await;
    stub.done.lock().expect("no panic").clear();
    let done = hub.send_input("b", text("x"), None, soon()).await.expect("done");
    assert_eq!(done.source, Source::Agent);
    assert_eq!(*stub.done.lock().expect("no panic"), [up("Control_L")]);
    hub.send_input("c", text("x"), None, soon()).await.expect("done");
    assert_eq!(stub.done.lock().expect("no panic").len(), 1, "once");
}

#[tokio::test]
async fn a_long_batch_of_the_hypervisors_holds_up_nobody_beyond_his_deadline() {
    let (hub, stub) = hub(true, SCREEN);
    let chord = InputEvent::Chord { keys: vec!["shift".into()], hold: Duration::from_secs(10) };
    let long = hub.clone();
    let long = tokio::spawn(async move { long.send_input("a", vec![chord], None, soon()).await });
    while stub.done.lock().expect("no panic").is_empty() {
        tokio::task::yield_now().await;
    }
    let fake = Fake::new(SCREEN.width, SCREEN.height);
    attach(&hub, &fake, 3).await;
    let brief = Instant::now() + Duration::from_secs(1);
    let call = hub.send_input("b", text("x"), None, brief);
    let refused = tokio::time::timeout(Duration::from_secs(5), call).await.expect("ends");
    assert!(matches!(refused, Err(DisplayError::Timeout(_))), "{refused:?}");
    assert!(!long.is_finished(), "and the agent got nothing in the middle of it");
    assert!(fake.state().inputs.is_empty());
    long.abort();
}

#[tokio::test]
async fn a_colour_that_came_under_a_mask_meanwhile_was_not_met() {
    let (hub, fake) = with_agent(SCREEN.width, SCREEN.height).await;
    let pixel = |x| PixelCondition { at: Point { x, y: 25 }, rgb: [1, 2, 3], tolerance: 0 };
    let settle =
        SettleOptions { quiet: Duration::ZERO, pixels: vec![pixel(10), pixel(50)], ..Default::default() };
    for (index, seen) in [(0, Some(Met::Pixel(0))), (1, None)] {
        hub.set_masks(None);
        let wait =
            pb::SettleResponse { met: pb::Condition::Pixel.into(), met_index: index, ..Default::default() };
        let answer = pb::InputResponse { completed: 1, settle: Some(wait), ..Default::default() };
        fake.state().input_answers.push_back(Ok(answer));
        let slow = fake.state().slow.clone();
        let waiting = slow.lock().await;
        let (acting, settle) = (hub.clone(), settle.clone());
        let acting = tokio::spawn(async move {
            let options = ScreenshotOptions::default();
            acting.act(&format!("b{index}"), vec![click(1, 1)], None, &settle, &options, soon()).await
        });
        given(&fake, index as usize + 1).await;
        hub.set_masks(Some(Masks { frame: SCREEN, areas: vec![rect(40, 20, 20, 20)] }));
        drop(waiting);
        let settled = acting.await.expect("no panic").expect("acted").settled;
        assert_eq!((settled.met, settled.timed_out), (seen, seen.is_none()));
    }
}
