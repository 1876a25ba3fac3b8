//! A TCP proxy on loopback that breaks as networks do: silence, a cut in the middle, delay.
//!
//! A frozen connection stays open and its bytes stay where they are, as on a link that swallows packets: neither side gets
//! an error. A cut one is closed on both sides at once.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Bytes moved at once.
const CHUNK: usize = 16 * 1024;

/// No limit on what passes before the cut.
const UNLIMITED: u64 = u64::MAX;

/// A proxy for one target; its connections end when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    control: watch::Sender<Control>,
    shared: Arc<Shared>,
    // Owns the task that accepts, and that task owns those of the connections: dropped together.
    _tasks: JoinSet<()>,
}

/// What connections are told. They are numbered in the order in which they were accepted.
#[derive(Clone, Copy, Debug, Default)]
struct Control {
    frozen_below: u64,
    cut_below: u64,
    delay: Duration,
}

#[derive(Debug)]
struct Shared {
    accepted: AtomicU64,
    /// Bytes that the target may still say before the connection is cut.
    budget: AtomicU64,
}

impl Proxy {
    /// Listens on a loopback port and hands every connection on to `target`.
    ///
    /// # Errors
    /// There is no port to listen on.
    pub async fn start(target: impl Into<String>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("listen for the proxy")?;
        Self::on(listener, target.into())
    }

    /// As [`Proxy::start`], on a port that was chosen before: for a target that has to advertise its proxy's address.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn start_on(port: u16, target: impl Into<String>) -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.context("listen for the proxy")?;
        Self::on(listener, target.into())
    }

    fn on(listener: TcpListener, target: String) -> Result<Self> {
        let address = listener.local_addr()?;
        let (control, told) = watch::channel(Control::default());
        let shared = Arc::new(Shared { accepted: AtomicU64::new(0), budget: AtomicU64::new(UNLIMITED) });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, target, told, Arc::clone(&shared)));
        Ok(Self { address, control, shared, _tasks: tasks })
    }

    /// Host and port to connect to.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The port to connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// How many connections were accepted so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Freezes the connections that are open now; new ones pass.
    pub fn freeze_existing(&self) {
        let accepted = self.accepted();
        self.control.send_modify(|control| control.frozen_below = accepted);
    }

    /// Freezes every connection; new ones are accepted and get no answer.
    pub fn freeze_all(&self) {
        self.control.send_modify(|control| control.frozen_below = u64::MAX);
    }

    /// Lets all connections go on, with what had been waiting.
    pub fn thaw(&self) {
        self.control.send_modify(|control| control.frozen_below = 0);
    }

    /// Closes the connections that are open now; new ones pass.
    pub fn cut(&self) {
        let accepted = self.accepted();
        self.control.send_modify(|control| control.cut_below = accepted);
    }

    /// Closes one connection once the target has said so many more bytes, counted over all connections: in the middle of
    /// an answer, for example. Later ones pass.
    pub fn cut_after(&self, bytes: u64) {
        self.shared.budget.store(bytes, Ordering::SeqCst);
    }

    /// Makes every chunk wait so long, in both directions.
    pub fn delay(&self, delay: Duration) {
        self.control.send_modify(|control| control.delay = delay);
    }
}

async fn accept(
    listener: TcpListener,
    target: String,
    control: watch::Receiver<Control>,
    shared: Arc<Shared>,
) {
    let mut connections = JoinSet::new();
    loop {
        // Cancel safe: both only look. Finished connections are reaped, so that their results do not pile up.
        let client = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((client, _)) = client else { continue };
        let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
        connections.spawn(serve(number, client, target.clone(), control.clone(), Arc::clone(&shared)));
    }
}

/// Ends with both sides closed: at their own end, by an error, or by a cut.
async fn serve(
    number: u64,
    client: TcpStream,
    target: String,
    control: watch::Receiver<Control>,
    shared: Arc<Shared>,
) {
    let mut cut = control.clone();
    tokio::select! {
        _ = cut.wait_for(|control| number < control.cut_below) => {}
        _ = relay(number, client, target, control, shared) => {}
    }
}

async fn relay(
    number: u64,
    client: TcpStream,
    target: String,
    mut control: watch::Receiver<Control>,
    shared: Arc<Shared>,
) -> Result<()> {
    control.wait_for(|control| number >= control.frozen_below).await?;
    let target = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    target.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_target, to_target) = target.into_split();
    let asked = Pump { number, from: from_client, to: to_target, control: control.clone(), budget: None };
    let answered = Pump { number, from: from_target, to: to_client, control, budget: Some(shared) };
    tokio::try_join!(asked.run(), answered.run())?;
    Ok(())
}

/// One direction of a connection.
struct Pump {
    number: u64,
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    control: watch::Receiver<Control>,
    budget: Option<Arc<Shared>>,
}

impl Pump {
    async fn run(mut self) -> Result<()> {
        let mut chunk = vec![0; CHUNK];
        loop {
            self.flowing().await?;
            let read = self.from.read(&mut chunk).await?;
            // What was read while the link froze waits too.
            let delay = self.flowing().await?;
            if !delay.is_zero() {
                sleep(delay).await;
            }
            if read == 0 {
                self.to.shutdown().await?;
                return Ok(());
            }
            let passes = self.spend(read);
            self.to.write_all(&chunk[..passes]).await?;
            anyhow::ensure!(passes == read, "cut by the test");
        }
    }

    /// Waits until the connection is not frozen, and returns the delay of the moment.
    async fn flowing(&mut self) -> Result<Duration> {
        let number = self.number;
        Ok(self.control.wait_for(|control| number >= control.frozen_below).await?.delay)
    }

    /// How many of these bytes pass. Fewer than all: the budget is used up by them, and is lifted for later connections.
    fn spend(&self, bytes: usize) -> usize {
        let Some(shared) = &self.budget else { return bytes };
        let wanted = bytes as u64;
        let before = shared.budget.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| match left {
            UNLIMITED => None,
            left if left < wanted => Some(UNLIMITED),
            left => Some(left - wanted),
        });
        match before {
            Ok(left) if left < wanted => usize::try_from(left).unwrap_or(bytes),
            Ok(_) | Err(_) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);
    /// Long enough to see that nothing comes.
    const A_WHILE: Duration = Duration::from_millis(200);

    struct Echo {
        address: String,
        _task: JoinSet<()>,
    }

    /// Says back what it hears.
    async fn echo() -> Echo {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                connections.spawn(async move {
                    let (mut from, mut to) = client.split();
                    tokio::io::copy(&mut from, &mut to).await.ok();
                });
            }
        });
        Echo { address, _task: task }
    }

    async fn ask(client: &mut TcpStream, words: &[u8]) -> std::io::Result<Vec<u8>> {
        client.write_all(words).await?;
        hear(client, words.len()).await
    }

    async fn hear(client: &mut TcpStream, bytes: usize) -> std::io::Result<Vec<u8>> {
        let mut heard = vec![0; bytes];
        tokio::time::timeout(SOON, client.read_exact(&mut heard)).await.expect("an answer comes")?;
        Ok(heard)
    }

    #[tokio::test]
    async fn frozen_connections_are_silent_until_thawed_while_new_ones_pass() {
        let echo = echo().await;
        let proxy = Proxy::start(&echo.address).await.unwrap();
        let mut old = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut old, b"one").await.unwrap(), b"one");
        proxy.freeze_existing();
        old.write_all(b"two").await.unwrap();
        let mut nothing = [0; 3];
        assert!(tokio::time::timeout(A_WHILE, old.read_exact(&mut nothing)).await.is_err());
        let mut new = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut new, b"three").await.unwrap(), b"three");
        proxy.thaw();
        assert_eq!(hear(&mut old, 3).await.unwrap(), b"two");
    }

    #[tokio::test]
    async fn a_frozen_proxy_accepts_and_does_not_answer() {
        let echo = echo().await;
        let proxy = Proxy::start(&echo.address).await.unwrap();
        proxy.freeze_all();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        client.write_all(b"one").await.unwrap();
        let mut nothing = [0; 3];
        assert!(tokio::time::timeout(A_WHILE, client.read_exact(&mut nothing)).await.is_err());
        proxy.thaw();
        assert_eq!(hear(&mut client, 3).await.unwrap(), b"one");
    }

    #[tokio::test]
    async fn a_cut_ends_what_is_open_and_nothing_later() {
        let echo = echo().await;
        let proxy = Proxy::start(&echo.address).await.unwrap();
        let mut old = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut old, b"one").await.unwrap(), b"one");
        proxy.cut();
        assert!(hear(&mut old, 1).await.is_err());
        let mut new = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut new, b"two").await.unwrap(), b"two");
    }

    #[tokio::test]
    async fn a_cut_after_some_bytes_lets_exactly_those_pass() {
        let echo = echo().await;
        let proxy = Proxy::start(&echo.address).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        proxy.cut_after(4);
        client.write_all(b"abcdefgh").await.unwrap();
        let mut heard = Vec::new();
        let end = tokio::time::timeout(SOON, client.read_to_end(&mut heard)).await.expect("the end comes");
        assert!(heard == b"abcd" || end.is_err(), "{heard:?} and {end:?}");
        assert!(heard.len() <= 4);
        let mut later = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut later, b"abcdefgh").await.unwrap(), b"abcdefgh");
    }
}
