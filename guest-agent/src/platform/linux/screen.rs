//! The screen's thread: pixels through shared memory, changes through XDamage.
//!
//! Damage is kept by the server and asked for when somebody wants to know: one round trip empties it into a list of
//! rectangles, so a capture is never stale, and a screen nobody looks at costs one event. What each sequence number changed
//! is remembered for a while, so that a host gets only what it lacks; no copy of the frame is kept, only hashes of its tiles.
//! A sequence that is too old gets a full frame.
//!
//! The cursor is told as a shape and a place and is no part of the pixels: a pointer that moves costs no frame.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use hvkube_proto::guest::v1 as pb;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use x11rb::connection::Connection;
use x11rb::cookie::Cookie;
use x11rb::protocol::Event;
use x11rb::protocol::damage::{self, ConnectionExt as _, ReportLevel};
use x11rb::protocol::shm::{self, ConnectionExt as _};
use x11rb::protocol::xfixes::{self, ConnectionExt as _, CursorNotifyMask};
use x11rb::protocol::xinput::{self, ConnectionExt as _, XIEventMask};
use x11rb::protocol::xproto::{ConnectionExt as _, GetImageReply, ImageFormat, Window};
use x11rb::rust_connection::RustConnection;

use super::cursor::Cursor;
use super::shm::SharedMemory;
use super::x11::connect;
use crate::display::{
    CaptureSpec, DisplayError, Frame, Interest, Packer, Rect, Screen, Tiles, Watch, simplify,
};

/// Calls that may wait for the thread at once.
const QUEUE: usize = 64;
/// Sequences whose changes are remembered; each with at most [`MAX_RECTS`].
const REMEMBERED: usize = 64;
/// More rectangles cost more than the pixels they save.
const MAX_RECTS: usize = 32;
/// While somebody waits for changes, damage is collected at most this often: a video must not eat the guest.
const COLLECT_EVERY: Duration = Duration::from_millis(8);
/// How long the shared memory is kept after a capture.
const KEEP_MEMORY: Duration = Duration::from_secs(5);
const ALL_PLANES: u32 = u32::MAX;

enum Command {
    Capture(CaptureSpec, oneshot::Sender<Result<Frame, DisplayError>>),
    Watch(Interest, oneshot::Sender<Result<Arc<Watch>, DisplayError>>),
    Flush(oneshot::Sender<Result<u64, DisplayError>>),
    Read(Vec<Rect>, oneshot::Sender<Result<Vec<Vec<u8>>, DisplayError>>),
}

/// Access to the thread, which ends with it.
#[derive(Debug)]
pub(super) struct ScreenThread {
    commands: SyncSender<Command>,
    wake: Arc<OwnedFd>,
}

impl ScreenThread {
    /// Connects and starts the thread; it cancels `gone` when the display goes away.
    pub(super) fn start(display: &str, gone: CancellationToken) -> Result<Self, DisplayError> {
        let mut server = Server::connect(display)?;
        let (commands, queue) = sync_channel(QUEUE);
        let failed = |e: std::io::Error| DisplayError::Gone(e.to_string());
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = Arc::new(eventfd(0, flags).map_err(|e| failed(e.into()))?);
        let woken = Arc::clone(&wake);
        let body = move || {
            if let Err(error) = server.run(&queue, &woken) {
                tracing::error!(%error, "screen lost");
            }
            gone.cancel();
        };
        std::thread::Builder::new().name("screen".into()).spawn(body).map_err(failed)?;
        Ok(Self { commands, wake })
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, DisplayError>>) -> Command,
    ) -> Result<T, DisplayError> {
        let gone = || DisplayError::Gone("the screen thread has ended".into());
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(command(reply)).map_err(|e| match e {
            TrySendError::Full(_) => DisplayError::Busy,
            TrySendError::Disconnected(_) => gone(),
        })?;
        self.wake();
        answer.await.map_err(|_| gone())?
    }

    fn wake(&self) {
        // Full means that it is awake already.
        let _counted = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl Drop for ScreenThread {
    fn drop(&mut self) {
        let (unused, _) = sync_channel(1);
        self.commands = unused;
        self.wake();
    }
}

#[async_trait]
impl Screen for ScreenThread {
    async fn capture(&self, spec: CaptureSpec) -> Result<Frame, DisplayError> {
        self.ask(|reply| Command::Capture(spec, reply)).await
    }

    async fn watch(&self, interest: Interest) -> Result<Arc<Watch>, DisplayError> {
        self.ask(|reply| Command::Watch(interest, reply)).await
    }

    async fn flush(&self) -> Result<u64, DisplayError> {
        self.ask(Command::Flush).await
    }

    async fn read(&self, areas: Vec<Rect>) -> Result<Vec<Vec<u8>>, DisplayError> {
        self.ask(|reply| Command::Read(areas, reply)).await
    }
}

/// A capture that waits for a change.
struct Waiter {
    spec: CaptureSpec,
    deadline: Instant,
    reply: oneshot::Sender<Result<Frame, DisplayError>>,
}

struct Segment {
    id: shm::Seg,
    memory: SharedMemory,
    len: usize,
}

/// The state of the thread.
struct Server {
    conn: RustConnection,
    root: Window,
    damage: damage::Damage,
    region: xfixes::Region,
    has_shm: bool,
    size: (u32, u32),
    sequence: u64,
    /// Changes after this sequence are all in `history`.
    floor: u64,
    history: VecDeque<(u64, Vec<Rect>)>,
    /// What the host's frame shows.
    tiles: Tiles,
    /// As last asked for.
    cursor: Option<Cursor>,
    /// When the cursor last was another one.
    cursor_sequence: u64,
    pointer: (i32, i32),
    watches: Vec<Weak<Watch>>,
    waiters: Vec<Waiter>,
    motion_selected: bool,
    /// Something may have changed since the last collection.
    stirred: bool,
    collected_at: Instant,
    segment: Option<Segment>,
    packer: Packer,
    captured_at: Instant,
}

impl Server {
    fn connect(display: &str) -> Result<Self, DisplayError> {
        let (conn, root) = connect(display)?;
        conn.xfixes_query_version(5, 0)?.reply()?;
        conn.damage_query_version(1, 1)?.reply()?;
        conn.xinput_xi_query_version(2, 2)?.reply()?;
        let has_shm = match conn.shm_query_version()?.reply() {
            Ok(version) => (version.major_version, version.minor_version) >= (1, 2),
            Err(_) => false,
        };
        let region = conn.generate_id()?;
        conn.xfixes_create_region(region, &[])?;
        let damage = conn.generate_id()?;
        conn.damage_create(damage, root, ReportLevel::NON_EMPTY)?.check()?;
        conn.xfixes_select_cursor_input(root, CursorNotifyMask::DISPLAY_CURSOR)?;
        let now = Instant::now();
        let mut server = Self {
            conn,
            root,
            damage,
            region,
            has_shm,
            size: (0, 0),
            sequence: 1,
            floor: 1,
            history: VecDeque::new(),
            tiles: Tiles::default(),
            cursor: None,
            cursor_sequence: 0,
            pointer: (0, 0),
            watches: Vec::new(),
            waiters: Vec::new(),
            motion_selected: false,
            stirred: false,
            collected_at: now,
            segment: None,
            packer: Packer::default(),
            captured_at: now,
        };
        server.collect(false)?;
        Ok(server)
    }

    fn run(&mut self, commands: &Receiver<Command>, wake: &OwnedFd) -> Result<(), DisplayError> {
        loop {
            while let Some(event) = self.conn.poll_for_event()? {
                self.note(&event);
            }
            loop {
                match commands.try_recv() {
                    Ok(command) => self.serve(command)?,
                    Err(std::sync::mpsc::TryRecvError::Empty) => break,
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => return Ok(()),
                }
            }
            self.watches.retain(|w| w.strong_count() > 0);
            self.waiters.retain(|w| !w.reply.is_closed());
            let wanted = !self.watches.is_empty() || !self.waiters.is_empty();
            if wanted && self.stirred && self.collected_at.elapsed() >= COLLECT_EVERY {
                self.collect(false)?;
                self.answer_waiters()?;
            }
            self.expire()?;
            self.select_motion()?;
            self.conn.flush()?;
            // Replies that were waited for above may have brought events with them.
            if let Some(event) = self.conn.poll_for_event()? {
                self.note(&event);
                continue;
            }
            self.sleep(wake, wanted)?;
        }
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::DamageNotify(_) | Event::XfixesCursorNotify(_) | Event::XinputRawMotion(_) => {
                self.stirred = true;
            }
            _ => {}
        }
    }

    fn sleep(&self, wake: &OwnedFd, wanted: bool) -> Result<(), DisplayError> {
        let now = Instant::now();
        let mut until = self.waiters.iter().map(|w| w.deadline).min();
        if self.segment.is_some() {
            until =
                Some(until.map_or(self.captured_at + KEEP_MEMORY, |u| u.min(self.captured_at + KEEP_MEMORY)));
        }
        if wanted && self.stirred {
            until = Some(
                until.map_or(self.collected_at + COLLECT_EVERY, |u| u.min(self.collected_at + COLLECT_EVERY)),
            );
        }
        let timeout = until.and_then(|at| Timespec::try_from(at.saturating_duration_since(now)).ok());
        let mut fds = [
            PollFd::new(self.conn.stream(), PollFlags::IN),
            PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(DisplayError::Gone(e.to_string())),
        }
        if fds[1].revents().contains(PollFlags::IN) {
            let _count = rustix::io::read(wake, &mut [0; 8]);
        }
        Ok(())
    }

    fn serve(&mut self, command: Command) -> Result<(), DisplayError> {
        match command {
            Command::Capture(spec, reply) => {
                // A caller that has gone left its command behind.
                if reply.is_closed() {
                    return Ok(());
                }
                self.collect(spec.cursor)?;
                if spec.wait.is_zero() || self.news_for(&spec) {
                    let frame = self.frame(spec);
                    return Self::deliver(reply, frame);
                }
                let deadline = Instant::now() + spec.wait;
                self.waiters.push(Waiter { spec, deadline, reply });
            }
            Command::Watch(interest, reply) => {
                self.collect(false)?;
                let watch = Arc::new(Watch::new(interest));
                self.watches.push(Arc::downgrade(&watch));
                let _gone = reply.send(Ok(watch));
            }
            Command::Flush(reply) => {
                self.collect(false)?;
                let _gone = reply.send(Ok(self.sequence));
                self.answer_waiters()?;
            }
            Command::Read(areas, reply) => {
                // Damage up to here is told first: what is drawn after this look is told after it.
                self.collect(false)?;
                let pixels = self.read(&areas);
                let lost = match &pixels {
                    Err(error @ DisplayError::Gone(_)) => Err(error.clone()),
                    _ => Ok(()),
                };
                let _gone = reply.send(pixels);
                lost?;
                self.answer_waiters()?;
            }
        }
        Ok(())
    }

    /// Pixels of areas, for those who compare them.
    fn read(&self, areas: &[Rect]) -> Result<Vec<Vec<u8>>, DisplayError> {
        let (width, height) = self.size;
        let screen = Rect { x: 0, y: 0, width, height };
        // Sent together, answered together: one round trip.
        let mut sent = Vec::with_capacity(areas.len());
        for area in areas {
            let Some(rect) = area.intersect(&screen) else {
                sent.push(None);
                continue;
            };
            let (x, y, width, height) = protocol_rect(rect)?;
            let format = ImageFormat::Z_PIXMAP;
            sent.push(Some(self.conn.get_image(format, self.root, x, y, width, height, ALL_PLANES)?));
        }
        let read = |image: Option<Cookie<'_, RustConnection, GetImageReply>>| {
            image.map_or_else(|| Ok(Vec::new()), |image| Ok(image.reply()?.data))
        };
        sent.into_iter().map(read).collect()
    }

    /// Hands the outcome to its caller; only a lost display ends the thread.
    fn deliver(
        reply: oneshot::Sender<Result<Frame, DisplayError>>,
        outcome: Result<Frame, DisplayError>,
    ) -> Result<(), DisplayError> {
        let lost = match &outcome {
            Err(error @ DisplayError::Gone(_)) => Err(error.clone()),
            _ => Ok(()),
        };
        let _gone = reply.send(outcome);
        lost
    }

    fn answer_waiters(&mut self) -> Result<(), DisplayError> {
        if self.waiters.iter().any(|w| w.spec.cursor) {
            self.collect(true)?;
        }
        let (ready, waiting) =
            std::mem::take(&mut self.waiters).into_iter().partition(|w| self.news_for(&w.spec));
        self.waiters = waiting;
        for Waiter { spec, reply, .. } in ready {
            let frame = self.frame(spec);
            Self::deliver(reply, frame)?;
        }
        Ok(())
    }

    fn expire(&mut self) -> Result<(), DisplayError> {
        let now = Instant::now();
        let (over, waiting) =
            std::mem::take(&mut self.waiters).into_iter().partition(|w: &Waiter| w.deadline <= now);
        self.waiters = waiting;
        for Waiter { spec, reply, .. } in over {
            self.collect(spec.cursor)?;
            let frame = self.frame(spec);
            Self::deliver(reply, frame)?;
        }
        if self.segment.is_some() && self.captured_at.elapsed() >= KEEP_MEMORY {
            self.free_segment()?;
        }
        Ok(())
    }

    /// Pointer motion is only worth events while a capture waits for the cursor to move.
    fn select_motion(&mut self) -> Result<(), DisplayError> {
        let wanted = self.waiters.iter().any(|w| w.spec.cursor);
        if wanted != self.motion_selected {
            let mask = if wanted { XIEventMask::RAW_MOTION } else { XIEventMask::from(0u32) };
            let mask = xinput::EventMask { deviceid: xinput::Device::ALL_MASTER.into(), mask: vec![mask] };
            self.conn.xinput_xi_select_events(self.root, &[mask])?;
            self.motion_selected = wanted;
        }
        Ok(())
    }

    /// Takes over what the server has collected; with one round trip for all questions.
    fn collect(&mut self, cursor: bool) -> Result<(), DisplayError> {
        self.conn.damage_subtract(self.damage, x11rb::NONE, self.region)?;
        let region = self.conn.xfixes_fetch_region(self.region)?;
        let geometry = self.conn.get_geometry(self.root)?;
        let pointer = self.conn.query_pointer(self.root)?;
        let image = if cursor { Some(self.conn.xfixes_get_cursor_image()?) } else { None };
        let (region, geometry, pointer) = (region.reply()?, geometry.reply()?, pointer.reply()?);
        self.cursor_moved(image.map(|image| image.reply()).transpose()?.map(Into::into));
        self.stirred = false;
        self.collected_at = Instant::now();
        self.pointer = (pointer.root_x.into(), pointer.root_y.into());

        let size = (geometry.width.into(), geometry.height.into());
        let mut rects: Vec<Rect> = region
            .rectangles
            .iter()
            .filter_map(|r| Rect::clipped(r.x.into(), r.y.into(), r.width.into(), r.height.into(), size))
            .collect();
        if size != self.size {
            self.size = size;
            self.history.clear();
            self.sequence += 1;
            self.floor = self.sequence;
            rects = Rect::clipped(0, 0, size.0, size.1, size).into_iter().collect();
            self.tell_watches(&rects);
        } else if !rects.is_empty() {
            simplify(&mut rects, MAX_RECTS);
            self.tell_watches(&rects);
            self.remember(rects);
        }
        Ok(())
    }

    fn tell_watches(&self, rects: &[Rect]) {
        for watch in self.watches.iter().filter_map(Weak::upgrade) {
            watch.record(rects);
        }
    }

    fn remember(&mut self, rects: Vec<Rect>) {
        self.sequence += 1;
        self.history.push_back((self.sequence, rects));
        if self.history.len() > REMEMBERED
            && let Some((oldest, _)) = self.history.pop_front()
        {
            self.floor = oldest;
        }
    }

    /// A cursor that has moved or has another shape is a change for those who want to know the cursor.
    fn cursor_moved(&mut self, cursor: Option<Cursor>) {
        let Some(cursor) = cursor else { return };
        if self.cursor.as_ref().map(Cursor::state) != Some(cursor.state()) {
            self.sequence += 1;
            self.cursor_sequence = self.sequence;
        }
        self.cursor = Some(cursor);
    }

    /// Whether there is anything that the host has not got.
    fn news_for(&self, spec: &CaptureSpec) -> bool {
        self.is_foreign(spec.since)
            || (spec.cursor && self.cursor_sequence > spec.since)
            || self.history.back().is_some_and(|(sequence, _)| *sequence > spec.since)
    }

    /// Whether the changes since this sequence are not known any more, or never were.
    fn is_foreign(&self, since: u64) -> bool {
        since < self.floor || since > self.sequence
    }

    fn frame(&mut self, spec: CaptureSpec) -> Result<Frame, DisplayError> {
        let full = self.is_foreign(spec.since);
        let mut rects: Vec<Rect> = if full {
            Rect::clipped(0, 0, self.size.0, self.size.1, self.size).into_iter().collect()
        } else {
            let newer = self.history.iter().filter(|(sequence, _)| *sequence > spec.since);
            newer.flat_map(|(_, rects)| rects.iter().copied()).collect()
        };
        simplify(&mut rects, MAX_RECTS);
        let sequence = self.sequence;
        let base = if full { 0 } else { spec.base };
        let packed = match self.grab(&rects, base) {
            Err(DisplayError::Unsupported(reason)) if self.resized()? => {
                tracing::debug!(reason, "screen was resized under a capture");
                return self.frame(CaptureSpec { since: 0, ..spec });
            }
            packed => packed?,
        };
        // An answer with nothing in it leaves the host what it has.
        let answer = if packed.is_empty() { spec.base } else { self.tiles.end() };
        let cursor = self.cursor.as_ref().filter(|_| spec.cursor);
        let header = pb::FrameHeader {
            width: self.size.0,
            height: self.size.1,
            sequence,
            full,
            rects: u32::try_from(packed.len()).unwrap_or(u32::MAX),
            captured_at: Some(SystemTime::now().into()),
            pointer_x: self.pointer.0,
            pointer_y: self.pointer.1,
            answer,
            cursor: cursor.map(|cursor| cursor.tell(spec.shape)),
        };
        Ok(Frame { header, rects: packed })
    }

    /// Whether the screen has another size than it had at the last look.
    fn resized(&mut self) -> Result<bool, DisplayError> {
        let before = self.size;
        self.collect(false)?;
        Ok(before != self.size)
    }

    /// Reads the pixels of `rects` and packs what the host, which has the answer `base`, does not show.
    fn grab(&mut self, rects: &[Rect], base: u64) -> Result<Vec<pb::FrameRect>, DisplayError> {
        let mut out = Vec::new();
        if rects.is_empty() {
            return Ok(out);
        }
        self.tiles.begin(self.size, base);
        let outcome = self.grab_tiles(rects, &mut out);
        if outcome.is_err() {
            // Half of it was noted as the host's.
            self.tiles.begin(self.size, 0);
        }
        outcome.map(|()| out)
    }

    fn grab_tiles(&mut self, rects: &[Rect], out: &mut Vec<pb::FrameRect>) -> Result<(), DisplayError> {
        let areas = self.tiles.cover(rects);
        if self.has_shm {
            let len = areas.iter().map(|r| byte_len(*r)).sum();
            self.need_segment(len)?;
        }
        self.captured_at = Instant::now();
        let Some(segment) = &mut self.segment else {
            for rect in areas {
                let (x, y, width, height) = protocol_rect(rect)?;
                let format = ImageFormat::Z_PIXMAP;
                let image =
                    self.conn.get_image(format, self.root, x, y, width, height, ALL_PLANES)?.reply()?;
                check_len(image.data.len(), rect)?;
                self.packer.pack(rect, &image.data, &mut self.tiles, out);
            }
            return Ok(());
        };
        let mut offset = 0;
        let mut replies = Vec::with_capacity(areas.len());
        for rect in areas {
            let (x, y, width, height) = protocol_rect(rect)?;
            let format = ImageFormat::Z_PIXMAP.into();
            let at = u32::try_from(offset)
                .map_err(|_| DisplayError::Unsupported("the screen is too large".into()))?;
            let cookie = self
                .conn
                .shm_get_image(self.root, x, y, width, height, ALL_PLANES, format, segment.id, at)?;
            replies.push((cookie, offset, rect));
            offset += byte_len(rect);
        }
        for (cookie, offset, rect) in replies {
            let size = cookie.reply()?.size as usize;
            check_len(size, rect)?;
            let pixels = &segment.memory.bytes()[offset..offset + byte_len(rect)];
            self.packer.pack(rect, pixels, &mut self.tiles, out);
        }
        Ok(())
    }

    fn need_segment(&mut self, len: usize) -> Result<(), DisplayError> {
        if self.segment.as_ref().is_some_and(|s| s.len >= len) {
            return Ok(());
        }
        self.free_segment()?;
        // Whole megabytes, so that a growing difference does not ask for a new one each time.
        let len = len.next_multiple_of(1 << 20);
        let size =
            u32::try_from(len).map_err(|_| DisplayError::Unsupported("the screen is too large".into()))?;
        let id = self.conn.generate_id()?;
        let reply = self.conn.shm_create_segment(id, size, false)?.reply()?;
        let memory = SharedMemory::map(&reply.shm_fd, len)
            .map_err(|e| DisplayError::Gone(format!("cannot map memory: {e}")))?;
        self.segment = Some(Segment { id, memory, len });
        Ok(())
    }

    fn free_segment(&mut self) -> Result<(), DisplayError> {
        if let Some(segment) = self.segment.take() {
            self.conn.shm_detach(segment.id)?;
        }
        self.packer = Packer::default();
        Ok(())
    }
}

fn byte_len(rect: Rect) -> usize {
    rect.width as usize * rect.height as usize * 4
}

fn check_len(len: usize, rect: Rect) -> Result<(), DisplayError> {
    if len == byte_len(rect) {
        return Ok(());
    }
    Err(DisplayError::Unsupported(format!("{len} bytes of pixels where {} were asked for", byte_len(rect))))
}

fn protocol_rect(r: Rect) -> Result<(i16, i16, u16, u16), DisplayError> {
    let parts = (i16::try_from(r.x), i16::try_from(r.y), u16::try_from(r.width), u16::try_from(r.height));
    match parts {
        (Ok(x), Ok(y), Ok(width), Ok(height)) => Ok((x, y, width, height)),
        _ => Err(DisplayError::Unsupported("the screen is larger than X11 allows".into())),
    }
}
