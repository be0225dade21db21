//! Pools.

use std::ops::RangeInclusive;
use std::time::Duration;

use hvkube_proto::v1;

use super::{duration, lease, timestamp};
use crate::api::fields;
use crate::model::error::{Error, Result};
use crate::model::ids::PoolId;
use crate::model::lease::ReleasePolicy;
use crate::model::policy::MAX_VMS;
use crate::model::record::{PoolOptions, PoolSpec};
use crate::orchestrator::request::{Caller, CreatePool, UpdatePool};
use crate::orchestrator::view::{PoolView, Shortfall, ShortfallReason};

const TTL: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(24 * 3600);
const DEFAULT_TTL: Duration = Duration::from_secs(600);
const MAX_TTL: Duration = Duration::from_secs(24 * 3600);

const AGE: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(365 * 24 * 3600);

/// Fields that `UpdatePool` can change.
const UPDATABLE: [&str; 18] = [
    "display_name",
    "template",
    "desired_count",
    "warm_count",
    "hot_count",
    "max_per_host",
    "default_lease_ttl",
    "max_lease_ttl",
    "idle_floor",
    "idle_ceiling",
    "release_policy",
    "max_uses",
    "max_age",
    "surge",
    "max_unavailable",
    "max_leases_per_caller",
    "preemption",
    "labels",
];

pub(crate) fn create(caller: &Caller, request: &v1::CreatePoolRequest) -> Result<CreatePool> {
    let pool = fields::required("pool", request.pool.as_ref())?;
    let id = fields::id("pool_id", &request.pool_id)?;
    let template = fields::name("pool.template", "templates", &pool.template)?;
    let settings = Checked::of(pool)?;
    ordered(settings.default_ttl, settings.max_ttl)?;
    Ok(CreatePool {
        id,
        spec: PoolSpec {
            display_name: settings.display_name,
            template,
            desired: settings.desired,
            warm: settings.warm,
            max_per_host: settings.max_per_host,
            default_ttl: settings.default_ttl,
            max_ttl: settings.max_ttl,
            options: settings.options,
        },
        request: fields::request_id(caller, "CreatePool", request, |r| &mut r.request_id)?,
    })
}

pub(crate) fn update(request: &v1::UpdatePoolRequest) -> Result<(PoolId, Option<u64>, UpdatePool)> {
    let pool = fields::required("pool", request.pool.as_ref())?;
    let id = fields::name("pool.name", "pools", &pool.name)?;
    let etag = fields::etag(&pool.etag)?;
    let paths = request.update_mask.as_ref().map(|mask| mask.paths.as_slice()).unwrap_or_default();
    let mut chosen = Vec::new();
    for (i, path) in paths.iter().enumerate() {
        match UPDATABLE.iter().find(|known| *known == path) {
            Some(known) => chosen.push(*known),
            None if path == "*" && paths.len() == 1 => {}
            None => {
                let what =
                    format!("{:?} can't be updated; legal are {}", fields::cut(path), UPDATABLE.join(", "));
                return Err(Error::field(format!("update_mask.paths[{i}]"), what));
            }
        }
    }
    let settings = Checked::of(pool)?;
    let all = paths.iter().any(|path| path == "*");
    // Without a mask: what the message has.
    let present = |field: &str| match field {
        "display_name" => !pool.display_name.is_empty(),
        "template" => !pool.template.is_empty(),
        "desired_count" => pool.desired_count != 0,
        "warm_count" => pool.warm_count.is_some(),
        "max_per_host" => pool.max_per_host != 0,
        "default_lease_ttl" => pool.default_lease_ttl.is_some(),
        "max_lease_ttl" => pool.max_lease_ttl.is_some(),
        "hot_count" => pool.hot_count != 0,
        "idle_floor" => pool.idle_floor.is_some(),
        "idle_ceiling" => pool.idle_ceiling.is_some(),
        "release_policy" => pool.release_policy != 0,
        "max_uses" => pool.max_uses != 0,
        "max_age" => pool.max_age.is_some(),
        "surge" => pool.surge.is_some(),
        "max_unavailable" => pool.max_unavailable != 0,
        "max_leases_per_caller" => pool.max_leases_per_caller != 0,
        "preemption" => pool.preemption,
        _ => !pool.labels.is_empty(),
    };
    let wanted = |field| all || if paths.is_empty() { present(field) } else { chosen.contains(&field) };
    // To name all fields is how old clients change what they know; they do not know that it can change.
    let template = if wanted("template") && !(all && pool.template.is_empty()) {
        Some(fields::name("pool.template", "templates", &pool.template)?)
    } else {
        None
    };
    let options = settings.options;
    let update = UpdatePool {
        display_name: wanted("display_name").then_some(settings.display_name),
        template,
        desired: wanted("desired_count").then_some(settings.desired),
        warm: wanted("warm_count").then_some(settings.warm),
        max_per_host: wanted("max_per_host").then_some(settings.max_per_host),
        default_ttl: wanted("default_lease_ttl").then_some(settings.default_ttl),
        max_ttl: wanted("max_lease_ttl").then_some(settings.max_ttl),
        hot: wanted("hot_count").then_some(options.hot),
        idle_floor: wanted("idle_floor").then_some(options.idle_floor),
        idle_ceiling: wanted("idle_ceiling").then_some(options.idle_ceiling),
        release: wanted("release_policy").then_some(options.release),
        max_uses: wanted("max_uses").then_some(options.max_uses),
        max_age: wanted("max_age").then_some(options.max_age),
        surge: wanted("surge").then_some(options.surge),
        max_unavailable: wanted("max_unavailable").then_some(options.max_unavailable),
        max_leases_per_caller: wanted("max_leases_per_caller").then_some(options.max_leases_per_caller),
        preemption: wanted("preemption").then_some(options.preemption),
        labels: wanted("labels").then_some(options.labels),
    };
    if let (Some(default), Some(max)) = (update.default_ttl, update.max_ttl) {
        ordered(default, max)?;
    }
    Ok((id, etag, update))
}

fn ordered(default: Duration, max: Duration) -> Result<()> {
    if default > max {
        return Err(Error::field("pool.default_lease_ttl", "is longer than max_lease_ttl"));
    }
    Ok(())
}

/// The settings of a pool message, each inside its range.
struct Checked {
    display_name: String,
    desired: u32,
    warm: Option<u32>,
    max_per_host: u32,
    default_ttl: Duration,
    max_ttl: Duration,
    options: PoolOptions,
}

impl Checked {
    fn of(pool: &v1::Pool) -> Result<Self> {
        let display_name = fields::text("pool.display_name", &pool.display_name, fields::DISPLAY_NAME)?;
        let max_ttl = fields::duration("pool.max_lease_ttl", pool.max_lease_ttl, TTL)?.unwrap_or(MAX_TTL);
        let default_ttl = fields::duration("pool.default_lease_ttl", pool.default_lease_ttl, TTL)?;
        Ok(Self {
            display_name: display_name.to_owned(),
            desired: fields::range("pool.desired_count", pool.desired_count, 0..=MAX_VMS)?,
            warm: pool
                .warm_count
                .map(|warm| fields::range("pool.warm_count", warm, 0..=MAX_VMS))
                .transpose()?,
            max_per_host: fields::range("pool.max_per_host", pool.max_per_host, 0..=MAX_VMS)?,
            default_ttl: default_ttl.unwrap_or(DEFAULT_TTL.min(max_ttl)),
            max_ttl,
            options: options(pool)?,
        })
    }
}

fn options(pool: &v1::Pool) -> Result<PoolOptions> {
    let count = |field: &str, value| fields::range(&format!("pool.{field}"), value, 0..=MAX_VMS);
    let optional = |field: &str, value: Option<u32>| value.map(|value| count(field, value)).transpose();
    let default = PoolOptions::default();
    Ok(PoolOptions {
        hot: count("hot_count", pool.hot_count)?,
        idle_floor: optional("idle_floor", pool.idle_floor)?,
        idle_ceiling: optional("idle_ceiling", pool.idle_ceiling)?,
        release: lease::policy("pool.release_policy", pool.release_policy)?.unwrap_or(default.release),
        max_uses: pool.max_uses,
        max_age: fields::duration("pool.max_age", pool.max_age, AGE)?,
        surge: optional("surge", pool.surge)?.unwrap_or(default.surge),
        max_unavailable: count("max_unavailable", pool.max_unavailable)?,
        max_leases_per_caller: count("max_leases_per_caller", pool.max_leases_per_caller)?,
        preemption: pool.preemption,
        labels: super::labels("pool.labels", &pool.labels)?,
    })
}

fn shortfall(one: &Shortfall) -> v1::PoolShortfall {
    use v1::PoolShortfallReason as To;
    let reason = match one.reason {
        ShortfallReason::Paused => To::Paused,
        ShortfallReason::TemplateNotReady => To::TemplateNotReady,
        ShortfallReason::TemplateFails => To::TemplateFails,
        ShortfallReason::MaxPerHost => To::MaxPerHost,
        ShortfallReason::HostMemory => To::HostMemory,
        ShortfallReason::InProgress => To::InProgress,
        ShortfallReason::Strayed => To::Strayed,
    };
    v1::PoolShortfall { reason: reason.into(), count: one.count, detail: one.detail.clone() }
}

pub(crate) fn to_proto(view: &PoolView) -> v1::Pool {
    let (pool, spec, status) = (&view.pool, &view.pool.spec, &view.status);
    let options = &spec.options;
    v1::Pool {
        name: format!("pools/{}", pool.id),
        uid: pool.uid.to_string(),
        display_name: spec.display_name.clone(),
        template: format!("templates/{}", spec.template),
        desired_count: spec.desired,
        warm_count: spec.warm,
        max_per_host: spec.max_per_host,
        default_lease_ttl: Some(duration(spec.default_ttl)),
        max_lease_ttl: Some(duration(spec.max_ttl)),
        status: Some(v1::PoolStatus {
            total: status.total,
            warm: status.warm,
            leased: status.leased,
            in_transition: status.in_transition,
            quarantined: status.quarantined,
            error: status.error,
            waiting: status.waiting,
            reason: status.reason.clone(),
            vms: status.vms.iter().map(|vm| format!("vms/{vm}")).collect(),
            hot: status.hot,
            suspended: status.suspended,
            outdated: status.outdated,
            strayed: status.strayed,
            shortfalls: status.shortfalls.iter().map(shortfall).collect(),
        }),
        create_time: Some(timestamp(pool.created)),
        update_time: Some(timestamp(pool.updated)),
        etag: pool.version.to_string(),
        hot_count: options.hot,
        idle_floor: options.idle_floor,
        idle_ceiling: options.idle_ceiling,
        release_policy: match options.release {
            ReleasePolicy::Reset => v1::ReleasePolicy::Reset,
            ReleasePolicy::Keep => v1::ReleasePolicy::Keep,
            ReleasePolicy::Destroy => v1::ReleasePolicy::Destroy,
        }
        .into(),
        max_uses: options.max_uses,
        max_age: options.max_age.map(duration),
        surge: Some(options.surge),
        max_unavailable: options.max_unavailable,
        max_leases_per_caller: options.max_leases_per_caller,
        preemption: options.preemption,
        labels: options.labels.clone(),
        paused: pool.paused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> v1::Pool {
        v1::Pool {
            name: "pools/web".into(),
            template: "templates/debian".into(),
            desired_count: 2,
            ..Default::default()
        }
    }

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    #[test]
    fn refusals_name_their_field() {
        type Change = fn(&mut v1::CreatePoolRequest, &mut v1::Pool);
        let cases: &[(&str, Change)] = &[
            ("pool_id", |r, _| r.pool_id = "-".into()),
            ("request_id", |r, _| r.request_id = "no".into()),
            ("pool.template", |_, p| p.template.clear()),
            ("pool.template", |_, p| p.template = "pools/a1".into()),
            ("pool.display_name", |_, p| p.display_name = "x".repeat(200)),
            ("pool.desired_count", |_, p| p.desired_count = 10_001),
            ("pool.warm_count", |_, p| p.warm_count = Some(10_001)),
            ("pool.max_per_host", |_, p| p.max_per_host = u32::MAX),
            ("pool.default_lease_ttl", |_, p| p.default_lease_ttl = seconds(9)),
            ("pool.max_lease_ttl", |_, p| p.max_lease_ttl = seconds(-1)),
            ("pool.hot_count", |_, p| p.hot_count = 10_001),
            ("pool.idle_floor", |_, p| p.idle_floor = Some(u32::MAX)),
            ("pool.idle_ceiling", |_, p| p.idle_ceiling = Some(10_001)),
            ("pool.release_policy", |_, p| p.release_policy = 9),
            ("pool.max_age", |_, p| p.max_age = seconds(59)),
            ("pool.surge", |_, p| p.surge = Some(10_001)),
            ("pool.max_unavailable", |_, p| p.max_unavailable = 10_001),
            ("pool.max_leases_per_caller", |_, p| p.max_leases_per_caller = 10_001),
            ("pool.labels", |_, p| p.labels = [("k".into(), String::new())].into()),
            ("pool.labels", |_, p| p.labels = (0..17).map(|n| (n.to_string(), "v".into())).collect()),
            ("pool.default_lease_ttl", |_, p| {
                p.default_lease_ttl = seconds(60);
                p.max_lease_ttl = seconds(30);
            }),
        ];
        for (field, change) in cases {
            let mut request = v1::CreatePoolRequest { pool_id: "web".into(), ..Default::default() };
            let mut pool = pool();
            change(&mut request, &mut pool);
            request.pool = Some(pool);
            let error = create(&Caller::admin(), &request).expect_err(field);
            assert_eq!(error.violations[0].field, *field, "{error}");
        }
    }

    #[test]
    fn a_default_never_exceeds_the_maximum() {
        let pool = v1::Pool { max_lease_ttl: seconds(30), ..pool() };
        let request = v1::CreatePoolRequest { pool: Some(pool), ..Default::default() };
        let made = create(&Caller::admin(), &request).expect("legal");
        assert_eq!(made.spec.default_ttl, Duration::from_secs(30));
    }

    #[test]
    fn a_mask_chooses_what_changes() {
        let of = |paths: &[&str]| {
            let paths = paths.iter().map(|p| (*p).to_owned()).collect();
            let mask = Some(prost_types::FieldMask { paths });
            update(&v1::UpdatePoolRequest { pool: Some(pool()), update_mask: mask })
        };
        let (id, etag, one) = of(&["desired_count"]).expect("legal");
        assert_eq!((id.as_str(), etag, one.desired, one.warm), ("web", None, Some(2), None));
        let (_, _, all) = of(&["*"]).expect("legal");
        assert_eq!((all.desired, all.warm, all.default_ttl), (Some(2), Some(None), Some(DEFAULT_TTL)));
        let (_, _, present) = of(&[]).expect("legal");
        assert_eq!((present.desired, present.warm, present.default_ttl), (Some(2), None, None));
        for (paths, field) in [
            (&["desired_count", "size"][..], "update_mask.paths[1]"),
            (&["uid"], "update_mask.paths[0]"),
            (&["desired_count", "*"], "update_mask.paths[1]"),
        ] {
            let error = of(paths).expect_err("refused");
            assert_eq!(error.violations[0].field, field);
        }
        let nameless = v1::Pool { name: String::new(), ..pool() };
        let request = v1::UpdatePoolRequest { pool: Some(nameless), update_mask: None };
        assert_eq!(update(&request).expect_err("refused").violations[0].field, "pool.name");
    }
}
