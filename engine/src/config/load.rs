//! Lays the sources over each other. The default configuration is the schema: it says which fields exist
//! and of which type a variable's text has to be.

use std::{collections::BTreeMap, path::Path};

use toml::{Table, Value};

use super::Config;

/// Variables with names of their own and the fields they set.
pub const ALIASES: [(&str, &str); 7] = [
    ("DATABASE_URL", "database_url"),
    ("REDIS_URL", "redis_url"),
    ("PORT", "http.port"),
    ("DISPATCHER_PORT", "http.dispatcher_port"),
    ("ALLOW_PRIVATE_TARGETS", "targets.allow_private"),
    ("REGISTRATION_TOKEN", "registration.token"),
    ("OPEN_REGISTRATION", "registration.open"),
];

const PREFIX: &str = "EVENTPULSE_";

/// All that is wrong with a configuration, one problem a line.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Error(pub Vec<String>);

/// Variables by name. [`environment`] reads the real ones.
pub type Variables = BTreeMap<String, String>;

/// The process's environment over what `.env` in the working directory says.
pub fn environment() -> Result<Variables, Error> {
    let mut variables = Variables::new();
    match dotenvy::from_filename_iter(".env") {
        Ok(lines) => {
            for line in lines {
                let (name, value) = line.map_err(|e| Error(vec![format!(".env: {e}")]))?;
                variables.insert(name, value);
            }
        }
        Err(error) if error.not_found() => {}
        Err(error) => return Err(Error(vec![format!(".env: {error}")])),
    }
    // A variable that is not UTF-8 cannot be one of ours.
    variables.extend(
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
    );
    Ok(variables)
}

/// Lays `file`, then `variables`, then `flags` (pairs of field path and text) over the defaults.
///
/// # Errors
/// Names every unknown or ill-typed field at once. Relations between fields are for
/// [`Config::validate`].
pub fn load(file: Option<&Path>, variables: &Variables, flags: &[(&str, String)]) -> Result<Config, Error> {
    let schema = Table::try_from(Config::default()).expect("defaults serialise");
    let mut table = schema.clone();
    let mut problems = Vec::new();
    if let Some(path) = file {
        match std::fs::read_to_string(path)
            .map_err(|e| e.to_string())
            .and_then(|text| text.parse::<Table>().map_err(|e| e.to_string()))
        {
            Ok(layer) => merge(&mut table, layer, "", &mut problems),
            Err(error) => problems.push(format!("{}: {error}", path.display())),
        }
    }
    let mut set = |source: &str, path: &str, text: &str| {
        if let Err(problem) = set_field(&mut table, path, text) {
            problems.push(format!("{source}: {problem}"));
        }
    };
    for (variable, path) in ALIASES {
        if let Some(text) = variables.get(variable) {
            set(variable, path, text);
        }
    }
    for (name, text) in variables {
        if let Some(rest) = name.strip_prefix(PREFIX) {
            set(name, &rest.to_lowercase().replace("__", "."), text);
        }
    }
    for (path, text) in flags {
        set(&format!("--{}", path.replace(['.', '_'], "-")), path, text);
    }
    // Each field is tried alone, so that one bad field does not hide the next.
    for (path, value) in leaves(&table, "") {
        let mut alone = schema.clone();
        place(&mut alone, &path, value);
        if let Err(error) = alone.try_into::<Config>() {
            problems.push(format!("{path}: {}", error.message()));
        }
    }
    if !problems.is_empty() {
        return Err(Error(problems));
    }
    table.try_into().map_err(|e| Error(vec![e.to_string()]))
}

/// Gives the field at `path` the value that `text` stands for in the type it has now.
fn set_field(table: &mut Table, path: &str, text: &str) -> Result<(), String> {
    let text = text.trim();
    let mut keys: Vec<&str> = path.split('.').collect();
    let name = keys.pop().unwrap_or_default();
    let unknown = || format!("there is no setting {path}");
    let mut section = table;
    for key in keys {
        section = section.get_mut(key).and_then(Value::as_table_mut).ok_or_else(unknown)?;
    }
    let field = section.get_mut(name).ok_or_else(unknown)?;
    *field = match field {
        Value::String(_) => Value::String(text.to_owned()),
        Value::Integer(_) => text
            .replace('_', "")
            .parse()
            .map(Value::Integer)
            .map_err(|_| format!("{text:?} is no whole number"))?,
        Value::Float(_) => {
            text.parse().map(Value::Float).map_err(|_| format!("{text:?} is no number such as 0.25"))?
        }
        Value::Boolean(_) => match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Value::Boolean(true),
            "false" | "0" | "no" | "off" | "" => Value::Boolean(false),
            _ => return Err(format!("{text:?} is neither true nor false")),
        },
        _ => return Err(unknown()),
    };
    Ok(())
}

fn merge(table: &mut Table, layer: Table, at: &str, problems: &mut Vec<String>) {
    for (key, value) in layer {
        let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        match (table.get_mut(&key), value) {
            (Some(Value::Table(section)), Value::Table(layer)) => merge(section, layer, &path, problems),
            (Some(field), value) if !field.is_table() => *field = value,
            _ => problems.push(format!("there is no setting {path}")),
        }
    }
}

fn leaves(table: &Table, at: &str) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for (key, value) in table {
        let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        match value {
            Value::Table(section) => found.extend(leaves(section, &path)),
            value => found.push((path, value.clone())),
        }
    }
    found
}

fn place(table: &mut Table, path: &str, value: Value) {
    match path.split_once('.') {
        Some((section, rest)) => {
            if let Some(section) = table.get_mut(section).and_then(Value::as_table_mut) {
                place(section, rest, value);
            }
        }
        None => {
            table.insert(path.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn the_environment_wins_over_defaults_and_flags_over_it() {
        let env = variables(&[
            ("PORT", "3100"),
            ("EVENTPULSE_RETRY__SCHEDULE", "200ms,1s"),
            ("EVENTPULSE_INGEST__BATCH_EVENTS_MAX", "64"),
            ("EVENTPULSE_DELIVER__TIMEOUT", "3s"),
            ("REGISTRATION_TOKEN", "12345"),
        ]);
        let config = load(None, &env, &[("http.port", "3200".into())]).unwrap();
        assert_eq!(config.http.port, 3200);
        assert_eq!(config.retry.schedule.waits().len(), 2);
        assert_eq!(config.ingest.batch_events_max, 64);
        assert_eq!(config.deliver.timeout, Duration::from_secs(3));
        assert_eq!(config.registration.token.reveal(), "12345");
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let env = variables(&[
            ("EVENTPULSE_RETRY__SCHEDULE", "later"),
            ("EVENTPULSE_RETRY__SCHEDUEL", "1s"),
            ("PORT", "99999"),
            ("OPEN_REGISTRATION", "perhaps"),
        ]);
        let text = load(None, &env, &[]).unwrap_err().to_string();
        for part in ["retry.schedule", "retry.scheduel", "http.port", "OPEN_REGISTRATION"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_dump_reads_back_without_secrets() {
        let env = variables(&[("DATABASE_URL", "postgres://u:hidden@h/d")]);
        let dump = load(None, &env, &[]).unwrap().dump();
        assert!(!dump.contains("hidden") && dump.contains("***"), "{dump}");
        assert!(dump.parse::<Table>().is_ok());
    }
}
