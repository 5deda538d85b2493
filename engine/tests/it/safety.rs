//! Settings of Postgres and Redis under which nothing should be promised.

use eventpulse::{
    config::{Config, Roles, value::Secret},
    engine::Engine,
    store::{Address, migrate},
};
use eventpulse_testkit::private_redis;

use crate::harness::{config, database, postgres};

/// Refused with a sentence that names the setting; started all the same when told to.
async fn refused_unless_told(config: Config, setting: &str) {
    let error = Engine::start(config.clone(), Roles::Both).await.err().expect("it is refused").to_string();
    assert!(error.contains(setting) && error.contains("recover.allow_unsafe"), "{error}");
    let mut told = config;
    told.recover.allow_unsafe = true;
    Engine::start(told, Roles::Both).await.expect("it starts").shutdown().await.expect("a clean stop");
}

#[tokio::test]
async fn a_postgres_that_stores_no_utf8_is_refused() {
    let url = eventpulse_testkit::database("ascii").await;
    let db = postgres(&url).await;
    let name: String = db.query_one("SELECT current_database()::text || '_other'", &[]).await.unwrap().get(0);
    let sql = format!("CREATE DATABASE \"{name}\" ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0");
    db.batch_execute(&sql).await.unwrap();
    let other = eventpulse_testkit::stack().postgres_url(&name);
    migrate::migrate(&Address::parse(&other).unwrap()).await.unwrap();
    refused_unless_told(config(&other), "server_encoding = SQL_ASCII").await;
}

#[tokio::test]
async fn a_redis_that_throws_keys_away_is_refused() {
    let redis = private_redis().await;
    let mut config = config(&database("evicts").await);
    config.redis_url = Secret::new(redis.url());
    let client = redis::Client::open(redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    for (name, value) in [("maxmemory-policy", "allkeys-lru"), ("maxmemory", "256mb")] {
        let set = redis::cmd("CONFIG").arg("SET").arg(name).arg(value).clone();
        let () = set.query_async(&mut connection).await.unwrap();
    }
    refused_unless_told(config, "maxmemory-policy = allkeys-lru").await;
}
