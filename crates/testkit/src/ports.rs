//! Ports for servers that are stopped and started again.
//!
//! A port from the kernel's own choice (bind to 0) lies in the range from which it also serves outgoing connections. While the
//! server is down, such a connection can take the port, and a client that dials it again and again in the end reaches
//! itself (TCP simultaneous open). So ports are taken from just below that range.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Result, bail};
use rand::RngExt;

/// A loopback port that nothing listens on, outside the range of outgoing connections.
///
/// # Errors
/// No free port was found.
pub fn free_port() -> Result<u16> {
    let end = first_outgoing_port().max(20_000);
    for _ in 0..1_000 {
        let port = rand::rng().random_range(end - 10_000..end);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("find a free port between {} and {end}", end - 10_000)
}

fn first_outgoing_port() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .unwrap_or(32_768)
}
