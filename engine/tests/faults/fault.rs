//! The faults there are: their names, what they stand for, and what may come of them.

use std::time::Duration;

/// An outage of Postgres that is well within the margin between an attempt's time-out and the end of its lease.
const OUTAGE_SHORT: Duration = Duration::from_secs(7);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    GatewayKilled,
    DispatcherKilled,
    DispatcherStopped,
    GatewayStopped,
    DiesCommitted,
    DiesAnswered,
    DiesStreamed,
    DiesReplied,
    DiesRecorded,
    DiesLeased,
    StopsLeased,
    RollingRestart,
    ClockAhead,
    ClockBehind,
    RedisRestart,
    RedisLost,
    RedisWiped,
    RedisWipedThrice,
    RedisStalled,
    RedisFull,
    PostgresRestart,
    PostgresCrash,
    PostgresStalled,
    PostgresFull,
    PostgresRestored,
    Cut,
    ReceiverResets,
    ReceiverHangs,
    Poison,
}

impl Fault {
    pub(crate) const ALL: &[Fault] = &[
        Fault::GatewayKilled,
        Fault::DispatcherKilled,
        Fault::DispatcherStopped,
        Fault::GatewayStopped,
        Fault::DiesCommitted,
        Fault::DiesAnswered,
        Fault::DiesStreamed,
        Fault::DiesReplied,
        Fault::DiesRecorded,
        Fault::DiesLeased,
        Fault::StopsLeased,
        Fault::RollingRestart,
        Fault::ClockAhead,
        Fault::ClockBehind,
        Fault::RedisRestart,
        Fault::RedisLost,
        Fault::RedisWiped,
        Fault::RedisWipedThrice,
        Fault::RedisStalled,
        Fault::RedisFull,
        Fault::PostgresRestart,
        Fault::PostgresCrash,
        Fault::PostgresStalled,
        Fault::PostgresFull,
        Fault::PostgresRestored,
        Fault::Cut,
        Fault::ReceiverResets,
        Fault::ReceiverHangs,
        Fault::Poison,
    ];

    /// Its name on the command line and in reports, and what it is.
    pub(crate) fn words(self) -> (&'static str, &'static str) {
        match self {
            Fault::GatewayKilled => ("gateway-killed", "SIGKILL of a gateway, which is started again"),
            Fault::DispatcherKilled => {
                ("dispatcher-killed", "SIGKILL of a dispatcher, which is started again")
            }
            Fault::DispatcherStopped => (
                "dispatcher-stopped",
                "SIGSTOP of a dispatcher until others have claimed its work, then SIGCONT",
            ),
            Fault::GatewayStopped => {
                ("gateway-stopped", "the same with a gateway, whose batches are taken over")
            }
            Fault::DiesCommitted => ("dies-committed", "a gateway dies between a commit and its answers"),
            Fault::DiesAnswered => ("dies-answered", "a gateway dies between the answers and XADD"),
            Fault::DiesStreamed => ("dies-streamed", "a gateway dies between XADD and its mark in Postgres"),
            Fault::DiesReplied => {
                ("dies-replied", "a dispatcher dies between an endpoint's answer and its record")
            }
            Fault::DiesRecorded => ("dies-recorded", "a dispatcher dies between the record and the ack"),
            Fault::DiesLeased => ("dies-leased", "a dispatcher dies with retries that it has just leased"),
            Fault::StopsLeased => {
                ("stops-leased", "a dispatcher is stopped there until the lease is over, then goes on")
            }
            Fault::RollingRestart => {
                ("rolling-restart", "SIGTERM of all processes in turn; each is to end well")
            }
            Fault::ClockAhead => ("clock-ahead", "processes join whose wall clock is an hour ahead"),
            Fault::ClockBehind => ("clock-behind", "the same an hour behind"),
            Fault::RedisRestart => ("redis-restart", "SIGKILL of Redis, which comes back with its file"),
            Fault::RedisLost => ("redis-lost", "SIGKILL of Redis, which comes back empty"),
            Fault::RedisWiped => ("redis-wiped", "FLUSHALL"),
            Fault::RedisWipedThrice => {
                ("redis-wiped-thrice", "FLUSHALL three times, before what the first one lost is back")
            }
            Fault::RedisStalled => ("redis-stalled", "SIGSTOP of Redis for some seconds"),
            Fault::RedisFull => ("redis-full", "Redis refuses all writes: maxmemory with noeviction"),
            Fault::PostgresRestart => ("postgres-restart", "fast restart of Postgres"),
            Fault::PostgresCrash => ("postgres-crash", "SIGKILL of Postgres, which replays its log"),
            Fault::PostgresStalled => {
                ("postgres-stalled", "nothing moves between the processes and Postgres for some seconds")
            }
            Fault::PostgresFull => {
                ("postgres-full", "Postgres refuses events and outcomes with \"disk full\" (53100)")
            }
            Fault::PostgresRestored => {
                ("postgres-restored", "Postgres is set back to a backup of seconds ago, while Redis goes on")
            }
            Fault::Cut => ("cut", "all connections to Postgres and Redis are reset, several times"),
            Fault::ReceiverResets => ("receiver-resets", "all endpoints reset their connections"),
            Fault::ReceiverHangs => ("receiver-hangs", "all endpoints hang"),
            Fault::Poison => ("poison", "an event that ends every process that looks at it"),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        self.words().0
    }

    /// # Panics
    /// When there is none of that name.
    pub(crate) fn named(name: &str) -> Fault {
        let found = Fault::ALL.iter().copied().find(|fault| fault.name() == name.trim());
        found.unwrap_or_else(|| panic!("no fault is named {name}; scripts/faults --list tells all"))
    }

    /// Whether it is drawn unless asked for by name.
    pub(crate) fn drawn(self) -> bool {
        // A retry that kills is not found guilty, as a first try is (it/poison.rs): it goes on until its schedule is over.
        self != Fault::Poison
    }

    /// Whether a delivery may be made twice because of it, when it lasted so long: ARCHITECTURE.md lists the windows.
    pub(crate) fn may_repeat(self, lasted: Duration) -> bool {
        match self {
            Fault::RollingRestart
            | Fault::ClockAhead
            | Fault::ClockBehind
            | Fault::ReceiverResets
            | Fault::ReceiverHangs => false,
            // While outcomes cannot be recorded, leases end. A busy machine makes a restart long enough for that.
            Fault::PostgresRestart | Fault::PostgresCrash | Fault::PostgresFull | Fault::PostgresStalled => {
                lasted > OUTAGE_SHORT
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What it prints is what `scripts/faults --list` shows.
    #[test]
    fn names_are_told_apart() {
        for fault in Fault::ALL {
            let (name, meaning) = fault.words();
            let mark = if fault.drawn() { ' ' } else { '*' };
            println!("{mark} {name:<20} {meaning}");
            assert_eq!(Fault::named(name), *fault);
        }
        println!("* only when named by --only");
    }
}
