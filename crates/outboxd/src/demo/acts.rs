//! The story, act by act.

use std::time::Duration;

use tokio::time::Instant;

use super::plan::{Plan, Transaction, committed_intents};
use super::screen::{Screen, counted, grouped};
use super::stage::{Now, Players, Stage, Watch};
use super::tally::as_u64;

/// How long the shop trades while all is well.
const USUAL_FOR: Duration = Duration::from_secs(5);

/// How long it trades while the relay is killed: time for three relays to take the lead.
const KILLED_FOR: Duration = Duration::from_secs(9);

/// How often the relay is killed.
const KILLS: u64 = 3;

/// How long the broker is away.
const AWAY_FOR: Duration = Duration::from_secs(4);

/// How long the shop trades before, during and after that.
const AROUND_AWAY_FOR: Duration = Duration::from_secs(6);

/// How long it trades while a message is parked.
const PARKED_FOR: Duration = Duration::from_secs(2);

/// Plays every act. What was not as promised, and no sum would show, is returned.
pub(crate) async fn perform(
    stage: &mut Stage,
    players: &mut Players,
    plan: &Plan,
    screen: &Screen,
) -> anyhow::Result<Vec<String>> {
    usual(stage, players, plan, screen).await?;
    killed(stage, players, &plan.killed, screen).await?;
    if !stage.commands_the_broker() {
        screen.act("Acts 3 and 4 are left out");
        screen.say("In act 3 the broker goes away, in act 4 it refuses a message: that needs a broker that obeys. Without");
        screen.say("--bootstrap-servers the demo brings its own.");
        return Ok(Vec::new());
    }
    let broken = away(stage, players, &plan.away, screen).await?;
    poison(stage, players, plan, screen).await?;
    Ok(broken)
}

/// Trades, and waits until everything has had its effect.
async fn usual(stage: &mut Stage, players: &mut Players, plan: &Plan, screen: &Screen) -> anyhow::Result<()> {
    screen.act("Act 1  Business as usual");
    screen.say(
        "Every order and its intents are written in one transaction. One transaction in ten is rolled back.",
    );
    let Players { shop, watch } = players;
    let (till, before) = (shop.till(), watch.now().await?);
    let goal = plan.first.step.intents() + committed_intents(&plan.usual);
    let mut progress = screen.progress(&before, goal);
    // The first order pays for every connection that is opened; it is not what usual is.
    shop.carry_out(&plan.first).await?;
    let opened = stage.until(watch, &mut progress, "publish the first order", Now::at_rest).await?;
    let trading = shop.trade(&plan.usual, USUAL_FOR);
    let watching = stage.until(watch, &mut progress, "publish every order", |now| {
        now.outbox.intents == goal && now.at_rest()
    });
    let ((), now) = tokio::try_join!(trading, watching)?;
    drop(progress);
    screen.held_true(&format!(
        "{} committed, {} rolled back; {}, as many effects",
        counted(till.committed(), "transaction"),
        grouped(till.rolled_back()),
        counted(now.outbox.intents, "intent"),
    ));
    if let Some((median, slow)) = watch.consumer.lag_ms(opened.consumed).await? {
        screen.held_true(&format!(
            "from the INSERT to Kafka: half of them within {median} ms, 99 of 100 within {slow} ms"
        ));
    }
    Ok(())
}

/// Trades while the relay is killed and started again.
async fn killed(
    stage: &mut Stage,
    players: &mut Players,
    transactions: &[Transaction],
    screen: &Screen,
) -> anyhow::Result<()> {
    screen.act("Act 2  The relay is killed, three times");
    screen.say("kill -9 comes when records are in Kafka of which the database does not know yet. The next relay starts at");
    screen.say(
        "the settled cursor and publishes them again; the consumer finds their ids claimed and does nothing.",
    );
    let Players { shop, watch } = players;
    let before = watch.now().await?;
    let planned = committed_intents(transactions);
    let goal = before.outbox.intents + planned;
    let trading = shop.trade(transactions, KILLED_FOR);
    // A hundredth of the act's intents are there several times within the time between two settles.
    let worth_it = (planned / 100).max(1);
    let killing = async {
        let mut progress = screen.progress(&before, goal);
        for nth in 1..=KILLS {
            let due = before.outbox.intents + planned * nth / (KILLS + 1);
            let started = watch.now().await?.consumed;
            let caught = |now: &Now| {
                // This relay has published something, and not all of it is settled.
                let at_work = now.consumed.records() > started.records() && now.unsettled() >= worth_it;
                // With little trade it may never be caught at it; it is killed all the same.
                let too_late = now.outbox.intents == goal && now.at_rest();
                now.outbox.intents >= due && at_work || too_late
            };
            let now =
                stage.until(watch, &mut progress, "catch the relay with unsettled records", caught).await?;
            let pid = stage.kill_relay().await?;
            screen.strike(&format!(
                "kill -9 {pid}: at least {} in Kafka and not settled",
                counted(now.unsettled(), "record"),
            ));
            let (next, took) = stage.start_relay(watch).await?;
            screen.say(&format!("  process {next} leads after {:.1} s", took.as_secs_f64()));
        }
        let everything = |now: &Now| now.outbox.intents == goal && now.at_rest();
        stage.until(watch, &mut progress, "publish every order", everything).await
    };
    let ((), now) = tokio::try_join!(trading, killing)?;
    stage.caught_up(&mut watch.consumer).await?;
    let repeated = watch.consumer.consumed().duplicates - before.consumed.duplicates;
    screen.held_true(&format!(
        "{}, as many effects: {} came and {} absorbed",
        counted(now.outbox.intents, "intent"),
        counted(repeated, "duplicate"),
        if repeated == 1 { "was" } else { "were" },
    ));
    Ok(())
}

/// Trades while the broker is away.
async fn away(
    stage: &mut Stage,
    players: &mut Players,
    transactions: &[Transaction],
    screen: &Screen,
) -> anyhow::Result<Vec<String>> {
    screen.act("Act 3  The broker goes away");
    screen.say("The shop does not notice: its orders and intents are in its own database. An outage is nobody's fault: no");
    screen.say("message is charged an attempt, and nothing is set aside.");
    let Players { shop, watch } = players;
    let before = watch.now().await?;
    let goal = before.outbox.intents + committed_intents(transactions);
    let trading = shop.trade(transactions, AROUND_AWAY_FOR);
    let mut charged = 0;
    let mut held = 0;
    let watching = async {
        let mut progress = screen.progress(&before, goal);
        let mut note = |now: &Now| {
            held = held.max(now.outbox.held.len());
            charged = charged.max(now.outbox.held.iter().map(|held| held.attempts).sum());
        };
        let some = before.outbox.intents + committed_intents(transactions) / 8;
        stage
            .until(watch, &mut progress, "publish the first orders", |now| {
                note(now);
                now.consumed.effects >= some
            })
            .await?;
        stage.broker.go_away()?;
        screen.strike("the broker closes every connection and its port");
        let back = Instant::now() + AWAY_FOR;
        let now = stage
            .until(watch, &mut progress, "wait for the broker", |now| {
                note(now);
                Instant::now() >= back
            })
            .await?;
        stage.broker.come_back()?;
        screen.strike(&format!(
            "the broker is back after {} s; {} waited in the database",
            AWAY_FOR.as_secs(),
            counted(now.backlog(), "intent"),
        ));
        stage
            .until(watch, &mut progress, "publish what has waited", |now| {
                note(now);
                now.outbox.intents == goal && now.at_rest()
            })
            .await
    };
    let ((), now) = tokio::try_join!(trading, watching)?;
    let mut broken = Vec::new();
    if held == 0 && charged == 0 {
        screen.held_true(&format!(
            "{}, as many effects: nothing lost, no attempt charged, nothing set aside",
            counted(now.outbox.intents, "intent"),
        ));
    } else {
        broken.push(format!("the outage set {held} messages aside and charged {charged} attempts"));
    }
    Ok(broken)
}

/// One message is refused for its own sake, waits for an operator, and is retried.
async fn poison(
    stage: &mut Stage,
    players: &mut Players,
    plan: &Plan,
    screen: &Screen,
) -> anyhow::Result<()> {
    let order = plan.placed.order;
    screen.act("Act 4  A poison message");
    screen.say(&format!(
        "Order {order} is paid, and the broker does not take that one message. It alone is parked; what happens to",
    ));
    screen.say("the order later waits behind it, and everybody else's orders flow.");
    let Players { shop, watch } = players;
    let before = watch.now().await?;
    let all = [&plan.others[..], &plan.followers, &[plan.placed.clone(), plan.poison.clone()]].concat();
    let goal = before.outbox.intents + committed_intents(&all);
    let mut progress = screen.progress(&before, goal);
    shop.carry_out(&plan.placed).await?;
    stage.until(watch, &mut progress, "publish the order", Now::at_rest).await?;
    stage.broker.refuse_next_message()?;
    shop.carry_out(&plan.poison).await?;
    let parked = |now: &Now| now.outbox.held.iter().any(|held| held.state == "parked");
    let now = stage.until(watch, &mut progress, "park the message", parked).await?;
    let Some(held) = now.outbox.held.first() else { anyhow::bail!("nothing is held") };
    screen.strike(&format!("parked: {} ({}), tried alone before it was believed", held.id, held.reason));
    let id = held.id.to_string();
    let meanwhile = [&plan.followers[..], &plan.others].concat();
    let waiting = 1 + as_u64(plan.followers.len());
    let trading = shop.trade(&meanwhile, PARKED_FOR);
    let others = stage.until(watch, &mut progress, "publish everybody else's orders", |now| {
        now.outbox.intents == goal && now.backlog() == waiting && as_u64(now.outbox.held.len()) == waiting
    });
    let ((), now) = tokio::try_join!(trading, others)?;
    drop(progress);
    let behind = now.outbox.held.iter().filter(|held| held.state == "behind").count();
    screen.held_true(&format!(
        "everybody else's orders had their effects; {} behind the parked message",
        counted(as_u64(behind), "message"),
    ));
    operate(stage, watch, &before, goal, &id, screen).await
}

/// The operator looks, and retries: with the same commands as anybody.
async fn operate(
    stage: &mut Stage,
    watch: &mut Watch,
    before: &Now,
    goal: u64,
    id: &str,
    screen: &Screen,
) -> anyhow::Result<()> {
    screen.command("outboxd held list");
    screen.block(&stage.launch.run(&["held", "list"]).await?);
    let reason = "the broker takes it now";
    screen.command(&format!("outboxd held retry {id} --reason '{reason}'"));
    screen.block(&stage.launch.run(&["held", "retry", id, "--reason", reason, "--as", "demo"]).await?);
    let mut progress = screen.progress(before, goal);
    let now = stage.until(watch, &mut progress, "publish what was held", Now::at_rest).await?;
    drop(progress);
    screen
        .held_true(&format!("retried: {}, as many effects, in order", counted(now.outbox.intents, "intent")));
    Ok(())
}
