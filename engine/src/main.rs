//! The command line: flags -> configuration -> runtime -> engine -> exit code, and nothing else.

use std::{os::unix::process::CommandExt, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use eventpulse::{
    chain, commands,
    config::{self, Config, Roles, value::Secret},
    dev,
    engine::Engine,
    huge_pages, logs,
    store::{Address, migrate},
    transform,
};

/// What one role allocates the other frees, which the system's allocator pays for with a walk over its lists.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Of sysexits(3): the command was used wrongly, here by its configuration.
const EX_USAGE: u8 = 64;

/// Longest drain: below the 40 s that the compose file and the README ask supervisors to allow.
/// `shutdown.delay` comes on top.
const SHUTDOWN_MAX: Duration = Duration::from_secs(35);

/// A webhook engine: events in by HTTP, committed to Postgres, delivered signed, retried, never lost.
#[derive(Parser)]
#[command(name = "eventpulse", version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Args)]
struct Settings {
    /// A TOML file with settings; the environment and flags win over it.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The gateway's port; with `--role dispatcher` the dispatcher's.
    #[arg(long, global = true)]
    port: Option<u16>,
    /// The dispatcher's port, for health and metrics.
    #[arg(long, global = true, value_name = "PORT")]
    dispatcher_port: Option<u16>,
    /// Check the configuration and exit.
    #[arg(long, global = true)]
    check_config: bool,
    /// Print the configuration as TOML, secrets hidden, and exit.
    #[arg(long, global = true)]
    dump_config: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Run with a private Postgres and Redis, and show a signed round trip.
    Dev(dev::Options),
    /// Run the gateway, the dispatcher, or both.
    Serve {
        /// One role only; both without it.
        #[arg(long)]
        role: Option<Role>,
        /// Migrate the database first.
        #[arg(long)]
        migrate: bool,
    },
    /// Bring the database to this version's schema.
    Migrate,
    /// Have Redis's index made again from Postgres, and say what is owed.
    Reconcile(commands::reconcile::Options),
    /// Say where an event is, why, and what comes next.
    Explain(commands::explain::Options),
    /// Show rates, latencies, depths and the worst webhooks of running processes.
    Top(commands::top::Options),
    /// Ask a running process whether it is well; exit 0 if so.
    Healthcheck {
        #[arg(long)]
        role: Option<Role>,
        /// Ask this URL, and nothing else: well is what answers with 2xx.
        #[arg(long)]
        url: Option<String>,
    },
    /// Write, check, try and upload a webhook's own module.
    #[command(subcommand)]
    Transform(commands::transform::Command),
    /// Encrypt webhooks' secrets in Postgres.
    #[command(subcommand)]
    Secrets(commands::secrets::Command),
    /// What a running process starts for each module that it compiles.
    #[command(hide = true)]
    CompileTransform,
}

#[derive(Clone, Copy, ValueEnum)]
enum Role {
    Api,
    Dispatcher,
}

fn roles(role: Option<Role>) -> Roles {
    match role {
        None => Roles::Both,
        Some(Role::Api) => Roles::Api,
        Some(Role::Dispatcher) => Roles::Dispatcher,
    }
}

/// Why the program ends with a code other than 0.
enum Failure {
    Usage(String),
    Other(String),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::Other(chain(&error))
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Before anything of the configuration is read: a module's bytes are not to be near it.
    if let Some(Command::CompileTransform) = cli.command {
        return transform::compile_in_this_process();
    }
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::from)
        .and_then(|runtime| runtime.block_on(run(cli)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(text)) => {
            eprintln!("{text}");
            ExitCode::from(EX_USAGE)
        }
        Err(Failure::Other(text)) => {
            eprintln!("eventpulse: {text}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let role = match &cli.command {
        Some(Command::Serve { role, .. } | Command::Healthcheck { role, .. }) => *role,
        _ => None,
    };
    let config = configuration(&cli, matches!(role, Some(Role::Dispatcher)))?;
    if cli.settings.dump_config {
        print!("{}", config.dump());
        return Ok(());
    }
    if cli.settings.check_config {
        config.validate(roles(role)).map_err(|e| Failure::Usage(e.to_string()))?;
        println!("the configuration is valid");
        return Ok(());
    }
    raise_file_limit();
    match cli.command {
        None => Err(Failure::Usage(
            "say what to do: dev, serve, migrate, reconcile, explain, top, healthcheck, secrets or transform (see --help)"
                .to_owned(),
        )),
        Some(Command::Dev(options)) => Ok(dev::run(config, options, terminated()).await?),
        Some(Command::Serve { role, migrate }) => serve(config, roles(role), migrate).await,
        Some(Command::Reconcile(options)) => {
            needed("DATABASE_URL", &config.database_url)?;
            needed("REDIS_URL", &config.redis_url)?;
            Ok(commands::reconcile::run(&config, options).await?)
        }
        Some(Command::Explain(options)) => {
            needed("DATABASE_URL", &config.database_url)?;
            Ok(commands::explain::run(&config, options).await?)
        }
        Some(Command::Top(options)) => Ok(commands::top::run(&config, options, terminated()).await?),
        Some(Command::Migrate) => migrate_database(&config).await,
        Some(Command::Healthcheck { role, url }) => healthcheck(&config, roles(role), url).await,
        Some(Command::Transform(command)) => Ok(commands::transform::run(&config, command).await?),
        Some(Command::Secrets(command)) => Ok(commands::secrets::run(&config, command).await?),
        // Done in `main` already.
        Some(Command::CompileTransform) => Ok(()),
    }
}

fn configuration(cli: &Cli, dispatcher_only: bool) -> Result<Config, Failure> {
    let settings = &cli.settings;
    let usage = |error: config::Error| Failure::Usage(error.to_string());
    let mut variables = config::load::environment().map_err(usage)?;
    // With the dispatcher alone, PORT is its port unless it has one of its own.
    if dispatcher_only
        && !variables.contains_key("DISPATCHER_PORT")
        && let Some(port) = variables.remove("PORT")
    {
        variables.insert("DISPATCHER_PORT".to_owned(), port);
    }
    let mut flags = Vec::new();
    if let Some(port) = settings.port {
        let field = if dispatcher_only { "http.dispatcher_port" } else { "http.port" };
        flags.push((field, port.to_string()));
    }
    if let Some(port) = settings.dispatcher_port {
        flags.push(("http.dispatcher_port", port.to_string()));
    }
    let config = config::load(settings.config.as_deref(), &variables, &flags).map_err(usage)?;
    // What these have to say they print themselves.
    let quiet = matches!(
        cli.command,
        Some(Command::Dev(_) | Command::Transform(_) | Command::Explain(_) | Command::Top(_))
    ) && config.log.filter == Config::default().log.filter;
    let filter = if quiet { "warn" } else { &config.log.filter };
    logs::begin(&config.log, filter).map_err(|error| Failure::Usage(format!("log.filter: {error}")))?;
    Ok(config)
}

/// Each connection is a file, and the usual soft limit of 1,024 is below what the settings allow.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused, connections beyond the limit are.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

async fn serve(config: Config, roles: Roles, migrate: bool) -> Result<(), Failure> {
    config.validate(roles).map_err(|e| Failure::Usage(e.to_string()))?;
    let mut term = std::pin::pin!(terminated());
    let longest = SHUTDOWN_MAX + config.shutdown.delay;
    let start = async {
        if migrate {
            migrate_database(&config).await?;
        }
        Engine::start(config.clone(), roles).await.map_err(stopped_by)
    };
    let mut engine = tokio::select! {
        // Nothing has been accepted yet, so there is nothing to finish.
        () = &mut term => return Ok(()),
        engine = start => engine?,
    };
    let show =
        |address: Option<std::net::SocketAddr>| address.map_or_else(|| "-".to_owned(), |a| a.to_string());
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        gateway = show(engine.gateway),
        dispatcher = show(engine.dispatcher),
        "ready"
    );
    tokio::select! {
        () = &mut term => shutdown(engine, longest).await,
        error = engine.ended() => Err(stopped_by(error)),
    }
}

/// What a fault comes to. A process whose memory is of another history than Postgres begins anew, in its place: nothing it knows can
/// be trusted, and everything it has accepted that still exists stands in Postgres.
fn stopped_by(error: eventpulse::engine::Error) -> Failure {
    if !error.is_rewound() {
        return error.into();
    }
    tracing::error!(error = chain(&error), "beginning anew");
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    huge_pages::reset();
    let mut again = std::process::Command::new(own_program());
    // Returns only if it could not be done.
    let failed = again.arg0(name).args(arguments).exec();
    Failure::Other(format!("{}; and it cannot be started again: {failed}", chain(&error)))
}

/// What runs here, also when its file was removed or replaced since, as by an upgrade: then by a name that only Linux has, and
/// not always, because the process is called `exe` from then on.
fn own_program() -> PathBuf {
    match std::env::current_exe() {
        Ok(path) if path.exists() => path,
        _ => "/proc/self/exe".into(),
    }
}

/// Drains; a second signal ends the delay before it. Ends all the same when Postgres or Redis hang: what was accepted is committed, and what is in hand is
/// pending or leased, so another process takes over what this one leaves.
async fn shutdown(engine: Engine, longest: Duration) -> Result<(), Failure> {
    let hurry = engine.hurry();
    let again = async {
        terminated().await;
        hurry.notify_one();
        std::future::pending::<()>().await
    };
    let drained = tokio::select! {
        drained = tokio::time::timeout(longest, engine.shutdown()) => drained,
        () = again => return Ok(()),
    };
    match drained {
        Ok(outcome) => Ok(outcome?),
        Err(_) => {
            Err(Failure::Other(format!("not drained within {} s; ended all the same", longest.as_secs())))
        }
    }
}

/// What a command cannot do without.
fn needed(name: &str, setting: &Secret) -> Result<(), Failure> {
    if setting.is_empty() { Err(Failure::Usage(format!("{name} is not set"))) } else { Ok(()) }
}

async fn migrate_database(config: &Config) -> Result<(), Failure> {
    needed("DATABASE_URL", &config.database_url)?;
    let store = eventpulse::store::Store::new(config.database_url.reveal(), 1)?;
    migrate::wait_for(&store, Duration::from_secs(60)).await?;
    let applied = migrate::migrate(&Address::parse(config.database_url.reveal())?).await?;
    tracing::info!(applied, "database migrated");
    Ok(())
}

async fn healthcheck(config: &Config, roles: Roles, url: Option<String>) -> Result<(), Failure> {
    commands::healthcheck::run(config, roles, url).await?;
    println!("ok");
    Ok(())
}

/// Ends on SIGTERM or Ctrl-C.
fn terminated() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    // Registered at once: a signal during the start must not be lost.
    let signals =
        signal(SignalKind::terminate()).and_then(|term| Ok((term, signal(SignalKind::interrupt())?)));
    async move {
        match signals {
            Ok((mut term, mut interrupt)) => {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = interrupt.recv() => {}
                }
            }
            Err(error) => {
                tracing::error!(%error, "signals cannot be handled; stop this process with SIGKILL");
                std::future::pending().await
            }
        }
    }
}
