//! A real VM's screen, keyboard and mouse: with the agent as on every backend, and from outside while there is none or it
//! hangs.

use std::time::Duration;

use hvkube_sdk::v1::{FrameSource, ScreenshotOptions, StopMode};
use hvkube_sdk::{Input, ReleasePolicy, Target};
use hvkube_tests::{Console, Rig, until};
use image::RgbImage;

use crate::desk::{self, Kind, POOL};

#[tokio::test(flavor = "multi_thread")]
async fn a_screen_is_there_with_and_without_an_agent() {
    let mut rig = Rig::start().await;
    desk::all(&rig, Kind::X11).await;
    rig.pool(POOL, 1).await;
    rig.scenario("a boot is seen and typed into", boot).await;
    rig.scenario("the desktop's half of the agent hangs", async |rig| hung(rig, "-u desktop").await).await;
    rig.scenario("the whole agent hangs", async |rig| hung(rig, "").await).await;
    rig.drop_pool(POOL).await;
    rig.check().await;
}

/// The screen, and who showed it.
async fn look(desktop: &Target) -> (RgbImage, FrameSource) {
    let shot = desktop.screenshot(ScreenshotOptions::default()).await.expect("a screenshot");
    let picture = image::load_from_memory(&shot.image).expect("a picture").to_rgb8();
    (picture, shot.source())
}

async fn with_agent(desktop: &Target) -> RgbImage {
    until("a picture of the agent", async || {
        let (picture, source) = look(desktop).await;
        (source == FrameSource::Agent).then_some(picture)
    })
    .await
}

/// The hypervisor's picture once it is another one: nothing has woken the agent.
async fn changed(desktop: &Target, from: &RgbImage) -> RgbImage {
    until("a change on the screen", async || {
        let (picture, source) = look(desktop).await;
        assert_eq!(source, FrameSource::Hypervisor);
        (picture != *from).then_some(picture)
    })
    .await
}

async fn as_root(desktop: &Target, script: &str) -> String {
    let output = desktop.exec(["sh", "-c", script]).as_root(true).await.expect("root");
    assert!(output.success(), "{script}: {}", output.stderr_lossy());
    output.stdout_lossy().into_owned()
}

/// The screen is there from the first picture of the boot on, and what is typed gets to the guest's devices.
async fn boot(rig: &mut Rig) {
    let desktop = rig.acquire(POOL).await;
    let (client, vm) = (rig.client(), desktop.vm().name.clone());
    client.stop_vm(&vm, StopMode::Hard, None).await.expect("off");
    // Answers only when the desktop is there.
    let starting = tokio::spawn(async move { client.start_vm(&vm).await });
    until("a screen", async || desktop.screenshot(ScreenshotOptions::default()).await.ok()).await;
    let mut console = Console::open(rig, &desktop, &[]).await;
    let mut sizes = Vec::new();
    let mut typed = 0;
    until("a picture of the agent", async || {
        let (picture, source) = look(&desktop).await;
        if source == FrameSource::Agent {
            return Some(());
        }
        assert_eq!(source, FrameSource::Hypervisor);
        let seen = console.viewer.look().await.expect("shown");
        for picture in [picture, seen] {
            if !sizes.contains(&picture.dimensions()) {
                sizes.push(picture.dimensions());
            }
        }
        let done = desktop.input(Input::new().text("typed.")).await.expect("typed");
        typed += u32::from(done.source() == FrameSource::Hypervisor);
        console.viewer.type_text("viewed.").await.expect("served");
        None
    })
    .await;
    eprintln!("{typed} times typed from outside, on screens of {sizes:?}");
    assert!(typed > 0, "the agent was there at once");
    starting.await.expect("no panic").expect("started");
    desk::same_picture(&mut console, &desktop).await;
    assert_eq!(look(&desktop).await.0.dimensions(), (1280, 800));
    // The agent types past the devices, so what their driver has heard came from outside.
    let devices =
        "cd /sys/bus/virtio/drivers/virtio_input && for d in virtio*; do grep \"$d-\" /proc/interrupts; done";
    let heard = as_root(&desktop, devices).await;
    let count = |line: &str| -> u64 {
        line.split_whitespace().skip(1).map_while(|word| word.parse::<u64>().ok()).sum()
    };
    assert!(heard.lines().map(count).sum::<u64>() > 0, "{heard}");
    desktop.release(ReleasePolicy::Reset).await.expect("released");
    rig.ready(POOL, 1).await;
}

/// Nobody but the hypervisor can bring the frozen agent back: by typing what the guest waits for.
async fn hung(rig: &mut Rig, whose: &str) {
    let desktop = rig.acquire(POOL).await;
    let windows = desktop.windows().await.expect("windows").windows;
    let terminal = windows.iter().find(|one| one.app == "XTerm").expect("a terminal");
    let area = terminal.content.expect("drawn");
    let (x, y) = (area.x + 40, area.y + 40);
    // What is typed gets to the terminal only after a click.
    let other = "xterm -title Other -geometry 20x4+0+0 -e cat >/dev/null 2>&1 &";
    assert!(desktop.exec(["sh", "-c", other]).await.expect("exec").success());
    until("another window with the focus", async || {
        let windows = desktop.windows().await.expect("windows").windows;
        windows.iter().any(|one| one.title == "Other" && one.focused).then_some(())
    })
    .await;
    let (before, source) = look(&desktop).await;
    assert_eq!(source, FrameSource::Agent);
    // Its answer is the last thing it could say, and may be lost with it.
    let freeze = format!(
        "(sleep 1; pkill -STOP {whose} -x hvkube-guest; while ! grep -q go /tmp/go; do sleep 0.2; done; \
          pkill -CONT -x hvkube-guest) >/dev/null 2>&1 &"
    );
    as_root(&desktop, &freeze).await;
    let seen = until("a picture of the hypervisor", async || {
        let (picture, source) = look(&desktop).await;
        (source == FrameSource::Hypervisor).then_some(picture)
    })
    .await;
    assert_eq!(seen.dimensions(), before.dimensions());

    let done = desktop.input(Input::new().click(x, y)).await.expect("clicked");
    assert_eq!((done.source(), done.completed), (FrameSource::Hypervisor, 1));
    // The window manager takes its time until the terminal has the focus.
    let seen = changed(&desktop, &seen).await;
    // More than the virtual keyboard holds at once.
    let line = "echo \"once: $((6*7))\" >> /tmp/outside # The Quick Brown Fox Jumps Over The Lazy Dog {|}~\n";
    let done = desktop.input(Input::new().text(line)).await.expect("typed");
    assert_eq!((done.source(), done.completed), (FrameSource::Hypervisor, 1));
    changed(&desktop, &seen).await;
    let done = desktop.act(Input::new().text("echo go > /tmp/go\n")).await.expect("typed");
    assert_eq!(done.input.expect("input").source(), FrameSource::Hypervisor);

    with_agent(&desktop).await;
    let done = desktop.input(Input::new().text("echo Inside >> /tmp/outside\n")).await.expect("typed");
    assert_eq!(done.source(), FrameSource::Agent);
    let mut last = String::new();
    until("both lines, each once", async || {
        let output = desktop.exec(["cat", "/tmp/outside"]).timeout(Duration::from_secs(30)).await.ok()?;
        let text = output.stdout_lossy();
        if text != last {
            eprintln!("typed so far: {text:?}");
            last = text.into_owned();
        }
        (last == "once: 42\nInside\n").then_some(())
    })
    .await;
    desktop.release(ReleasePolicy::Reset).await.expect("released");
    rig.ready(POOL, 1).await;
}
