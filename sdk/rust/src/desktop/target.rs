//! One desktop by name, whoever holds it.

use std::time::Duration;

use futures_util::stream::{Stream, StreamExt as _};

use crate::client::{Client, call};
use crate::desktop::input::{long, settle_wait};
use crate::error::{Error, Result};
use crate::names::qualify;
use crate::v1::{
    PixelCondition, Point, Rect, Screenshot, ScreenshotOptions, SettleOptions, SettleResult, Size,
    StreamScreenshotsRequest, TakeScreenshotRequest, WaitForSettleRequest, WaitForSettleResponse,
};

/// A desktop by the name of its lease or VM. Cheap to clone; holds no lease of its own.
#[derive(Clone, Debug)]
pub struct Target {
    client: Client,
    name: String,
}

impl Client {
    /// The desktop behind `leases/{lease}`, `vms/{vm}` or a bare VM id. Nothing is asked yet.
    #[must_use]
    pub fn target(&self, name: &str) -> Target {
        Target::new(self.clone(), qualify("vms", name))
    }
}

impl Target {
    pub(crate) fn new(client: Client, name: String) -> Self {
        Self { client, name }
    }

    /// The connection it is reached by.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// `leases/{lease}` or `vms/{vm}`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes a picture. The default options give a PNG of the whole frame.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`; `RESOURCE_EXHAUSTED` (`SCREENSHOT_TOO_LARGE`); `FAILED_PRECONDITION` (`VM_NOT_RUNNING`,
    /// `LEASE_ENDED`).
    pub async fn screenshot(&self, options: ScreenshotOptions) -> Result<Screenshot> {
        let request = TakeScreenshotRequest { target: self.name.clone(), options: Some(options) };
        call!(self.client, Repeatable, self.client.quick(), desktops.take_screenshot(request))
    }

    /// A picture at each change, `max_fps` a second at most (0 means 10). A slow reader gets the latest; `skipped` says
    /// how many it missed. While the VM is saved there is one message with `StreamStatus::Paused` and without a picture. Ends
    /// with an error when the desktop goes away.
    ///
    /// # Errors
    /// As [`Target::screenshot`].
    pub async fn stream_screenshots(
        &self,
        options: ScreenshotOptions,
        max_fps: f64,
    ) -> Result<impl Stream<Item = Result<Screenshot>> + Send + use<>> {
        let target = self.name.clone();
        let request =
            StreamScreenshotsRequest { target, options: Some(options), max_fps, ..Default::default() };
        let client = self.client.clone();
        let stream =
            client.desktops().stream_screenshots(request).await.map_err(|status| client.error(status))?;
        Ok(stream.into_inner().map(move |item| item.map_err(|status| client.error(status))))
    }

    /// Waits until nothing changes any more, or for what the options say. A timeout of the options that passes is an answer
    /// (`timed_out`), no error.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`; `FAILED_PRECONDITION` (`VM_NOT_RUNNING`, `LEASE_ENDED`).
    pub async fn wait_for_settle(&self, options: SettleOptions) -> Result<WaitForSettleResponse> {
        self.wait_for_settle_on(options, None).await
    }

    /// The same with places read from a picture of this size; without one, they are the real frame's.
    ///
    /// # Errors
    /// As [`Target::wait_for_settle`].
    pub async fn wait_for_settle_on(
        &self,
        options: SettleOptions,
        frame_size: Option<Size>,
    ) -> Result<WaitForSettleResponse> {
        let wait = self.client.after(settle_wait(Some(&options)));
        let request = WaitForSettleRequest { target: self.name.clone(), settle: Some(options), frame_size };
        call!(self.client, Repeatable, wait, desktops.wait_for_settle(request))
    }

    /// Waits until anything in a region is other than now, `timeout` (120 s) at most.
    ///
    /// # Errors
    /// As [`Target::wait_for_settle`].
    pub async fn wait_for_change(&self, region: Rect, timeout: Duration) -> Result<SettleResult> {
        self.wait_until(SettleOptions { regions: vec![region], ..Default::default() }, timeout).await
    }

    /// Waits until a pixel has a colour (0xRRGGBB), red, green and blue each within `tolerance` of it; `timeout` (120 s) at
    /// most.
    ///
    /// # Errors
    /// As [`Target::wait_for_settle`].
    pub async fn wait_for_pixel(
        &self,
        (x, y): (i32, i32),
        rgb: u32,
        tolerance: u8,
        timeout: Duration,
    ) -> Result<SettleResult> {
        let pixel = PixelCondition { at: Some(Point { x, y }), rgb, tolerance: tolerance.into() };
        self.wait_until(SettleOptions { pixels: vec![pixel], ..Default::default() }, timeout).await
    }

    async fn wait_until(&self, options: SettleOptions, timeout: Duration) -> Result<SettleResult> {
        let timeout = Some(long(timeout));
        let answer = self.wait_for_settle(SettleOptions { timeout, ..options }).await?;
        answer.settle.ok_or(Error::Protocol("a wait without an outcome"))
    }
}
