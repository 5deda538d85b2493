//! How a `DATABASE_URL` becomes a connection: Prisma's parameters, TLS, and the session's settings.

use std::time::Duration;

use rustls::{
    ClientConfig,
    pki_types::{
        CertificateDer,
        pem::{self, PemObject as _},
    },
};
use tokio_postgres::{Client, Config, config::SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    Error, History, Pools,
    tls::{self, Trust},
};

/// Query parameters that Prisma writes and Postgres does not know. All but `schema` are dropped.
const PRISMA: [&str; 8] = [
    "schema",
    "connection_limit",
    "pool_timeout",
    "pgbouncer",
    "socket_timeout",
    "statement_cache_size",
    "sslaccept",
    "sslidentity",
];

/// Where Postgres is and how we talk to it.
#[derive(Clone)]
pub struct Address {
    config: Config,
    schema: Option<String>,
    tls: ClientConfig,
    history: History,
    pools: Pools,
}

impl Address {
    /// # Errors
    /// When tokio-postgres cannot read what is left after Prisma's parameters are taken out.
    pub fn parse(url: &str) -> Result<Address, Error> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut schema, mut roots_file, mut trust) = (None, None, None);
        let rest: Vec<&str> = query
            .split('&')
            .filter(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                if name == "schema" && is_plain_name(value) {
                    schema = Some(value.to_owned());
                }
                if name == "sslrootcert" {
                    roots_file = Some(value.to_owned());
                }
                !pair.is_empty() && name != "sslrootcert" && !PRISMA.contains(&name)
            })
            .map(|pair| {
                trust = match pair {
                    "sslmode=verify-full" => Some(Trust::Host),
                    "sslmode=verify-ca" => Some(Trust::Authority),
                    _ => return pair,
                };
                "sslmode=require"
            })
            .collect();
        let url = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
        let mut config: Config = url.parse().map_err(Error::Url)?;
        config.connect_timeout(Duration::from_secs(5));
        // A peer that vanished without a word is noticed in seconds, not after the kernel's quarter of an hour.
        config.keepalives_idle(Duration::from_secs(30));
        config.keepalives_interval(Duration::from_secs(10));
        config.keepalives_retries(3);
        config.tcp_user_timeout(Duration::from_secs(10));
        if config.get_application_name().is_none() {
            config.application_name("eventpulse");
        }
        // A role or a pooler may have switched synchronous_commit off, and P1 with it.
        let mut options = config.get_options().unwrap_or_default().to_owned();
        options.push_str(" -c synchronous_commit=on -c client_encoding=UTF8");
        // Every join of ours looks a few rows up by an index. A plan made while a table was empty, as `scheduled`
        // is when all is well, would otherwise go on scanning it once it is not.
        // And no statement of ours is worth compiling: that takes 50 ms and is decided by an estimate.
        options.push_str(" -c enable_hashjoin=off -c enable_mergejoin=off -c jit=off");
        if let Some(schema) = &schema {
            options.push_str(&format!(" -c search_path={schema}"));
        }
        config.options(options.trim());
        let roots = roots(roots_file)?;
        let trust = trust.unwrap_or_else(|| match config.get_ssl_mode() {
            // Whoever names authorities means them to be asked, which libpq does too.
            SslMode::Require if !roots.is_empty() => Trust::Authority,
            _ => Trust::Anybody,
        });
        let tls = tls::client(trust, &roots).map_err(Error::Tls)?;
        Ok(Address { tls, config, schema, history: History::default(), pools: Pools::default() })
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// The schema Prisma's parameter names, if it does.
    pub(super) fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// TLS as `sslmode` asks for it: `prefer` unless the URL says otherwise.
    pub(super) fn tls(&self) -> MakeRustlsConnect {
        MakeRustlsConnect::new(self.tls.clone())
    }

    /// What is known of the past by all that use this address.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The pools that were made for it.
    pub fn pools(&self) -> &Pools {
        &self.pools
    }

    /// A connection of its own, driven by a task that ends with it.
    pub(super) async fn connect(&self) -> Result<Client, Error> {
        let client = self.connect_unchecked().await?;
        self.history.check(&client).await?;
        Ok(client)
    }

    /// Whether Postgres has handed out this block of ids, which somebody remembers.
    ///
    /// # Errors
    /// [`Error::Rewound`] when it has not.
    pub async fn must_know(&self, block: i64) -> Result<(), Error> {
        self.history.note(block);
        self.connect().await.map(drop)
    }

    /// The same to a Postgres of whatever history.
    pub(super) async fn connect_unchecked(&self) -> Result<Client, Error> {
        let (client, connection) = self.config.connect(self.tls()).await.map_err(Error::Connect)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to Postgres ended");
            }
        });
        Ok(client)
    }
}

/// The authorities of `sslrootcert`; none for the web's.
fn roots(file: Option<String>) -> Result<Vec<CertificateDer<'static>>, Error> {
    match file {
        Some(file) if file != "system" => CertificateDer::pem_file_iter(&file)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            // An empty file would stand for all of the web's.
            .and_then(|roots| if roots.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(roots) })
            .map_err(|source| Error::Roots { file, source }),
        _ => Ok(Vec::new()),
    }
}

/// Whether `name` can stand in an option without quoting.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prismas_parameters_are_understood() {
        let address =
            Address::parse("postgresql://u:p@h:5433/d?schema=hooks&connection_limit=5&sslmode=disable")
                .unwrap();
        assert_eq!(address.schema(), Some("hooks"));
        assert!(address.config().get_options().unwrap().contains("search_path=hooks"));
        assert_eq!(address.config().get_ssl_mode(), SslMode::Disable);
        assert_eq!(address.config().get_dbname(), Some("d"));
    }

    #[test]
    fn a_schema_cannot_smuggle_an_option() {
        let address = Address::parse("postgres://h/d?schema=a%20-c%20fsync=off").unwrap();
        assert_eq!(address.schema(), None);
        assert!(Address::parse("postgres://h/d?nonsense=1").is_err());
    }

    #[test]
    fn libpqs_words_for_tls_are_understood() {
        let address = Address::parse("postgres://h/d?sslmode=verify-full").unwrap();
        assert_eq!(address.config().get_ssl_mode(), SslMode::Require);
        let error = Address::parse("postgres://h/d?sslrootcert=/no/such/file.pem").err().unwrap();
        assert!(error.to_string().contains("/no/such/file.pem"), "{error}");
    }
}
