//! Those who take VMs and give them back, and those who change the pools meanwhile.

use std::time::Duration;

use hvkube_sdk::v1::{
    AcquireVmRequest, CreatePoolRequest, LeaseState, Pool, ReleasePolicy, UpdatePoolRequest,
};
use hvkube_sdk::{Code, Error, Result};
use hvkube_tests::until;

use crate::DESKS;
use crate::ledger::Count;
use crate::line::{Dice, Line};

/// A lease, and the request that got it.
struct Kept {
    asked: AcquireVmRequest,
    lease: String,
    vm: String,
}

/// Takes leases, keeps some over kills, asks for them again, renews, moves and releases them.
pub(crate) async fn client(line: Line, mut dice: Dice) {
    let mut kept = Vec::new();
    while !line.is_over() {
        if let Some(one) = acquire(&line, &mut dice, "pools/desks", false).await {
            kept.push(one);
        }
        for _ in 0..dice.below(3) {
            if let Some(one) = kept.last() {
                use_it(&line, &mut dice, one).await;
            }
            dice.pause(60).await;
        }
        let keep = usize::from(dice.percent(25));
        while kept.len() > keep {
            give_back(&line, &mut dice, kept.remove(0)).await;
        }
    }
    for one in kept {
        give_back(&line, &mut dice, one).await;
    }
}

async fn acquire(line: &Line, dice: &mut Dice, pool: &str, may_end: bool) -> Option<Kept> {
    let asked = AcquireVmRequest {
        pool: pool.into(),
        ttl: Duration::from_secs(3600).try_into().ok(),
        wait: Duration::from_secs(2).try_into().ok(),
        priority: i32::try_from(dice.below(4)).unwrap_or(0),
        request_id: uuid::Uuid::new_v4().to_string(),
        ..AcquireVmRequest::default()
    };
    match ask(line, &asked, may_end).await {
        Ok(kept) => {
            line.ledger.count(Count::Acquired);
            Some(kept)
        }
        Err(error) if matches!(error.reason(), Some("POOL_EXHAUSTED")) => None,
        Err(error) if may_end && error.reason() == Some("LEASE_ENDED") => None,
        // It was preempted before its answer arrived; it is held all the same, until it is given back.
        Err(error) if error.reason() == Some("LEASE_PREEMPTED") => {
            let lease = error.api().and_then(|api| api.metadata()?.get("lease").cloned());
            let lease = format!("leases/{}", lease.expect("it is named"));
            let one = Kept { asked, lease, vm: String::new() };
            give_back(line, dice, one).await;
            None
        }
        Err(error) => {
            line.ledger.found(format!("an acquire failed: {error}"));
            None
        }
    }
}

async fn ask(line: &Line, asked: &AcquireVmRequest, may_end: bool) -> Result<Kept> {
    let answer = line.call(async |client| client.acquire_vm(asked.clone()).await).await?;
    let lease = answer.lease.expect("an acquire gives a lease");
    if lease.receipt.is_none() {
        line.ledger.found(format!("{} was answered without its receipt", lease.name));
    }
    line.ledger.answered(&asked.request_id, &lease.name, &lease.vm, may_end);
    Ok(Kept { asked: asked.clone(), lease: lease.name, vm: lease.vm })
}

/// A preempted lease is its holder's still; calls on it have to wait.
fn preempted(error: &Error) -> bool {
    error.reason() == Some("LEASE_PREEMPTED")
}

async fn use_it(line: &Line, dice: &mut Dice, one: &Kept) {
    let ledger = &line.ledger;
    match dice.below(4) {
        0 | 1 => match ask(line, &one.asked, false).await {
            Ok(again) if again.lease == one.lease => ledger.count(Count::Replayed),
            Ok(again) => ledger.found(format!("{} became {} on a replay", one.lease, again.lease)),
            Err(error) if preempted(&error) => {}
            Err(error) => ledger.found(format!("a replay for {} failed: {error}", one.lease)),
        },
        2 => match line.call(async |client| client.renew_lease(&one.lease, None).await).await {
            Ok(_) => ledger.count(Count::Renewed),
            Err(error) if preempted(&error) => {}
            Err(error) => ledger.found(format!("{} can't be renewed: {error}", one.lease)),
        },
        _ => {
            for save in [true, false] {
                let moved =
                    line.call(async |client| {
                        if save { client.save_vm(&one.vm).await } else { client.resume_vm(&one.vm).await }
                    })
                    .await;
                match moved {
                    Ok(_) => ledger.count(Count::Moved),
                    // An earlier daemon made the move, and died before it said so; or it is preempted.
                    Err(error) if matches!(error.code(), Code::FailedPrecondition | Code::Aborted) => {}
                    Err(error) => ledger.found(format!("{} can't be moved: {error}", one.vm)),
                }
            }
        }
    }
}

async fn give_back(line: &Line, dice: &mut Dice, one: Kept) {
    let ledger = &line.ledger;
    ledger.gives_back(&one.lease);
    let policy = match dice.below(10) {
        0 => ReleasePolicy::Destroy,
        1 | 2 => ReleasePolicy::Keep,
        _ => ReleasePolicy::Reset,
    };
    match line.call(async |client| client.release_vm(&one.lease, policy).await).await {
        Ok(lease) if lease.state() == LeaseState::Released => ledger.count(Count::Released),
        Ok(lease) if lease.state() == LeaseState::Revoked && !lease.end_reason.is_empty() => {}
        Ok(lease) => {
            ledger.found(format!("{} ended as {:?}: {}", lease.name, lease.state(), lease.end_reason));
        }
        Err(error) => ledger.found(format!("{} can't be given back: {error}", one.lease)),
    }
    if dice.percent(20) {
        match ask(line, &one.asked, true).await {
            Err(error) if error.reason() == Some("LEASE_ENDED") => ledger.count(Count::Replayed),
            Ok(again) => {
                ledger.found(format!("{} was given back, its request gives {}", one.lease, again.lease));
            }
            Err(error) => ledger.found(format!("a replay for the ended {} failed: {error}", one.lease)),
        }
    }
}

/// Makes the pool larger, smaller, hotter, and pauses it; leaves it as it was.
pub(crate) async fn changer(line: Line, mut dice: Dice) {
    while !line.is_over() {
        let small = |dice: &mut Dice, limit| u32::try_from(dice.below(limit)).unwrap_or(0);
        let (desired, hot) = (6 + small(&mut dice, 5), small(&mut dice, 4));
        change(&line, desired, hot).await;
        if dice.percent(15) {
            for pause in [true, false] {
                let done = line
                    .call(async |client| {
                        if pause {
                            client.pause_pool("desks").await
                        } else {
                            client.resume_pool("desks").await
                        }
                    })
                    .await;
                if let Err(error) = done {
                    line.ledger.found(format!("the pool can't be paused or resumed: {error}"));
                }
            }
        }
        dice.pause(300).await;
    }
    change(&line, DESKS, 0).await;
}

async fn change(line: &Line, desired_count: u32, hot_count: u32) {
    let pool = Pool { name: "pools/desks".into(), desired_count, hot_count, ..Pool::default() };
    let paths = vec!["desired_count".to_owned(), "hot_count".to_owned()];
    let update = UpdatePoolRequest { pool: Some(pool), update_mask: Some(prost_types::FieldMask { paths }) };
    let changed = line
        .call(async |client| {
            let answer = client.pools().update_pool(update.clone()).await;
            answer.map(|answer| answer.into_inner()).map_err(Error::from)
        })
        .await;
    match changed {
        Ok(pool) if (pool.desired_count, pool.hot_count) == (desired_count, hot_count) => {
            line.ledger.count(Count::PoolsChanged);
        }
        Ok(pool) => line.ledger.found(format!("a change was answered with {pool:?}")),
        Err(error) => line.ledger.found(format!("the pool can't be changed: {error}")),
    }
}

/// Makes pools, takes from them, and deletes them with all they have.
pub(crate) async fn passing_pools(line: Line, mut dice: Dice) {
    let mut number = 0;
    while !line.is_over() {
        number += 1;
        let id = format!("passing-{number}");
        let pool = Pool { template: "templates/tiny".into(), desired_count: 2, ..Pool::default() };
        let create = CreatePoolRequest {
            pool_id: id.clone(),
            pool: Some(pool),
            request_id: uuid::Uuid::new_v4().to_string(),
        };
        let made = line
            .call(async |client| {
                let answer = client.pools().create_pool(create.clone()).await;
                answer.map(|answer| answer.into_inner()).map_err(Error::from)
            })
            .await;
        if let Err(error) = made {
            line.ledger.found(format!("{id} can't be made: {error}"));
            continue;
        }
        let one = acquire(&line, &mut dice, &format!("pools/{id}"), true).await;
        dice.pause(100).await;
        match line.call(async |client| client.delete_pool(&id, true).await).await {
            Ok(()) => line.ledger.count(Count::PassingPools),
            // The daemon that deleted it died before it said so.
            Err(error) if error.code() == Code::NotFound => line.ledger.count(Count::PassingPools),
            Err(error) => line.ledger.found(format!("{id} can't be deleted: {error}")),
        }
        if let Some(one) = one {
            // A daemon that finds a pool half deleted goes on with it after its start.
            let ended = async || {
                let lease = line.call(async |client| client.get_lease(&one.lease).await).await;
                lease.expect("a lease that was answered").end_time.is_some().then_some(())
            };
            until("the end of a lease whose pool is deleted", ended).await;
        }
        dice.pause(200).await;
    }
}
