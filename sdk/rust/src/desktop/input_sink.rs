//! Input as a stream: batches done as they are sent, one answer at the end.

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use crate::client::Client;
use crate::desktop::{Input, Target};
use crate::error::{Error, Result};
use crate::v1::{StreamInputRequest, StreamInputResponse};

/// Batches that wait here when the daemon does not keep up; more wait in the connection. Then [`InputSink::send`] waits.
const QUEUE: usize = 16;

impl Target {
    /// Opens a stream of input: for many batches in a row, which need no answer each.
    ///
    /// ```no_run
    /// # async fn example(desktop: hvkube_sdk::Desktop) -> Result<(), hvkube_sdk::Error> {
    /// use hvkube_sdk::Input;
    /// let mut pen = desktop.stream_input().await?;
    /// for x in 100..400 {
    ///     pen.send(Input::new().move_to(x, 200)).await?;
    /// }
    /// let done = pen.finish().await?;
    /// assert_eq!(done.batches, 300);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// None yet; what is wrong with the target is told by the next call.
    pub async fn stream_input(&self) -> Result<InputSink> {
        let (messages, stream) = mpsc::channel(QUEUE);
        let mut desktops = self.client().desktops();
        let call = tokio::spawn(async move { desktops.stream_input(ReceiverStream::new(stream)).await });
        let (client, call) = (self.client().clone(), Some(call));
        let mut sink = InputSink { client, call, messages: Some(messages) };
        // The right to the desktop is checked before the first event is there.
        let hello = StreamInputRequest { target: self.name().to_owned(), ..Default::default() };
        sink.push(hello).await?;
        Ok(sink)
    }
}

/// A stream of input. End it with [`InputSink::finish`]; dropping it breaks the stream off, and the daemon then releases
/// every key and button that is held down.
#[derive(Debug)]
#[must_use = "dropping it breaks the stream off"]
pub struct InputSink {
    client: Client,
    /// Taken when its answer is waited for.
    call: Option<Call>,
    /// Taken when the stream ends in order.
    messages: Option<mpsc::Sender<StreamInputRequest>>,
}

type Call = JoinHandle<std::result::Result<Response<StreamInputResponse>, Status>>;

impl InputSink {
    /// Sends a batch, which is done after all that were sent before. Returns when there is room for the next one.
    ///
    /// # Errors
    /// Those of this batch or of an earlier one, as [`Target::input`], and the stream is over then. Fields are named with the
    /// message's place in the stream, where the first batch is 1, and the metadata has `completed_batches` and
    /// `completed_events`.
    pub async fn send(&mut self, input: Input) -> Result<()> {
        self.push(input.into_message(String::new())).await
    }

    async fn push(&mut self, message: StreamInputRequest) -> Result<()> {
        if let Some(messages) = &self.messages
            && messages.send(message).await.is_ok()
        {
            return Ok(());
        }
        // The call has ended early, and says why.
        self.answer().await?;
        Err(Error::Protocol("an answer before the end of the stream"))
    }

    /// Ends the stream, and waits until all of it is done.
    ///
    /// # Errors
    /// As [`InputSink::send`].
    pub async fn finish(mut self) -> Result<StreamInputResponse> {
        self.messages = None;
        self.answer().await
    }

    async fn answer(&mut self) -> Result<StreamInputResponse> {
        let over = Error::Protocol("no answer to a stream that is over");
        let Some(call) = self.call.take() else { return Err(over) };
        let Ok(answer) = call.await else { return Err(over) };
        answer.map(Response::into_inner).map_err(|status| self.client.error(status))
    }
}

impl Drop for InputSink {
    fn drop(&mut self) {
        let (Some(call), Some(messages)) = (self.call.take(), self.messages.take()) else { return };
        call.abort();
        // The end of the messages would pass for the stream's: they outlive the call.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { messages.closed().await });
        }
    }
}
