//! Who may ask. Three questions, in every request:
//!
//! - Under which name does the caller know us (Host)? A page whose name was made to lead here (DNS rebinding) says its own.
//! - On whose behalf does a browser ask (Origin, Sec-Fetch-Site)? Only on behalf of somebody who typed the address.
//! - Does the caller know the token? Compared in constant time, as a digest, so that not even its length shows.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use secrecy::ExposeSecret as _;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::connections::Reached;
use super::refuse;
use crate::config::AdminSection;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What callers are measured by.
#[derive(Debug)]
pub(super) struct Guard {
    hosts: Vec<String>,
    token: Option<[u8; 32]>,
}

/// Why a caller is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Host,
    Origin,
    Token,
}

impl Guard {
    pub(super) fn new(section: &AdminSection) -> Self {
        let digest = |token: &secrecy::SecretString| Sha256::digest(token.expose_secret()).into();
        Self { hosts: section.hosts.clone(), token: section.token.as_ref().map(digest) }
    }

    /// `reached`: the address that the caller connected to.
    fn judge(&self, uri: Option<&Authority>, headers: &HeaderMap, reached: IpAddr) -> Result<(), Refusal> {
        let host = only(headers, &header::HOST)
            .and_then(|host| host.parse::<Authority>().ok())
            .filter(|host| self.knows(host, reached))
            .ok_or(Refusal::Host)?;
        if uri.is_some_and(|authority| !self.knows(authority, reached)) {
            return Err(Refusal::Host);
        }
        let on_behalf_of_another = [&header::ORIGIN, &SEC_FETCH_SITE].into_iter().any(|name| {
            headers.contains_key(name)
                && !only(headers, name).is_some_and(|value| {
                    if *name == header::ORIGIN { is_origin(value, &host) } else { is_own_site(value) }
                })
        });
        if on_behalf_of_another {
            return Err(Refusal::Origin);
        }
        match &self.token {
            Some(token) if !sent_token(headers).is_some_and(|sent| bool::from(sent.ct_eq(token))) => {
                Err(Refusal::Token)
            }
            Some(_) | None => Ok(()),
        }
    }

    fn knows(&self, authority: &Authority, reached: IpAddr) -> bool {
        if authority.as_str().contains('@') {
            return false;
        }
        let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host == "localhost"
            || address.is_ok_and(|address| {
                let address = address.to_canonical();
                address.is_loopback() || address == reached.to_canonical()
            })
            || self.hosts.contains(&host)
    }
}

/// The value of a header that is there once.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Whether a page of this very listener asks. Behind something that ends TLS the schemes differ, so they are not compared.
fn is_origin(origin: &str, host: &Authority) -> bool {
    ["http://", "https://"]
        .into_iter()
        .find_map(|scheme| origin.strip_prefix(scheme))
        .is_some_and(|authority| authority.eq_ignore_ascii_case(host.as_str()))
}

/// `none` is somebody who typed the address.
fn is_own_site(site: &str) -> bool {
    matches!(site, "same-origin" | "none")
}

fn sent_token(headers: &HeaderMap) -> Option<[u8; 32]> {
    let (scheme, token) = only(headers, &header::AUTHORIZATION)?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| Sha256::digest(token.trim_start()).into())
}

/// Answers those who may not ask, and lets the others through.
pub(super) async fn admit(
    State(guard): State<Arc<Guard>>,
    reached: Option<Extension<Reached>>,
    request: Request,
    next: Next,
) -> Response {
    let reached = reached.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |Extension(Reached(address))| address.ip());
    let refusal = match guard.judge(request.uri().authority(), request.headers(), reached) {
        Ok(()) => return next.run(request).await,
        Err(refusal) => refusal,
    };
    tracing::debug!(target: "outboxd::admin", ?refusal, "refused");
    match refusal {
        Refusal::Host => refuse(
            StatusCode::FORBIDDEN,
            "the Host header names somebody else",
            "ask at localhost or at the listener's own address, or add the name to admin.hosts",
        ),
        Refusal::Origin => refuse(
            StatusCode::FORBIDDEN,
            "a page of another site asks",
            "ask with curl, or type the address into the browser",
        ),
        Refusal::Token => {
            let mut response = refuse(
                StatusCode::UNAUTHORIZED,
                "the token is missing or wrong",
                "send the header Authorization: Bearer <token>, with what admin.token or admin.token_file holds",
            );
            let challenge = HeaderValue::from_static("Bearer realm=\"outboxd\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn guard(token: Option<&str>) -> Guard {
        Guard::new(&AdminSection {
            listen: ([10, 0, 0, 7], 9_465).into(),
            chosen: true,
            token: token.map(Into::into),
            hosts: vec!["trace.example".to_owned()],
        })
    }

    fn judged(guard: &Guard, headers: &[(&str, &str)]) -> Result<(), Refusal> {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap()))
            .collect();
        guard.judge(None, &headers, [10, 0, 0, 7].into())
    }

    #[test]
    fn only_names_of_this_listener_are_hosts() {
        let guard = guard(None);
        for host in [
            "localhost",
            "LOCALHOST:9465",
            "localhost.",
            "127.0.0.1:1",
            "127.8.8.8",
            "[::1]:9465",
            "10.0.0.7:9465",
            "Trace.example",
        ] {
            assert_eq!(judged(&guard, &[("host", host)]), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "10.0.0.8",
            "0.0.0.0",
            "localhost@evil.example",
            "evil@localhost",
            "",
            "localhost/",
            "xtrace.example",
        ] {
            assert_eq!(judged(&guard, &[("host", host)]), Err(Refusal::Host), "{host}");
        }
        assert_eq!(judged(&guard, &[]), Err(Refusal::Host));
        let absolute: Authority = "evil.example".parse().unwrap();
        let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("localhost"))]);
        assert_eq!(guard.judge(Some(&absolute), &headers, [10, 0, 0, 7].into()), Err(Refusal::Host));
    }

    #[test]
    fn a_header_that_is_there_twice_is_nobodys() {
        let mut headers = HeaderMap::new();
        for host in ["localhost", "evil.example"] {
            headers.append(header::HOST, HeaderValue::from_static(host));
        }
        assert_eq!(guard(None).judge(None, &headers, [127, 0, 0, 1].into()), Err(Refusal::Host));
    }

    #[test]
    fn a_browser_asks_for_nobody_but_whoever_typed_the_address() {
        let guard = guard(None);
        let host = ("host", "localhost:9465");
        for allowed in [
            ("origin", "http://localhost:9465"),
            ("origin", "https://LOCALHOST:9465"),
            ("sec-fetch-site", "none"),
            ("sec-fetch-site", "same-origin"),
        ] {
            assert_eq!(judged(&guard, &[host, allowed]), Ok(()), "{allowed:?}");
        }
        for refused in [
            ("origin", "http://evil.example"),
            ("origin", "http://localhost:8080"),
            ("origin", "null"),
            ("origin", "localhost:9465"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("sec-fetch-site", ""),
        ] {
            assert_eq!(judged(&guard, &[host, refused]), Err(Refusal::Origin), "{refused:?}");
        }
    }

    #[test]
    fn a_token_that_is_set_must_be_sent() {
        let guard = guard(Some(TOKEN));
        let host = ("host", "localhost");
        for sent in [format!("Bearer {TOKEN}"), format!("bearer  {TOKEN}")] {
            assert_eq!(judged(&guard, &[host, ("authorization", &sent)]), Ok(()), "{sent}");
        }
        for sent in [
            String::new(),
            "Bearer".to_owned(),
            "Bearer ".to_owned(),
            TOKEN.to_owned(),
            format!("Basic {TOKEN}"),
            format!("Bearer {TOKEN}0"),
            format!("Bearer {}", &TOKEN[1..]),
            format!("Bearer {}", TOKEN.to_uppercase()),
        ] {
            assert_eq!(judged(&guard, &[host, ("authorization", &sent)]), Err(Refusal::Token), "{sent}");
        }
        assert_eq!(judged(&guard, &[host]), Err(Refusal::Token));
        // Nobody learns from another answer whether the token was right.
        let sent = format!("Bearer {TOKEN}");
        let evil = ("host", "evil.example");
        assert_eq!(judged(&guard, &[evil]), judged(&guard, &[evil, ("authorization", &sent)]));
    }
}
