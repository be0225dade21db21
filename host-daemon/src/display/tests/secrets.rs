//! What an agent says of a secret stays here.

use hvkube_proto::guest::v1 as pb;
use tonic::Status;
use zeroize::Zeroizing;

use super::*;
use crate::model::error::chain;
use crate::model::secret::{SecretValue, TypedText};

const VALUE: &str = "hunter2-hunter2";

fn typed() -> InputEvent {
    let text = TypedText::Secret(SecretValue::new(Zeroizing::new(VALUE.to_owned())));
    InputEvent::Text { text, interval: Duration::ZERO }
}

#[tokio::test]
async fn an_agent_that_quotes_a_secret_is_not_quoted() {
    let (hub, fake) = with_agent(64, 48).await;
    let failure = |reason: pb::InputFailureReason, completed| {
        let message = format!("text: {VALUE:?} is not to my taste");
        let failure = Some(pb::InputFailure { reason: reason.into(), message });
        Ok(pb::InputResponse { completed, failure, ..Default::default() })
    };
    let answers = [
        failure(pb::InputFailureReason::Invalid, 0),
        failure(pb::InputFailureReason::UnknownKey, 0),
        failure(pb::InputFailureReason::Platform, 0),
        failure(pb::InputFailureReason::OutOfBounds, 1),
        Err(Status::invalid_argument(VALUE)),
        Err(Status::internal(VALUE)),
        Err(Status::unavailable(VALUE)),
        Err(Status::not_found(VALUE)),
    ];
    for (n, answer) in answers.into_iter().enumerate() {
        fake.state().input_answers.push_back(answer);
        let events = vec![typed(), click(1, 1)];
        let error = hub.send_input(&format!("b{n}"), events, None, soon()).await.expect_err("refused");
        let shown = format!("{error:?} {error}");
        let error = Error::from(error);
        let shown = format!("{shown} {error:?} {}", chain(&error));
        assert!(!shown.contains(VALUE), "{shown}");
    }
    assert_eq!(fake.state().inputs.len(), 8, "it was sent each time");
    let sent = fake.state().inputs[0].events[0].event.clone();
    assert_eq!(sent, Some(pb::input_event::Event::Text(pb::Text { text: VALUE.into(), interval: None })));
}

#[tokio::test]
async fn a_key_that_the_agent_does_not_know_is_named_all_the_same() {
    let (hub, fake) = with_agent(64, 48).await;
    let failure = pb::InputFailure {
        reason: pb::InputFailureReason::UnknownKey.into(),
        message: format!("no key named \"Hyper_R\" beside {VALUE}"),
    };
    let answer = pb::InputResponse { failure: Some(failure), ..Default::default() };
    fake.state().input_answers.push_back(Ok(answer));
    let key = InputEvent::Key { key: "Hyper_R".into(), action: Action::Tap, hold: Duration::ZERO };
    let error = hub.send_input("b", vec![typed(), key], None, soon()).await.expect_err("refused");
    let error = Error::from(error);
    assert_eq!(error.reason, Reason::UnknownKey);
    assert!(!format!("{error:?}").contains(VALUE) && error.message.contains("Hyper_R"), "{error:?}");
}

#[tokio::test]
async fn a_secret_needs_the_agent_and_its_value() {
    let (outside, _) = hub(true, Size { width: 64, height: 48 });
    let error = outside.send_input("b", vec![typed()], None, soon()).await.expect_err("refused");
    assert_eq!(Error::from(error).reason, Reason::AgentNotConnected);
    let (hub, fake) = with_agent(64, 48).await;
    let named = TypedText::Named(crate::model::ids::SecretId::new("shop").expect("id"));
    let named = InputEvent::Text { text: named, interval: Duration::ZERO };
    let error = hub.send_input("c", vec![named], None, soon()).await.expect_err("refused");
    assert_eq!(Error::from(error).reason, Reason::InvalidField);
    assert!(fake.state().inputs.is_empty());
}
