//! The fuzzer's entry to a monitor's lines.

use serde::de::DeserializeOwned;
use tokio::sync::{oneshot, watch};

use super::commands::{Done, Drive, Migration, Status};
use super::{Answer, Seen, Waiting, lock, read_messages};

/// A monitor that says this, while commands wait for their answers.
pub(crate) fn qmp(bytes: &[u8]) {
    let waiting = Waiting::default();
    let mut answers: Vec<oneshot::Receiver<Answer>> = Vec::new();
    for id in 0..8 {
        let (done, answer) = oneshot::channel();
        lock(&waiting).insert(id, done);
        answers.push(answer);
    }
    let (seen, told) = watch::channel(Seen::default());
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    runtime.block_on(read_messages(bytes, waiting.clone(), seen));
    assert!(told.borrow().closed && lock(&waiting).is_empty(), "whoever waits is told the end");
    for mut answer in answers {
        if let Ok(Ok(value)) = answer.try_recv() {
            understand::<Done>(&value);
            understand::<Status>(&value);
            understand::<Migration>(&value);
            understand::<Vec<Drive>>(&value);
        }
    }
}

fn understand<T: DeserializeOwned>(value: &serde_json::Value) {
    let _ = serde_json::from_value::<T>(value.clone());
}
