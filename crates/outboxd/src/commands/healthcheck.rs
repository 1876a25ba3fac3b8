//! `healthcheck`: asks the running relay, because an image without a shell has no curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::cli::Healthcheck;
use crate::failure::Failure;
use crate::output;

/// The answers of the relay are a line; more is somebody else's answer.
const ANSWER_BYTES_MAX: u64 = 64 * 1_024;

/// Prints what the relay says of itself.
pub(crate) async fn healthcheck(listen: SocketAddr, asked: &Healthcheck) -> Result<(), Failure> {
    let path = match (asked.ready, asked.strict) {
        (false, _) => "/livez",
        (true, false) => "/readyz",
        (true, true) => "/readyz?strict=1",
    };
    let address = asked.address.clone().unwrap_or_else(|| reachable(listen).to_string());
    let timeout = Duration::from_millis(asked.timeout_ms);
    let (code, said) = tokio::time::timeout(timeout, get(&address, path))
        .await
        .map_err(|_elapsed| anyhow!("no answer within {} ms", asked.timeout_ms))
        .and_then(|answer| answer)
        .with_context(|| format!("ask the relay at {address}"))
        .map_err(Failure::unavailable)?;
    if code == 200 {
        Ok(output::print(&said)?)
    } else {
        Err(Failure::unavailable(anyhow!("the relay at {address} says: {}", said.trim())))
    }
}

/// An address that listens everywhere is asked here.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

async fn get(address: &str, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.context("connect")?;
    // Version 1.0: the answer is not chunked and ends with the connection.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.context("ask")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await.context("read the answer")?;
    let answer = String::from_utf8_lossy(&answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("the answer is not HTTP") };
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("the answer has no code")?;
    Ok((code, body.to_owned()))
}
