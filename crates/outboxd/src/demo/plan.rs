//! What the shop will do, decided before it opens: a pure function of the seed.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// One in so many transactions is rolled back.
const ROLLED_BACK_ONE_IN: u32 = 10;

/// Of ten orders, so many are paid while the shop is open.
const PAID_OF_TEN: u32 = 4;

/// Of a hundred orders, how many each act gets. The last act's come while the poison message is parked.
const SHARES: [u32; 4] = [30, 35, 25, 10];

/// One business transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transaction {
    /// The order that it is about.
    pub(crate) order: i64,
    /// What happens to it.
    pub(crate) step: Step,
    /// How it ends.
    pub(crate) ending: Ending,
}

/// What happens to an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is placed: one intent for the order, one for its payment.
    Place {
        /// What it costs.
        cents: i64,
    },
    /// It is paid.
    Pay,
    /// It is shipped.
    Ship,
    /// It has arrived.
    Deliver,
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It is committed.
    Commit,
    /// It is rolled back after its intents were written.
    RollBack,
}

/// What the shop does in each act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The first order, which finds every connection closed.
    pub(crate) first: Transaction,
    /// Business as usual.
    pub(crate) usual: Vec<Transaction>,
    /// While the relay is killed.
    pub(crate) killed: Vec<Transaction>,
    /// While the broker is away.
    pub(crate) away: Vec<Transaction>,
    /// The order that will have a poison message, as it is placed.
    pub(crate) placed: Transaction,
    /// The transaction whose one message is refused.
    pub(crate) poison: Transaction,
    /// What follows it, of its own key.
    pub(crate) followers: Vec<Transaction>,
    /// Other people's orders meanwhile.
    pub(crate) others: Vec<Transaction>,
}

impl Plan {
    /// What so many orders do with this seed.
    pub(crate) fn new(orders: u32, seed: u64) -> Self {
        let mut shop = Planner { rng: StdRng::seed_from_u64(seed), next: 1, open: Vec::new() };
        let first = shop.place(Ending::Commit);
        let [usual, killed, away, others] = SHARES.map(|share| shop.trade((orders * share / 100).max(1)));
        let placed = shop.place(Ending::Commit);
        let later = |step| Transaction { order: placed.order, step, ending: Ending::Commit };
        let (poison, followers) = (later(Step::Pay), vec![later(Step::Ship), later(Step::Deliver)]);
        Self { first, usual, killed, away, placed, poison, followers, others }
    }
}

struct Planner {
    rng: StdRng,
    next: i64,
    /// Orders that were placed and not yet paid.
    open: Vec<i64>,
}

impl Planner {
    fn trade(&mut self, orders: u32) -> Vec<Transaction> {
        let mut transactions = Vec::new();
        for _ in 0..orders {
            let ending = self.ending();
            let placed = self.place(ending);
            if ending == Ending::Commit {
                self.open.push(placed.order);
            }
            transactions.push(placed);
            if self.rng.random_range(0..10) < PAID_OF_TEN && !self.open.is_empty() {
                let order = self.open[self.rng.random_range(0..self.open.len())];
                let ending = self.ending();
                if ending == Ending::Commit {
                    self.open.retain(|open| *open != order);
                }
                transactions.push(Transaction { order, step: Step::Pay, ending });
            }
        }
        transactions
    }

    fn place(&mut self, ending: Ending) -> Transaction {
        let order = self.next;
        self.next += 1;
        Transaction { order, step: Step::Place { cents: self.rng.random_range(500..20_000) }, ending }
    }

    fn ending(&mut self) -> Ending {
        if self.rng.random_range(0..ROLLED_BACK_ONE_IN) == 0 { Ending::RollBack } else { Ending::Commit }
    }
}

impl Step {
    /// How many intents it writes.
    pub(crate) fn intents(self) -> u64 {
        match self {
            Self::Place { .. } => 2,
            Self::Pay | Self::Ship | Self::Deliver => 1,
        }
    }
}

/// How many intents these transactions leave behind.
pub(crate) fn committed_intents(transactions: &[Transaction]) -> u64 {
    let committed = transactions.iter().filter(|transaction| transaction.ending == Ending::Commit);
    committed.map(|transaction| transaction.step.intents()).sum()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_same_seed_plans_the_same_day_and_another_seed_another_one() {
        assert_eq!(Plan::new(500, 7), Plan::new(500, 7));
        assert_ne!(Plan::new(500, 7), Plan::new(500, 8));
    }

    #[test]
    fn nothing_happens_to_an_order_that_was_not_placed() {
        let plan = Plan::new(2_000, 1);
        let mut placed = HashSet::new();
        let last = vec![plan.placed, plan.poison];
        let all = [vec![plan.first], plan.usual, plan.killed, plan.away, plan.others, last, plan.followers]
            .concat();
        for transaction in &all {
            let (order, ending) = (transaction.order, transaction.ending);
            match transaction.step {
                Step::Place { .. } if ending == Ending::Commit => {
                    assert!(placed.insert(order), "{order} twice");
                }
                Step::Place { .. } => {}
                Step::Pay | Step::Ship | Step::Deliver => {
                    assert!(placed.contains(&order), "{order} is not there");
                }
            }
        }
        let rolled_back = all.iter().filter(|transaction| transaction.ending == Ending::RollBack).count();
        assert!(
            rolled_back > all.len() / 20 && rolled_back < all.len() / 5,
            "{rolled_back} of {}",
            all.len()
        );
    }
}
