//! Programs of writers and relay, and their interleavings.

use std::fmt;

use rand::RngExt;
use rand::rngs::StdRng;

use super::rule::Rule;

/// One step. A writer that has no transaction begins one with its next step; a step that makes no sense where it stands
/// (commit without a transaction) does nothing, so that every sublist of a case is a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Takes a transaction id before anything is inserted.
    Xid,
    /// Inserts so many messages by one statement.
    Insert(u8),
    Savepoint,
    RollbackTo,
    Prepare,
    /// Commits, or commits what was prepared.
    Commit,
    /// Rolls back, or rolls back what was prepared.
    Rollback,
    /// The relay reads a page and publishes it.
    Page,
    /// The second statement of a page, where a broken rule has one.
    PageEnd,
    /// The relay settles at most so many of the messages in flight.
    Settle(u8),
    /// The relay forgets everything and goes back to the stored cursor.
    Restart,
    /// The relay deletes what is dispatched.
    Purge,
}

/// Whose step it is: 0 is the relay, then the writers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) actor: usize,
    pub(super) act: Act,
}

/// An interleaving to run.
#[derive(Clone, Debug)]
pub(super) struct Case {
    /// Messages in a page.
    pub(super) messages: u32,
    /// Bytes in a page; a message has one.
    pub(super) bytes: u64,
    pub(super) steps: Vec<Step>,
}

impl Case {
    pub(super) fn without(&self, at: usize) -> Self {
        let mut shorter = self.clone();
        shorter.steps.remove(at);
        shorter
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  pages of {} messages, {} bytes", self.messages, self.bytes)?;
        for Step { actor, act } in &self.steps {
            match actor {
                0 => writeln!(f, "  relay     {act:?}")?,
                writer => writeln!(f, "  writer {writer}  {act:?}")?,
            }
        }
        Ok(())
    }
}

/// One program each.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    pub(super) messages: u32,
    pub(super) relay: Vec<Act>,
    pub(super) writers: Vec<Vec<Act>>,
}

impl Programs {
    fn all(&self) -> impl Iterator<Item = &Vec<Act>> {
        std::iter::once(&self.relay).chain(&self.writers)
    }

    /// How many interleavings there are.
    pub(super) fn interleavings(&self) -> u64 {
        let mut total = 1;
        let mut placed = 0;
        for program in self.all() {
            for nth in 1..=program.len() as u64 {
                placed += 1;
                total = total * placed / nth;
            }
        }
        total
    }

    /// The interleaving of this rank in the order of a depth-first search.
    pub(super) fn interleaving(&self, mut rank: u64) -> Case {
        let programs: Vec<&Vec<Act>> = self.all().collect();
        let mut left: Vec<u64> = programs.iter().map(|program| program.len() as u64).collect();
        let mut total = self.interleavings();
        let mut steps = Vec::new();
        for remaining in (1..=left.iter().sum::<u64>()).rev() {
            for actor in 0..programs.len() {
                let subtree = total * left[actor] / remaining;
                if rank < subtree {
                    let at = programs[actor].len() - usize::try_from(left[actor]).unwrap();
                    steps.push(Step { actor, act: programs[actor][at] });
                    left[actor] -= 1;
                    total = subtree;
                    break;
                }
                rank -= subtree;
            }
        }
        Case { messages: self.messages, bytes: 1_000_000, steps }
    }
}

/// Every rank once, spread over the whole tree, so that an exploration that is cut short has been everywhere.
pub(super) fn spread(total: u64) -> impl Iterator<Item = u64> {
    let gcd = |mut a: u64, mut b: u64| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    // About the golden section of the range, and coprime to it.
    let stride = (total * 618 / 1_000 + 1..).find(|stride| gcd(*stride, total) == 1).unwrap_or(1);
    (0..total).map(move |nth| nth * stride % total)
}

/// Three to five writers and a relay, all at random.
pub(super) fn random(rng: &mut StdRng, rule: Rule) -> Case {
    let mut programs: Vec<Vec<Act>> = vec![relay(rng, rule)];
    for _ in 0..rng.random_range(3..=5) {
        let mut program = writer(rng);
        if rng.random_bool(0.2) {
            program.extend(writer(rng));
        }
        programs.push(program);
    }
    let mut at = vec![0; programs.len()];
    let mut steps = Vec::new();
    loop {
        let unfinished: Vec<usize> =
            (0..programs.len()).filter(|actor| at[*actor] < programs[*actor].len()).collect();
        if unfinished.is_empty() {
            break;
        }
        let actor = unfinished[rng.random_range(0..unfinished.len())];
        steps.push(Step { actor, act: programs[actor][at[actor]] });
        at[actor] += 1;
    }
    let messages = rng.random_range(1..=4);
    let bytes = if rng.random_bool(0.2) { rng.random_range(1..=4) } else { 1_000_000 };
    Case { messages, bytes, steps }
}

fn writer(rng: &mut StdRng) -> Vec<Act> {
    let mut program = Vec::new();
    if rng.random_bool(0.3) {
        program.push(Act::Xid);
    }
    program.push(Act::Insert(rng.random_range(1..=3)));
    if rng.random_bool(0.15) {
        program.push(Act::Insert(rng.random_range(4..=8)));
    }
    if rng.random_bool(0.25) {
        program.push(Act::Savepoint);
        program.push(Act::Insert(rng.random_range(1..=2)));
        if rng.random_bool(0.6) {
            program.push(Act::RollbackTo);
        }
        if rng.random_bool(0.5) {
            program.push(Act::Insert(1));
        }
    }
    if rng.random_bool(0.15) {
        program.push(Act::Prepare);
    }
    program.push(if rng.random_bool(0.85) { Act::Commit } else { Act::Rollback });
    program
}

fn relay(rng: &mut StdRng, rule: Rule) -> Vec<Act> {
    let mut program = Vec::new();
    for nth in 0..rng.random_range(4..=9) {
        match rng.random_range(0..10) {
            first if nth == 0 || first < 5 => {
                program.push(Act::Page);
                if rule.reads_in_two_steps() {
                    program.push(Act::PageEnd);
                }
            }
            5..=8 => {
                program.push(Act::Settle(rng.random_range(1..=4)));
                // What a settle has stored shows only when somebody starts from there.
                if rng.random_bool(0.4) {
                    program.push(Act::Restart);
                }
            }
            _ => program.push(Act::Purge),
        }
    }
    program
}

#[test]
fn an_exploration_visits_every_interleaving_once() {
    use std::collections::HashSet;
    let programs = Programs {
        messages: 1,
        relay: vec![Act::Page, Act::Restart],
        writers: vec![vec![Act::Xid, Act::Commit], vec![Act::Xid, Act::Insert(1), Act::Commit]],
    };
    assert_eq!(programs.interleavings(), 210);
    let seen: HashSet<String> = spread(210).map(|rank| programs.interleaving(rank).to_string()).collect();
    assert_eq!(seen.len(), 210);
}
