//! The admin listener: where it is and who may ask it.

use std::net::SocketAddr;

use secrecy::{ExposeSecret as _, SecretString};

use super::{Check, Needs, Origin, Problem, default_address};
use crate::config::Key;

/// A token that is shorter can be guessed.
const TOKEN_CHARACTERS_MIN: usize = 32;

/// A longer one does not fit into a request.
const TOKEN_CHARACTERS_MAX: usize = 1_024;

/// The admin listener.
#[derive(Debug)]
pub(crate) struct AdminSection {
    /// Where to listen.
    pub(crate) listen: SocketAddr,
    /// Whether somebody chose that address.
    pub(crate) chosen: bool,
    /// What a caller must know. There is one unless only this machine reaches the listener.
    pub(crate) token: Option<SecretString>,
    /// Names by which callers may know the listener, beside the loopback names and its own address. In lower case.
    pub(crate) hosts: Vec<String>,
}

/// Where the admin listener is to be.
enum Listen {
    Off,
    At(SocketAddr),
}

impl Check {
    /// `None`: it is off. What protects it is looked at only for commands that would start it or judge it.
    pub(super) fn admin(&mut self, needs: Needs) -> Option<AdminSection> {
        let judged = needs.listeners;
        let token = self.admin_token(judged);
        let hosts = self.parsed("admin.hosts", hosts).unwrap_or_default();
        let listen = self.parsed("admin.listen", |text| match text {
            "off" => Some(Listen::Off),
            text => text.parse().ok().map(Listen::At),
        });
        let listen = match listen {
            Some(Listen::Off) => return None,
            Some(Listen::At(listen)) => listen,
            None => default_address(),
        };
        if judged && token.is_none() && !listen.ip().is_loopback() && !self.complained_about("admin.token") {
            let variable = Key::find("admin.token_file").map_or_else(String::new, Key::variable);
            self.problems.push(Problem {
                key: "admin.token".to_owned(),
                said: format!(
                    "is not set, and admin.listen is {listen}, which others reach: set {variable} to a file that holds one \
                     (`openssl rand -hex 32`), or let admin.listen be a loopback address or off"
                ),
                origin: Origin::Default,
            });
        }
        let chosen = self.values.contains_key("admin.listen");
        Some(AdminSection { listen, chosen, token, hosts })
    }

    fn admin_token(&mut self, judged: bool) -> Option<SecretString> {
        let (text, key, origin) = self.text_or_file("admin.token", "admin.token_file", judged)?;
        if token_is_legal(text.expose_secret()) {
            return Some(text);
        }
        let bounds = Key::find("admin.token").map_or_else(String::new, Key::bounds);
        let said = if key == "admin.token" {
            format!("must be {bounds}")
        } else {
            format!("the file must hold {bounds}")
        };
        self.problems.push(Problem { key: key.to_owned(), said, origin });
        None
    }
}

fn token_is_legal(token: &str) -> bool {
    (TOKEN_CHARACTERS_MIN..=TOKEN_CHARACTERS_MAX).contains(&token.len())
        && token.bytes().all(|byte| byte.is_ascii_graphic())
}

fn hosts(list: &str) -> Option<Vec<String>> {
    let is_legal = |host: &String| {
        (1..=253).contains(&host.len())
            && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
    };
    list.split(',').map(|host| Some(host.trim().to_ascii_lowercase()).filter(is_legal)).collect()
}
