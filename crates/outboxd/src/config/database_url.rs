//! The database's URL: which adapter it means, and how it may be shown.

use std::path::{Path, PathBuf};

use outboxd_postgres::{PostgresConfig, SchemaName};
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

/// Those that hold a certificate or key, or name its file.
const PEM_PARAMETERS: [&str; 7] =
    ["ssl-ca", "ssl-cert", "ssl-key", "ssl-root-cert", "sslcert", "sslkey", "sslrootcert"];

/// How every PEM begins.
const PEM: &[u8] = b"-----BEGIN";

/// Variables that the driver obeys unless the URL says otherwise, with the parameters that do. Nothing turns that off, so a
/// relay does not start while one is set: the same URL means the same everywhere.
pub(crate) const DRIVER_VARIABLES: [(&str, &[&str]); 4] = [
    ("PGOPTIONS", &[]),
    ("PGSSLCERT", &["sslcert", "ssl-cert"]),
    ("PGSSLKEY", &["sslkey", "ssl-key"]),
    ("PGSSLROOTCERT", &["sslrootcert", "ssl-root-cert", "ssl-ca"]),
];

const DEFAULT_PORT: u16 = 5_432;

const PORT: &str = "has a port that is none: 1 to 65535";

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
            if path.contains(['?', '#']) {
                return Err(
                    "sqlite: takes the path of a file and no parameters: leave out ? or #, and what follows"
                        .to_owned(),
                );
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
        complete(&url)?;
        sane(&url)?;
        PostgresConfig::from_url(text, SchemaName::default(), "").map_err(|error| error.to_string())?;
        Ok(Self::Postgres { url: SecretString::from(text) })
    }

    /// The URL for the driver, which would otherwise take a port that is not named from PGPORT.
    pub(crate) fn for_driver(url: &SecretString) -> SecretString {
        let text = url.expose_secret();
        let names_port = Url::parse(text).is_ok_and(|url| url.port().is_some() || names(&url, &["port"]));
        if names_port {
            return url.clone();
        }
        let separator = if text.contains('?') { '&' } else { '?' };
        SecretString::from(format!("{text}{separator}port={DEFAULT_PORT}"))
    }

    /// What is wrong with the certificates and keys that the URL names, and with the variables that the driver would obey.
    /// Reads the files.
    pub(crate) fn tls_problems(&self, variables: &[&str]) -> Vec<String> {
        let Self::Postgres { url } = self else { return Vec::new() };
        let Ok(url) = Url::parse(url.expose_secret()) else { return Vec::new() };
        let mut problems = Vec::new();
        for (variable, parameters) in DRIVER_VARIABLES {
            if variables.contains(&variable) && !names(&url, parameters) {
                problems.push(match parameters.first() {
                    Some(parameter) => format!(
                        "{variable} is set, and the driver would obey it: unset it, and write {parameter} into the URL"
                    ),
                    None => format!("{variable} is set, and the driver would obey it: unset it"),
                });
            }
        }
        for (name, value) in url.query_pairs() {
            if PEM_PARAMETERS.contains(&name.as_ref())
                && !is_pem(value.as_bytes())
                && let Err(said) = check_pem(Path::new(value.as_ref()))
            {
                problems.push(format!("{name} {said}"));
            }
        }
        problems
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

/// Refuses a URL that leaves it to PGHOST, PGUSER and PGDATABASE whom the relay talks to, and as whom.
fn complete(url: &Url) -> Result<(), String> {
    let has_host = url.host_str().is_some_and(|host| !host.is_empty());
    let parts = [
        ("host", has_host || names(url, &["host", "hostaddr"])),
        ("user", !url.username().is_empty() || names(url, &["user"])),
        ("database", !url.path().trim_matches('/').is_empty() || names(url, &["dbname"])),
    ];
    let missing: Vec<&str> =
        parts.into_iter().filter(|(_, is_named)| !is_named).map(|(part, _)| part).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "names no {}: write postgres://user@host/database (PGHOST, PGUSER and PGDATABASE are not read)",
        missing.join(" and no ")
    ))
}

/// Refuses what the driver would find out only by connecting, or not name.
fn sane(url: &Url) -> Result<(), String> {
    const MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
    for (name, value) in url.query_pairs() {
        match name.as_ref() {
            "sslmode" | "ssl-mode" if !MODES.iter().any(|mode| value.eq_ignore_ascii_case(mode)) => {
                return Err(format!("{name} must be one of {}", MODES.join(", ")));
            }
            "port" if !value.parse::<u16>().is_ok_and(|port| port > 0) => return Err(PORT.to_owned()),
            _other => {}
        }
    }
    if url.port() == Some(0) { Err(PORT.to_owned()) } else { Ok(()) }
}

/// Whether the URL gives one of these parameters a value.
fn names(url: &Url, parameters: &[&str]) -> bool {
    url.query_pairs().any(|(name, value)| parameters.contains(&name.as_ref()) && !value.is_empty())
}

/// Whether it is the certificate or key itself, which the driver takes as well.
fn is_pem(text: &[u8]) -> bool {
    text.windows(PEM.len()).any(|window| window == PEM)
}

/// The name is not repeated: it may be a secret in the wrong place.
fn check_pem(path: &Path) -> Result<(), String> {
    let contents =
        std::fs::read(path).map_err(|error| format!("names a file that cannot be read: {error}"))?;
    if is_pem(&contents) { Ok(()) } else { Err("names a file that holds no PEM".to_owned()) }
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
            let shown = SHOWN_PARAMETERS.contains(&name.as_ref()) && !is_pem(value.as_bytes());
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
                format!("postgres://app@db.example/shop?options={password}&sslmode=require"),
                format!("postgres://app@db.example/shop?sslpassword={password}&sslmode=require"),
                format!("postgres://app@db.example/shop?sslkey=-----BEGIN {password}"),
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
            show("postgres:///shop?host=/run/postgresql&user=app").unwrap(),
            "postgres:///shop?host=/run/postgresql&user=app"
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
            "postgres://u@h/db?sslpassword=x",
            "sqlite:shop.db?mode=ro",
            "sqlite:shop.db#main",
        ] {
            assert!(Database::parse(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_url_says_by_itself_where_and_as_whom_to_connect() {
        for (url, missing) in [
            ("postgres://127.0.0.1:5433", "no user and no database"),
            ("postgres://app@db", "no database"),
            ("postgres://db/shop", "no user"),
            ("postgres:///shop?user=app", "no host"),
            ("postgres:///shop?user=&host=/run/postgresql", "no user"),
        ] {
            let said = show(url).unwrap_err();
            assert!(
                said.contains(missing) && said.contains("postgres://user@host/database"),
                "{url}: {said}"
            );
        }
        let for_driver = |url: &str| Database::for_driver(&url.into()).expose_secret().to_owned();
        assert_eq!(for_driver("postgres://app@db/shop"), "postgres://app@db/shop?port=5432");
        assert_eq!(
            for_driver("postgres://app@db/shop?sslmode=allow"),
            "postgres://app@db/shop?sslmode=allow&port=5432"
        );
        for named in ["postgres://app@db:5433/shop", "postgres://app@db/shop?port=5433"] {
            assert_eq!(for_driver(named), named);
        }
    }

    #[test]
    fn what_the_driver_would_refuse_is_refused_by_name() {
        for (url, said) in [
            ("postgres://app@db/shop?sslmode=bogus", "sslmode must be one of disable"),
            ("postgres://app@db:0/shop", "port"),
            ("postgres://app@db/shop?port=0", "port"),
            ("postgres://app@db/shop?statement-cache-capacity=many", "not valid"),
        ] {
            let error = show(url).unwrap_err();
            assert!(error.contains(said), "{url}: {error}");
        }
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ca.pem");
        let url = format!("postgres://app@db/shop?sslmode=verify-full&sslrootcert={}", file.display());
        let problems = || Database::parse(&url).unwrap().tls_problems(&["PGSSLROOTCERT", "PGSSLKEY"]);
        let variable =
            "PGSSLKEY is set, and the driver would obey it: unset it, and write sslkey into the URL";
        assert_eq!(problems()[0], variable);
        assert!(
            problems()[1].starts_with("sslrootcert names a file that cannot be read"),
            "{:?}",
            problems()
        );
        std::fs::write(&file, "no certificate").unwrap();
        assert_eq!(problems()[1], "sslrootcert names a file that holds no PEM");
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----").unwrap();
        assert_eq!(problems().len(), 1);
    }
}
