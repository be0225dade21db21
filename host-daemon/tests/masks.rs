//! Masks over a leased screen, through the API of a real daemon that is killed and started again.

mod served;

use hvkube_proto::v1;
use served::Daemon;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Over a part of the field that text is typed into.
const MASK: v1::Rect = v1::Rect { x: 40, y: 90, width: 200, height: 60 };

async fn set(daemon: &Daemon, target: &str, masks: &[v1::Rect]) -> Result<Vec<v1::Rect>, Status> {
    let set = v1::SetMasksRequest { target: target.into(), masks: masks.to_vec(), frame_size: None };
    Ok(daemon.desktop().set_masks(daemon.request(set)).await?.into_inner().masks)
}

async fn list(daemon: &Daemon, target: &str) -> Vec<v1::Rect> {
    let list = v1::ListMasksRequest { target: target.into() };
    daemon.desktop().list_masks(daemon.request(list)).await.expect("listed").into_inner().masks
}

/// Whether everything under the mask is black.
async fn is_covered(daemon: &Daemon, target: &str) -> bool {
    let picture = daemon.screenshot(target).await;
    let picture = image::load_from_memory(&picture).expect("a picture").to_rgb8();
    let side = |at: i32, length: u32| at.unsigned_abs()..at.unsigned_abs() + length;
    side(MASK.x, MASK.width)
        .flat_map(|x| side(MASK.y, MASK.height).map(move |y| (x, y)))
        .filter(|(x, y)| *x > 12 || *y > 12)
        .all(|(x, y)| picture.get_pixel(x, y).0 == [0; 3])
}

#[tokio::test(flavor = "multi_thread")]
async fn masks_hold_over_a_restart_and_end_with_the_lease() {
    let state_dir = tempfile::tempdir().expect("dir");
    let state_dir = state_dir.path();
    let daemon = Daemon::start(state_dir).await;
    daemon.template().await;
    daemon.pool(1).await;
    let lease = daemon.lease().await;
    assert!(!is_covered(&daemon, &lease).await && list(&daemon, &lease).await.is_empty());
    assert_eq!(set(&daemon, &lease, &[MASK]).await.expect("covered"), [MASK]);
    assert!(is_covered(&daemon, &lease).await);
    daemon.type_text(&lease, "under it").await;
    assert!(is_covered(&daemon, &lease).await);

    let outside = v1::Rect { x: 600, width: 100, ..MASK };
    let refused = set(&daemon, &lease, &[outside]).await.expect_err("outside");
    let reason = refused.get_details_error_info().expect("a reason").reason;
    assert_eq!((refused.code(), reason.as_str()), (Code::InvalidArgument, "OUT_OF_FRAME"));
    let fields = refused.get_details_bad_request().expect("fields").field_violations;
    assert_eq!(fields[0].field, "masks[0]");
    assert_eq!(list(&daemon, &lease).await, [MASK], "as they were");

    daemon.kill(state_dir).await;
    let daemon = Daemon::start(state_dir).await;
    assert!(is_covered(&daemon, &lease).await, "in the first picture after it");
    assert_eq!(list(&daemon, &lease).await, [MASK]);

    daemon.release(&lease).await;
    let next = daemon.lease().await;
    assert!(!is_covered(&daemon, &next).await && list(&daemon, &next).await.is_empty());
    set(&daemon, &next, &[MASK]).await.expect("covered");
    set(&daemon, &next, &[]).await.expect("uncovered");
    assert!(!is_covered(&daemon, &next).await);
    daemon.kill(state_dir).await;
    let left = std::fs::read_dir(state_dir.join("masks")).expect("a folder").count();
    assert_eq!(left, 0, "nothing is left behind");
}
