//! What a run is made of, and how it is drawn.
//!
//! Operations name what they are about by a number, which is counted round among those that there are when the turn comes.
//! So a list that was made shorter still means something, and reads as one.

use proptest::prelude::*;

use crate::hypervisor::sim::Fault;
use crate::model::lease::ReleasePolicy;

/// One step: an operation, and how much the daemon gets done before the next one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) op: Op,
    /// Polls of the daemon's tasks, about.
    pub(super) polls: u16,
}

/// Polls after which a caller goes away, if they do.
pub(super) type Leaves = Option<u16>;

#[derive(Debug, Clone, Copy)]
pub(super) enum Op {
    Acquire(Ask),
    /// An earlier acquire once more, with its request id.
    Repeat {
        ask: u8,
        leaves: Leaves,
    },
    Renew {
        lease: u8,
    },
    Release {
        lease: u8,
        policy: Option<ReleasePolicy>,
    },
    /// The holder types on the desktop.
    Type {
        lease: u8,
    },
    Move {
        vm: u8,
        to: To,
        leaves: Leaves,
    },
    Checkpoint {
        vm: u8,
        name: u8,
        leaves: Leaves,
    },
    Restore {
        vm: u8,
        name: u8,
    },
    DropCheckpoint {
        vm: u8,
        name: u8,
    },
    Fork {
        vm: u8,
        name: u8,
        leaves: Leaves,
    },
    MakePool {
        pool: u8,
        shape: Shape,
    },
    Reshape {
        pool: u8,
        shape: Shape,
    },
    Pause {
        pool: u8,
        paused: bool,
    },
    DropPool {
        pool: u8,
        force: bool,
    },
    MakeTemplate {
        leaves: Leaves,
    },
    DropTemplate,
    /// No operation that prepares a template goes on.
    GiveUpTemplate,
    Submit {
        pool: u8,
        priority: i8,
        task: Task,
    },
    Claim {
        leaves: Leaves,
    },
    Report {
        claim: u8,
    },
    Complete {
        claim: u8,
        how: How,
    },
    Cancel {
        agent: u8,
    },
    Fail {
        fault: Fault,
        times: u8,
    },
    Kill {
        vm: u8,
    },
    ShutDown {
        vm: u8,
    },
    Hang {
        vm: u8,
    },
    Vanish {
        vm: u8,
    },
    Corrupt {
        vm: u8,
    },
    /// A VM with our marker that no row knows.
    Stranger,
    /// All that is under way comes to its end.
    Settle,
    /// The daemon dies now. `in_start`: the next one too, after so many polls.
    Crash {
        in_start: Option<u16>,
    },
    /// The daemon dies in a call of the hypervisor, before or after its effect, or when none comes.
    CrashInCall {
        skip: u8,
        done: bool,
    },
    /// The daemon stops in order and starts again.
    Restart,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    pub(super) pool: Option<u8>,
    pub(super) who: u8,
    pub(super) priority: i8,
    /// Waits up to so many milliseconds.
    pub(super) wait: u16,
    /// The lease lives only for some milliseconds.
    pub(super) brief: bool,
    pub(super) leaves: Leaves,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum To {
    Start,
    Resume,
    Save,
    Pause,
    Stop,
    Off,
    Reset,
    Gone { force: bool },
}

/// Settings of a pool.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) desired: u8,
    pub(super) hot: u8,
    pub(super) warm: Option<u8>,
    pub(super) cap: u8,
    pub(super) floor: Option<u8>,
    pub(super) quota: u8,
    pub(super) max_uses: u8,
    pub(super) release: ReleasePolicy,
    pub(super) preemption: bool,
    /// Of the second template, if that is there.
    pub(super) second: bool,
}

/// What an agent is to do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Task {
    /// For a worker.
    Outside,
    /// A program in the guest that repeats its input.
    Echo,
    /// One that takes its time.
    Sleep,
    /// One that fails.
    Fail,
}

/// How a worker ends an agent.
#[derive(Debug, Clone, Copy)]
pub(super) enum How {
    Done,
    Failed,
    Again,
}

fn policy() -> impl Strategy<Value = ReleasePolicy> {
    prop_oneof![4 => Just(ReleasePolicy::Reset), 1 => Just(ReleasePolicy::Keep), 1 => Just(ReleasePolicy::Destroy)]
}

fn leaves() -> impl Strategy<Value = Leaves> {
    prop_oneof![3 => Just(None), 1 => (0u16..40).prop_map(Some), 1 => (40u16..2000).prop_map(Some)]
}

fn ask() -> impl Strategy<Value = Ask> {
    let wait = prop_oneof![1 => Just(0u16), 4 => 20u16..300];
    (prop::option::weighted(0.9, pool()), 0u8..3, -1i8..3, wait, prop::bool::weighted(0.15), leaves())
        .prop_map(|(pool, who, priority, wait, brief, leaves)| Ask {
            pool,
            who,
            priority,
            wait,
            brief,
            leaves,
        })
}

fn to() -> impl Strategy<Value = To> {
    prop_oneof![
        1 => Just(To::Start),
        2 => Just(To::Resume),
        2 => Just(To::Save),
        1 => Just(To::Pause),
        1 => Just(To::Stop),
        1 => Just(To::Off),
        2 => Just(To::Reset),
        1 => any::<bool>().prop_map(|force| To::Gone { force }),
    ]
}

fn shape() -> impl Strategy<Value = Shape> {
    let counts =
        (1u8..5, 0u8..3, prop::option::weighted(0.2, 0u8..3), 0u8..6, prop::option::weighted(0.15, 0u8..2));
    let rules = (0u8..3, 0u8..3, policy(), any::<bool>(), any::<bool>());
    (counts, rules).prop_map(
        |((desired, hot, warm, cap, floor), (quota, max_uses, release, preemption, second))| Shape {
            desired,
            hot,
            warm,
            cap,
            floor,
            quota,
            max_uses,
            release,
            preemption,
            second,
        },
    )
}

fn task() -> impl Strategy<Value = Task> {
    prop_oneof![3 => Just(Task::Outside), 2 => Just(Task::Echo), 1 => Just(Task::Sleep), 1 => Just(Task::Fail)]
}

fn how() -> impl Strategy<Value = How> {
    prop_oneof![2 => Just(How::Done), 1 => Just(How::Failed), 1 => Just(How::Again)]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop::sample::select(Fault::ALL.map(|(_, fault)| fault).to_vec())
}

/// Mostly the one that every run begins with.
fn pool() -> impl Strategy<Value = u8> {
    prop_oneof![4 => Just(0u8), 1 => Just(1u8)]
}

fn n() -> impl Strategy<Value = u8> {
    0u8..8
}

fn op() -> impl Strategy<Value = Op> {
    let leases = prop_oneof![
        10 => ask().prop_map(Op::Acquire),
        2 => (n(), leaves()).prop_map(|(ask, leaves)| Op::Repeat { ask, leaves }),
        1 => n().prop_map(|lease| Op::Renew { lease }),
        6 => (n(), prop::option::weighted(0.7, policy())).prop_map(|(lease, policy)| Op::Release { lease, policy }),
        3 => n().prop_map(|lease| Op::Type { lease }),
    ];
    let vms = prop_oneof![
        6 => (n(), to(), leaves()).prop_map(|(vm, to, leaves)| Op::Move { vm, to, leaves }),
        1 => (n(), 0u8..2, leaves()).prop_map(|(vm, name, leaves)| Op::Checkpoint { vm, name, leaves }),
        1 => (n(), 0u8..3).prop_map(|(vm, name)| Op::Restore { vm, name }),
        1 => (n(), 0u8..2).prop_map(|(vm, name)| Op::DropCheckpoint { vm, name }),
        1 => (n(), 0u8..3, leaves()).prop_map(|(vm, name, leaves)| Op::Fork { vm, name, leaves }),
    ];
    let pools = prop_oneof![
        4 => (pool(), shape()).prop_map(|(pool, shape)| Op::MakePool { pool, shape }),
        8 => (pool(), shape()).prop_map(|(pool, shape)| Op::Reshape { pool, shape }),
        2 => (pool(), prop::bool::weighted(0.3)).prop_map(|(pool, paused)| Op::Pause { pool, paused }),
        1 => (0u8..2, any::<bool>()).prop_map(|(pool, force)| Op::DropPool { pool, force }),
        2 => leaves().prop_map(|leaves| Op::MakeTemplate { leaves }),
        1 => Just(Op::DropTemplate),
        1 => Just(Op::GiveUpTemplate),
    ];
    let agents = prop_oneof![
        4 => (pool(), -1i8..3, task()).prop_map(|(pool, priority, task)| Op::Submit { pool, priority, task }),
        3 => leaves().prop_map(|leaves| Op::Claim { leaves }),
        2 => n().prop_map(|claim| Op::Report { claim }),
        3 => (n(), how()).prop_map(|(claim, how)| Op::Complete { claim, how }),
        1 => n().prop_map(|agent| Op::Cancel { agent }),
    ];
    let world = prop_oneof![
        6 => (fault(), 1u8..3).prop_map(|(fault, times)| Op::Fail { fault, times }),
        2 => n().prop_map(|vm| Op::Kill { vm }),
        1 => n().prop_map(|vm| Op::ShutDown { vm }),
        1 => n().prop_map(|vm| Op::Hang { vm }),
        1 => n().prop_map(|vm| Op::Vanish { vm }),
        2 => n().prop_map(|vm| Op::Corrupt { vm }),
        1 => Just(Op::Stranger),
    ];
    let daemon = prop_oneof![
        4 => Just(Op::Settle),
        4 => prop::option::weighted(0.3, 0u16..3000).prop_map(|in_start| Op::Crash { in_start }),
        2 => (0u8..3, any::<bool>()).prop_map(|(skip, done)| Op::CrashInCall { skip, done }),
        1 => Just(Op::Restart),
    ];
    prop_oneof![36 => leases, 16 => vms, 12 => pools, 14 => agents, 10 => world, 9 => daemon]
}

/// Lists of steps, up to so many.
pub(super) fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let polls = prop_oneof![2 => 0u16..20, 3 => 20u16..300, 2 => 300u16..2000];
    prop::collection::vec((op(), polls).prop_map(|(op, polls)| Step { op, polls }), 1..=most)
}
