//! Waits on a screen of one colour that a test paints.

use super::super::{CaptureSpec, Frame};
use super::*;

/// A screen of one colour.
#[derive(Debug, Default)]
struct Plain {
    colour: Mutex<[u8; 3]>,
    reads: std::sync::atomic::AtomicUsize,
}

impl Plain {
    fn paint(&self, rgb: [u8; 3], watch: &Watch, drawn: Rect) {
        *self.colour.lock().expect("no panic") = rgb;
        watch.record(&[drawn]);
    }
}

#[async_trait::async_trait]
impl Screen for Plain {
    async fn capture(&self, _spec: CaptureSpec) -> Result<Frame, DisplayError> {
        Err(DisplayError::Busy)
    }
    async fn watch(&self, interest: Interest) -> Result<Arc<Watch>, DisplayError> {
        Ok(Arc::new(Watch::new(interest)))
    }
    async fn flush(&self) -> Result<u64, DisplayError> {
        Ok(7)
    }
    async fn read(&self, areas: Vec<Rect>) -> Result<Vec<Vec<u8>>, DisplayError> {
        self.reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let [red, green, blue] = *self.colour.lock().expect("no panic");
        let pixels = |r: &Rect| [blue, green, red, 0].repeat((r.width * r.height) as usize);
        Ok(areas.iter().map(pixels).collect())
    }
}

const QUIET: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(5);
const CARET: Rect = Rect { x: 10, y: 10, width: 2, height: 16 };
const WINDOW: Rect = Rect { x: 0, y: 0, width: 200, height: 100 };

async fn begin(screen: &Plain, interest: Interest) -> (Wait, Arc<Watch>) {
    let wait = Wait::begin(screen, interest).await.expect("begins");
    let watch = Arc::clone(&wait.watch);
    (wait, watch)
}

async fn settle_while(interest: Interest, rect: Rect, every: Duration, times: u32) -> pb::SettleResponse {
    let screen = Plain::default();
    let (wait, recorder) = begin(&screen, interest).await;
    let changes = async move {
        for _ in 0..times {
            tokio::time::sleep(every).await;
            recorder.record(&[rect]);
        }
    };
    tokio::select! {
        biased;
        done = wait.end(&screen, QUIET, LONG) => done.expect("settles"),
        () = async { changes.await; std::future::pending().await } => unreachable!("never ends"),
    }
}

#[tokio::test(start_paused = true)]
async fn waits_for_the_last_change_and_reports_it() {
    let start = Instant::now();
    let done = settle_while(Interest::default(), WINDOW, Duration::from_millis(200), 3).await;
    assert!(!done.timed_out);
    assert_eq!(done.settled_after_micros, 600_000);
    assert_eq!(start.elapsed(), Duration::from_millis(900));
    assert_eq!((done.changed.len(), done.sequence, done.met()), (1, 7, pb::Condition::Quiet));
}

#[tokio::test(start_paused = true)]
async fn ignored_changes_do_not_count_and_an_endless_one_times_out() {
    let interest =
        Interest { ignore: vec![Rect { x: 8, y: 8, width: 20, height: 20 }], ..Interest::default() };
    let done = settle_while(interest, CARET, Duration::from_millis(100), u32::MAX).await;
    assert_eq!((done.timed_out, done.settled_after_micros, done.changed.len()), (false, 0, 0));

    let start = Instant::now();
    let done = settle_while(Interest::default(), CARET, Duration::from_millis(100), u32::MAX).await;
    assert_eq!((done.timed_out, done.met()), (true, pb::Condition::Unspecified));
    assert_eq!(start.elapsed(), LONG);
}

#[tokio::test(start_paused = true)]
async fn what_changed_before_the_wait_is_reported_but_quiet_counts_from_the_wait() {
    let screen = Plain::default();
    let (wait, watch) = begin(&screen, Interest::default()).await;
    watch.record(&[WINDOW]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = Instant::now();
    let done = wait.end(&screen, QUIET, LONG).await.expect("settles");
    assert_eq!((done.changed.len(), done.settled_after_micros), (1, 0));
    assert_eq!(start.elapsed(), QUIET);
}

fn pixel(rgb: [u8; 3], tolerance: u8) -> PixelColour {
    PixelColour { x: 11, y: 12, rgb, tolerance }
}

#[tokio::test(start_paused = true)]
async fn a_colour_ends_the_wait_when_it_comes_however_restless_the_screen_is() {
    let screen = Plain::default();
    // Changes there are ignored, but the pixel is asked for.
    let interest = Interest {
        ignore: vec![WINDOW],
        pixels: vec![pixel([9, 9, 9], 0), pixel([200, 100, 0], 5)],
        ..Interest::default()
    };
    let (wait, watch) = begin(&screen, interest).await;
    let start = Instant::now();
    let painting = async {
        for red in [0, 150, 194, 204, 255] {
            tokio::time::sleep(Duration::from_millis(100)).await;
            screen.paint([red, 104, 3], &watch, CARET);
        }
        std::future::pending::<()>().await;
    };
    let done = tokio::select! {
        biased;
        done = wait.end(&screen, Duration::ZERO, LONG) => done.expect("met"),
        () = painting => unreachable!("never ends"),
    };
    assert_eq!((done.timed_out, done.met(), done.met_index), (false, pb::Condition::Pixel, 1));
    assert_eq!((start.elapsed(), done.met_after_micros), (Duration::from_millis(400), 400_000));
    // Once at the start and once for each time that something was drawn there.
    assert_eq!(screen.reads.load(std::sync::atomic::Ordering::Relaxed), 5);
}

#[tokio::test(start_paused = true)]
async fn a_colour_that_is_there_already_ends_the_wait_at_once() {
    let screen = Plain::default();
    let interest = Interest { pixels: vec![pixel([0, 0, 0], 0)], ..Interest::default() };
    let (wait, _watch) = begin(&screen, interest).await;
    let start = Instant::now();
    let done = wait.end(&screen, Duration::ZERO, LONG).await.expect("met");
    assert_eq!((done.met(), start.elapsed()), (pb::Condition::Pixel, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_region_counts_when_it_looks_different_and_not_when_it_is_only_drawn() {
    let screen = Plain::default();
    let interest = Interest { regions: vec![CARET], ..Interest::default() };
    let (wait, watch) = begin(&screen, interest).await;
    let painting = async {
        for (rgb, drawn) in [([0; 3], CARET), ([0; 3], WINDOW), ([1, 0, 0], WINDOW)] {
            tokio::time::sleep(Duration::from_millis(100)).await;
            screen.paint(rgb, &watch, drawn);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        watch.record(&[WINDOW]);
        std::future::pending::<()>().await;
    };
    let start = Instant::now();
    let done = tokio::select! {
        biased;
        done = wait.end(&screen, QUIET, LONG) => done.expect("met"),
        () = painting => unreachable!("never ends"),
    };
    assert_eq!((done.timed_out, done.met(), done.met_index), (false, pb::Condition::Region, 0));
    assert_eq!(done.met_after_micros, 300_000);
    assert_eq!(start.elapsed(), Duration::from_millis(700), "and then it was quiet");
}

#[tokio::test(start_paused = true)]
async fn what_is_ignored_does_not_change_a_region_and_time_ends_the_wait() {
    let screen = Plain::default();
    let interest = Interest { ignore: vec![WINDOW], regions: vec![CARET], ..Interest::default() };
    let (wait, watch) = begin(&screen, interest).await;
    screen.paint([1, 2, 3], &watch, Rect { x: 0, y: 0, width: 500, height: 500 });
    let start = Instant::now();
    let done = wait.end(&screen, Duration::ZERO, LONG).await.expect("ends");
    assert_eq!((done.timed_out, done.met(), start.elapsed()), (true, pb::Condition::Unspecified, LONG));
}
