//! Who gets the next VM of a pool, as pure data.
//!
//! Everybody who waits has a *due* time, given once and never changed: who is due first is served first.
//!
//! ```text
//!   due = when they came  -  priority x step  +  step x r / (r + 1)
//! ```
//!
//! `r` is how many of the same caller and priority waited already. So a point of priority is worth one step of waiting,
//! which is the ageing: nobody waits for ever behind later, more important ones. The last term is below one step: among
//! equals, callers take turns, and one who asks for a hundred stands before nobody's first; it never outweighs a point of
//! priority. Whoever got a VM that was no good comes back with their old due time.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use crate::model::ids::TemplateId;

/// Lowest and highest priority.
pub const PRIORITIES: std::ops::RangeInclusive<i32> = -100..=100;

/// What somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Who.
    pub caller: String,
    /// Higher ones are served earlier.
    pub priority: i32,
    /// What the VM must be.
    pub needs: Needs,
}

/// What a VM must be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// It has a share of a GPU.
    pub gpu: bool,
    /// It is of this template: while a pool changes its template, it has VMs of both.
    pub template: Option<TemplateId>,
}

impl Needs {
    /// Whether a VM will do.
    #[must_use]
    pub fn fits(&self, template: &TemplateId, gpu: bool) -> bool {
        (gpu || !self.gpu) && self.template.as_ref().is_none_or(|wanted| wanted == template)
    }
}

/// A place in a queue. The smaller one is served first; no two are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    due: i64,
    number: u64,
}

/// A queue of those who wait, each with something of its own. Times are microseconds of any clock that never goes back.
#[derive(Debug)]
pub struct Queue<T> {
    step: i64,
    next: u64,
    waiting: BTreeMap<Place, (Wish, T)>,
    /// How many wait, by caller and priority.
    held: HashMap<(String, i32), i64>,
}

impl<T> Queue<T> {
    /// An empty one. `step`: how much waiting a point of priority is worth.
    #[must_use]
    pub fn new(step: Duration) -> Self {
        let step = i64::try_from(step.as_micros()).unwrap_or(i64::MAX / 1000).clamp(1, i64::MAX / 1000);
        Self { step, next: 0, waiting: BTreeMap::new(), held: HashMap::new() }
    }

    /// Somebody comes.
    pub fn enter(&mut self, now: i64, wish: Wish, what: T) -> Place {
        let before = self.held.get(&(wish.caller.clone(), wish.priority)).copied().unwrap_or_default();
        let turn = i128::from(self.step) * i128::from(before) / (i128::from(before) + 1);
        let worth = i64::from(wish.priority).saturating_mul(self.step);
        let due = now.saturating_sub(worth).saturating_add(i64::try_from(turn).unwrap_or(0));
        let place = Place { due, number: self.next };
        self.next += 1;
        self.again(place, wish, what);
        place
    }

    /// Somebody comes back to the place they had.
    pub fn again(&mut self, place: Place, wish: Wish, what: T) {
        *self.held.entry((wish.caller.clone(), wish.priority)).or_default() += 1;
        self.waiting.insert(place, (wish, what));
    }

    /// Somebody is served, or goes away.
    pub fn leave(&mut self, place: Place) -> Option<(Wish, T)> {
        let (wish, what) = self.waiting.remove(&place)?;
        let key = (wish.caller.clone(), wish.priority);
        if let Some(held) = self.held.get_mut(&key) {
            *held -= 1;
            if *held <= 0 {
                self.held.remove(&key);
            }
        }
        Some((wish, what))
    }

    /// Those who wait, in the order they are served.
    pub fn iter(&self) -> impl Iterator<Item = (Place, &Wish, &T)> {
        self.waiting.iter().map(|(place, (wish, what))| (*place, wish, what))
    }

    /// How many are served before this place; nothing when nobody stands there.
    #[must_use]
    pub fn ahead(&self, place: Place) -> Option<usize> {
        self.waiting.contains_key(&place).then(|| self.waiting.range(..place).count())
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Sends everybody away.
    pub fn clear(&mut self) -> Vec<T> {
        self.held.clear();
        std::mem::take(&mut self.waiting).into_values().map(|(_, what)| what).collect()
    }
}

/// How often VMs come free, from the last few times it happened.
#[derive(Debug, Default)]
pub struct Rate(VecDeque<i64>);

/// Times kept: enough to level out a burst, few enough to follow a change.
const TIMES: usize = 16;

impl Rate {
    /// A VM came free.
    pub fn came(&mut self, now: i64) {
        if self.0.len() == TIMES {
            self.0.pop_front();
        }
        self.0.push_back(now);
    }

    /// When the next but `ahead` VM is likely to come; nothing where nothing is known.
    #[must_use]
    pub fn eta(&self, now: i64, ahead: usize) -> Option<Duration> {
        let (first, last) = (*self.0.front()?, *self.0.back()?);
        let gaps = i64::try_from(self.0.len()).ok()? - 1;
        if gaps < 1 {
            return None;
        }
        let quiet = now.saturating_sub(last).max(0);
        let gap = last.saturating_sub(first).max(0) / gaps;
        // A stream that has dried up is slower than it was: whatever is late is that late once more.
        let next = if quiet < gap { gap - quiet } else { quiet / 2 };
        let each = gap.max(quiet / 2);
        let until = next.saturating_add(each.saturating_mul(i64::try_from(ahead).ok()?));
        Some(Duration::from_micros(u64::try_from(until).unwrap_or(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STEP: Duration = Duration::from_secs(30);
    const SECOND: i64 = 1_000_000;

    fn wish(caller: &str, priority: i32) -> Wish {
        Wish { caller: caller.to_owned(), priority, needs: Needs::default() }
    }

    fn order(queue: &Queue<&'static str>) -> Vec<&'static str> {
        queue.iter().map(|(_, _, what)| *what).collect()
    }

    #[test]
    fn the_important_go_first_and_equals_in_the_order_they_came() {
        let mut queue = Queue::new(STEP);
        for (caller, priority, name) in [("a", 0, "1"), ("b", 5, "2"), ("c", 0, "3"), ("d", 5, "4")] {
            queue.enter(0, wish(caller, priority), name);
        }
        assert_eq!(order(&queue), ["2", "4", "1", "3"]);
    }

    #[test]
    fn callers_take_turns() {
        let mut queue = Queue::new(STEP);
        for name in ["a1", "a2", "a3"] {
            queue.enter(0, wish("a", 0), name);
        }
        queue.enter(SECOND, wish("b", 0), "b1");
        queue.enter(SECOND, wish("b", 0), "b2");
        assert_eq!(order(&queue), ["a1", "b1", "a2", "b2", "a3"]);
    }

    #[test]
    fn who_has_waited_long_enough_goes_before_the_important() {
        let mut queue = Queue::new(STEP);
        queue.enter(0, wish("a", 0), "old");
        queue.enter(299 * SECOND, wish("b", 10), "before");
        queue.enter(301 * SECOND, wish("b", 10), "after");
        assert_eq!(order(&queue), ["before", "old", "after"]);
    }

    #[test]
    fn an_eta_follows_how_often_vms_come() {
        let mut rate = Rate::default();
        assert_eq!(rate.eta(0, 0), None);
        for second in 0..5 {
            rate.came(second * 10 * SECOND);
        }
        assert_eq!(rate.eta(40 * SECOND, 0), Some(Duration::from_secs(10)));
        assert_eq!(rate.eta(45 * SECOND, 2), Some(Duration::from_secs(25)));
        // Nothing came for long: it is not about to, not for the first in the queue either.
        assert!(rate.eta(140 * SECOND, 3) > rate.eta(45 * SECOND, 3));
        let of = |ahead| rate.eta(140 * SECOND, ahead).expect("known").as_secs();
        assert_eq!((of(0), of(1), of(2)), (50, 100, 150));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Enter { caller: u8, priority: i32, later: u32 },
        Serve,
        Leave(usize),
        Back,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0u8..4, PRIORITIES, 0u32..5_000_000)
                .prop_map(|(caller, priority, later)| Step::Enter { caller, priority, later }),
            2 => Just(Step::Serve),
            1 => (0usize..20).prop_map(Step::Leave),
            1 => Just(Step::Back),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn nobody_is_lost_doubled_or_overtaken_unfairly(steps in steps()) {
            let mut queue: Queue<u64> = Queue::new(STEP);
            let (mut now, mut name) = (0i64, 0u64);
            let mut there: HashMap<u64, (Place, Wish, i64)> = HashMap::new();
            let mut last: Option<(Place, Wish, u64, i64)> = None;
            for step in steps {
                match step {
                    Step::Enter { caller, priority, later } => {
                        now += i64::from(later);
                        let wish = wish(&caller.to_string(), priority);
                        let before: Vec<u64> = queue.iter().map(|(_, _, what)| *what).collect();
                        let place = queue.enter(now, wish.clone(), name);
                        // A newcomer never goes before one who is as important, or less so but aged enough.
                        for (ahead, (_, _, what)) in queue.iter().enumerate() {
                            if *what == name { break }
                            prop_assert_eq!(before[ahead], *what);
                        }
                        let behind = queue.iter().skip_while(|(_, _, what)| **what != name).skip(1);
                        for (_, other, what) in behind {
                            let came = there[what].2;
                            let worth = i64::from(priority - other.priority + 1) * 30 * SECOND;
                            prop_assert!(now - came <= worth, "overtaken after its time");
                        }
                        there.insert(name, (place, wish, now));
                        name += 1;
                    }
                    Step::Serve => {
                        let first = queue.iter().next().map(|(place, _, _)| place);
                        if let Some(place) = first {
                            let (wish, what) = queue.leave(place).expect("stands there");
                            let (_, _, came) = there.remove(&what).expect("known");
                            last = Some((place, wish, what, came));
                        }
                    }
                    Step::Leave(at) => {
                        let place = queue.iter().nth(at).map(|(place, _, _)| place);
                        if let Some(place) = place {
                            let (_, what) = queue.leave(place).expect("stands there");
                            there.remove(&what);
                            prop_assert!(queue.leave(place).is_none());
                            prop_assert_eq!(queue.ahead(place), None);
                        }
                    }
                    Step::Back => {
                        if let Some((place, wish, what, came)) = last.take() {
                            queue.again(place, wish.clone(), what);
                            // Whoever comes back stands before all who stood behind them.
                            let ahead = queue.ahead(place).expect("stands there");
                            prop_assert!(queue.iter().take(ahead).all(|(other, _, _)| other < place));
                            there.insert(what, (place, wish, came));
                        }
                    }
                }
                prop_assert_eq!(queue.len(), there.len());
                for (at, (place, _, what)) in queue.iter().enumerate() {
                    prop_assert_eq!(queue.ahead(place), Some(at));
                    prop_assert_eq!(there[what].0, place);
                }
            }
            let waiting: i64 = queue.held.values().sum();
            prop_assert_eq!(waiting, i64::try_from(queue.len()).expect("small"));
            queue.clear();
            prop_assert!(queue.is_empty());
        }
    }
}
