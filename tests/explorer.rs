//! The dispatch cursor against every way in which transactions can overlap.
//!
//! Writers are programs of single steps; so is the relay: a page, a settle anywhere in what is in flight, a restart from the
//! stored cursor, a purge. An interleaving of such programs is run step by step against a real server through the real
//! adapter, then everything open is committed, the outbox is drained, and the checker asks what promises D1, D2 and D3 ask:
//! nothing lost, nothing invented, nothing twice unless it was unsettled when the relay restarted, and first copies in the
//! order in which their writers were serialised.
//!
//! Small programs are explored systematically, larger ones at random from a seed. And because a checker that never
//! objects proves nothing, each rule of the cursor is broken once and must be caught.
//!
//! `OUTBOXD_EXPLORER_SECONDS` sets how long each of the two explorations takes (30 by default).

mod check;
mod program;
mod rule;
mod world;

use std::time::Duration;

use outboxd_testkit::postgres::{Options, Server};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use check::Violation;
use program::{Act, Case, Programs};
use rule::Rule;
use world::World;

/// How long a broken rule may stay undiscovered.
const MUTATION_LIMIT: Duration = Duration::from_secs(60);

/// An exploration of less says nothing.
const CASES_MIN: u64 = 200;

/// Replays that a reproduction may take to become short.
const SHRINK_REPLAYS_MAX: usize = 300;

fn exploration_time() -> Duration {
    #[expect(clippy::disallowed_methods, reason = "a test's own knob, no configuration of the relay")]
    let seconds = std::env::var("OUTBOXD_EXPLORER_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(30))
}

/// A server of our own: other tests' transactions would move the snapshots, and `autovacuum` too.
async fn server() -> Server {
    let options = Options::default().setting("autovacuum", "off").setting("synchronous_commit", "off");
    Server::start(options).await.expect("start PostgreSQL")
}

/// Runs cases one after the other, each going on where the last one came to rest.
struct Explorer {
    world: World,
    cases: u64,
    pages: u64,
}

impl Explorer {
    async fn new(server: &Server, rule: Rule) -> Self {
        let world = World::create(&server.url("postgres"), rule).await.expect("set up an outbox");
        Self { world, cases: 0, pages: 0 }
    }

    /// `Some`: the violation, and how to reproduce it.
    async fn run(&mut self, case: &Case) -> Option<(Violation, Case)> {
        self.cases += 1;
        let found = self.world.run(case).await.expect("run a case");
        self.pages += self.world.pages_read();
        match found {
            None => None,
            Some(violation) => Some(self.shorten(violation, case.clone()).await),
        }
    }

    /// Leaves out whatever the violation does not need. Every sublist of a case is a case.
    async fn shorten(&mut self, mut violation: Violation, mut case: Case) -> (Violation, Case) {
        let mut replays = 0;
        loop {
            let mut shorter = false;
            let mut at = 0;
            while at < case.steps.len() && replays < SHRINK_REPLAYS_MAX {
                replays += 1;
                let without = case.without(at);
                self.world.reset().await.expect("reset the outbox");
                match self.world.run(&without).await.expect("run a case") {
                    Some(found) => (violation, case, shorter) = (found, without, true),
                    None => at += 1,
                }
            }
            if !shorter || replays >= SHRINK_REPLAYS_MAX {
                self.world.reset().await.expect("reset the outbox");
                return (violation, case);
            }
        }
    }
}

/// Programs small enough to try every interleaving: each is about one trap of the cursor.
fn small_programs() -> Vec<(&'static str, Programs)> {
    use Act::{Commit, Insert, Page, Prepare, Purge, Restart, RollbackTo, Savepoint, Settle, Xid};
    vec![
        (
            "three overlapping transactions",
            Programs {
                messages: 2,
                relay: vec![Page, Page],
                writers: vec![vec![Insert(1), Commit], vec![Insert(1), Commit], vec![Insert(1), Commit]],
            },
        ),
        (
            "an xid taken early",
            Programs {
                messages: 3,
                relay: vec![Page, Page],
                writers: vec![vec![Xid, Insert(1), Commit], vec![Insert(1), Commit], vec![Insert(1), Commit]],
            },
        ),
        (
            "a late arm that overflows, settled half",
            Programs {
                messages: 1,
                relay: vec![Page, Page, Settle(2), Restart, Page],
                writers: vec![vec![Insert(3), Commit], vec![Insert(1), Commit]],
            },
        ),
        (
            "a settle inside late messages",
            Programs {
                messages: 3,
                relay: vec![Page, Page, Settle(2), Restart],
                writers: vec![vec![Insert(2), Commit], vec![Insert(1), Commit]],
            },
        ),
        (
            "a catch-up that is overtaken",
            Programs {
                messages: 1,
                relay: vec![Page, Page, Page],
                writers: vec![vec![Insert(2), Commit], vec![Insert(2), Commit], vec![Insert(1), Commit]],
            },
        ),
        (
            "a prepared transaction",
            Programs {
                messages: 2,
                relay: vec![Page, Settle(1), Restart],
                writers: vec![vec![Insert(1), Prepare, Commit], vec![Xid, Insert(1), Commit]],
            },
        ),
        (
            "savepoints",
            Programs {
                messages: 2,
                relay: vec![Page, Page],
                writers: vec![
                    vec![Insert(1), Savepoint, Insert(1), RollbackTo, Insert(1), Commit],
                    vec![Insert(1), Commit],
                ],
            },
        ),
        (
            "a purge",
            Programs {
                messages: 3,
                relay: vec![Page, Settle(3), Purge, Page],
                writers: vec![vec![Insert(2), Commit], vec![Insert(1), Commit]],
            },
        ),
    ]
}

/// D1, D2, D3. Systematically.
#[tokio::test]
async fn no_interleaving_of_small_programs_loses_repeats_or_inverts_a_message() {
    let server = server().await;
    let mut explorer = Explorer::new(&server, Rule::Kept).await;
    let sets = small_programs();
    let each = exploration_time() / u32::try_from(sets.len()).unwrap();
    for (name, programs) in sets {
        let until = Instant::now() + each;
        let total = programs.interleavings();
        let mut explored = 0;
        for rank in program::spread(total) {
            let case = programs.interleaving(rank);
            if let Some((violation, shortest)) = explorer.run(&case).await {
                panic!("{name}, interleaving {rank}: {violation}\nin\n{case}shortest\n{shortest}");
            }
            explored += 1;
            if Instant::now() >= until {
                break;
            }
        }
        println!("{name}: {explored} of {total} interleavings");
    }
    println!("{} interleavings, {} pages: no violation", explorer.cases, explorer.pages);
    assert!(explorer.cases >= CASES_MIN, "only {} interleavings in the time given", explorer.cases);
}

/// D1, D2, D3. At random.
#[tokio::test]
async fn no_random_interleaving_loses_repeats_or_inverts_a_message() {
    let server = server().await;
    let mut explorer = Explorer::new(&server, Rule::Kept).await;
    let until = Instant::now() + exploration_time();
    let first_seed: u64 = rand::random();
    let mut seed = first_seed;
    while Instant::now() < until {
        let case = program::random(&mut StdRng::seed_from_u64(seed), Rule::Kept);
        if let Some((violation, shortest)) = explorer.run(&case).await {
            panic!("seed {seed}: {violation}\nin\n{case}shortest\n{shortest}");
        }
        seed = seed.wrapping_add(1);
    }
    println!(
        "{} interleavings from seed {first_seed}, {} pages: no violation",
        explorer.cases, explorer.pages
    );
    assert!(explorer.cases >= CASES_MIN, "only {} interleavings in the time given", explorer.cases);
}

#[tokio::test]
async fn every_rule_of_the_cursor_is_missed_when_it_is_broken() {
    let server = server().await;
    let small = small_programs();
    let mut uncaught = Vec::new();
    for rule in Rule::BROKEN {
        let mut explorer = Explorer::new(&server, rule).await;
        let began = Instant::now();
        let mut caught = None;
        for seed in 0.. {
            let mut rng = StdRng::seed_from_u64(seed);
            let case = if rng.random_bool(0.5) {
                program::random(&mut rng, rule)
            } else {
                let programs = &small[rng.random_range(0..small.len())].1;
                programs.interleaving(rng.random_range(0..programs.interleavings()))
            };
            caught = explorer.run(&case).await;
            if caught.is_some() || began.elapsed() >= MUTATION_LIMIT {
                break;
            }
        }
        match caught {
            Some((violation, shortest)) => println!(
                "{rule:?}: {violation} (case {}, {:.1} s)\n{shortest}",
                explorer.cases,
                began.elapsed().as_secs_f32()
            ),
            None => uncaught.push((rule, explorer.cases)),
        }
        explorer.world.close().await;
    }
    assert!(uncaught.is_empty(), "not caught, with how many cases: {uncaught:?}");
}
