//! The database's URL: which adapter it means, and how it may be shown.

use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use url::Url;

/// What is put in place of a secret.
pub(crate) const REDACTED: &str = "[redacted]";

/// Query parameters of a PostgreSQL URL that are no secret.
const SHOWN_PARAMETERS: [&str; 16] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// Those that may be one; their values are never shown. Any other is refused: sqlx would ignore it and log its value.
const HIDDEN_PARAMETERS: [&str; 2] = ["options", "password"];

/// The database with the outbox.
#[derive(Clone, Debug)]
pub(crate) enum Database {
    /// PostgreSQL.
    Postgres {
        /// With the password, if there is one.
        url: SecretString,
    },
    /// A file.
    Sqlite {
        /// Where it is.
        path: PathBuf,
    },
}

impl Database {
    /// Understands a URL, or says what is wrong with it without repeating any of it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() || path.starts_with(':') {
                return Err("sqlite: needs the path of a file".to_owned());
            }
            return Ok(Self::Sqlite { path: PathBuf::from(path) });
        }
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err("must be postgres://user@host/database or sqlite:path".to_owned());
        }
        let url = Url::parse(text).map_err(|error| {
            format!("is not a URL: {error} (in a password, write / ? # @ : and % percent-encoded)")
        })?;
        if ambiguous(&url) {
            return Err("is ambiguous: in a password, write / ? # @ : and % percent-encoded".to_owned());
        }
        if let Some(unknown) = url.query_pairs().map(|(name, _)| name).find(|name| !is_known(name)) {
            return Err(format!(
                "has the parameter {unknown:?}, which is none of {}, {}",
                SHOWN_PARAMETERS.join(", "),
                HIDDEN_PARAMETERS.join(", ")
            ));
        }
        Ok(Self::Postgres { url: SecretString::from(text) })
    }

    /// The URL as it may be shown.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Sqlite { path } => format!("sqlite:{}", path.display()),
            Self::Postgres { url } => shown(url.expose_secret()),
        }
    }

    /// The adapter's name.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Postgres { .. } => "postgres",
            Self::Sqlite { .. } => "sqlite",
        }
    }
}

fn is_known(parameter: &str) -> bool {
    SHOWN_PARAMETERS.contains(&parameter)
        || HIDDEN_PARAMETERS.contains(&parameter)
        || parameter.starts_with("options[")
}

/// Whether part of the password may have landed elsewhere in the URL.
fn ambiguous(url: &Url) -> bool {
    url.fragment().is_some()
        || url.path().contains(['@', ':'])
        || url.query().is_some_and(|q| q.contains('@'))
}

fn shown(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else { return REDACTED.to_owned() };
    if ambiguous(&url) {
        return REDACTED.to_owned();
    }
    let parameters: Vec<String> = url
        .query_pairs()
        .map(|(name, value)| {
            let shown = SHOWN_PARAMETERS.contains(&name.as_ref());
            format!("{name}={}", if shown { value.as_ref() } else { REDACTED })
        })
        .collect();
    let has_password = url.password().is_some();
    url.set_query(None);
    if has_password && url.set_password(None).is_err() {
        return REDACTED.to_owned();
    }
    let mut text = url.to_string();
    if has_password {
        text = match text.rsplit_once('@') {
            Some((user, rest)) => format!("{user}:{REDACTED}@{rest}"),
            None => text.replacen("://", &format!("://:{REDACTED}@"), 1),
        };
    }
    if parameters.is_empty() { text } else { format!("{text}?{}", parameters.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str) -> Result<String, String> {
        Database::parse(text).map(|database| database.shown())
    }

    #[test]
    fn a_password_is_never_shown_however_oddly_it_is_written() {
        let odd = [
            "hunter2",
            "hunter2/w",
            "1/hunter2",
            "hunter2?",
            "hunter2#x",
            "hunt@er2",
            "hun:ter2",
            "%68unter2",
        ];
        for password in odd {
            for url in [
                format!("postgres://app:{password}@db.example:5432/shop?sslmode=require"),
                format!("postgresql://:{password}@db.example/shop"),
                format!("postgres://db.example/shop?user=app&password={password}"),
                format!("postgres://db.example/shop?options={password}&sslmode=require"),
                format!("postgres://db.example/shop?sslpassword={password}&sslmode=require"),
            ] {
                let said = show(&url).unwrap_or_else(|error| error);
                assert!(!said.contains("hunt") && !said.contains("er2"), "{url} is shown as {said}");
            }
        }
    }

    #[test]
    fn what_is_no_secret_is_shown() {
        assert_eq!(
            show("postgres://app:pw@db.example:5432/shop?sslmode=verify-full&options=x").unwrap(),
            "postgres://app:[redacted]@db.example:5432/shop?sslmode=verify-full&options=[redacted]"
        );
        assert_eq!(
            show("postgres:///shop?host=/run/postgresql").unwrap(),
            "postgres:///shop?host=/run/postgresql"
        );
        assert_eq!(show("sqlite:shop.db").unwrap(), "sqlite:shop.db");
    }

    #[test]
    fn the_form_chooses_the_adapter_and_anything_else_is_refused() {
        assert!(
            matches!(Database::parse("sqlite:///var/shop.db"), Ok(Database::Sqlite { path }) if path.as_os_str() == "/var/shop.db")
        );
        assert!(matches!(Database::parse("postgresql://app@db/shop"), Ok(Database::Postgres { .. })));
        for refused in [
            "mysql://app@db/shop",
            "shop.db",
            "sqlite:",
            "sqlite::memory:",
            "postgres://u:1/2@h/db",
            "postgres://h/db?sslpassword=x",
        ] {
            assert!(Database::parse(refused).is_err(), "{refused}");
        }
    }
}
